"""Embeddings of the prompts that ship with the package, and the head that makes them, once for a base model."""

from __future__ import annotations

__all__ = ["Background", "background"]

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grun.core.errors import UserError
from grun.core.process.environment import cache_directory
from grun.core.records import Example
from grun.core.storage.cache import keep, read_kept
from grun.data.shipped_prompts import shipped_prompts
from grun.models.encoding.encode import Encoded, encode
from grun.models.gates.topics.head import learnt_head
from grun.models.gates.topics.prompt_states import PromptStates, read_prompts
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.layer import GrunLayer
from grun.models.tuner.readers.topic import TopicHead, embedding

logger = logging.getLogger("grun")
VERSION = 2  # of how the head is learnt; a change makes kept ones useless
LONGEST = 128  # tokens, the last ones, of a text that the head is learnt from


@dataclass(frozen=True)
class Background:
    """Prompts that ship with the package, as a base model reads them at one layer.

    Attributes:
        head: the map from hidden states to embeddings.
        embedding_NK: unit vectors of the prompts, on the CPU.
        numbers: number of each of them among `shipped_prompts`; those that are too long for the model are left out.
    """

    head: TopicHead
    embedding_NK: Tensor
    numbers: tuple[int, ...]


def background(model: Any, rows: RowEncoder, layer: GrunLayer, width: int, content: str | None) -> Background:
    """The head for a base model and the embeddings of the prompts that ship, from the user's cache if they are there.

    Args:
        model: PEFT model with an adapter that reads topics at `layer`.
        rows: encoder of prompts.
        layer: the wrapped layer whose input is read.
        width: size K of the embedding.
        content: identity of the base model's weights; None keeps nothing.
    """
    numbers, encoded = _encoded(rows)
    file = None if content is None else _file(model, encoded, layer.index, width, content)
    hidden = model.config.get_text_config().hidden_size
    if file is not None and (known := read_kept(file, lambda it: _kept(it, len(encoded), hidden, width))) is not None:
        return Background(known[0], known[1], numbers)
    logger.info("Reading %d normal prompts once for this model; later runs take them from the cache.", len(encoded))
    head, embedding_NK = _learnt(model, rows, encoded, numbers, layer, width)
    if file is not None:
        keep(file, lambda it: save_file({**vars(head), "embedding_NK": embedding_NK}, it))
    return Background(head, embedding_NK, numbers)


def _encoded(rows: RowEncoder) -> tuple[tuple[int, ...], list[Encoded]]:
    """The shipped prompts that the model has room for, and their numbers."""
    found: dict[int, Encoded] = {}
    for i, prompt in enumerate(shipped_prompts()):
        with suppress(UserError):  # longer than the longest row
            found[i] = encode(Example(prompt.text, ""), rows.tokenizer, rows.template, rows.max_length)
    return tuple(found), list(found.values())


def _file(model: Any, encoded: Sequence[Encoded], layer: int, width: int, content: str) -> Path:
    """File in the cache; its name depends on all that the head depends on."""
    ids = [row.input_ids[: row.prompt_length] for row in encoded]
    key = json.dumps([VERSION, content, str(model.dtype), layer, width, ids])
    return cache_directory() / "topics" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _kept(file: Path, prompts: int, hidden: int, width: int) -> tuple[TopicHead, Tensor]:
    """Head and embeddings from a file of the cache.

    Raises:
        ValueError: if it holds tensors of other shapes, or numbers that are not finite; other errors if it is damaged.
    """
    tensors = load_file(file)
    shapes = ((hidden,), (width, hidden), (width,), (prompts, width))
    values = [tensors[name] for name in (*TopicHead.__dataclass_fields__, "embedding_NK")]
    if tuple(tuple(value.shape) for value in values) != shapes or not all(bool(v.isfinite().all()) for v in values):
        raise ValueError(f"{file} is damaged")
    return TopicHead(*values[:-1]), values[-1]


def _learnt(
    model: Any, rows: RowEncoder, encoded: Sequence[Encoded], numbers: Sequence[int], layer: GrunLayer, width: int
) -> tuple[TopicHead, Tensor]:
    """Read all prompts, learn the head from those with a topic, and embed them all."""
    prompts = [row.input_ids[: row.prompt_length] for row in encoded]
    states = read_prompts(model, prompts, layer, rows.pad)
    shipped = shipped_prompts()
    topics = {topic: i for i, topic in enumerate(dict.fromkeys(prompt.topic for prompt in shipped))}
    learnt = [i for i in range(len(encoded)) if shipped[numbers[i]].topic is not None]
    labels = [topics[shipped[numbers[i]].topic] for i in learnt]
    parts = [states.own[i][-LONGEST:] for i in learnt]
    head = learnt_head(PromptStates(states.shared_PD, parts), labels, width)
    return head, torch.cat([_embedded(head, states.shared_PD, h_PD) for h_PD in states.own])


@torch.no_grad()
def _embedded(head: TopicHead, shared_PD: Tensor, own_PD: Tensor) -> Tensor:
    """Embedding (1, K) of one prompt."""
    h_1PD = torch.cat([shared_PD, own_PD])[None].float()
    return embedding(head.summary(h_1PD, torch.ones(h_1PD.shape[:2], dtype=torch.bool)))
