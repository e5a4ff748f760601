"""The record of a ledger: nothing in it is believed unseen, and no kill or race leaves it between two states."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.run_directory import FEATURES
from grun.requests.ledger import ACTIVE, Ledger, Request, change, event
from grun.requests.ledger_files import ADDING
from grun.requests.ledger_record import BaseModel

BASE = BaseModel("m", "c", 8, 2)
ROWS = [Example("Where?", "There.", turns=(("user", "Hello"),), alternative_answers=("No.",))]


def request(id: str = "r1") -> Request:
    measured = {"in_force": {"new": {"probability_before": 0.9, "probability": 0.1}}}
    data = {"fingerprint": "f", "rows": 1}
    return Request(id, "why", ACTIVE, [event(ACTIVE)], data, "npo", {"columns": {}}, {}, measured)


def put_in(ledger: Path, learnt: Path, id: str = "r1") -> None:
    with Ledger.read_or_new(ledger).changing() as now:
        now = Ledger(now.path, now.base or BASE, now.requests, now.calibration)
        now.save()
        if id not in now.requests:
            now.with_request(request(id), learnt, data=ROWS, features=learnt / FEATURES)


@pytest.fixture
def learnt(tmp_path: Path) -> Path:
    """What stands for an adapter and the features of its gate."""
    folder = tmp_path / "learnt"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", FEATURES):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def ledger(tmp_path: Path, learnt: Path) -> Path:
    put_in(tmp_path / "ledger", learnt)
    return tmp_path / "ledger"


def forked(work: Callable[[], None]) -> int:
    """A process that does the work, and exits with 1 if that fails."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # whatever happens, the child must not go on with the tests
            os._exit(1)
    return child


