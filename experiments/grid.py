"""Every adaptation under the same objectives, on `fictional`: forgetting, damage and cost.

    python experiments/grid.py --output runs/grid [--times-only]

Trains a target model per seed and runs the grid of objectives, adaptations and seeds with `grun sweep`. For the training
times, runs one seed again with nothing else on the machine. Counts the parameters that each adaptation would train in a model
of the shape of Llama 2 7B (built without memory). Writes `docs/results/grid.json` and `.md`. Killed and started again it
continues where it stopped. `--times-only` measures the training times again and takes everything else from `grid.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_results
from transformers import LlamaConfig, LlamaForCausalLM

from grun.core.config.jobs import FinetuneConfig, SweepConfig, UnlearnConfig
from grun.evaluation.report.sweep_table import Finished, sweep_table
from grun.jobs.finetune import finetune
from grun.jobs.sweep import sweep
from grun.models.adaptations import adaptations, with_presets

SEEDS = (0, 1, 2)
OBJECTIVES = ("gd", "npo", "idk", "rmu", "simnpo", "dpo")
ADAPTATIONS = ("full", "lora", "reft", "grun")
METRICS = "probability,rouge_l_recall,exact_match,gate_auroc"
SEVEN_B: dict[str, Any] = {  # Llama 2 7B
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


def run_grid(output: Path, seeds: Sequence[int], jobs: int, max_rows: int) -> list[Finished]:
    """Results of every run of the grid, for some seeds."""
    config = SweepConfig(
        output=str(output),
        vary={"objective": ",".join(OBJECTIVES), "adapt": ",".join(ADAPTATIONS), "seed": ",".join(map(str, seeds))},
        set={"benchmark": "fictional", "model": str(output.parent / "target-{seed}")},
        evaluate={"max_rows": str(max_rows), "max_new_tokens": "40", "metrics": METRICS},
        jobs=jobs,
    )
    sweep(config)
    found = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return [Finished(**one) for one in found]


def with_times(runs: Sequence[Finished], timed: Sequence[Finished]) -> list[Finished]:
    """The runs, with training times only from those that had the machine to themselves."""
    seconds = {tuple(run.varied.values()): run.facts["seconds"] for run in timed if run.varied}
    return [
        dataclasses.replace(run, facts={**run.facts, "seconds": seconds.get(tuple(run.varied.values()))})
        for run in runs
    ]


def parameters_at_7b() -> dict[str, dict[str, Any]]:
    """Parameters that each adaptation trains in a model of the shape of Llama 2 7B, and their share of its own."""
    found = {}
    for adapt, preset in (*((name, "default") for name in ADAPTATIONS), ("grun", "paper")):
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**SEVEN_B))
        whole = sum(p.numel() for p in model.parameters())
        model.requires_grad_(False)
        adapted = adaptations.get(adapt).target(model, with_presets(UnlearnConfig(adapt=adapt, preset=preset)))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        name = adapt if preset == "default" else f"{adapt}, the paper's setting"
        found[name] = {"trained": trained, "model": whole, "share": trained / whole}
    return found


def main() -> None:
    """Run the grid and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/grid"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--times-only", action="store_true")
    given = parser.parse_args()
    for seed in SEEDS[:1] if given.times_only else SEEDS:
        finetune(FinetuneConfig(output=str(given.output / f"target-{seed}"), benchmark="fictional", seed=seed))
    if given.times_only:
        known = json.loads((RESULTS / "grid.json").read_text(encoding="utf-8"))["runs"]
        found = [Finished(**one) for one in known]
    else:
        found = run_grid(given.output / "sweep", SEEDS, given.jobs, 120)
    runs = with_times(found, run_grid(given.output / "timing", SEEDS[:1], 1, 1))
    large = parameters_at_7b()
    everything = {"parameters_at_7b": large, "runs": [dataclasses.asdict(run) for run in runs]}
    lines = ["| adaptation | trained parameters | share of the model's |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {one['trained']:,} | {one['share']:.4%} |" for name, one in large.items()]
    text = sweep_table(runs)[0] + "\nIn a model of the shape of Llama 2 7B:\n\n" + "\n".join(lines) + "\n"
    write_results("grid", everything, text)


if __name__ == "__main__":
    main()
