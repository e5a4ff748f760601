"""What is forgotten and what is kept: every objective under every adaptation, on `fictional` and on TOFU.

    python benchmarks/quality.py fictional --output runs/quality
    python benchmarks/quality.py tofu --output runs/quality --data-dir "$GRUN_TOFU_DIR"

Trains the target models, unlearns, evaluates, and writes `docs/results/<benchmark>.json` and `.md`. Every part is a run
directory of its own: killed and started again it goes on where it stopped. `--parts 0/2` and `--parts 1/2` in two processes
share the work; the last call, without `--parts`, writes the tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.benchmarks import load_benchmark
from grun.config import FinetuneConfig, UnlearnConfig
from grun.finetune import finetune
from grun.measuring import evaluate_model
from grun.models import load_adapter, load_model_and_tokenizer
from grun.records import Benchmark, Example
from grun.templates import resolve_template
from grun.unlearn import unlearn

RESULTS = Path(__file__).parent.parent / "docs" / "results"
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


@dataclass(frozen=True)
class Study:
    """What is compared on one benchmark: seeds, ways of adapting with their presets, and how targets are trained."""

    seeds: Sequence[int]
    ways: Sequence[tuple[str, str]]
    unseen: str
    target: dict[str, Any]
    options: dict[str, str]
    max_new_tokens: int


STUDIES = {
    "fictional": Study(
        (0, 1, 2), (("grun", "default"), ("lora", "default"), ("full", "default")), "retain_heldout", {}, {}, 40
    ),
    "tofu": Study(
        (0,),
        (("grun", "default"), ("grun", "paper"), ("lora", "default"), ("full", "default")),
        "retain_withheld",
        {"hidden_size": 256, "layers": 5, "learning_rate": 1.5e-3, "epochs": 24.0, "stop_loss": 0.06},
        {"retain_rows": "400"},
        80,
    ),
}


def evenly(rows: Sequence[Example]) -> list[Example]:
    """At most `ROWS` rows, evenly spaced."""
    return [rows[i * len(rows) // ROWS] for i in range(ROWS)] if len(rows) > ROWS else list(rows)


def scores(file: Path, study: Study, data: Benchmark, target: Path, adapted: Path | None) -> dict[str, Any]:
    """Values by split and metric of a target model, or of what it was adapted to; measured once, then read from `file`."""
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    whole = adapted is not None and (adapted / "config.json").is_file()
    model, tokenizer = load_model_and_tokenizer(str(adapted if whole else target))
    results = evaluate_model(
        model if adapted is None or whole else load_adapter(model, str(adapted)),
        tokenizer,
        {name: evenly(data.splits[name]) for name in data.evaluation},
        forget_split=data.forget,
        template=resolve_template("auto", tokenizer),
        metrics=METRICS,
        batch_size=64,
        max_new_tokens=study.max_new_tokens,
    )
    found = {split: {metric: one.value for metric, one in by.items()} for split, by in results.items()}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(file)
    return found


def target_of(name: str, study: Study, output: Path, data_dir: str | None, seed: int) -> Path:
    """The target model of a seed, trained if it is not there yet."""
    settings = {"benchmark": name, "data_dir": data_dir, "benchmark_options": study.options, "seed": seed}
    return finetune(FinetuneConfig(output=str(output / f"{name}-target-{seed}"), **settings, **study.target))


def one(name: str, study: Study, output: Path, data_dir: str | None, part: tuple[int, str, str, str]) -> dict[str, Any]:
    """Run one part, or read what it found: settings, facts of the run, scores before and after."""
    seed, adapt, preset, objective = part
    settings = {"benchmark": name, "data_dir": data_dir, "benchmark_options": study.options, "seed": seed}
    target = target_of(name, study, output, data_dir, seed)
    data = load_benchmark(name, data_dir=data_dir, seed=seed, options=study.options)
    run = output / f"{name}-{objective}-{adapt}-{preset}-{seed}"
    adapted = unlearn(
        UnlearnConfig(output=str(run), model=str(target), objective=objective, adapt=adapt, preset=preset, **settings)
    )
    facts = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = scores(target.parent / "scores.json", study, data, target, None)
    learnt = {split: len(data.splits[split]) for split in data.full}
    right = sum(count * before[split]["exact_match"] for split, count in learnt.items())
    return {
        "seed": seed,
        "adapt": adapt if preset == "default" else f"{adapt} ({preset})",
        "objective": objective,
        "trainable_parameters": facts["trainable_parameters"],
        "seconds": record["seconds"],
        "target_exact_match": right / sum(learnt.values()),
        "before": before,
        "after": scores(run / "scores.json", study, data, target, adapted),
    }


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def table(study: Study, found: Sequence[dict[str, Any]]) -> str:
    """One line per objective and adaptation: forgotten, kept (relative to the target), gate, cost."""
    kept = [s for s in found[0]["after"] if s.startswith(("retain", "general")) and not s.endswith("_paraphrased")]
    head = ["objective", "adaptation", "forget p", "in other words", "forget ROUGE-L", "in other words"]
    head += [f"kept {split}" for split in kept]
    head += [f"AUROC vs {study.unseen}", "the same, paraphrased", "parameters", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    first = [row["before"] for row in {row["seed"]: row for row in found}.values()]
    pairs = [("forget", "probability"), ("forget_paraphrased", "probability")]
    pairs += [("forget", "rouge_l_recall"), ("forget_paraphrased", "rouge_l_recall")]
    before = [spread([b[s][m] for b in first]) for s, m in pairs]
    lines.append("| " + " | ".join(["target", "–", *before, *["1"] * len(kept), "–", "–", "–", "–"]) + " |")
    for objective, adapt in dict.fromkeys((row["objective"], row["adapt"]) for row in found):
        rows = [row for row in found if (row["objective"], row["adapt"]) == (objective, adapt)]
        cells = [spread([row["after"][s][m] for row in rows]) for s, m in pairs]
        for split in kept:
            ratio = [row["after"][split]["probability"] / row["before"][split]["probability"] for row in rows]
            cells.append(spread(ratio))
        cells += [spread([row["after"][study.unseen][m] for row in rows]) for m in METRICS[-2:]]
        cells += [f"{rows[0]['trainable_parameters']:,}", spread([row["seconds"] for row in rows], 0)]
        lines.append("| " + " | ".join([objective, adapt, *cells]) + " |")
    known = spread([row["target_exact_match"] for row in {row["seed"]: row for row in found}.values()])
    return f"Exact match of the target on what it was trained on: {known}.\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Run the study named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=STUDIES)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--data-dir")
    parser.add_argument("--parts", default="0/1", help="this process's share of the work: 0/2 is the first half")
    given = parser.parse_args()
    study, (share, of) = STUDIES[given.benchmark], map(int, given.parts.split("/"))
    everything = [
        (given.benchmark, study, given.output, given.data_dir, (seed, adapt, preset, objective))
        for seed in study.seeds
        for adapt, preset in study.ways
        for objective in OBJECTIVES
    ]
    found = [one(*part) for part in everything[share::of]]
    if of == 1:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{given.benchmark}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"{given.benchmark}.md").write_text(table(study, found), encoding="utf-8")


if __name__ == "__main__":
    main()
