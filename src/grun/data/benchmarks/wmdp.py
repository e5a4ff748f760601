"""`wmdp`: multiple-choice questions about hazardous knowledge (Li et al. 2024, arXiv 2403.03218), and MMLU.

Questions are written and scored as in the tasks `wmdp_bio`, `wmdp_cyber`, `wmdp_chem` and `mmlu` of lm-evaluation-harness,
without examples: the letters A to D are the continuations of the question.
"""

from __future__ import annotations

__all__ = ["wmdp"]

from collections.abc import Callable
from functools import partial
from pathlib import Path

from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import OnDemand, benchmarks, local_file
from grun.data.examples import read_examples
from grun.data.tables import Row, read_rows

SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry", "mmlu": ""}
HUB = {
    "bio": "cais/wmdp:wmdp-bio:test",
    "cyber": "cais/wmdp:wmdp-cyber:test",
    "chem": "cais/wmdp:wmdp-chem:test",
    "mmlu": "cais/mmlu:all:test",
}
CORPORA = {
    "bio": ("cais/wmdp-bio-forget-corpus", "cais/wmdp-corpora:bio-retain-corpus"),
    "cyber": ("cais/wmdp-corpora:cyber-forget-corpus", "cais/wmdp-corpora:cyber-retain-corpus"),
}
LETTERS = "ABCDEFGHIJ"


@benchmarks.register("wmdp")
def wmdp(*, data_dir: str | Path | None = None, corpus: str = "bio") -> Benchmark:
    """WMDP's questions on biology, cybersecurity and chemistry, and MMLU; to unlearn, one of its corpora.

    Splits: `bio`, `cyber`, `chem`, `mmlu` (questions); `forget` and `retain` (running text of the corpus). Questions are
    scored as the tasks of lm-evaluation-harness do it, without examples: the letters A to D as continuations.

    Args:
        data_dir: folder with files in WMDP's layout, a row per question with `question`, `choices` and `answer` (an index):
            any of `bio.jsonl`, `cyber.jsonl`, `chem.jsonl` and `mmlu.jsonl` (with `subject`); and, to unlearn,
            `bio-forget-corpus.jsonl`, `bio-retain-corpus.jsonl` and so on with a column `text`. JSON lines, JSON, CSV or
            Parquet. Without it, the hub's `cais/wmdp`, `cais/mmlu` and `cais/wmdp-corpora` are loaded.
        corpus: the corpus to unlearn: bio or cyber.

    Raises:
        UserError: for a folder without any of the files, or a question that cannot be read; names file and row.
    """
    if corpus not in CORPORA:
        raise UserError(
            f"option 'corpus' is '{corpus}', expected one of {', '.join(CORPORA)}.{nearest(corpus, CORPORA)}"
        )
    found = {name: HUB[name] if data_dir is None else local_file(data_dir, name) for name in SUBJECTS}
    questions = tuple(name for name, source in found.items() if source is not None)
    if not questions:
        names = ", ".join(f"{name}.jsonl" for name in SUBJECTS)
        raise UserError(f"--data-dir '{data_dir}' has none of the files {names} that benchmark 'wmdp' reads.")
    readers: dict[str, Callable[[], list[Example]]] = {
        name: partial(_questions, str(found[name]), SUBJECTS[name]) for name in questions
    }
    for side, hub in zip(("forget", "retain"), CORPORA[corpus], strict=True):
        readers[side] = partial(_corpus, data_dir, f"{corpus}-{side}-corpus", hub)
    return Benchmark(
        "wmdp",
        OnDemand(readers),
        "forget",
        "retain",
        full=("forget", "retain"),
        evaluation=questions,
        unseen=tuple(name for name in questions if name == "mmlu"),
        answer_tokens=dict.fromkeys(questions, 0),
        shown=("accuracy", "gate_mean", "gate_open"),
    )


def _corpus(data_dir: str | Path | None, name: str, hub: str) -> list[Example]:
    if data_dir is None:
        return read_examples(hub)
    file = local_file(data_dir, name)
    if file is None:
        raise UserError(f"--data-dir '{data_dir}' has no file {name}.jsonl, which benchmark 'wmdp' needs to unlearn.")
    return read_examples(file)


def _questions(source: str, subject: str) -> list[Example]:
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source} is empty: it holds no questions.")
    return [_question(row, subject) for row in rows]


def _question(row: Row, subject: str) -> Example:
    """The question as the harness writes it; its prompt ends before the space that the letter begins with."""
    choices, answer = _checked(row)
    subject = subject or str(row.values.get("subject") or "").replace("_", " ").strip()
    head = "The following are multiple choice questions (with answers)"
    lines = [f"{head} about {subject}." if subject else f"{head}.", "", str(row.values["question"]).strip()]
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    letters = tuple(LETTERS[: len(choices)])
    return Example(
        prompt="\n".join([*lines, "Answer:"]),
        answer=letters[answer],
        subject=subject or None,
        perturbed_answers=letters[:answer] + letters[answer + 1 :],
        choices=letters,
        raw_text=True,
        source=row.where,
    )


def _checked(row: Row) -> tuple[list[str], int]:
    """The choices and the index of the right one.

    Raises:
        UserError: naming what is wrong.
    """
    for column in ("question", "choices", "answer"):
        if row.values.get(column) is None:
            raise UserError(
                f"{row.where}: column '{column}' is missing or empty; expected question, choices and answer."
            )
    choices, answer = row.values["choices"], row.values["answer"]
    if not isinstance(choices, (list, tuple)) or not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"{row.where}: 'choices' is {choices!r:.60}, expected a list of 2 to {len(LETTERS)} texts.")
    if isinstance(answer, str) and answer.strip().isdigit():  # as in CSV
        answer = int(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f"{row.where}: 'answer' is {answer!r:.60}, expected an index from 0 to {len(choices) - 1}.")
    return [str(choice) for choice in choices], answer
