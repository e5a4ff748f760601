"""Writes the tables of objectives, metrics, benchmarks and attacks in the documents from what these register about themselves.

python docs/tables.py

A table stands between two comments, `<!-- objectives: written by docs/tables.py -->` and `<!-- end of objectives -->`.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grun.core.registry import Entry
from grun.data.benchmarks import benchmarks
from grun.evaluation.attacks import NEEDS, attacks
from grun.evaluation.metrics import metrics, summaries
from grun.training.objectives import objectives, retain_losses

FOLDER = Path(__file__).parent
DOCUMENTS = {
    "method.md": ("objectives", "retain losses"),
    "metrics.md": ("metrics", "benchmarks"),
    "attacks.md": ("attacks",),
}
BLIND_SPOT = "Blind spot: "
BETTER = {"lower": "lower is better", "higher": "higher is better", None: "–"}
Row = Sequence[str]


def objective_rows() -> Iterable[Row]:
    """Name, docstring, defaults, retain loss and paper of every objective."""
    yield "name", "forget term", "defaults", "retain loss it is published with", "source"
    for entry in objectives:
        defaults = [f"`{name}` {parameter.default:g}" for name, parameter in entry.parameters.items()]
        defaults += _weight(entry.info.get("forget_weight"))
        retain = ", ".join([f"`{entry.info['retain']}`", *_weight(entry.info.get("retain_weight"))])
        yield f"`{entry.name}`", " ".join(paragraphs(entry)), ", ".join(defaults), retain, entry.info["paper"]


def retain_loss_rows() -> Iterable[Row]:
    """Name, docstring and paper of every retain loss."""
    yield "name", "retain term", "source"
    for entry in retain_losses:
        yield f"`{entry.name}`", " ".join(paragraphs(entry)), entry.info.get("paper", "")


def metric_rows() -> Iterable[Row]:
    """Name, label, docstring, range and direction of every metric, then of the summaries of all splits."""
    yield "name", "in tables", "what it says", "what it hides", "range", "on rows to forget", "on other rows"
    for entry in metrics:
        yield *_of_metric(entry), BETTER[entry.info["forget"]], BETTER[entry.info["normal"]]
    for entry in summaries:
        yield *_of_metric(entry), "over all splits together", "higher is better"


def benchmark_rows() -> Iterable[Row]:
    """Name, docstring, options and files of every benchmark."""
    yield "`--benchmark`", "splits", "`--benchmark-options`", "data"
    for entry in benchmarks:
        described = arguments(entry)
        options = [
            f"`{name}={parameter.default}`: {described[name].rstrip('.')}"
            for name, parameter in entry.parameters.items()
            if name != "data_dir"
        ]
        files = (
            f"`--data-dir`: {described['data_dir']}" if "data_dir" in described else "Generated from a seed; no files."
        )
        yield f"`{entry.name}`", " ".join(paragraphs(entry)), "; ".join(options), files


def attack_rows() -> Iterable[Row]:
    """Name, what it measures, docstring, needs and source of every attack."""
    yield "`--attacks`", "measures", "what it asks", "needs", "source"
    for entry in attacks:
        needs = "; ".join(NEEDS[need] for need in entry.info["needs"]) or "–"
        told = paragraphs(entry)
        if entry.info.get("on_request"):
            told.append("Only done when it is named (`--attacks`).")
        yield f"`{entry.name}`", entry.info["measures"], " ".join(told), needs, entry.info["source"]


TABLES = {
    "attacks": attack_rows,
    "objectives": objective_rows,
    "retain losses": retain_loss_rows,
    "metrics": metric_rows,
    "benchmarks": benchmark_rows,
}


def _of_metric(entry: Entry[Any]) -> list[str]:
    told = [text for text in paragraphs(entry) if not text.startswith(BLIND_SPOT)]
    hidden = [text.removeprefix(BLIND_SPOT) for text in paragraphs(entry) if text.startswith(BLIND_SPOT)]
    if entry.info.get("on_request"):
        told.append("Only computed when it is named (`--metrics`).")
    hides = " ".join(text[:1].upper() + text[1:] for text in hidden)
    return [f"`{entry.name}`", entry.info["label"], " ".join(told), hides, _range(*entry.info["range"])]


def paragraphs(entry: Entry[Any]) -> list[str]:
    """The paragraphs of a docstring before its sections (`Args:` and so on), each on one line."""
    text = re.split(r"^[A-Z][a-z]+:$", inspect.getdoc(entry.target) or "", flags=re.MULTILINE)[0]
    return [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]


def arguments(entry: Entry[Any]) -> dict[str, str]:
    """The descriptions of a function's arguments, by name."""
    text = (inspect.getdoc(entry.target) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name: " ".join(described.split()) for name, described in found}


def markdown(rows: Iterable[Row]) -> str:
    """A table whose papers are links."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def updated(text: str, names: Iterable[str]) -> str:
    """A document with its tables as they should be.

    Raises:
        ValueError: if there is no place for a table, or several.
    """
    for name in names:
        start, end = f"<!-- {name}: written by docs/tables.py -->\n", f"<!-- end of {name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"expected one {start.strip()} and one {end}")
        before, _, rest = text.partition(start)
        text = before + start + "\n" + markdown(TABLES[name]()) + "\n" + end + rest.partition(end)[2]
    return text


def _cell(text: str) -> str:
    linked = re.sub(r"arXiv (\d{4}\.\d{5})", r"arXiv [\1](https://arxiv.org/abs/\1)", text)
    return linked.replace("|", "\\|")


def _weight(weight: float | None) -> list[str]:
    return [] if weight is None else [f"weight {weight:g}"]


def _range(low: float, high: float) -> str:
    return " to ".join("∞" if bound == math.inf else f"{bound:.4g}" for bound in (low, high))


def main() -> None:
    """Rewrite the documents, and name those that changed."""
    for name, tables in DOCUMENTS.items():
        file = FOLDER / name
        before = file.read_text(encoding="utf-8")
        after = updated(before, tables)
        file.write_text(after, encoding="utf-8")
        sys.stdout.write(f"{name}: {'unchanged' if after == before else 'written'}\n")


if __name__ == "__main__":
    main()
