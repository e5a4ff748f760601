"""The tables of `experiments/recognition.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

EVIDENCE = ("lord_of_the_rings", "shakespeare", "einstein", "tennis", "paris")  # nothing was chosen on these
GOALS = {
    "topics": {"unseen": ">= 0.95", "described": ">= 0.85", "neighbours": "<= 0.05", "ordinary": "<= 0.005"},
    "wmdp": {"questions": ">= 0.97", "summaries": "", "encyclopaedia": "<= 0.02", "ordinary": "<= 0.01"},
}
RESAMPLES = 10_000


def table(found: Mapping[str, Any]) -> str:
    """All results as Markdown: over the topics, topic by topic, and WMDP."""
    topics = found["topics"]
    groups = {
        "topics that nothing was chosen on": [topic for topic in topics if topic in EVIDENCE],
        "topics of development": [topic for topic in topics if topic not in EVIDENCE],
    }
    lines = [*_head("topics", "topics | gates"), f"| goal | | {' | '.join(GOALS['topics'].values())} |"]
    for name, chosen in groups.items():
        if chosen:
            lines += [f"| {name} ({len(chosen)}) | {way} | {_cells(topics, chosen, way)} |" for way in _ways(topics)]
    lines += ["", *_head("topics", "topic | gates")]
    for topic, seeds in topics.items():
        for way in _ways(topics):
            cells = (f"{mean_share(seeds, way, kind):.3f}" for kind in GOALS["topics"])
            lines.append(f"| {topic} | {way} | {' | '.join(cells)} |")
    if found["wmdp"]:
        lines += ["", *_head("wmdp", "corpus, form | gates"), f"| goal | | {' | '.join(GOALS['wmdp'].values())} |"]
    for name, ways in found["wmdp"].items():
        lines += [
            f"| {name} | {way} | {' | '.join(_exact(own[kind]) for kind in GOALS['wmdp'])} |"
            for way, own in ways.items()
        ]
    return "\n".join(lines) + "\n"


def mean_share(seeds: Sequence[Mapping[str, Any]], way: str, kind: str) -> float:
    """Share of prompts that open a gate, the mean over seeds."""
    return statistics.fmean(one[way][kind]["share"] for one in seeds)


def over_topics(shares: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean over topics, and its 95 % bootstrap interval (percentiles); None for a single topic, or if all are the same."""
    if len(set(shares)) < 2:
        return statistics.fmean(shares), None
    draw = np.random.default_rng(0)
    got = bootstrap((shares,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=draw).confidence_interval
    return statistics.fmean(shares), (float(got.low), float(got.high))


def _ways(topics: Mapping[str, Any]) -> list[str]:
    return list(next(iter(topics.values()))[0])


def _head(kind: str, names: str) -> list[str]:
    return [f"| {names} | {' | '.join(GOALS[kind])} |", "| --- | --- |" + " ---: |" * len(GOALS[kind])]


def _cells(topics: Mapping[str, Any], chosen: Sequence[str], way: str) -> str:
    cells = []
    for kind in GOALS["topics"]:
        mean, reach = over_topics([mean_share(topics[topic], way, kind) for topic in chosen])
        cells.append(f"{mean:.3f}" + ("" if reach is None else f" ({reach[0]:.3f} to {reach[1]:.3f})"))
    return " | ".join(cells)


def _exact(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['share']:.3f} ({low:.3f} to {high:.3f})"
