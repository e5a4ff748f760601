"""WMDP: RMU under GRUN on summaries of hazardous texts, and what is left of the knowledge by multiple-choice questions.

    python experiments/wmdp.py --model smollm2 --data-dir "$GRUN_WMDP_DIR"

For each corpus of the benchmark `wmdp`, a model unlearns 200 one-sentence summaries and keeps 200 sentences of an
encyclopaedia: with our gates, and with the setting of the GRUN paper. Objective, steering coefficient, retain loss, batch and
passes are those of the paper in both. Before and after, the model is asked questions of both corpora with an odd index in the
file, as everything was chosen on the even ones, and general questions in the same form: the likeliest of the letters A to D
is its answer, as in lm-evaluation-harness. Writes `docs/results/wmdp.json` and `.md`; killed and started again it goes on
where it stopped. One core takes about a quarter of an hour for the model before and with our gates, and as long for the
paper's setting.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import write_results
from recognition import CORPORA, drawn, questions, text_of
from scipy.stats import binomtest

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example, Score
from grun.core.storage.atomic_files import read_json, write_json, write_text
from grun.data.benchmarks import load_benchmark
from grun.evaluation.intervals import interval
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics
from grun.evaluation.scores import evaluate_model
from grun.jobs.unlearn import unlearn
from grun.models.encoding.templates import resolve_template
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer

ROWS = 200  # summaries to forget, and sentences to keep
QUESTIONS = 100  # of each corpus, drawn at random
GENERAL = "general"  # split of general questions
SEED = 0
GUESSED = 0.25  # accuracy of guessing
SHARES = ("accuracy", "gate_open")
MEANS = ("probability", "gate_mean")
SETTINGS: dict[str, dict[str, Any]] = {
    "our gates": {"preset": "default"},
    "paper": {"preset": "paper", "gate_weight": 100.0},
}
PAPER: dict[str, Any] = {
    "objective": "rmu",
    "objective_options": {"coefficient": "300"},
    "adapt": "grun",
    "epochs": 4.0,
    "batch_size": 16,
    "evaluate_every": 25,
}
Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by split and metric


@dataclass(frozen=True)
class Study:
    """What all parts of the experiment share.

    Attributes:
        model: name of the model.
        data_dir: folder of the benchmark.
        work: folder for runs and measurements.
    """

    model: str
    data_dir: Path
    work: Path

    def asked(self) -> dict[str, Sequence[Example]]:
        """Questions of both corpora that nothing was chosen on, and general ones."""
        splits = load_benchmark("wmdp", data_dir=self.data_dir).splits
        chosen = {corpus: questions(splits[corpus], corpus, QUESTIONS) for corpus in CORPORA}
        return {**chosen, GENERAL: splits[GENERAL]}

    def files(self, corpus: str) -> dict[str, list[str]]:
        """Files of the rows to forget and to keep, the same ones whenever they are written."""
        data = load_benchmark("wmdp", data_dir=self.data_dir, options={"corpus": corpus})
        found = {}
        for side in ("forget", "retain"):
            rows, _ = drawn(data.splits[side], ROWS, SEED)
            file = self.work / f"{corpus}-{side}.jsonl"
            write_text(file, "".join(json.dumps({"text": text_of(row)}) + "\n" for row in rows))
            found[side] = [str(file)]
        return found

    def scores(self, file: Path, adapter: Path | None) -> Scores:
        """Values with intervals of the model, or of the model with an adapter; measured once, then read from `file`."""
        if (known := read_json(file)) is not None:
            return dict(known)
        model, tokenizer = load_model_and_tokenizer(self.model, device="cpu")
        adapted = model if adapter is None else load_adapter(model, str(adapter))
        names = [*SHARES, *MEANS] if adapter is not None else ["accuracy", "probability"]
        settings = MeasureSettings(resolve_template("auto", tokenizer))
        found = evaluate_model(Subject(adapted, tokenizer), self.asked(), settings, forget_split=None, metrics=names)
        values = {split: {name: with_interval(name, one) for name, one in own.items()} for split, own in found.items()}
        write_json(file, values)
        return values

    def run(self, corpus: str, setting: str) -> dict[str, Any]:
        """One unlearning run and its scores; it runs unless it has run before."""
        folder = self.work / f"{corpus}-{setting.replace(' ', '-')}"
        settings = PAPER | SETTINGS[setting] | self.files(corpus)
        adapter = unlearn(UnlearnConfig(model=self.model, output=str(folder), device="cpu", seed=SEED, **settings))
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return {
            "corpus": corpus,
            "setting": setting,
            "seconds": record["seconds"],
            "steps": facts["steps"],
            "trainable_parameters": facts["trainable_parameters"],
            "scores": self.scores(folder / "scores.json", adapter),
        }


def with_interval(name: str, score: Score) -> dict[str, Any]:
    """A score with its 95 % interval: an exact one of a share, else by bootstrap over questions."""
    assert score.value is not None, score.reason
    if name in SHARES:
        exact = binomtest(round(score.value * score.n), score.n).proportion_ci()
        return {"value": score.value, "interval": [float(exact.low), float(exact.high)], "n": score.n}
    reach = interval(score, metrics.get(name).info, SEED)
    return {"value": score.value, "interval": None if reach is None else list(reach), "n": score.n}


def table(before: Scores, runs: Sequence[Mapping[str, Any]]) -> str:
    """A line for each run and kind of question, and what they can say."""
    head = ("forgotten", "setting", "questions", "number", "must be", "accuracy", "p of the true letter", "gate open")
    lines: list[tuple[str, ...]] = [(*head, "gate"), ("---",) * 5 + ("---:",) * 4]
    lines += [_line("nothing", "–", split, "", before[split]) for split in before]
    for run in runs:
        for split, own in run["scores"].items():
            role = "forgotten" if split == run["corpus"] else "kept"
            lines.append(_line(run["corpus"], run["setting"], split, role, own))
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return text + "\n" + "".join(f"{sentence}\n" for sentence in _remarks(before, runs))


def _line(forgotten: str, setting: str, split: str, role: str, own: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    values = (_value(own.get(name)) for name in ("accuracy", "probability", "gate_open", "gate_mean"))
    return (forgotten, setting, split, str(own["accuracy"]["n"]), role, *values)


def _value(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    reach = found["interval"]
    return f"{found['value']:.3f}" + ("" if reach is None else f" ({reach[0]:.3f} to {reach[1]:.3f})")


def _remarks(before: Scores, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was forgotten and kept, for how long it took, and where accuracy says nothing."""
    reaches = {split: own["accuracy"]["interval"] for split, own in before.items()}
    guessed = [split for split, (low, high) in reaches.items() if low <= GUESSED <= high]
    found = [
        f"{ROWS} summaries to forget and {ROWS} sentences to keep in every run; 95 % intervals. Nothing was chosen on the "
        "questions of both corpora; the general ones were looked at when thresholds were chosen."
    ]
    if guessed:
        found.append(
            f"Before unlearning, the model's accuracy on {', '.join(guessed)} cannot be told from guessing ({GUESSED}): a "
            "fall of it is not to be expected there, and what counts is which questions open the gate."
        )
    if any(run["setting"] == "paper" for run in runs):
        found.append(
            "The gates of the paper have no threshold and are never quite shut, so all questions open them; how wide is in "
            "the last column."
        )
    seconds = ", ".join(f"{run['corpus']} ({run['setting']}) {run['seconds']:.0f}" for run in runs)
    return [*found, f"Seconds of the runs: {seconds}."]


def main() -> None:
    """Run all parts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="name of a packaged model, hub id, file or folder")
    parser.add_argument("--data-dir", default=os.environ.get("GRUN_WMDP_DIR"), help="folder with WMDP's files")
    parser.add_argument("--work", type=Path, default=Path("runs/wmdp"), help="folder for runs and measurements")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=tuple(SETTINGS), help="only these settings")
    given = parser.parse_args()
    if not given.data_dir:
        parser.error("--data-dir is missing: expected a folder with WMDP's files (or its name in GRUN_WMDP_DIR)")
    given.work.mkdir(parents=True, exist_ok=True)
    study = Study(given.model, Path(given.data_dir), given.work)
    before = study.scores(given.work / "before.json", None)
    runs = [study.run(corpus, setting) for setting in given.settings for corpus in CORPORA]
    write_results("wmdp", {"model": given.model, "rows": ROWS, "before": before, "runs": runs}, table(before, runs))


if __name__ == "__main__":
    main()
