"""The table of a sweep: one line per setting, over seeds, with forgetting, retention and cost."""

from __future__ import annotations

__all__ = ["Finished", "mean_and_spread", "sweep_table"]

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from grun.evaluation.report.table import MISSING, escaped_line, plain_text

SEED = "seed"
FORGOTTEN = ("forget", "forget_paraphrased")
READ_ON_FORGET = {"probability": "{split}: probability", "rouge_l_recall": "{split}: ROUGE-L"}


@dataclass(frozen=True)
class Finished:
    """The results of one run of a sweep.

    Attributes:
        varied: settings in which it differs from other runs; none for a target model.
        target: name of the target model's own run.
        scores: values by split and metric; None where there is no value.
        facts: facts of training: `trainable_parameters`, `seconds`, `peak_memory_mib`; and the provenance.
    """

    varied: Mapping[str, str]
    target: str
    scores: Mapping[str, Mapping[str, float | None]]
    facts: Mapping[str, Any]


def mean_and_spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    mean = f"{statistics.fmean(known):,.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):,.{digits}f}"


def sweep_table(runs: Sequence[Finished]) -> tuple[str, Table]:
    """The table as Markdown, and for the terminal.

    For splits to be forgotten it shows probability and ROUGE-L; for every other split the probability relative to that of the
    target model ("kept"), and the gate's AUROC where there is one.
    """
    targets = {run.target: run for run in runs if not run.varied}
    grid = [run for run in runs if run.varied]
    splits = list(dict.fromkeys(split for run in runs for split in run.scores))
    forgotten = [split for split in splits if split in FORGOTTEN]
    normal = [split for split in splits if split not in FORGOTTEN and not split.endswith("_paraphrased")]
    names = [name for name in dict.fromkeys(name for run in grid for name in run.varied) if name != SEED]
    measures = [(split, metric) for metric in READ_ON_FORGET for split in forgotten]
    auroc = [
        (split, "gate_auroc") for split in normal if any(_value(run, split, "gate_auroc") is not None for run in grid)
    ]
    head = [
        *(names or ["run"]),
        *(READ_ON_FORGET[metric].format(split=split.replace("_", " ")) for split, metric in measures),
    ]
    head += [f"kept: {split.replace('_', ' ')}" for split in normal]
    head += [f"AUROC vs {split.replace('_', ' ')}" for split, _ in auroc] + ["parameters", "seconds", "peak MiB"]
    lines = []
    if targets:
        found = [mean_and_spread([_value(run, *pair) for run in targets.values()]) for pair in measures]
        first = ["target", *[""] * (len(names) - 1)]
        lines.append([*first, *found, *["1"] * len(normal), *[MISSING] * (len(auroc) + 3)])
    for key in dict.fromkeys(tuple(run.varied.get(name, MISSING) for name in names) for run in grid):
        same = [run for run in grid if tuple(run.varied.get(name, MISSING) for name in names) == key]
        cells = [mean_and_spread([_value(run, *pair) for run in same]) for pair in measures]
        cells += [mean_and_spread([_kept(run, targets.get(run.target), split) for run in same]) for split in normal]
        cells += [mean_and_spread([_value(run, *pair) for run in same]) for pair in auroc]
        parameters = mean_and_spread([_fact(run, "trainable_parameters") for run in same], 0).partition(" ")[0]
        peaks = [_fact(run, "peak_memory_mib", ("device", "host")) for run in same]
        seconds = mean_and_spread([_fact(run, "seconds") for run in same], 0)
        lines.append([*(key or ["unlearned"]), *cells, parameters, seconds, mean_and_spread(peaks, 0)])
    return _markdown(head, lines), _terminal(head, lines)


def _value(run: Finished, split: str, metric: str) -> float | None:
    return run.scores.get(split, {}).get(metric)


def _fact(run: Finished, name: str, parts: Sequence[str] = ()) -> float | None:
    """A fact of training that is a number, or the first of its parts that is there; None for anything else."""
    found = run.facts.get(name)
    if parts:
        found = next((found[part] for part in parts if part in found), None) if isinstance(found, dict) else None
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def _kept(run: Finished, target: Finished | None, split: str) -> float | None:
    """Answer probability relative to the target model's."""
    before = None if target is None else _value(target, split, "probability")
    after = _value(run, split, "probability")
    return None if not before or after is None else after / before


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"{escaped_line(row)}\n" for row in [head, ["---"] * len(head), *lines])


def _terminal(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for name in head:
        table.add_column(plain_text(name), justify="right" if name not in ("objective", "adapt") else "left")
    for line in lines:
        table.add_row(*map(plain_text, line))
    return table
