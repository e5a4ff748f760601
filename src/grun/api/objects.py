"""Models and rows as callers in Python have them: names, paths, loaded models, lists of dicts, data sets, data frames."""

from __future__ import annotations

__all__ = ["ModelLike", "RowsLike", "Standing", "as_it_was", "named_model", "named_rows"]

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from grun.core.errors import UserError
from grun.core.python_objects import PREFIX, standing_for

ModelLike: TypeAlias = Any  # a hub id, a path, a loaded model, or a pair of a loaded model and its tokenizer
RowsLike: TypeAlias = (
    Any  # a path or hub id, several of them, rows (dicts or Examples), a `datasets.Dataset`, a data frame
)


@dataclass
class Standing:
    """Names that go into the settings of a job, and the objects that they stand for.

    Attributes:
        objects: by name; see `grun.core.python_objects`.
    """

    objects: dict[str, Any] = field(default_factory=dict)


def named_model(given: ModelLike, tokenizer: Any, standing: Standing) -> str:
    """Name of a model for the settings; a loaded one is noted under its name.

    Raises:
        UserError: for something that is no model, or a loaded model without a tokenizer.
    """
    if isinstance(given, (str, Path)):
        return str(given)
    if isinstance(given, tuple) and len(given) == 2:
        given, tokenizer = given
    if not callable(getattr(given, "generate", None)):
        raise UserError(
            f"model is of type {type(given).__name__}, expected a hub id, a path, a loaded causal language model, or a "
            "pair of one and its tokenizer."
        )
    from grun.models.loading.loaded import GivenModel  # transformers takes seconds to import

    source = str(getattr(given, "name_or_path", "") or "")
    if tokenizer is None:
        tokenizer = _tokenizer_of(source)
    name = source or f"{PREFIX}{type(given).__name__}"
    standing.objects[name] = GivenModel.of(given, tokenizer)
    return name


def _tokenizer_of(source: str) -> Any:
    """The tokenizer that lies beside the files a model was loaded from."""
    from transformers import AutoTokenizer

    try:
        if source:
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError):
        pass
    raise UserError(
        "tokenizer is missing: pass the tokenizer of the loaded model, as tokenizer=... or as (model, tokenizer)."
    )


@contextmanager
def as_it_was(standing: Standing, trains_weights: bool = False) -> Iterator[None]:
    """Inside, a job may do to loaded models what it likes; afterwards they are as they were.

    Args:
        standing: names the models.
        trains_weights: the job changes weights, so it gets a copy.
    """
    from grun.models.loading.loaded import GivenModel

    given = {name: one for name, one in standing.objects.items() if isinstance(one, GivenModel)}
    copies = {n: GivenModel.of(copy.deepcopy(one.model), one.tokenizer) for n, one in given.items() if trains_weights}
    try:
        with standing_for({**standing.objects, **copies}):
            yield
    finally:
        for one in given.values():
            one.before.restore()


def named_rows(given: RowsLike, parameter: str, standing: Standing) -> list[str]:
    """Names of rows for the settings: paths and hub ids as they are, and a name that stands for rows given as objects.

    Args:
        given: rows, or where they are; None for none.
        parameter: that they were passed as, for names and messages.
        standing: where objects are noted.

    Raises:
        UserError: for something that holds no rows, naming the parameter, the row, and what was found.
    """
    if given is None:
        return []
    if isinstance(given, (str, Path)):
        return [str(given)]
    if isinstance(given, Sequence) and given and all(isinstance(one, (str, Path)) for one in given):
        return [str(one) for one in given]
    name = f"{PREFIX}{parameter}"
    standing.objects[name] = _rows(given, parameter)
    return [name]


def _rows(given: Any, parameter: str) -> tuple[Any, ...]:
    """Rows as readers know them."""
    from grun.core.records import Example  # torch takes seconds to import
    from grun.data.tables import Row

    rows = tuple(_records(given, parameter))
    if not rows:
        raise UserError(f"{parameter} is empty: it holds no rows.")
    if all(isinstance(row, Example) for row in rows):
        return rows
    found = []
    for number, row in enumerate(rows, 1):
        where = f"{parameter}, row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: found {type(row).__name__}, expected a dict with named columns.")
        found.append(Row({str(name): _cell(value) for name, value in row.items()}, where))
    return tuple(found)


def _records(given: Any, parameter: str) -> Iterable[Any]:
    """The rows of a list, a data set or a data frame, one after the other."""
    if isinstance(given, Mapping):  # also a DatasetDict
        raise UserError(
            f"{parameter} is a {type(given).__name__} with {', '.join(map(str, list(given)[:5]))}; expected rows: a list "
            "of dicts, or one split of a data set."
        )
    to_dict = getattr(given, "to_dict", None)
    if to_dict is not None and hasattr(given, "columns"):  # pandas; polars has to_dicts
        return list(to_dict("records"))
    if hasattr(given, "to_dicts"):
        return list(given.to_dicts())
    if isinstance(given, Iterable):
        return given
    raise UserError(
        f"{parameter} is of type {type(given).__name__}, expected a path, a hub id, a list of dicts, a data set or a data "
        "frame."
    )


def _cell(value: Any) -> Any:
    """A cell; data frames say NaN where a row has no value."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
