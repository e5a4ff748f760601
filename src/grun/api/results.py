"""Results of jobs: where everything is, with the settings and what was found, rendered as tables in a notebook."""

from __future__ import annotations

__all__ = [
    "CalibrateResult",
    "CompareResult",
    "EvaluateResult",
    "ExpandResult",
    "FinetuneResult",
    "RunResult",
    "UnlearnResult",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.storage.atomic_files import read_json

MISSING = "–"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """A table as HTML; every text is escaped."""
    cells = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><b>{escape(title)}</b><table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table></div>"


def number(value: Any) -> str:
    """A value for a cell."""
    if value is None:
        return MISSING
    return f"{value:.3f}" if isinstance(value, float) and abs(value) < 1e5 else str(value)


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: directory of the run.
    """

    path: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings as they were resolved (`settings.json`)."""
        return self._read("settings.json")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Everything that the run found (`metrics.json`)."""
        return self._read("metrics.json")

    @cached_property
    def record(self) -> dict[str, Any]:
        """Command, versions, machine and seconds (`run.json`)."""
        return self._read("run.json")

    def _read(self, name: str) -> dict[str, Any]:
        found = read_json(self.path / name)
        if not isinstance(found, dict):
            raise UserError(f"'{self.path}' has no {name}; expected the directory of a finished run.")
        return found

    def _facts(self) -> list[tuple[str, str]]:
        """Name and value of what is shown first."""
        return [("path", str(self.path)), ("seconds", number(self.record.get("seconds")))]

    def _title(self) -> str:
        return f"grun {self.record.get('command', '')}"

    def __str__(self) -> str:
        lines = self._facts()
        width = max(len(name) for name, _ in lines)
        return "\n".join([self._title(), *(f"  {name:<{width}}  {value}" for name, value in lines)])

    def _repr_html_(self) -> str:
        return html_table(("", ""), self._facts(), self._title())


class FinetuneResult(RunResult):
    """A target model that was trained."""

    @property
    def model(self) -> Path:
        """Folder of the model and its tokenizer."""
        return self.path / "model"

    def _facts(self) -> list[tuple[str, str]]:
        names = ("rows", "parameters", "steps", "loss")
        return [("model", str(self.model)), *((name, number(self.metrics.get(name))) for name in names)]


class ExpandResult(RunResult):
    """Rows about a topic, in files to be read and corrected."""

    @property
    def forget(self) -> list[Path]:
        """Files of rows to forget: questions, and descriptions without the name where there are any."""
        from grun.jobs.inputs.topic_files import DESCRIBED, FORGET

        return self._written(FORGET, DESCRIBED)

    @property
    def neighbours(self) -> list[Path]:
        """Files of questions about neighbouring topics; none if the writer named none."""
        from grun.jobs.inputs.topic_files import NEIGHBOURS

        return self._written(NEIGHBOURS)

    def _written(self, *names: str) -> list[Path]:
        return [file for file in (self.path / name for name in names) if file.exists()]

    def _facts(self) -> list[tuple[str, str]]:
        rows = self.metrics["rows"].items()
        counts = [(kind, f"{sum(own.values())} ({own['frame']} from frames)") for kind, own in rows]
        return [*super()._facts(), *counts]


class UnlearnResult(RunResult):
    """An adapter that makes a model forget (with `adapt="full"`, a whole model)."""

    @property
    def adapter(self) -> Path:
        """Directory of the adapter; with `adapt="full"`, folder of the model."""
        whole = self.path / "model"
        return whole if whole.is_dir() else self.path / "adapter"

    def attach(self, model: Any) -> Any:
        """`model` with the adapter on it (a `peft.PeftModel`), in evaluation mode; PEFT changes the model in place.

        Args:
            model: the base model, loaded.

        Raises:
            UserError: if the run trained a whole model, or the adapter does not fit the model.
        """
        from grun.models.loading.pretrained import load_adapter

        if (self.path / "model").is_dir():
            raise UserError(f"'{self.path}' holds a whole model, not an adapter; load {self.adapter}.")
        return load_adapter(model, str(self.adapter))

    def _facts(self) -> list[tuple[str, str]]:
        found, settings = self.metrics.get("validation", {}), self.settings
        return [
            ("adapter", str(self.adapter)),
            ("model", str(settings.get("model"))),
            ("objective", f"{settings.get('objective')}, {settings.get('adapt')}"),
            ("forget probability before", number(found.get("forget_probability_before"))),
            ("forget probability after", number(found.get("forget_probability"))),
            ("kept of withheld rows", number(found.get("retain_ratio"))),
            ("trained parameters", f"{self.metrics.get('trainable_parameters', 0):,}"),
            ("steps", number(self.metrics.get("steps"))),
            ("seconds", number(self.record.get("seconds"))),
        ]


class CalibrateResult(RunResult):
    """An adapter whose thresholds leave normal prompts alone, with a guarantee."""

    @property
    def adapter(self) -> Path:
        """Directory of the adapter."""
        return self.path / "adapter"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Prompts, thresholds, and shares with their intervals (`calibration.json`)."""
        return self._read("calibration.json")

    def _facts(self) -> list[tuple[str, str]]:
        found = self.metrics
        shares = [
            (words, f"{found[name]['open']} of {found[name]['prompts']}")
            for name, words in (
                ("normal_open", "normal prompts that open"),
                ("forget_open", "forget prompts that open"),
            )
            if name in found
        ]
        missed = []
        if one := found.get("paraphrases_missed"):
            said = f"{one['missed']} of {one['prompts']} (bound {one['bound']:.3g})"
            missed = [("paraphrases that open none", said)]
        return [
            ("adapter", str(self.adapter)),
            ("alpha", f"{found['alpha']:g}"),
            ("delta", f"{found['delta']:g}"),
            *shares,
            *missed,
        ]


class EvaluateResult(RunResult):
    """Scores of a model before and after, on every split."""

    def value(self, metric: str, split: str = "forget", subject: str | None = None) -> float | None:
        """One value; None where it could not be computed (`metrics` says why).

        Args:
            metric: registered name.
            split: name of the split.
            subject: `before` or `after`; None for `after` where there is one.

        Raises:
            KeyError: if the evaluation has no such split, metric or subject.
        """
        found = self.metrics["splits"][split]["metrics"][metric]
        return found[subject or ("after" if "after" in found else "before")]["value"]

    @property
    def table(self) -> str:
        """The table as Markdown."""
        return (self.path / "table.md").read_text(encoding="utf-8")

    def __str__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        subjects = list(dict.fromkeys(who for one in self._scores().values() for who in one))
        rows = [
            [split, metric, *(_with_interval(found.get(who)) for who in subjects)]
            for (split, metric), found in self._scores().items()
        ]
        return html_table(["split", "metric", *subjects], rows, f"{self._title()}: {self.path}")

    def _scores(self) -> dict[tuple[str, str], Mapping[str, Any]]:
        """Scores by subject, of every split and metric that has a value."""
        return {
            (split, metric): found
            for split, part in self.metrics["splits"].items()
            for metric, found in part["metrics"].items()
            if any(one["value"] is not None for one in found.values())
        }


def _with_interval(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return MISSING
    if found["low"] is None:
        return number(found["value"])
    return f"{number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"


@dataclass(frozen=True)
class CompareResult:
    """Evaluations side by side; the first is what the others are compared with.

    Attributes:
        runs: directories of the evaluations.
        found: one `grun.evaluation.comparison.Compared` per split and metric.
        table: the table as Markdown.
    """

    runs: tuple[Path, ...]
    found: tuple[Any, ...]
    table: str

    def __str__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        head = ["split", "metric", *(str(run) for run in self.runs)]
        rows = [[one.split, one.metric, *(_change(run) for run in one.runs)] for one in self.found]
        return html_table(head, rows, "grun compare: differences to the first, with 95 % intervals")


def _change(run: Any) -> str:
    if run.change is None:
        return number(run.value)
    interval = "" if run.low is None else f" [{run.low:+.3f}, {run.high:+.3f}]"
    return f"{number(run.value)} ({run.change:+.3f}{interval})"
