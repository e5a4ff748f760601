"""Rows of text and named splits of them."""

from __future__ import annotations

__all__ = ["Begun", "Benchmark", "Example"]

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Example:
    """A prompt and the answer that a model gives to it: one row to forget or to keep.

    Attributes:
        prompt: the question as a person would ask it, without any template. Never empty.
        answer: the expected answer, without leading space or end-of-sequence token. Empty where the base model's own answer
            stands for it, which jobs fill in.
        subject: subject of the row (an author, a person). Rows of one subject are withheld together.
        turns: earlier `(role, content)` turns of a conversation that precede the prompt.
        paraphrased_prompts: other phrasings of the prompt, never used in training.
        paraphrased_answer: the answer in other words (TOFU).
        perturbed_answers: wrong answers of the same form (TOFU).
        alternative_answers: harmless answers that may be given instead, for objectives that teach one (AltPO).
        raw_text: the row is running text cut in two, not a question: no template is applied.
        choices: of a multiple-choice question, all continuations to choose from in their order, the answer among them and the
            others being `perturbed_answers`; no end-of-sequence token belongs to them.
        stops: texts that end a greedy answer, where the model's own end-of-sequence token is not enough.
        source: origin of the row, for messages ("forget.jsonl, row 12").
    """

    prompt: str
    answer: str
    subject: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    paraphrased_prompts: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    alternative_answers: tuple[str, ...] = ()
    raw_text: bool = False
    choices: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    source: str = ""

    def rephrased(self, which: int = 0) -> Example:
        """The same row asked with its `which`-th paraphrased prompt.

        Raises:
            IndexError: if the row has no such paraphrase.
        """
        return replace(self, prompt=self.paraphrased_prompts[which], paraphrased_prompts=())


@dataclass(frozen=True)
class Begun(Example):
    """A row whose asker has written the beginning of the answer; `answer` is the rest of it.

    Attributes:
        begin: what stands between the prompt and the answer, white space at its end included.
    """

    begin: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Named splits of examples and their roles.

    Attributes:
        name: registered name.
        splits: all splits by name; a split may be read only when it is looked up.
        forget, retain: names of the splits that an unlearning run is given.
        full: names of the splits that a target model is trained on (forget and retain among them).
        evaluation: names of the splits to report on, in order.
        unseen: names of the normal splits that unlearning must never be given (for held-out figures).
        unseen_forget: names of splits of what must be forgotten too, and that unlearning must never be given either.
        holdout: name of a split of rows like the forget rows that no model is trained on (for membership inference).
        utility: names of the splits that measure the usefulness of the model; True where the answer probability is normalised
            over the perturbed answers.
        members: name of the split that membership inference compares with `holdout`; None: the forget split.
        answer_tokens: by split, the longest greedy answer that the benchmark prescribes; 0 for none.
        shown: names of the metrics in the table; none: the usual ones.
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    forget: str
    retain: str
    full: tuple[str, ...]
    evaluation: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    unseen_forget: tuple[str, ...] = ()
    holdout: str | None = None
    utility: Mapping[str, bool] = field(default_factory=dict)
    members: str | None = None
    answer_tokens: Mapping[str, int] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
