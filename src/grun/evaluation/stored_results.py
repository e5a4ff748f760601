"""The results that an evaluation wrote, read again and checked."""

from __future__ import annotations

__all__ = ["stored_results"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.storage.stored_records import mapping_in
from grun.evaluation.result_files import SAMPLES, VALUES

ADVICE = "expected an output of grun evaluate; copy it again, or evaluate again"


def stored_results(run: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Content of `metrics.json` and `samples.json` of an evaluation.

    Raises:
        UserError: if one of them is missing or damaged; names the file and the place in it.
    """
    for name in (VALUES, SAMPLES):
        if not (run / name).exists():
            raise UserError(
                f"'{run}' is not a complete evaluation: it has no {name}; expected an output of grun evaluate."
            )
    values, samples = mapping_in(run / VALUES, ADVICE), mapping_in(run / SAMPLES, ADVICE)
    file = run / VALUES
    try:
        splits, summaries = (_mapping(values.get(name), name) for name in ("splits", "summaries"))
        own = {
            split: _mapping(_mapping(one, split).get("metrics"), f"{split}: metrics") for split, one in splits.items()
        }
        for place, scores in {**own, "summaries": summaries}.items():
            for metric, found in scores.items():
                for subject, score in _mapping(found, f"{place}: {metric}").items():
                    _check_score(_mapping(score, f"{place}: {metric}: {subject}"), f"{place}: {metric}: {subject}")
        file = run / SAMPLES
        _check_samples(samples, own, summaries)
    except ValueError as error:
        raise UserError(f"'{file}' is damaged: {error}; {ADVICE}.") from error
    return values, samples


def _check_score(score: Mapping[str, Any], where: str) -> None:
    value, n, reason = (score.get(name) for name in ("value", "n", "reason"))
    if not (value is None or _is_number(value)) or not (reason is None or isinstance(reason, str)):
        raise ValueError(f"{where} has no usable value")
    if not isinstance(n, int) or isinstance(n, bool):
        raise ValueError(f"{where} has no number of rows")


def _check_samples(
    samples: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], summaries: Mapping[str, Any]
) -> None:
    """Refuse samples that do not go with the values: of every split, metric and subject."""
    rows = _mapping(samples.get("rows"), "rows")
    by_split, overall = (_mapping(samples.get(name), name) for name in ("splits", "summaries"))
    if not by_split:
        raise ValueError("splits name no model")
    for split in own:
        hashes = rows.get(split)
        if not isinstance(hashes, list) or not all(isinstance(one, str) for one in hashes):
            raise ValueError(f"rows: {split} is no list of texts")
    for subject, found in by_split.items():
        measured = _mapping(found, subject)
        for split, scores in own.items():
            _check_groups(_mapping(measured.get(split), f"{subject}: {split}"), scores, subject, f"{subject}: {split}")
        if summaries:  # an evaluation of chosen metrics has none
            where = f"summaries: {subject}"
            _check_groups(_mapping(overall.get(subject), where), summaries, subject, where)


def _check_groups(groups: Mapping[str, Any], scores: Mapping[str, Any], subject: str, where: str) -> None:
    for metric, found in scores.items():
        if subject not in found:
            raise ValueError(f"{where}: {metric} has no value in {VALUES}")
        given = groups.get(metric)
        if not isinstance(given, list) or not all(isinstance(group, list) and _is_even(group) for group in given):
            raise ValueError(f"{where}: {metric} is no list of groups of numbers")


def _is_even(group: list[Any]) -> bool:
    """True for numbers, or for lists of numbers of one length."""
    if all(map(_is_number, group)):
        return True
    are_lists = all(isinstance(row, list) and all(map(_is_number, row)) for row in group)
    return are_lists and len({len(row) for row in group}) == 1


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {'missing' if value is None else type(value).__name__}, expected values by name")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
