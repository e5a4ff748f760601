"""The number of threads: by the size of the model, as the environment says, and as a resumed run had it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest
import torch

from grun.core.process import threads
from grun.core.process.threads import automatic_threads, fit_threads, keep_threads_of, wait_passively

LARGE = 10 * threads.SMALL


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*threads.COUNTS, *threads.WAITING):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    keep_threads_of({})
    torch.set_num_threads(before)


def test_one_thread_for_a_small_model_and_all_for_a_large_one() -> None:
    with automatic_threads():
        fit_threads(LARGE, "cpu")
        assert torch.get_num_threads() == 2
        fit_threads(1000, "cuda")
        assert torch.get_num_threads() == 2
        fit_threads(1000, "cpu")
        assert torch.get_num_threads() == 1
        fit_threads(LARGE, "cpu")
        assert torch.get_num_threads() == 2, "a large model after a small one"
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", threads.COUNTS)
def test_the_environment_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    with automatic_threads():
        fit_threads(1000, "cpu")
        assert torch.get_num_threads() == 2


def test_functions_for_python_leave_the_number_alone() -> None:
    fit_threads(1000, "cpu")
    assert torch.get_num_threads() == 2


def test_a_resumed_run_keeps_its_number(caplog: pytest.LogCaptureFixture) -> None:
    with automatic_threads():
        keep_threads_of({"machine": {"threads": 2}})
        fit_threads(1000, "cpu")
        assert torch.get_num_threads() == 2
        keep_threads_of({})
        fit_threads(1000, "cpu")
        assert torch.get_num_threads() == 1
    keep_threads_of({"machine": {"threads": 3}})
    with caplog.at_level(logging.INFO, "grun"):
        fit_threads(1000, "cpu")
    assert torch.get_num_threads() == 2
    assert "started with 3 threads and goes on with 2" in caplog.text


@pytest.mark.parametrize("record", [{}, {"machine": None}, {"machine": {}}, {"machine": {"threads": "many"}}])
def test_a_record_without_a_number_asks_for_nothing(record: dict) -> None:
    keep_threads_of(record)
    with automatic_threads():
        fit_threads(1000, "cpu")
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", [None, *threads.WAITING])
def test_waiting_is_set_before_torch_is_imported_unless_it_is_said(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name:
        monkeypatch.setenv(name, "1")
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == ("1" if name == "OMP_WAIT_POLICY" else None), "torch is there already"
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    wait_passively()
    assert (os.environ.get("OMP_WAIT_POLICY") == "passive") is (name is None)
