"""What is known of the prompts that ship is kept for each base model, and never taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from grun.core.process.environment import cache_directory
from grun.models.encoding.templates import resolve_template
from grun.models.gates.topics import background as module
from grun.models.gates.topics.background import Background, background
from grun.models.gates.topics.prompt_states import read_prompts
from grun.models.row_encoder import RowEncoder
from support.tiny_models import tiny_model, tiny_tokenizer
from support.topic_kit import attach_topics, few_shipped_prompts

TOKENIZER = tiny_tokenizer()


def encoder(template: str = "qa", longest: int | None = None) -> RowEncoder:
    return RowEncoder(TOKENIZER, resolve_template(template, TOKENIZER), longest, 4, torch.device("cpu"))


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Few prompts ship; the numbers of prompts that were read, one for each time."""
    few_shipped_prompts(monkeypatch)
    found: list[int] = []
    real = read_prompts

    def reading(model: Any, prompts: Any, *others: Any) -> Any:
        found.append(len(prompts))
        return real(model, prompts, *others)

    monkeypatch.setattr(module, "read_prompts", reading)
    return found


def known(
    content: str | None = "weights", *, seed: int = 0, width: int = 8, layer: int = 1, rows: RowEncoder | None = None
) -> Background:
    model = attach_topics(tiny_model(seed=seed), layers=[2, 3], topic_width=width, topic_layer=layer)
    wrapped = next(one for one in model.base_model.runtime.layers if one.index == layer)
    return background(model, rows or encoder(), wrapped, width, content)


def same(one: Background, two: Background) -> bool:
    return (
        one.numbers == two.numbers
        and one.head.digest == two.head.digest
        and torch.equal(one.embedding_NK, two.embedding_NK)
    )


def cached() -> list[Path]:
    return sorted((cache_directory() / "topics").glob("*"))


def test_a_model_is_asked_once_and_later_runs_take_the_same_values(reads: list[int]) -> None:
    first, again = known(), known()
    assert len(reads) == len(cached()) == 1
    assert same(first, again)
    assert first.embedding_NK.shape == (len(first.numbers), 8)
    torch.testing.assert_close(first.embedding_NK.norm(dim=1), torch.ones(len(first.numbers)))
    cached()[0].unlink()
    assert same(first, known()), "learning it anew gives the same bits"


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "lacking"])
def test_a_damaged_file_is_written_again(reads: list[int], damage: str) -> None:
    first, (file,) = known(), cached()
    content, tensors = file.read_bytes(), load_file(file)
    tensors.pop("embedding_NK")
    if damage == "lacking":
        save_file(tensors, file)
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 500}[damage])
    assert same(first, known())
    assert len(reads) == 2
    assert file.read_bytes() == content
    assert same(first, known())
    assert len(reads) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "other weights", "seed": 1},
        {"width": 6},
        {"layer": 2},
        {"rows": encoder("{prompt} ->")},
        {"rows": encoder(longest=30)},
    ],
    ids=["weights", "width", "layer", "template", "length"],
)
def test_what_another_model_or_setting_gave_is_not_used(reads: list[int], changes: dict[str, Any]) -> None:
    first, other = known(), known(**changes)
    assert len(reads) == len(cached()) == 2
    assert not same(first, other)
    assert same(first, known())
    assert same(other, known(**changes))
    assert len(reads) == 2


def test_a_model_without_an_identity_is_asked_every_time(reads: list[int]) -> None:
    assert same(known(None), known(None))
    assert len(reads) == 2
    assert cached() == []


def test_prompts_that_are_too_long_for_the_model_are_left_out(reads: list[int]) -> None:
    everything, short = known(), known(rows=encoder(longest=30))
    assert reads == [len(everything.numbers), len(short.numbers)]
    assert set(short.numbers) < set(everything.numbers)
