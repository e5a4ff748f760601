"""The documents that `--json` prints: where the results of a command are, and its main figures."""

from __future__ import annotations

__all__ = ["leaves_document", "request_entry", "run_document"]

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grun.core.choices import KINDS, declared
from grun.core.storage.atomic_files import read_json

Facts = Mapping[str, Any]


def run_document(command: str, run: Path) -> dict[str, Any]:
    """The document of a command that wrote a directory: `command`, `output`, `seconds`, and what it found.

    Args:
        command: name of the command.
        run: the directory.
    """
    record = _read(run / "run.json")
    document = {"command": command, "output": run.absolute()}
    document |= _FOUND[command](run, _read(run / "metrics.json"))
    return document | ({"seconds": record["seconds"]} if "seconds" in record else {})


def leaves_document() -> dict[str, dict[str, str]]:
    """The document of `grun list`: what each name does, by kind and name."""
    return {registry: declared(registry) for registry in KINDS}


def request_entry(request: Any) -> dict[str, Any]:
    """A request in the documents of a ledger's commands."""
    names = ("id", "state", "since", "objective", "rows", "forget_probability_before", "forget_probability", "why")
    return {name: getattr(request, name) for name in names}


def _read(file: Path) -> dict[str, Any]:
    found = read_json(file)
    return found if isinstance(found, dict) else {}


def _chosen(facts: Facts, *names: str) -> dict[str, Any]:
    return {name: facts[name] for name in names if name in facts}


def _finetune(run: Path, facts: Facts) -> dict[str, Any]:
    return {"model": run.absolute() / "model", **_chosen(facts, "rows", "parameters", "steps", "loss")}


def _unlearn(run: Path, facts: Facts) -> dict[str, Any]:
    whole = run.absolute() / "model"  # with --adapt full
    adapter = {"model": whole} if whole.is_dir() else {"adapter": run.absolute() / "adapter"}
    return adapter | _chosen(facts, "steps", "rows", "trainable_parameters", "validation")


def _expand(run: Path, facts: Facts) -> dict[str, Any]:
    return {"files": sorted(file.absolute() for file in run.glob("*.jsonl")), **_chosen(facts, "rows")}


def _evaluate(run: Path, facts: Facts) -> dict[str, Any]:
    splits = {
        split: {metric: _values(found) for metric, found in part.get("metrics", {}).items()}
        for split, part in facts.get("splits", {}).items()
    }
    summaries = {name: _values(found) for name, found in facts.get("summaries", {}).items()}
    return {"table": run.absolute() / "table.md", "splits": splits, "summaries": summaries}


def _attack(run: Path, _: Facts) -> dict[str, Any]:
    facts = _read(run / "attacks.json")
    figures = {
        name: {metric: _values(found) for metric, found in one["figures"].items()}
        for name, one in facts.get("attacks", {}).items()
    }
    worst = {metric: _values(found) for metric, found in facts.get("worst_case", {}).items()}
    return {"table": run.absolute() / "table.md", "attacks": figures, "worst_case": worst, **_chosen(facts, "skipped")}


def _values(found: Facts) -> dict[str, Any]:
    """Values by subject."""
    return {subject: one["value"] for subject, one in found.items()}


def _calibrate(run: Path, _: Facts) -> dict[str, Any]:
    facts = _read(run / "calibration.json")
    shown = _chosen(facts, "alpha", "delta", "dtype", "normal_open", "forget_open", "miss_rate", "paraphrases_missed")
    return {"adapter": run.absolute() / "adapter", **shown}


def _import(run: Path, _: Facts) -> dict[str, Any]:
    return {"adapter": run.absolute() / "adapter"}


def _sweep(run: Path, _: Facts) -> dict[str, Any]:
    return {"table": run.absolute() / "table.md", "runs": read_json(run / "results.json")}


def _demo(run: Path, facts: Facts) -> dict[str, Any]:
    return {"table": run.absolute() / "table.md", **{name: one for name, one in facts.items() if name != "answers"}}


_FOUND: dict[str, Callable[[Path, Facts], dict[str, Any]]] = {
    "finetune": _finetune,
    "unlearn": _unlearn,
    "expand": _expand,
    "evaluate": _evaluate,
    "attack": _attack,
    "calibrate": _calibrate,
    "import": _import,
    "sweep": _sweep,
    "demo": _demo,
}
