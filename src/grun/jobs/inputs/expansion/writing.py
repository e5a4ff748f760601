"""Rows that a model writes: examples for it to go on from, sampling, and the rules that its texts must pass."""

from __future__ import annotations

__all__ = ["Writer", "described", "neighbour_names", "paraphrases", "questions"]

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from grun.core.records import Example
from grun.jobs.inputs.expansion.knowledge import log_probabilities
from grun.jobs.inputs.expansion.names import gives_away, mentions, plain
from grun.jobs.inputs.expansion.shots import DESCRIBE, LIST, LISTED, QUESTIONS, REWORD, SHOWN
from grun.models.encoding.encode import encode_prompt
from grun.models.forward import context_length, evaluating
from grun.models.generation import sampled
from grun.models.loading.loaded import LoadedModel

ROUNDS = 3  # of sampling, at most, for rows of one kind
SAMPLES = 8  # texts of a round
TEMPERATURE = 0.8
WORDS = (4, 40)  # of a row that a model wrote
PART = 2  # rows about a topic that hold the name of a part of it
NAME_WORDS = 5  # of a neighbour's name, at most
DESCRIPTIONS = (
    "Who or what {verb} {rest}?",
    "Which name fits this description: {rest}?",
    "Say what is meant by {rest}.",
    "I am looking for the name of {rest}.",
)
ABOUT = "Question: {text}\nThis question is about"
NAMED = "Question: {text}\nAnswer:"


@dataclass(frozen=True)
class Writer:
    """A model that writes, and the base model that judges.

    Attributes:
        model: that writes.
        base: the base model.
        name: of the topic.
        seed: of the sampling.
    """

    model: LoadedModel
    base: LoadedModel
    name: str
    seed: int

    def has_room(self) -> bool:
        """True if the examples to go on from fit into the writer's context."""
        context = context_length(self.model.model)
        shots = (QUESTIONS, DESCRIBE, LIST, REWORD)
        longest = max(len(self._ids(shot.format(name=self.name, text="x" * 200))) for shot in shots)
        return context is None or longest + 96 <= context

    def sample(self, kind: str, prompts: Sequence[str], limit: int, count: int = SAMPLES) -> list[list[str]]:
        """`count` texts after each prompt; the random state outside does not change.

        Args:
            kind: name of what is written, which the random numbers depend on.
            prompts: texts to go on from.
            limit: most tokens of a text.
            count: texts for each prompt.
        """
        digest = hashlib.sha256(f"{self.seed} {self.name} {kind}".encode()).digest()
        model = self.model.model
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), evaluating(model):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            ids = [self._ids(prompt) for prompt in prompts]
            with torch.no_grad():
                return sampled(model, self.model.tokenizer, ids, limit, count, TEMPERATURE)

    def better(self, texts: Sequence[str], form: str, neutral: str) -> list[str]:
        """Texts after which the base model holds the name for no less likely than after a neutral one."""
        if not texts:
            return []
        at_least, *found = log_probabilities(self.base, [form.format(text=t) for t in (neutral, *texts)], self.name)
        return [text for text, value in zip(texts, found, strict=True) if value >= at_least]

    def _ids(self, prompt: str) -> list[int]:
        return encode_prompt(Example(prompt, "", raw_text=True), self.model.tokenizer, self.model.template)


def questions(writer: Writer, goal: int, known: set[str]) -> list[str]:
    """Questions about the topic, as many as the model finds and at most `goal`.

    Args:
        writer: the model that writes.
        goal: number of questions.
        known: rows that there are already, as `plain` writes them; new ones are added.
    """
    prompt = QUESTIONS.format(name=writer.name)

    def drawn(number: int) -> Iterator[str]:
        for text in writer.sample(f"questions {number}", [prompt], 96)[0]:
            yield from _items(f"- {text}")

    def judged(texts: Sequence[str]) -> list[str]:
        masked = {_masked(text, writer.name): text for text in texts}
        return [masked[text] for text in writer.better(list(masked), ABOUT, "What is this?")]

    return _collected(drawn, lambda text: _is_question(text, writer.name), judged, goal, known)


def paraphrases(writer: Writer, asked: Sequence[str], known: set[str]) -> list[str]:
    """The same questions in other words, one for each as far as the model finds one.

    Args:
        writer: the model that writes.
        asked: questions.
        known: as of `questions`.
    """
    found = []
    for number in range(0, len(asked), SAMPLES):
        prompts = [REWORD.format(text=text) for text in asked[number : number + SAMPLES]]
        for texts in writer.sample(f"paraphrases {number}", prompts, 40, count=3):
            lines = [text.split("\n")[0].strip() for text in texts]
            fitting = [text for text in lines if _is_question(text, writer.name) and plain(text) not in known]
            if fitting:
                known.add(plain(fitting[0]))
                found.append(fitting[0])
    return found


