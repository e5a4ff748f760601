"""The table and the figure of `experiments/sequential.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

REQUESTS, WITHDRAWN = 10, 3
POOR_ROWS = 30
COLOURS = {
    "GRUN, a ledger": "#4477AA",
    "GRUN, features kept": "#66CCEE",
    "LoRA, merged": "#EE6677",
    "full fine-tuning": "#CCBB44",
}


def row(name: str, found: dict[str, Any], target: dict[str, Any]) -> str:
    """One line of the table: forget probabilities, and kept probabilities relative to the target model's."""
    own = found["requests"]
    kept = [value / target["kept"][name] for name, value in found["kept"].items()]
    cells = [name, f"{sum(own) / len(own):.3f}", f"{max(own):.3f}", *(f"{value:.3f}" for value in kept)]
    return "| " + " | ".join(cells) + " |"


def table(found: dict[str, Any], names: Mapping[str, str]) -> str:
    """All results as Markdown."""
    target = found["target"]
    lines = [
        "| after ten requests | forget probability, mean | at worst | " + " | ".join(names.values()) + " |",
        "| --- | ---: | ---: | ---: | ---: |",
        row("target model", target, target),
    ]
    for name, steps in found["sequential"].items():
        lines.append(row(name, steps[-1], target))
    lines += [row(name, one, target) for name, one in found["at_once"].items()]
    back = found["withdrawn"]
    lines += [
        "",
        f"Request {WITHDRAWN} withdrawn: its probability goes from "
        f"{found['sequential']['GRUN, a ledger'][-1]['requests'][WITHDRAWN - 1]:.3f} back to {back['restored']:.3f} (target "
        f"model: {target['requests'][WITHDRAWN - 1]:.3f}); the largest change of anything else is "
        f"{back['largest_other_change']:.1g}.",
        "",
    ]
    for name in ("GRUN, a ledger", "GRUN, features kept"):
        crossing = cross_talk(found["sequential"][name][-1])
        lines += [
            f"{name}: share of the prompts of each request (rows) for which each request's gate (columns) opens.",
            "",
            "| | " + " | ".join(str(i + 1) for i in range(REQUESTS)) + " |",
            "| ---: |" + " ---: |" * REQUESTS,
        ]
        lines += [f"| {i + 1} | " + " | ".join(f"{x:.2f}" for x in shares) + " |" for i, shares in enumerate(crossing)]
        lines.append("")
    lines += poor_table(found, next(iter(names.items())))
    return "\n".join(lines) + "\n"


def poor_table(found: dict[str, Any], unseen: tuple[str, str]) -> list[str]:
    """Lines of the table for poor retain rows, with and without features of earlier requests."""
    split, title = unseen
    lines = [
        f"Ledgers with poor retain rows ({POOR_ROWS} of general knowledge):",
        "",
        f"| kept of earlier requests | forget probability, at worst | {title} | after one request | gates of other requests "
        f"open for a prompt | request {WITHDRAWN} withdrawn: its probability | largest change of anything else |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in found["poor"].items():
        last, back = one["steps"][-1], one["withdrawn"]
        kept = [step["kept"][split] / found["target"]["kept"][split] for step in (last, one["steps"][0])]
        crossing = cross_talk(last)
        others = [crossing[i][j] for i in range(REQUESTS) for j in range(REQUESTS) if i != j]
        lines.append(
            f"| {name} | {max(last['requests']):.3f} | {kept[0]:.3f} | {kept[1]:.3f} | {sum(others) / REQUESTS:.2f} | "
            f"{back['restored']:.3f} | {back['largest_other_change']:.3f} |"
        )
    return lines


def cross_talk(last: dict[str, Any]) -> list[list[float]]:
    """Share of the prompts of each request for which the gate of each request opens."""
    return [last["open"][str(i + 1)] for i in range(REQUESTS)]


def drawn(found: dict[str, Any]) -> Figure:
    """Figure of forgetting and of kept probability against the number of requests."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, steps in found["sequential"].items():
        width = 4.5 if name == "GRUN, a ledger" else 1.5  # the line of the other ledger covers it
        counts = list(range(1, len(steps) + 1))
        left.plot(
            counts,
            [max(s["requests"][: i + 1]) for i, s in enumerate(steps)],
            "o-",
            color=COLOURS[name],
            ms=3,
            lw=width,
        )
        unseen = next(iter(found["target"]["kept"]))
        kept = [s["kept"][unseen] / found["target"]["kept"][unseen] for s in steps]
        right.plot(counts, kept, "o-", color=COLOURS[name], label=name, ms=3, lw=width)
    left.set(xlabel="requests so far", ylabel="worst forget probability", ylim=(-0.02, 1.02))
    right.set(xlabel="requests so far", ylabel="kept of unseen people", ylim=(-0.02, 1.05))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
