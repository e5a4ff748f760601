"""A base model's own probabilities: whether it knows a topic, and whether a text is about it.

Three things are asked of a topic, and it is known if all hold. Its name, per letter, is likelier after neutral words than any
of some made-up names. The name is likelier after what the model itself says about it than after what the model says about
each of the made-up names. And it is not unlikely there: made-up names that are easy to say pass the first two. A name of
several usual words that mean nothing together may still pass.
"""

from __future__ import annotations

__all__ = ["Knowledge", "knowledge_of", "log_probabilities"]

from collections.abc import Sequence
from dataclasses import dataclass

from grun.core.records import Example
from grun.jobs.inputs.expansion.names import made_up, plain
from grun.models.encoding.encode import encode, encode_prompt
from grun.models.generation import greedy
from grun.models.loading.loaded import LoadedModel
from grun.models.scoring import Prompted, score_rows

NEUTRAL = ("The article is about", "They talked about")
BEGINNINGS = (
    "The following text is about {name}. It says that",
    "In the encyclopedia, the article on {name} begins like this:",
)
FACT = '"{said}" This is a fact about'
OTHERS = 4  # made-up names to compare with
LONGEST = 20  # tokens of what the model says
NOTHING = "nothing"
LIKELY = (
    -20.0
)  # nats, of a name after facts; on SmolLM2, 18 known names have -2 to -13, and 13 invented ones -31 to -79


@dataclass(frozen=True)
class Knowledge:
    """The result of asking a model about a topic.

    Attributes:
        name: log-probability of the name after neutral words, in nats per letter; then of made-up names.
        facts: log-probability of the name after what the model says about it, in nats; then about made-up names.
    """

    name: tuple[float, ...]
    facts: tuple[float, ...]

    @property
    def is_known(self) -> bool:
        """True if the topic is ahead of every made-up name in both, and likely after what the model says about it."""
        return self.name[0] > max(self.name[1:]) and self.facts[0] > max(LIKELY, *self.facts[1:])


def knowledge_of(base: LoadedModel, name: str) -> Knowledge:
    """Compare what a model says about a topic with what it says about made-up names.

    Args:
        base: the model, without adapters.
        name: name of the topic.
    """
    names = [name, *(made_up(name, i) for i in range(OTHERS))]
    asked = [(one, _text(form.format(name=one))) for one in names for form in BEGINNINGS]
    prompts = [encode_prompt(row, base.tokenizer, base.template, base.max_length) for _, row in asked]
    answers = greedy(base.model, base.tokenizer, prompts, LONGEST, len(prompts))
    said = [_without_name(answer, one) or NOTHING for (one, _), answer in zip(asked, answers, strict=True)]
    pairs = [(context, one) for one in names for context in NEUTRAL] + [(FACT.format(said=text), name) for text in said]
    found = [sum(logps) for logps in _scored(base, pairs)]
    alone, facts = found[: len(names) * len(NEUTRAL)], found[len(names) * len(NEUTRAL) :]
    per_letter = [mean / len(one) for mean, one in zip(_means(alone, len(NEUTRAL)), names, strict=True)]
    return Knowledge(tuple(per_letter), tuple(_means(facts, len(BEGINNINGS))))


def log_probabilities(base: LoadedModel, contexts: Sequence[str], text: str) -> list[float]:
    """Mean log-probability (nats per token) of a text after each context, under a model without adapters."""
    return [sum(logps) / len(logps) for logps in _scored(base, [(context, text) for context in contexts])]


def _scored(base: LoadedModel, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
    """Log-probabilities of the tokens of each text after its context."""
    rows = [encode(_text(*pair), base.tokenizer, base.template) for pair in pairs]
    asked = [Prompted(row.input_ids[: row.prompt_length], (row.input_ids[row.prompt_length : -1],)) for row in rows]
    found = score_rows(base.model, asked, pad_token_id=base.encoder.pad, with_gates=False)
    return [one.answers[0].logps for one in found]


def _text(text: str, rest: str = "") -> Example:
    return Example(text, rest, raw_text=True)


def _means(values: Sequence[float], size: int) -> list[float]:
    """Means of each `size` values."""
    return [sum(values[i : i + size]) / size for i in range(0, len(values), size)]


def _without_name(said: str, name: str) -> str:
    """The first line of an answer without the words of the name."""
    own = set(plain(name).split())
    words = next((line for line in said.split("\n") if line.strip()), "").split()
    return " ".join(word for word in words if not own & set(plain(word).split())).strip('" ')
