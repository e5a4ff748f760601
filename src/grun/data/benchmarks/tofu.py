"""`tofu`: question answering about 200 fictitious authors (Maini et al. 2024, arXiv 2401.06121; MIT licence).

The data has 4000 rows: 20 per author, one author after another. `forget05` is the last 200 rows, `retain95` the rest, and so
on; rows are assigned to authors by this order. The `_perturbed` files hold the first 400 retain rows and the forget rows
again, with paraphrases and wrong answers, which are joined to the rows here.
"""

from __future__ import annotations

__all__ = ["tofu"]

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import benchmarks, local_file
from grun.data.examples import read_examples

HUB_ID = "locuslab/TOFU"
ROWS = 4000
ROWS_PER_AUTHOR = 20
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


@benchmarks.register("tofu")
def tofu(
    *,
    data_dir: str | Path | None = None,
    forget: str = "forget05",
    retain_rows: int | None = None,
    withheld_share: float = 0.25,
) -> Benchmark:
    """TOFU with the last of the retain authors withheld from unlearning.

    Splits: `forget`, `retain` (given to unlearning), `retain_withheld` (authors that the target model knows but that
    unlearning is never given), `real_authors` and `world_facts` (not trained into the target model), and, with `retain_rows`,
    `holdout`: as many rows as `forget`, of retain authors that are left out and shown to no model.

    Args:
        data_dir: folder with the JSON-lines files of the data set (`forget05_perturbed.json`, `retain95.json`, ...).
            Without it, the hub's `locuslab/TOFU` is loaded.
        forget: forget01, forget05 or forget10; the retain set is the matching one.
        retain_rows: only the first rows of the retain set: a multiple of 20, the rows of an author.
        withheld_share: share of the retain authors, the last ones, to withhold from unlearning.

    Raises:
        UserError: for a missing file (named), an unreachable hub, or an option out of range.
    """
    if forget not in RETAIN_OF:
        hint = nearest(forget, RETAIN_OF)
        raise UserError(f"option 'forget' is '{forget}', expected one of {', '.join(RETAIN_OF)}.{hint}")
    retain = _read(RETAIN_OF[forget], data_dir)
    everyone = _with_authors(retain, 0)
    kept, withheld = _withhold(_first_rows(everyone, retain_rows), withheld_share)
    extra = {(row.prompt, row.answer): row for row in _read("retain_perturbed", data_dir)}
    forget_set = _read(f"{forget}_perturbed", data_dir)
    splits = {
        "forget": _with_authors(forget_set, (ROWS - len(forget_set)) // ROWS_PER_AUTHOR),
        "retain": _joined(kept, extra),
        "retain_withheld": _joined(withheld, extra),
        "real_authors": tuple(_read("real_authors_perturbed", data_dir)),
        "world_facts": tuple(_read("world_facts_perturbed", data_dir)),
    }
    if not withheld:
        del splits["retain_withheld"]
    names = tuple(splits)
    full = tuple(name for name in names if name not in ("real_authors", "world_facts"))
    left = everyone[len(kept) + len(withheld) :][: len(forget_set)]
    holdout = {"holdout": left} if left else {}
    return Benchmark(
        "tofu",
        splits | holdout,
        "forget",
        "retain",
        full=full,
        evaluation=names,
        unseen=names[2:],
        holdout=next(iter(holdout), None),
        utility={"retain": False, "real_authors": True, "world_facts": True},
    )


def _read(name: str, data_dir: str | Path | None) -> list[Example]:
    if data_dir is None:
        try:
            return read_examples(f"{HUB_ID}:{name}")
        except UserError as error:
            raise UserError(f"benchmark 'tofu': {error} Or give a folder with a local copy: --data-dir.") from error
    found = local_file(data_dir, name)
    if found is None:
        reason = f"has no file {name}.json" if Path(data_dir).expanduser().is_dir() else "is not a folder"
        raise UserError(f"--data-dir '{data_dir}' {reason}; expected a copy of {HUB_ID}, with {name}.json in it.")
    return read_examples(found)


def _with_authors(rows: Sequence[Example], first_author: int) -> tuple[Example, ...]:
    """Rows with the author's number (its place in the full set) as subject."""
    authors = (first_author + i // ROWS_PER_AUTHOR for i in range(len(rows)))
    return tuple(replace(row, subject=f"author {author:03d}") for row, author in zip(rows, authors, strict=True))


def _first_rows(rows: tuple[Example, ...], count: int | None) -> tuple[Example, ...]:
    if count is None:
        return rows
    if count % ROWS_PER_AUTHOR or not ROWS_PER_AUTHOR <= count <= len(rows):
        raise UserError(f"option 'retain_rows' is {count}, expected a multiple of {ROWS_PER_AUTHOR} up to {len(rows)}.")
    return rows[:count]


def _withhold(rows: tuple[Example, ...], share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The rows in two parts, cut between authors: those given to unlearning, and the last `share` of the authors."""
    authors = len(rows) // ROWS_PER_AUTHOR
    withheld = round(authors * share)
    if not 0 <= share < 1 or withheld >= authors:
        raise UserError(f"option 'withheld_share' is {share}; expected at least 0 and one of {authors} authors left.")
    cut = (authors - withheld) * ROWS_PER_AUTHOR
    return rows[:cut], rows[cut:]


def _joined(rows: Sequence[Example], extra: dict[tuple[str, str], Example]) -> tuple[Example, ...]:
    """Rows with the paraphrases and wrong answers of the same rows in `extra`."""
    joined = []
    for row in rows:
        more = extra.get((row.prompt, row.answer))
        if more is not None:
            row = replace(more, subject=row.subject, source=row.source)
        joined.append(row)
    return tuple(joined)
