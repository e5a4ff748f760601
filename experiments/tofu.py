"""Forgetting and damage on TOFU: our setting and the paper's, beside LoRA and full fine-tuning.

    python experiments/tofu.py --output runs/tofu --data-dir "$GRUN_TOFU_DIR"

Trains a target model, unlearns with three objectives, evaluates, and writes `docs/results/tofu.json` and `.md`. Every part is
a run directory of its own: killed and started again it continues where it stopped. `--parts 0/2` and `--parts 1/2` in two
processes share the work; the last call, without `--parts`, writes the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import write_results

from grun.core.config.jobs import FinetuneConfig, UnlearnConfig
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import load_benchmark
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.scores import evaluate_model
from grun.jobs.finetune import finetune
from grun.jobs.unlearn import unlearn
from grun.models.encoding.templates import resolve_template
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer

OBJECTIVES = ("npo", "idk", "gd")
METRICS = (
    "probability",
    "rouge_l_recall",
    "exact_match",
    "gate_mean",
    "gate_open",
    "gate_auroc",
    "gate_auroc_paraphrased",
)
ROWS = 120  # of each split, evenly spaced


SEED = 0
WAYS = (("grun", "default"), ("grun", "paper"), ("lora", "default"), ("full", "default"))
UNSEEN = "retain_withheld"
TARGET: dict[str, Any] = {"hidden_size": 256, "layers": 5, "learning_rate": 1.5e-3, "epochs": 24.0, "stop_loss": 0.06}
OPTIONS = {"retain_rows": "400"}
LONGEST_ANSWER = 80  # tokens


def evenly(rows: Sequence[Example]) -> list[Example]:
    """At most `ROWS` rows, evenly spaced."""
    return [rows[i * len(rows) // ROWS] for i in range(ROWS)] if len(rows) > ROWS else list(rows)


def scores(file: Path, data: Benchmark, target: Path, adapted: Path | None) -> dict[str, Any]:
    """Values by split and metric of the target model, or of the adapted one; measured once, then read from `file`."""
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    whole = adapted is not None and (adapted / "config.json").is_file()
    model, tokenizer = load_model_and_tokenizer(str(adapted if whole else target))
    subject = Subject(model if adapted is None or whole else load_adapter(model, str(adapted)), tokenizer)
    results = evaluate_model(
        subject,
        {name: evenly(data.splits[name]) for name in data.evaluation},
        MeasureSettings(resolve_template("auto", tokenizer), max_new_tokens=LONGEST_ANSWER),
        forget_split=data.forget,
        metrics=METRICS,
    )
    found = {split: {metric: one.value for metric, one in by.items()} for split, by in results.items()}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(file)
    return found


def one(output: Path, data_dir: str | None, part: tuple[str, str, str]) -> dict[str, Any]:
    """Settings, facts of the run, and scores before and after, of one part; it runs unless it has run before."""
    adapt, preset, objective = part
    shared: dict[str, Any] = {"benchmark": "tofu", "data_dir": data_dir, "benchmark_options": OPTIONS, "seed": SEED}
    target = finetune(FinetuneConfig(output=str(output / "target"), **shared, **TARGET))
    data = load_benchmark("tofu", data_dir=data_dir, seed=SEED, options=OPTIONS)
    run = output / f"{objective}-{adapt}-{preset}"
    adapted = unlearn(
        UnlearnConfig(output=str(run), model=str(target), objective=objective, adapt=adapt, preset=preset, **shared)
    )
    facts = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = scores(target.parent / "scores.json", data, target, None)
    learnt = {split: len(data.splits[split]) for split in data.full}
    right = sum(count * before[split]["exact_match"] for split, count in learnt.items())
    return {
        "adapt": adapt if preset == "default" else f"{adapt} ({preset})",
        "objective": objective,
        "trainable_parameters": facts["trainable_parameters"],
        "seconds": record["seconds"],
        "target_exact_match": right / sum(learnt.values()),
        "before": before,
        "after": scores(run / "scores.json", data, target, adapted),
    }


def number(value: float | None) -> str:
    """A value as text for the table."""
    return "–" if value is None else f"{value:.3f}"


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line per objective and adaptation: forgotten, kept (relative to the target), gate, cost."""
    before = found[0]["before"]
    kept = [s for s in before if s.startswith("retain") and not s.endswith("_paraphrased")]
    head = ["objective", "adaptation", "forget p", "in other words", "forget ROUGE-L", "in other words"]
    head += [f"kept {split}" for split in kept]
    head += [f"AUROC vs {UNSEEN}", "the same, paraphrased", "parameters", "seconds"]
    pairs = [("forget", "probability"), ("forget_paraphrased", "probability")]
    pairs += [("forget", "rouge_l_recall"), ("forget_paraphrased", "rouge_l_recall")]
    lines = [head, ["---"] * len(head)]
    lines.append(["target", "–", *(number(before[s][m]) for s, m in pairs), *["1"] * len(kept), *["–"] * 4])
    for row in found:
        after = row["after"]
        cells = [number(after[s][m]) for s, m in pairs]
        cells += [number(after[s]["probability"] / before[s]["probability"]) for s in kept]
        cells += [number(after[UNSEEN][m]) for m in ("gate_auroc", "gate_auroc_paraphrased")]
        lines.append(
            [row["objective"], row["adapt"], *cells, f"{row['trainable_parameters']:,}", f"{row['seconds']:.0f}"]
        )
    known = f"Exact match of the target on what it was trained on: {number(found[0]['target_exact_match'])}.\n\n"
    return known + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    """Run all parts and write the table, or run a share of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tofu"))
    parser.add_argument("--data-dir")
    parser.add_argument("--parts", default="0/1", help="this process's share of the work: 0/2 is the first half")
    given = parser.parse_args()
    share, of = map(int, given.parts.split("/"))
    everything = [(adapt, preset, objective) for adapt, preset in WAYS for objective in OBJECTIVES]
    found = [one(given.output, given.data_dir, part) for part in everything[share::of]]
    if of == 1:
        write_results("tofu", found, table(found))


if __name__ == "__main__":
    main()
