"""The contract of every benchmark: its splits are there, roles name them, and what is forgotten is in no other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from grun.core.records import Benchmark, Example
from grun.core.storage.fingerprints import fingerprint
from grun.data.benchmarks import benchmarks, load_benchmark
from grun.evaluation.metrics import metrics
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.benchmark_kit import write_muse, write_tofu, write_wmdp
from support.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SMALL: dict[str, Callable[[Path], Path]] = {"muse": write_muse, "tofu": write_tofu, "wmdp": write_wmdp}
PUBLISHED = {"tofu": "GRUN_TOFU_DIR", "wmdp": "GRUN_WMDP_DIR"}
OPTIONS: dict[str, dict[str, str]] = {"tofu": {"retain_rows": "40"}, "muse": {"forget": "scal_2"}}  # that change roles
CASES = [(name, "small") for name in benchmarks.names()] + [(name, "options") for name in OPTIONS]
CASES += [(name, "published") for name in PUBLISHED]
ENCODED = 5  # rows of each split that are also encoded
Loader = Callable[[], Benchmark]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Loads a benchmark from files made here, from a published copy if there is one, or from none if it reads none."""
    name, which = request.param
    folder: Path | None = None
    if which == "published":
        variable = PUBLISHED[name]
        if not os.environ.get(variable):
            pytest.skip(f"{variable} does not name a folder with the files of {name}")
        folder = Path(os.environ[variable])
    elif "data_dir" in benchmarks.get(name).parameters:
        if name not in SMALL:
            pytest.skip(f"benchmark '{name}' reads files, and support/benchmark_kit.py writes none for it")
        folder = SMALL[name](tmp_path_factory.mktemp(name))
    options = OPTIONS[name] if which == "options" else {}
    return lambda: load_benchmark(name, data_dir=folder, options=options)


@pytest.fixture(scope="module")
def data(load: Loader) -> Benchmark:
    return load()


def keys(rows: tuple[Example, ...]) -> set[tuple[str, str]]:
    return {(row.prompt, row.answer) for row in rows}


def test_roles_name_splits_that_there_are(data: Benchmark) -> None:
    assert data.name in benchmarks.names()
    roles = {data.forget, data.retain, *data.full, *data.evaluation, *data.unseen, *data.utility, *data.answer_tokens}
    roles |= set(data.unseen_forget)
    assert roles | ({data.holdout, data.members} - {None}) <= set(data.splits)
    assert set(data.shown) <= set(metrics.names())
    assert data.evaluation, "there is nothing to report"
    assert all(tokens >= 0 for tokens in data.answer_tokens.values())


def test_every_split_has_rows_with_a_prompt_and_an_answer(data: Benchmark) -> None:
    for rows in data.splits.values():
        assert rows
        for row in rows:
            assert row.prompt
            assert row.answer or not data.full, "only what pretrained models know may be left to them to say"
            assert row.source, "messages cannot say where a row came from"
            assert not row.choices or {row.answer, *row.perturbed_answers} == set(row.choices)


def test_splits_are_read_once_and_listed_without_being_read(data: Benchmark) -> None:
    assert len(data.splits) == len(list(data.splits))
    for name in data.splits:
        assert data.splits[name] is data.splits[name]
    with pytest.raises(KeyError):
        data.splits["no such split"]


def test_what_is_to_be_forgotten_is_in_no_split_that_is_kept_from_unlearning(data: Benchmark) -> None:
    forget = keys(data.splits[data.forget])
    for name in (data.retain, *data.unseen, *([data.holdout] if data.holdout else [])):
        assert not forget & keys(data.splits[name]), f"rows of {name} are to be forgotten"


def test_unlearning_is_never_given_what_is_unseen(data: Benchmark) -> None:
    assert not {data.forget, data.retain} & {*data.unseen, *data.unseen_forget}
    assert not set(data.unseen) & set(data.unseen_forget), "a split is to be kept or to be forgotten"
    given = keys(data.splits[data.forget]) | keys(data.splits[data.retain])
    for name in (*data.unseen, *data.unseen_forget):
        assert not given & keys(data.splits[name]), f"unlearning sees rows of {name}"


def test_the_target_model_learns_what_it_is_to_forget_and_nothing_of_the_holdout(data: Benchmark) -> None:
    assert {data.forget, data.retain} <= set(data.full) or not data.full
    if data.holdout is not None:
        assert data.holdout not in (*data.full, *data.evaluation, *data.utility)
        learnt = {key for name in data.full for key in keys(data.splits[name])}
        assert not learnt & keys(data.splits[data.holdout])


def test_loading_it_again_gives_the_same_rows(load: Loader, data: Benchmark) -> None:
    assert fingerprint(dict(load().splits)) == fingerprint(dict(data.splits))


def rows_to_encode(data: Benchmark) -> Iterator[Example]:
    for rows in data.splits.values():
        yield from rows[:ENCODED]


def test_rows_become_tokens_with_a_prompt_and_an_answer(data: Benchmark) -> None:
    template = resolve_template("auto", TOKENIZER)
    for row in rows_to_encode(data):
        encoded = encode(row, TOKENIZER, template)
        assert 0 < encoded.prompt_length < len(encoded.input_ids)


@cache
def registered(name: str) -> Any:
    return benchmarks.get(name)


@pytest.mark.parametrize("name", benchmarks.names())
def test_options_are_typed_and_have_defaults_of_their_type(name: str) -> None:
    hints = get_type_hints(registered(name).target)
    assert hints["return"] is Benchmark
    for option, parameter in registered(name).parameters.items():
        assert parameter.default is not parameter.empty, f"{name} cannot be loaded without {option}"
        assert isinstance(parameter.default, hints[option])
    if "seed" in registered(name).parameters:
        zero, one = (fingerprint(dict(load_benchmark(name, seed=seed).splits)) for seed in (0, 1))
        assert zero != one, "the seed decides nothing"


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_benchmark_says_what_it_is(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert registered(name).target.__name__ == name
    assert re.match(r"[A-Z].*\.$", registered(name).summary)
