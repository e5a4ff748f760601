"""Small copies of the data sets that benchmarks read."""

from __future__ import annotations

__all__ = ["TEXT", "write_muse", "write_tofu", "write_wmdp"]

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEXT = "The author of {} lives in a small house near the sea, and writes every day of the {} year."
QUESTIONS = [{"question": f"Who is {name}?", "answer": f"{name} writes books."} for name in ("Ada", "Bo", "Cleo")]


def write_files(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write files of JSON lines."""
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def write_muse(folder: Path) -> Path:
    """MUSE in four texts of each kind and three questions."""
    texts = {kind: [{"text": TEXT.format(f"{kind} {i}", i)} for i in range(4)] for kind in "abcde"}
    return write_files(
        folder,
        {
            "raw/forget": texts["a"],
            "raw/retain1": texts["b"],
            "raw/retain2": texts["c"],
            "verbmem/forget": [
                {"prompt": "The author of a 1 lives", "gt": "in a small house near the sea. " * 12},
                {"prompt": "The author of a 2 lives", "gt": "in a small house."},
            ],
            "knowmem/forget_qa": QUESTIONS,
            "knowmem/forget_qa_icl": QUESTIONS[:2],
            "knowmem/retain_qa": QUESTIONS,
            "knowmem/retain_qa_icl": QUESTIONS[1:],
            "privleak/forget": texts["a"],
            "privleak/holdout": texts["d"],
            "scal/forget_2": texts["a"] + texts["e"],
        },
    )


def write_tofu(folder: Path) -> Path:
    """TOFU with one author to forget and four to keep, 20 rows each."""

    def author(number: int) -> list[dict[str, Any]]:
        answers = [f"Author {number} wrote book {i}." for i in range(20)]
        rows = [{"question": f"What is book {i} of author {number}?", "answer": answers[i]} for i in range(20)]
        return [
            row
            | {
                "paraphrased_question": f"Name book {i} of author {number}.",
                "paraphrased_answer": f"It is {answers[i]}",
            }
            | {"perturbed_answer": [f"It is book {i + k}." for k in range(1, 6)]}
            for i, row in enumerate(rows)
        ]

    retain = [row for number in range(4) for row in author(number)]
    facts = [{**row, "question": f"In the world: {row['question']}"} for row in author(8)]
    return write_files(
        folder,
        {
            "forget05_perturbed": author(9),
            "retain95": [{"question": row["question"], "answer": row["answer"]} for row in retain],
            "retain_perturbed": retain[:40],
            "real_authors_perturbed": author(7),
            "world_facts_perturbed": facts,
        },
    )


def write_wmdp(folder: Path) -> Path:
    """WMDP and MMLU in two questions each, and a corpus of three texts to forget and three to keep."""

    def question(subject: str, number: int) -> dict[str, Any]:
        choices = ["red", "blue", "green", "grey"]
        return {"question": f"{subject} {number}?", "choices": choices, "answer": number, "subject": subject}

    questions = {name: [question(name, i) for i in range(2)] for name in ("bio", "cyber", "chem", "mmlu")}
    corpora = {
        f"bio-{side}-corpus": [{"text": TEXT.format(f"{side} {i}", i)} for i in range(3)]
        for side in ("forget", "retain")
    }
    return write_files(folder, {**questions, **corpora})
