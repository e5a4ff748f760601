"""`muse`: six-way evaluation of unlearning news articles or books (Shi et al. 2024, arXiv 2407.06460).

Verbatim memorisation, knowledge memorisation (of what is forgotten and of what is kept) and privacy leakage come from one
evaluation; scalability and sustainability are the same after unlearning larger forget sets (`forget=scal_1` to `scal_4`) and
after several requests in a row (`forget=sust_1` to `sust_4`).
"""

from __future__ import annotations

__all__ = ["muse"]

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import OnDemand, benchmarks, local_file
from grun.data.examples import checked_text, read_examples
from grun.data.tables import read_rows

CORPORA = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
FORGET_SETS = ("forget", *(f"{kind}_{i}" for kind in ("scal", "sust") for i in (1, 2, 3, 4)))
CONTINUATION, ANSWER = 128, 32  # longest greedy answers, in tokens
STOPS = ("\n\n", "\nQuestion", "Question:")  # a base model goes on with questions of its own


@benchmarks.register("muse")
def muse(*, data_dir: str | Path | None = None, corpus: str = "news", forget: str = "forget") -> Benchmark:
    """MUSE's news articles or books.

    Splits to unlearn with: `forget`, `retain` (`retain1` of the corpus). Splits to look at: `verbatim` (continue a text of the
    forget set), `knowledge` and `retain_knowledge` (questions after a few answered ones), and `texts` of the forget set, which
    attacks compare with `holdout`. Scalability and sustainability are the same after unlearning other forget sets
    (`forget=scal_3`, `forget=sust_3`).

    Args:
        data_dir: folder with a copy of the data set, a folder per subset and a file per split: `raw/forget`, `raw/retain1`,
            `raw/retain2`, `verbmem/forget`, `knowmem/forget_qa`, `forget_qa_icl`, `retain_qa`, `retain_qa_icl`,
            `privleak/forget`, `privleak/holdout`, `scal/forget_1`, `sust/forget_1`; JSON lines, JSON, CSV or Parquet.
            Without it, the hub's `muse-bench/MUSE-News` or `MUSE-Books` is loaded.
        corpus: news or books.
        forget: what to unlearn: forget, scal_1 to scal_4 or sust_1 to sust_4.

    Raises:
        UserError: for an unknown option; when a split is read, for a missing file or column.
    """
    for option, value, known in (("corpus", corpus, CORPORA), ("forget", forget, FORGET_SETS)):
        if value not in known:
            raise UserError(
                f"option '{option}' is '{value}', expected one of {', '.join(known)}.{nearest(value, known)}"
            )
    source = partial(_source, data_dir, CORPORA[corpus])
    kind, _, number = forget.partition("_")
    requested = source(kind, f"forget_{number}") if number else source("raw", "forget")
    readers: dict[str, Callable[[], Sequence[Example]]] = {
        "forget": partial(_texts, requested),
        "retain": partial(_texts, source("raw", "retain1")),
        "retain2": partial(_texts, source("raw", "retain2")),
        "verbatim": partial(_continuations, source("verbmem", "forget")),
        "knowledge": partial(_answers, source("knowmem", "forget_qa"), source("knowmem", "forget_qa_icl")),
        "retain_knowledge": partial(_answers, source("knowmem", "retain_qa"), source("knowmem", "retain_qa_icl")),
        "texts": partial(_whole_texts, source("privleak", "forget")),
        "holdout": partial(_whole_texts, source("privleak", "holdout")),
    }
    evaluation = ("verbatim", "knowledge", "retain_knowledge", "texts")
    return Benchmark(
        "muse",
        OnDemand(readers),
        "forget",
        "retain",
        full=("forget", "retain", "retain2"),
        evaluation=evaluation,
        unseen=("retain_knowledge",),
        holdout="holdout",
        members="texts",
        answer_tokens=dict(zip(evaluation, (CONTINUATION, ANSWER, ANSWER, 0), strict=True)),
        shown=("rouge_l_f1", "mia_min_k", "privleak", "gate_mean", "gate_open"),
    )


def _source(data_dir: str | Path | None, hub: str, subset: str, split: str) -> Callable[[], str]:
    """Where a split is read from; asked when it is read, so that nobody needs files of splits that are not looked at."""

    def find() -> str:
        if data_dir is None:
            return f"{hub}:{subset}:{split}"
        file = local_file(Path(data_dir) / subset, split)
        if file is None:
            raise UserError(
                f"--data-dir '{data_dir}' has no file {subset}/{split}.jsonl, which benchmark 'muse' reads."
            )
        return file

    return find


def _texts(source: Callable[[], str]) -> list[Example]:
    return read_examples(source(), columns={"text": "text"})


def _whole_texts(source: Callable[[], str]) -> list[Example]:
    """Texts of which all but the first word counts as the answer: attacks look at all tokens."""
    found = []
    for row in _texts(source):
        words = f"{row.prompt} {row.answer}" if not row.prompt[-1:].isspace() else row.prompt + row.answer
        first, _, rest = words.partition(" ")
        found.append(replace(row, prompt=first, answer=rest) if rest else row)
    return found


def _continuations(source: Callable[[], str]) -> list[Example]:
    rows = read_examples(source(), columns={"prompt": "prompt", "answer": "gt"})
    return [replace(row, raw_text=True) for row in rows]


def _answers(source: Callable[[], str], examples: Callable[[], str]) -> list[Example]:
    """Questions, each after the same few answered ones."""
    shown = ""
    for row in read_rows(examples()):
        for column in ("question", "answer"):
            checked_text(row.values.get(column), row, f"'{column}'")
        shown += f"Question: {row.values['question']}\nAnswer: {row.values['answer']}\n\n"
    columns = {"prompt": "question", "answer": "answer"}
    return [
        replace(row, prompt=f"{shown}Question: {row.prompt}\nAnswer:", raw_text=True, stops=STOPS)
        for row in read_examples(source(), columns=columns)
    ]
