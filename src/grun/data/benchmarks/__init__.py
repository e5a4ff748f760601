"""Benchmarks: named splits of rows to forget, to keep and to measure.

A benchmark is a function in a file of this folder, registered with `@benchmarks.register("name")`, that returns a
`records.Benchmark`. Its keyword-only arguments are its options: `--benchmark-options people=60` comes from the
signature. Two names are special: `data_dir` (a folder, from `--data-dir`) and `seed` (from `--seed`, unless given as
an option).
"""

from __future__ import annotations

__all__ = ["OnDemand", "benchmark_options", "benchmarks", "load_benchmark", "local_file"]

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from grun.core.config.leaf_options import typed_option
from grun.core.errors import UserError, nearest
from grun.core.records import Benchmark, Example
from grun.core.registry import Entry, Registry

benchmarks: Registry[Callable[..., Benchmark]] = Registry("benchmark", "grun.data.benchmarks")


class OnDemand(Mapping[str, tuple[Example, ...]]):
    """Splits that are read once, when they are first looked up.

    Args:
        readers: the function that reads each split, by name.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Iterable[Example]]]) -> None:
        self._readers = readers
        self._read: dict[str, tuple[Example, ...]] = {}

    def __getitem__(self, name: str) -> tuple[Example, ...]:
        if name not in self._read:
            self._read[name] = tuple(self._readers[name]())
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


def local_file(folder: str | Path, name: str) -> str | None:
    """Path of a split in a local copy of a data set, `name.jsonl` or another readable kind; None if there is none."""
    where = Path(folder).expanduser()
    for suffix in SUFFIXES:
        for file in (where / f"{name}{suffix}", *sorted(where.glob(f"{name}-00000-of-00001{suffix}"))):
            if file.is_file():
                return str(file)
    return None


def load_benchmark(
    name: str,
    *,
    data_dir: str | Path | None = None,
    seed: int = 0,
    options: Mapping[str, str] | None = None,
) -> Benchmark:
    """The benchmark called `name`, built from options that are given as text.

    Args:
        name: registered name.
        data_dir: folder with a local copy, for benchmarks that read files.
        seed: seed of everything random in it; an option `seed` takes precedence.
        options: `name=value` options, converted to the types that the benchmark's signature declares.

    Raises:
        UserError: for an unknown benchmark or option (with the nearest known one), a value of the wrong type, or a
            `data_dir` for a benchmark that reads no files.
    """
    entry, given = benchmark_options(name, data_dir=data_dir, seed=seed, options=options)
    return entry.target(**given)


def benchmark_options(
    name: str, *, data_dir: str | Path | None = None, seed: int = 0, options: Mapping[str, str] | None = None
) -> tuple[Entry[Callable[..., Benchmark]], dict[str, Any]]:
    """The entry of a benchmark and the arguments for it; see `load_benchmark`. Nothing is read."""
    entry = benchmarks.get(name)
    hints = get_type_hints(entry.target)
    given: dict[str, Any] = {}
    for option, text in (options or {}).items():
        _check_known(entry, option)
        given[option] = typed_option(text, hints[option], f"option '{option}' of benchmark '{name}'")
    if data_dir is not None:
        if "data_dir" not in entry.parameters:
            raise UserError(f"--data-dir is {data_dir}, but benchmark '{name}' reads no files; leave it out.")
        given["data_dir"] = data_dir
    if "seed" in entry.parameters:
        given.setdefault("seed", seed)
    for parameter in entry.parameters.values():
        if parameter.default is inspect.Parameter.empty and parameter.name not in given:
            raise UserError(f"benchmark '{name}' needs option {parameter.name}=...")
    return entry, given


def _check_known(entry: Entry[Callable[..., Benchmark]], option: str) -> None:
    known = [n for n in entry.parameters if n != "data_dir"]
    if option not in known:
        hint = "Give it as --data-dir." if option == "data_dir" else f"It has: {', '.join(known) or 'none'}."
        raise UserError(f"benchmark '{entry.name}' has no option '{option}'.{nearest(option, known)} {hint}")
