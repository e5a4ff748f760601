"""`topics`: real knowledge of pretrained models, with questions that ask for it in words that unlearning never saw.

The prompts are data files of the package, written for it. There are no answers in them: whatever the base model says is
what it knows, so its own answers take their place.
"""

from __future__ import annotations

__all__ = ["topics"]

import json
from functools import cache
from importlib.resources import files
from typing import Any

from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import benchmarks
from grun.data.shipped_prompts import drawn_rows, ordinary_rows

FOLDER = files("grun.data") / "benchmarks" / "_topics"
ORDINARY = "ordinary"  # a file of prompts that touch no topic
SPLITS = {"train": "forget", "unseen": "unseen", "described": "described", "neighbours": "neighbours"}


@benchmarks.register("topics")
def topics(*, topic: str = "einstein", seed: int = 0, retain: int = 150) -> Benchmark:
    """Topics that pretrained models know from the world: novels, a playwright, a physicist, a sport, a city and others.

    `forget` (60 prompts) and `retain` (ordinary prompts) are for unlearning. `unseen` (40 prompts about other facts of the
    topic) and `described` (20 that name nothing of it) must be forgotten too, and are never given to unlearning; nor are
    `neighbours` (60 prompts about close neighbours) and `ordinary` (300 prompts of all shapes), which must be kept. Answers
    are the base model's own.

    Args:
        topic: file name of the topic.
        seed: seed of the choice of retain prompts.
        retain: number of retain prompts, at least 2.

    Raises:
        UserError: for an unknown topic, or fewer than 2 retain prompts.
    """
    known = _topics()
    if topic not in known:
        raise UserError(f"option 'topic' is '{topic}', expected one of {', '.join(known)}.{nearest(topic, known)}")
    most = len(ordinary_rows())
    if not 2 <= retain <= most:
        raise UserError(f"option 'retain' is {retain}, expected 2 to {most}.")
    found: dict[str, Any] = json.loads((FOLDER / f"{topic}.json").read_text(encoding="utf-8"))
    splits = {name: _examples(found[key], f"{topic}.json, {key}") for key, name in SPLITS.items()}
    splits["retain"] = drawn_rows(retain, seed)
    others = json.loads((FOLDER / f"{ORDINARY}.json").read_text(encoding="utf-8"))[ORDINARY]
    splits[ORDINARY] = _examples([one["prompt"] for one in others], f"{ORDINARY}.json")
    return Benchmark(
        "topics",
        splits,
        "forget",
        "retain",
        full=(),
        evaluation=("forget", "unseen", "described", "neighbours", ORDINARY),
        unseen=("neighbours", ORDINARY),
        unseen_forget=("unseen", "described"),
        answer_tokens=dict.fromkeys(("forget", *SPLITS.values(), ORDINARY), 32),
    )


@cache
def _topics() -> tuple[str, ...]:
    names = (file.name.removesuffix(".json") for file in FOLDER.iterdir() if file.name.endswith(".json"))
    return tuple(sorted(name for name in names if name != ORDINARY))


def _examples(prompts: list[str], where: str) -> tuple[Example, ...]:
    return tuple(Example(prompt, "", source=f"{where}, prompt {i}") for i, prompt in enumerate(prompts, 1))
