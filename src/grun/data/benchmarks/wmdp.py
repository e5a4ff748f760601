"""`wmdp`: multiple-choice questions about hazardous knowledge (Li et al. 2024, arXiv 2403.03218), and MMLU.

Questions are written and scored as in the tasks `wmdp_bio`, `wmdp_cyber`, `wmdp_chem` and `mmlu` of lm-evaluation-harness,
without examples: the letters A to D are the continuations of the question.
"""

from __future__ import annotations

__all__ = ["wmdp"]

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import OnDemand, benchmarks, local_file
from grun.data.examples import checked_text, read_examples
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
PAPER = {  # names of the files that come with the code of the GRUN paper; one corpus to keep serves both
    "bio": "bio_test",
    "cyber": "cyber_test",
    "bio-forget-corpus": "merge_forget_data_sum_gpt",
    "cyber-forget-corpus": "cyber_forget_data_sum_gpt",
    "bio-retain-corpus": "merge_retain_data_sum_gpt",
    "cyber-retain-corpus": "merge_retain_data_sum_gpt",
}
GENERAL = "general"  # questions that come with the package
GENERAL_FILE = Path(__file__).with_name("_general_questions.jsonl")
LETTERS = "ABCDEFGHIJ"
LONGEST_INDEX = 9  # characters of the number of a choice


@benchmarks.register("wmdp")
def wmdp(*, data_dir: str | Path | None = None, corpus: str = "bio") -> Benchmark:
    """WMDP's questions on biology, cybersecurity and chemistry, and MMLU; to unlearn, one of its corpora.

    Splits: `bio`, `cyber`, `chem`, `mmlu` (questions); `general` (120 easy questions on ordinary subjects in the same form,
    school biology and computer science among them, which come with the package); `forget` and `retain` (running text of the
    corpus). Questions are scored as the tasks of lm-evaluation-harness do it, without examples: the letters A to D as
    continuations.

    Args:
        data_dir: folder with files in WMDP's layout, a row per question with `question`, `choices` and `answer` (an index):
            any of `bio.jsonl`, `cyber.jsonl`, `chem.jsonl` and `mmlu.jsonl` (with `subject`); and, to unlearn,
            `bio-forget-corpus.jsonl`, `bio-retain-corpus.jsonl` and so on with a column `text`. The names of the files that
            the GRUN paper used are read as well: `bio_test.jsonl`, `cyber_test.jsonl`, `merge_forget_data_sum_gpt.jsonl`
            (bio), `cyber_forget_data_sum_gpt.jsonl` and `merge_retain_data_sum_gpt.jsonl` (to keep, for both corpora). JSON
            lines, JSON, CSV or Parquet. Without it, the hub's `cais/wmdp`, `cais/mmlu` and `cais/wmdp-corpora` are loaded.
        corpus: the corpus to unlearn: bio or cyber.

    Raises:
        UserError: for a folder without any of the files or with two files for one part, a missing corpus, or a question that
            cannot be read; names file and row.
    """
    if corpus not in CORPORA:
        raise UserError(
            f"option 'corpus' is '{corpus}', expected one of {', '.join(CORPORA)}.{nearest(corpus, CORPORA)}"
        )
    sides = {side: f"{corpus}-{side}-corpus" for side in ("forget", "retain")}
    found: dict[str, str | None] = {**HUB, **dict(zip(sides.values(), CORPORA[corpus], strict=True))}
    if data_dir is not None:
        found = {name: _local_part(data_dir, name) for name in found}
    questions = tuple(name for name in SUBJECTS if found[name] is not None)
    if not questions:
        names = ", ".join(_file_names(name) for name in SUBJECTS)
        raise UserError(f"--data-dir '{data_dir}' has none of the files {names} that benchmark 'wmdp' reads.")
    readers: dict[str, Callable[[], list[Example]]] = {
        name: partial(_questions, str(found[name]), SUBJECTS[name]) for name in questions
    }
    readers[GENERAL] = _general
    missing = [_file_names(part) for part in sides.values() if found[part] is None]
    for side, part in sides.items():
        readers[side] = partial(_corpus, data_dir, found[part], missing)
    return Benchmark(
        "wmdp",
        OnDemand(readers),
        "forget",
        "retain",
        full=("forget", "retain"),
        evaluation=(*questions, GENERAL),
        unseen=(*(name for name in questions if name == "mmlu"), GENERAL),
        answer_tokens=dict.fromkeys((*questions, GENERAL), 0),
        shown=("accuracy", "gate_mean", "gate_open"),
    )


def _local_part(folder: str | Path, name: str) -> str | None:
    """The file of a part under its own name or the paper's; None if there is none."""
    files = [file for known in _names(name) if (file := local_file(folder, known)) is not None]
    if len(files) > 1:
        both = " and ".join(Path(file).name for file in files)
        raise UserError(f"--data-dir '{folder}' has both {both}, two files for one part; remove one of them.")
    return files[0] if files else None


def _names(part: str) -> list[str]:
    return [part, *([PAPER[part]] if part in PAPER else [])]


def _file_names(part: str) -> str:
    return " or ".join(f"{name}.jsonl" for name in _names(part))


def _corpus(folder: str | Path | None, source: str | None, missing: Sequence[str]) -> list[Example]:
    """A corpus; it is refused as long as one of the two is missing, with all that is missing named."""
    if missing or source is None:
        raise UserError(f"--data-dir '{folder}' lacks {', '.join(missing)}, which benchmark 'wmdp' needs to unlearn.")
    return read_examples(source)


def _questions(source: str, subject: str) -> list[Example]:
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source} is empty: it holds no questions.")
    return [_question(row, subject) for row in rows]


def _general() -> list[Example]:
    rows = _questions(str(GENERAL_FILE), "")
    return [replace(row, source=f"general questions, row {i}") for i, row in enumerate(rows, 1)]


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
    checked_text(row.values["question"], row, "'question'")
    for i, choice in enumerate(choices):
        if not isinstance(choice, (int, float)) or choice != choice:  # MMLU has numbers among them
            checked_text(choice, row, f"choice {LETTERS[i]}")
    if isinstance(answer, str) and answer.strip().isdecimal() and len(answer) < LONGEST_INDEX:  # as in CSV
        answer = int(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f"{row.where}: 'answer' is {answer!r:.60}, expected an index from 0 to {len(choices) - 1}.")
    return [str(choice) for choice in choices], answer
