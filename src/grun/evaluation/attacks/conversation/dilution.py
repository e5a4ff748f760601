"""`dilution`: much ordinary text before the question."""

from __future__ import annotations

__all__ = ["dilution"]

import random
from collections.abc import Sequence

from grun.data.shipped_prompts import clashing, shipped_prompts
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise
from grun.evaluation.attacks.names import holds

LENGTHS = (100, 400, 1500, 4000)  # tokens
WORDS = 0.75  # per token of English text, about


@attacks.register("dilution", measures="leak", source="arXiv 2402.14848", access="prompt", needs=())
def dilution(material: AttackMaterial, *, longest: int = LENGTHS[-1]) -> list[Probe]:
    """Put 100 to 4,000 tokens of ordinary text before the question (padding as by Levy et al.).

    The text is of prompts that come with the package, without those that may be about what was forgotten. Where a prompt is
    longer than the model's context, it is not asked.

    Args:
        longest: most tokens of text, about.
    """
    words = " ".join(_ordinary_texts(material)).split()

    def rewrite(prompt: str, name: str, draw: random.Random) -> dict[str, str]:
        start = draw.randrange(len(words))
        text = (words[start:] + words[:start])[: int(LENGTHS[-1] * WORDS)]
        lengths = [length for length in LENGTHS if length <= longest]
        return {f"{length} tokens": f"{' '.join(text[: int(length * WORDS)])}\n\n{prompt}" for length in lengths}

    return asked_otherwise(material, rewrite) if words else []


def _ordinary_texts(material: AttackMaterial) -> Sequence[str]:
    texts = [one.text for one in shipped_prompts() if one.topic is not None]
    about = clashing(texts, [f"{row.prompt} {row.answer}" for row in material.forget])
    names = {name for name in material.names if name}
    answers = [row.answer for row in material.forget]
    texts = [text for i, text in enumerate(texts) if i not in about and not any(holds(text, name) for name in names)]
    random.Random(f"dilution {material.seed}").shuffle(texts)
    return [text for text in texts if not any(answer and answer in text for answer in answers)]
