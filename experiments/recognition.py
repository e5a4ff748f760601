"""Recognition: what opens the gates that are fitted on sixty prompts about a topic, or on WMDP's summaries.

    GRUN_WMDP_DIR=wmdp python experiments/recognition.py --model smollm2

Gates are fitted and calibrated as in an unlearning run, and no edit is trained. For every topic of the benchmark `topics` and
three seeds, the experiment counts prompts that open a gate: unseen questions and descriptions of the topic, which must, and
questions about its neighbours and ordinary prompts, which must not. Three ways are compared: both gates, the gate for names
alone (`--topic-layer none`), and a sentence embedder as the gate (`baselines/sentence_gate.py`). Rows to forget stand without
answers here, so that nothing needs to be generated.

Where `GRUN_WMDP_DIR` names a folder with WMDP's questions and the one-sentence summaries of its corpora, gates are fitted on
400 summaries, as whole prompts and as running text (the first quarter), with 200 sentences of an encyclopaedia as normal rows.
The questions are written as the benchmark `wmdp` writes them. Writes `docs/results/recognition.json` and `.md`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from baselines.sentence_gate import SentenceEmbedder, fetched, shares_of_sentence_gate
from common import write_results
from peft import get_peft_model
from recognition_results import EVIDENCE, table

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Benchmark, Example
from grun.core.storage.atomic_files import read_json, write_json
from grun.data.benchmarks import load_benchmark
from grun.data.examples import split_text
from grun.data.tables import read_rows
from grun.jobs.inputs.unlearning import withhold
from grun.models.adaptations import NO_TOPICS, with_presets
from grun.models.adaptations.grun import grun_config
from grun.models.gates.all_gates import JobRows, fit_all_gates
from grun.models.gates.calibration import OpenShare, share_open
from grun.models.gates.features import GateFeatures, features_of_rows, gate_logits, gates_of, thresholds_of
from grun.models.loading.loaded import LoadedModel, load
from grun.models.loading.restoring import Snapshot

DEVELOPMENT = ("beethoven", "harry_potter", "volcanoes")  # everything was chosen on these
SEEDS = (0, 1, 2)
ASKED = ("unseen", "described", "neighbours", "ordinary")
WMDP = {"bio": "merge_forget_data_sum_gpt.jsonl", "cyber": "cyber_forget_data_sum_gpt.jsonl"}
ENCYCLOPAEDIA = "merge_retain_data_sum_gpt.jsonl"
FORMS = ("whole prompts", "first quarters")
FITTED, NORMAL, HELD_OUT = 400, 200, 300  # summaries, and sentences of the encyclopaedia; of each, those that are asked
QUESTIONS = 500  # at most, drawn at random: many of the security questions hold pages of code
BATCH_SIZE = 4  # features are read in batches of four times as many rows
Rows = Mapping[str, Sequence[Example]]


@dataclass
class GatesOfModel:
    """Gates on a base model's states, fitted anew for every measurement.

    Attributes:
        base: the model.
        read: features of prompts that are asked, by the kind of gates and the prompts; seeds share them.
    """

    base: LoadedModel
    read: dict[tuple[bool, tuple[Example, ...]], list[GateFeatures]] = field(default_factory=dict)

    def shares(self, parts: Rows, asked: Rows, seed: int, *, topics: bool) -> dict[str, OpenShare]:
        """Prompts that open a gate, by kind.

        Args:
            parts: rows to fit on: `forget`, `retain` and `validation`.
            asked: prompts of each kind.
            seed: of the gates and their fits.
            topics: with the gate for topics.
        """
        name = str(self.base.model.name_or_path)
        config = with_presets(UnlearnConfig(model=name, seed=seed, topic_layer=None if topics else NO_TOPICS))
        before = Snapshot(self.base.model)
        try:
            model = get_peft_model(self.base.model, grun_config(config))
            fit_all_gates(
                model,
                self.base.encoder,
                {kind: JobRows(part, self.base.encoder.encode(part)) for kind, part in parts.items()},
                content=self.base.content,
                false_positive_rate=config.false_positive_rate,
                seed=seed,
            )
            gates, threshold_G = [gate for _, gate in gates_of(model)], thresholds_of(model)
            return {
                kind: share_open(self._logits(model, gates, part, topics), threshold_G) for kind, part in asked.items()
            }
        finally:
            before.restore()

    @torch.no_grad()
    def _logits(self, model: Any, gates: Sequence[Any], part: Sequence[Example], topics: bool) -> torch.Tensor:
        """Logits (N, G) of prompts, read in batches by length the first time."""
        key = (topics, tuple(part))
        if key not in self.read:
            encoded = self.base.encoder.encode(part)
            order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].input_ids))
            found = features_of_rows(model, self.base.encoder, [encoded[i] for i in order])
            back = sorted(range(len(order)), key=order.__getitem__)
            self.read[key] = [features.at(back) for features in found]
        return gate_logits(self.read[key], gates).cpu()


@dataclass(frozen=True)
class Recognisers:
    """All ways of recognising prompts that are compared.

    Attributes:
        gates: on the states of a language model.
        embed: the sentence embedder.
    """

    gates: GatesOfModel
    embed: SentenceEmbedder

    def compared(self, parts: Rows, asked: Rows, seed: int) -> dict[str, Any]:
        """Shares of prompts that open a gate, by way and kind, as JSON."""
        rate = UnlearnConfig().false_positive_rate
        found = {
            "names and topics": self.gates.shares(parts, asked, seed, topics=True),
            "names only": self.gates.shares(parts, asked, seed, topics=False),
            "MiniLM": shares_of_sentence_gate(self.embed, parts, asked, rate, seed),
        }
        return {way: {kind: share.as_json() for kind, share in own.items()} for way, own in found.items()}


def fitted_rows(forget: Sequence[Example], normal: Sequence[Example], seed: int) -> Rows:
    """Rows to fit on; a share of the normal ones is withheld as in an unlearning run."""
    retain, validation = withhold(normal, UnlearnConfig().withhold, seed)
    return {"forget": forget, "retain": retain, "validation": validation}


def of_topic(topic: str, seed: int) -> tuple[Rows, Rows]:
    """Rows of a topic to fit on, and prompts to ask."""
    data: Benchmark = load_benchmark("topics", seed=seed, options={"topic": topic})
    parts = fitted_rows(data.splits["forget"], data.splits["retain"], seed)
    return parts, {kind: data.splits[kind] for kind in ASKED}


def of_wmdp(folder: Path, corpus: str, form: str, ordinary: Sequence[Example]) -> tuple[Rows, Rows]:
    """Summaries of a corpus to fit on, and prompts to ask: questions, other summaries and sentences, ordinary prompts."""
    draw = random.Random(f"recognition {corpus}")
    summaries, sentences = (drawn_texts(folder / name, draw) for name in (WMDP[corpus], ENCYCLOPAEDIA))
    forget, unseen = summaries[:FITTED], summaries[FITTED : FITTED + HELD_OUT]
    normal, others = sentences[:NORMAL], sentences[NORMAL : NORMAL + HELD_OUT]
    parts = fitted_rows([written(text, form) for text in forget], [written(text, form) for text in normal], 0)
    asked = {
        "questions": questions(folder, corpus),
        "summaries": [written(text, form, answer=False) for text in unseen],
        "encyclopaedia": [written(text, form, answer=False) for text in others],
        "ordinary": ordinary,
    }
    return parts, asked


def drawn_texts(file: Path, draw: random.Random) -> list[str]:
    """Different texts of a file, in random order."""
    texts = list(dict.fromkeys(str(row.values["text"]) for row in read_rows(str(file))))
    draw.shuffle(texts)
    return texts


def written(text: str, form: str, *, answer: bool = True) -> Example:
    """A text as a row: as a whole prompt, or as running text whose first quarter is the prompt."""
    if form == FORMS[0]:
        return Example(text, "")
    prompt, rest = split_text(text)
    return Example(prompt, rest if answer else "", raw_text=True)


def questions(folder: Path, corpus: str) -> list[Example]:
    """Questions as the benchmark `wmdp` writes them; of many, some that are drawn at random."""
    rows = list(load_benchmark("wmdp", data_dir=folder).splits[corpus])
    return rows if len(rows) <= QUESTIONS else random.Random(f"questions {corpus}").sample(rows, QUESTIONS)


def records(ways: Recognisers, topics: Sequence[str], folder: Path, wmdp: Path | None) -> dict[str, Any]:
    """All measurements; those that `folder` holds already are not made again."""
    found: dict[str, Any] = {"topics": {}, "wmdp": {}}
    for topic in topics:
        seeds = (once(folder / f"{topic}-{seed}.json", ways, *of_topic(topic, seed), seed) for seed in SEEDS)
        found["topics"][topic] = list(seeds)
    if wmdp is not None:
        ordinary = of_topic(DEVELOPMENT[0], 0)[1]["ordinary"]
        for corpus, form in ((corpus, form) for corpus in WMDP for form in FORMS):
            file = folder / f"wmdp-{corpus}-{form.replace(' ', '-')}.json"
            found["wmdp"][f"{corpus}, {form}"] = once(file, ways, *of_wmdp(wmdp, corpus, form, ordinary), 0)
    return found


def once(file: Path, ways: Recognisers, parts: Rows, asked: Rows, seed: int) -> dict[str, Any]:
    """A measurement from its file, or made now."""
    known = read_json(file)
    if known is None:
        known = ways.compared(parts, asked, seed)
        write_json(file, known)
    return dict(known)


def chosen_topics(asked: Sequence[str]) -> Iterator[str]:
    """The topics that were asked for; all of them if none was."""
    yield from asked or (*DEVELOPMENT, *EVIDENCE)


def main() -> None:
    """Measure everything, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="name of a packaged model, hub id, file or folder")
    parser.add_argument("--minilm", type=Path, default=None, help="folder of the embedder, if it is there already")
    parser.add_argument("--work", type=Path, default=Path("runs/recognition"), help="folder for measurements")
    parser.add_argument("--topics", nargs="*", default=(), help="only these topics; nothing is written to docs/results")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    base = load(given.model, UnlearnConfig(device="cpu", dtype="float32"), batch_size=BATCH_SIZE)
    embed = SentenceEmbedder.load(given.minilm or fetched(), given.work / "minilm.safetensors")
    wmdp = os.environ.get("GRUN_WMDP_DIR") if not given.topics else None
    ways = Recognisers(GatesOfModel(base), embed)
    found = records(ways, list(chosen_topics(given.topics)), given.work, Path(wmdp) if wmdp else None)
    text = table(found)
    if not given.topics:
        write_results("recognition", {"model": given.model, **found}, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