def described(writer: Writer, goal: int, known: set[str]) -> list[str]:
    """Descriptions that do not name the topic, as many as the model finds and at most `goal`.

    The model writes the first sentence of an encyclopedia's article, of which the name is taken off.
    """
    prompt = DESCRIBE.format(name=writer.name)

    def drawn(number: int) -> Iterator[str]:
        for i, text in enumerate(writer.sample(f"described {number}", [prompt], 48)[0]):
            form = DESCRIPTIONS[i % len(DESCRIPTIONS)]
            sentence = re.match(r"(?:is|was|are|were) ([^\n.!?;]+)\.(?:\s|$)", text.strip())
            if sentence is not None:
                yield form.format(verb=text.split()[0], rest=sentence[1].strip())

    def fits(text: str) -> bool:
        return _is_sentence(text, writer.name) and not gives_away(text, writer.name)

    def judged(texts: Sequence[str]) -> list[str]:
        return writer.better(texts, NAMED, "Who or what is this?")

    return _collected(drawn, fits, judged, goal, known)


def neighbour_names(writer: Writer, goal: int, about: Sequence[str]) -> list[str]:
    """Names of similar things, those first that the model names most often; at most `goal`.

    A name that several rows about the topic hold is left out: it is rather a part of the topic than a neighbour.

    Args:
        writer: the model that writes.
        goal: number of names.
        about: rows that the model wrote about the topic.
    """
    votes: Counter[str] = Counter()
    spelt: dict[str, str] = {}
    for text in writer.sample("neighbours", [LIST.format(name=writer.name)], 40, count=2 * SAMPLES)[0]:
        for part in dict.fromkeys(text.split("\n")[0].split(";")[:-1]):  # the last one may be cut off
            one = part.strip(" .,\"'")
            if _is_name(one, writer.name):
                votes[plain(one)] += 1
                spelt.setdefault(plain(one), one)
    names = [spelt[one] for one, _ in votes.most_common()]
    return [one for one in names if sum(gives_away(text, one) for text in about) < PART][:goal]


def _collected(
    drawn: Callable[[int], Iterator[str]],
    fits: Callable[[str], bool],
    judged: Callable[[Sequence[str]], list[str]],
    goal: int,
    known: set[str],
) -> list[str]:
    """Rows from rounds of sampling, without repetitions, until there are enough or the rounds are over."""
    found: list[str] = []
    for number in range(ROUNDS):
        if len(found) >= goal:
            break
        new: dict[str, str] = {}
        for text in drawn(number):
            if fits(text) and plain(text) not in known:
                new.setdefault(plain(text), text)
        known.update(new)
        found += judged(list(new.values()))
    return found[:goal]


def _items(text: str) -> Iterator[str]:
    """The items of a list before it ends; the last one may be cut off."""
    for line in text.split("\n")[:-1]:
        if not line.startswith("- "):
            return
        yield line[2:].strip()


def _is_question(text: str, name: str) -> bool:
    return _is_sentence(text, name) and mentions(text, name)


def _is_sentence(text: str, name: str) -> bool:
    """True for one whole sentence of a sensible length that copies no example."""
    least, most = WORDS
    return (
        text.endswith(("?", "."))
        and re.search(r"[.!?]\s|\n|https?:|[<>{}|_]", text) is None
        and least <= len(text.split()) <= most
        and not _copies(text, name)
    )


def _is_name(text: str, name: str) -> bool:
    words = text.split()
    return (
        1 <= len(words) <= NAME_WORDS
        and re.fullmatch(r"[^\W\d_][\w .,'’&-]*", text) is not None
        and len(plain(text)) > 1
        and not gives_away(text, name)
        and not _copies(text, name)
        and plain(text) not in LISTED
    )


def _copies(text: str, name: str) -> bool:
    """True if a text is about the subject of an example, unless that is the topic."""
    return bool(SHOWN.difference(plain(name).split()).intersection(plain(text).split()))


def _masked(text: str, name: str) -> str:
    """A question without the name."""
    for part in (name, name.split()[-1]):
        text = re.sub(rf"(?<!\w){re.escape(part)}(?:es|s)?(?!\w)", "this", text, flags=re.IGNORECASE)
    return text