def in_child(work: Callable[[], None], killed_at: int) -> bool:
    """Whether a process that does the work came to its end; it is killed before it renames or deletes for the n-th time."""

    def watched() -> None:
        calls = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                if calls == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return original(*args, **kwargs)

            return call

        for name in ("replace", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        work()

    _, status = os.waitpid(forked(watched), 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def test_a_kill_before_every_rename_leaves_the_old_or_the_new_state(tmp_path: Path, learnt: Path) -> None:
    finished, moments = False, 0
    while not finished:
        ledger = tmp_path / f"ledger-{moments}"
        finished = in_child(lambda: put_in(ledger, learnt), killed_at=moments)  # noqa: B023
        if (ledger / "ledger.json").exists():
            assert set(Ledger.read(ledger).requests) <= {"r1"}
        put_in(ledger, learnt)  # the same again goes on
        now = Ledger.read(ledger)
        assert now.adapter("r1").is_dir()
        assert now.data("r1") == ROWS
        left = {str(file.relative_to(ledger)) for file in ledger.rglob("*") if file.is_file()}
        own = {f"requests/r1/adapter/{file.name}" for file in learnt.iterdir()}
        assert left == own | {".lock", "ledger.json", "requests/r1/data.json", f"requests/r1/{FEATURES}"}
        moments += 1
    assert moments > 5


def test_a_new_ledger_is_made_by_several_at_once(tmp_path: Path, learnt: Path) -> None:
    for turn in range(30):
        ledger = tmp_path / f"ledger-{turn}"
        children = [forked(partial(put_in, ledger, learnt, id)) for id in ("a", "b", "c")]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
        assert set(Ledger.read(ledger).requests) == {"a", "b", "c"}


def test_what_was_kept_has_a_checksum_too(ledger: Path) -> None:
    assert Ledger.read(ledger).features("r1") == ledger / "requests" / "r1" / FEATURES
    for name, read in (
        ("data.json", Ledger.data),
        (FEATURES, Ledger.features),
        ("adapter/adapter_config.json", Ledger.adapter),
    ):
        file = ledger / "requests" / "r1" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=rf"request 'r1' is damaged.*{file.name} was changed"):
            read(Ledger.read(ledger), "r1")
        file.unlink()
        with pytest.raises(UserError, match=rf"request 'r1' is damaged.*{file.name} is missing"):
            read(Ledger.read(ledger), "r1")
        file.mkdir()
        with pytest.raises(UserError, match=rf"request 'r1' is damaged.*{file.name} cannot be read"):
            read(Ledger.read(ledger), "r1")
        file.rmdir()
        file.write_bytes(whole)


DAMAGE: list[tuple[str, tuple[Any, ...], Any]] = [
    ("requests is dict", ("requests",), {}),
    ("request 1 is int", ("requests", 0), 5),
    ("request 1: id is int", ("requests", 0, "id"), 5),
    ("id is '../../x'", ("requests", 0, "id"), "../../x"),
    ("state is 'actve'", ("requests", 0, "state"), "actve"),
    ("why is NoneType", ("requests", 0, "why"), None),
    ("history", ("requests", 0, "history"), []),
    ("history: what is NoneType", ("requests", 0, "history"), [{"when": "now"}]),
    ("data: fingerprint", ("requests", 0, "data"), {}),
    ("data: rows is str", ("requests", 0, "data", "rows"), "1"),
    ("settings: columns", ("requests", 0, "settings"), {}),
    ("files is list", ("requests", 0, "files"), []),
    ("files does not name adapter_config.json", ("requests", 0, "files"), {}),
    ("files names '/etc/passwd'", ("requests", 0, "files", "/etc/passwd"), "0"),
    ("kept names '../data.json'", ("requests", 0, "kept", "../data.json"), "0"),
    ("metrics: in_force", ("requests", 0, "metrics"), {}),
    ("metrics: probability is None", ("requests", 0, "metrics", "in_force", "new", "probability"), None),
    ("thresholds is nan", ("requests", 0, "thresholds"), [float("nan")]),
    ("thresholds is None", ("requests", 0, "thresholds"), []),
    ("thresholds is str", ("requests", 0, "thresholds"), "abc"),
    ("has an unknown 'more'", ("requests", 0, "more"), 1),
    ("base is NoneType", ("base",), None),
    ("base: name is NoneType", ("base",), {}),
    ("base: content is int", ("base", "content"), 1),
    ("calibration is list", ("calibration",), []),
    ("calibration: dtype", ("calibration",), {"when": "now"}),
    ("calibration: alpha", ("calibration",), {"when": "now", "dtype": "float32", "alpha": "a"}),
]


@pytest.mark.parametrize(("words", "where", "value"), DAMAGE, ids=[words for words, _, _ in DAMAGE])
def test_a_damaged_record_is_refused(ledger: Path, words: str, where: tuple[Any, ...], value: Any) -> None:
    record = json.loads((ledger / "ledger.json").read_text())
    at = record
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    (ledger / "ledger.json").write_text(text := json.dumps(record))
    for read in (lambda: Ledger.read(ledger), lambda: change(str(ledger), "r1", "suspend")):
        with pytest.raises(UserError, match=r"its ledger\.json is damaged \(.*restore it from a backup") as found:
            read()
        assert words in str(found.value)
    assert (ledger / "ledger.json").read_text() == text


def test_two_requests_of_one_name_are_refused(ledger: Path) -> None:
    record = json.loads((ledger / "ledger.json").read_text())
    record["requests"] *= 2
    (ledger / "ledger.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="two requests are called 'r1'"):
        Ledger.read(ledger)


def test_what_cannot_be_read_says_why(ledger: Path, tmp_path: Path) -> None:
    (ledger / "ledger.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is damaged; restore it from a backup"):
        Ledger.read(ledger)
    (tmp_path / "odd" / "ledger.json").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        Ledger.read(tmp_path / "odd")
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "requests").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        Ledger.read_or_new(tmp_path / "blocked")


def test_a_ledger_that_cannot_take_a_request_stays_as_it_was(ledger: Path, learnt: Path) -> None:
    before = (ledger / "ledger.json").read_bytes()
    (learnt / "adapter_config.json").unlink()
    (learnt / "adapter_config.json").symlink_to("nowhere")
    with pytest.raises(UserError, match="cannot be written"):
        put_in(ledger, learnt, "r2")
    assert (ledger / "ledger.json").read_bytes() == before
    assert [folder.name for folder in (ledger / "requests").iterdir()] == ["r1"]
    assert not (ledger / "requests" / "r1" / ADDING).exists()
