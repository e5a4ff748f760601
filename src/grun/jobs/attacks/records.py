"""The files of `grun attack`, and its table."""

from __future__ import annotations

__all__ = ["FOUND", "PROBES", "TABLE", "table_of", "write_found"]

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grun.core.provenance import provenance
from grun.core.records import Begun, Score
from grun.core.storage.atomic_files import write_json, write_text
from grun.evaluation.attacks import attacks
from grun.evaluation.intervals import interval
from grun.evaluation.report.table import before_after_table, plain_text, show_whole, to_markdown
from grun.evaluation.report.widths import console
from grun.jobs.attacks.figures import AUC, METRICS, WORST, Figures, statistic_of
from grun.jobs.attacks.material import ORDINARY, PLAIN, Asked, Prepared

FOUND, PROBES, TABLE = "attacks.json", "probes.jsonl", "table.md"


def write_found(
    folder: Path, found: Figures, prepared: Prepared, facts: Mapping[str, Any], seed: int
) -> Callable[[], None]:
    """Write `probes.jsonl` (every probe), `table.md` and `attacks.json` (figures, intervals, what was left out).

    Args:
        folder: directory of the run.
        found: the figures.
        prepared: what was asked, and what was not.
        facts: further entries of `attacks.json`, such as the model's name.
        seed: of the bootstrap.

    Returns:
        A function that shows the table.
    """
    write_text(folder / PROBES, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in _probes(found)))
    scores, notes = table_of(found), _notes(found, prepared)
    write_text(folder / TABLE, to_markdown(scores, heading="attack") + "".join(f"\n{note}\n" for note in notes))
    write_json(folder / FOUND, {**facts, **provenance(), **_values(found, prepared, seed)})

    def show() -> None:
        show_whole(before_after_table(scores, heading="attack"))
        for note in notes:
            console().print(plain_text(note), highlight=False)

    return show


def table_of(found: Figures) -> dict[str, dict[str, Mapping[str, Score]]]:
    """Scores by subject and line of the table: leaks, the worst case, damage, then recognition."""
    kinds = ("leak", "damage", "recognition")
    names = {kind: [name for name, one in found.asked.items() if one.measures == kind] for kind in kinds}
    table: dict[str, dict[str, Mapping[str, Score]]] = {}
    for subject, own in found.rows.items():
        lines: dict[str, Mapping[str, Score]] = {}
        for name in (name for name in names["leak"] if name in own):
            lines |= _lines(found, name, subject)
        lines[f"{WORST} (leak)"] = found.worst[subject]
        others = [name for kind in kinds[1:] for name in names[kind] if name in own]
        table[subject] = lines | {_line(found, name): own[name] for name in others}
    return table


def _lines(found: Figures, name: str, subject: str) -> dict[str, Mapping[str, Score]]:
    """The lines of a leak: one for every variant of a change to the model, which are not several ways of asking it."""
    line, variants = _line(found, name), found.of_variants(name, subject)
    if found.asked[name].access != "weights" or len(variants) < 2:
        return {line: found.rows[subject][name]}
    return {f"{line}: {variant}": scores for variant, scores in variants.items()}


def _line(found: Figures, name: str) -> str:
    if name == PLAIN:
        return "plain questions"
    if name == ORDINARY:
        return "ordinary questions (damage)"
    if found.asked[name].best:
        return f"{name} (best answer)"
    measures = found.asked[name].measures
    kind = "" if measures == "leak" else f" ({measures})"
    return f"{name}{kind}{' (says nothing)' if found.says_nothing(name) else ''}"


def _notes(found: Figures, prepared: Prepared) -> list[str]:
    """What is to be said below the table."""
    notes = [f"Left out: {name} ({reason})." for name, reason in prepared.skipped.items()]
    silent = [name for name in found.asked if found.says_nothing(name)]
    if silent:
        notes.append(
            f"Says nothing: the target itself gives less than a third of its usual probability ({', '.join(silent)})."
        )
    for name, one in prepared.asked.items():
        counts = [f"{count} of {len(one.probes)} ({subject})" for subject, count in found.refused(name).items()]
        notes += [f"Refused by the model, which gives nothing away: {', '.join(counts)} of {name}."] if counts else []
    if any(AUC in scores for own in found.rows.values() for scores in own.values()):
        notes.append(f"{AUC}: forgotten rows are told from unknown ones; 0.5 where nothing tells them apart.")
    notes += [attacks.get(name).info["note"] for name in found.asked if _has_note(name)]
    cut = [f"{one.left_out} of {name}" for name, one in prepared.asked.items() if one.left_out]
    return notes + ([f"Probes that do not fit into the model: {', '.join(cut)}."] if cut else [])


def _has_note(name: str) -> bool:
    return name in attacks.names() and "note" in attacks.get(name).info


def _values(found: Figures, prepared: Prepared, seed: int) -> dict[str, Any]:
    attacks = {name: _of_attack(found, one, seed) for name, one in prepared.asked.items()}
    worst = {metric: {s: _as_json(metric, own[metric], seed) for s, own in found.worst.items()} for metric in METRICS}
    return {
        PLAIN: attacks.pop(PLAIN),
        ORDINARY: attacks.pop(ORDINARY, None),
        "attacks": attacks,
        "worst_case": worst,
        "skipped": prepared.skipped,
    }


def _of_attack(found: Figures, one: Asked, seed: int) -> dict[str, Any]:
    own = {subject: scores[one.name] for subject, scores in found.rows.items() if one.name in scores}
    names = dict.fromkeys(metric for scores in own.values() for metric in scores)
    figures = {m: {s: _as_json(m, scores[m], seed) for s, scores in own.items() if m in scores} for m in names}
    return {
        "measures": one.measures,
        "access": one.access,
        "rows": len({probe.row for probe in one.probes}),
        "probes": len(one.probes),
        "left_out": one.left_out,
        "says_nothing": found.says_nothing(one.name),
        "refused": found.refused(one.name),
        "figures": figures,
        "variants": found.variants(one.name),
    }


def _as_json(metric: str, score: Score, seed: int) -> dict[str, Any]:
    low, high = interval(score, statistic_of(metric), seed) or (None, None)
    return {"value": score.value, "n": score.n, "low": low, "high": high, "reason": score.reason}


def _probes(found: Figures) -> Iterator[dict[str, Any]]:
    """Every probe with what each subject said to it."""
    for name, one in found.asked.items():
        for i, probe in enumerate(one.probes):
            example = probe.example
            line: dict[str, Any] = {
                "attack": name,
                "variant": probe.variant,
                "row": probe.row + 1,
                "source": example.source,
            }
            line |= {"turns": example.turns, "prompt": example.prompt}
            line |= {"begin": example.begin} if isinstance(example, Begun) else {}
            line |= {} if probe.calls is None else {"calls": asdict(probe.calls)}
            line["gold"] = example.answer
            for subject, own in found.evidence.items():
                if name not in own:
                    continue
                scores = found.probes[subject][name].items()
                values = {metric: score.per_row[i] for metric, score in scores if score.per_row}
                row = own[name].rows[i]
                line[subject] = {"answer": row.generated, **values}
                if row.example.prompt != example.prompt:
                    line[subject]["prompt"] = row.example.prompt
                line[subject] |= {} if row.refused is None else {"refused": row.refused}
            yield line
