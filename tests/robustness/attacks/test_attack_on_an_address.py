"""`grun attack --address`: a model behind an OpenAI-compatible server, and servers that do not do what they should."""

from __future__ import annotations

import json
import socket
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grun.cli.main import main
from grun.jobs.attacks import served
from support.chat_server import Reply, chat_server, completion
from support.job_commands import flags
from support.material import Material, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rows = [{"question": f"Where does Ada Lund{i} live?", "answer": f"In the town of Marl {i}."} for i in range(4)]
    return write_rows(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be waited for the address; nobody does. All other waiting goes on as usual."""
    found: list[float] = []
    monkeypatch.setattr(served, "time", SimpleNamespace(**{**vars(time), "sleep": found.append}))
    return found


def command(where: str, rows: Path, output: Path, *more: str, **settings: object) -> list[str]:
    usual: dict[str, object] = {"address": where, "forget": rows, "retain": rows, "output": output, "rows": 3}
    return ["attack", *flags(**(usual | {"attacks": "case,few_shot,mention"} | settings)), *more]


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


def test_a_model_behind_an_address_is_asked_and_its_answers_count(rows: Path, tmp_path: Path) -> None:
    leak = "It lives in the town of Marl 0."

    def reply(body: dict[str, Any]) -> Reply:
        return Reply(completion(leak if body["messages"][-1]["content"].isupper() else "I do not know."))

    with chat_server(reply) as server:
        assert main(command(server.address, rows, tmp_path / "run", max_new_tokens=9)) == 0
    assert all(body["model"] == "the-model" for body in server.asked)
    assert all(body["temperature"] == 0 and body["max_tokens"] == 9 for body in server.asked)
    assert {body["path"] for body in server.asked} == {"/v1/chat/completions"}
    assert any(len(body["messages"]) == 5 for body in server.asked)
    found = found_in(tmp_path / "run")
    figures = found["attacks"]["case"]["figures"]
    assert figures["rouge_l_recall"].keys() == {"after"}
    assert found["attacks"]["case"]["variants"]["upper"]["rouge_l_recall"]["after"] > 0.7
    assert found["plain"]["figures"]["rouge_l_recall"]["after"]["value"] == 0.0
    assert found["worst_case"]["rouge_l_recall"]["after"]["value"] > 0.7
    assert figures["probability"]["after"]["reason"] == "nothing but answers was looked at"


def test_the_target_beside_the_address(memorised: Material, tmp_path: Path) -> None:
    with chat_server(lambda body: Reply(completion(None))) as server:
        given = command(server.address, memorised.forget, tmp_path / "run", model=memorised.model, device="cpu")
        assert main(given) == 0
    figures = found_in(tmp_path / "run")["plain"]["figures"]
    assert figures["rouge_l_recall"]["before"]["value"] > figures["rouge_l_recall"]["after"]["value"] == 0.0
    assert figures["probability"]["before"]["value"] > 0.5


def test_attacks_that_an_address_cannot_take_are_left_out(rows: Path, tmp_path: Path, capsys: Any) -> None:
    with chat_server(lambda body: Reply(completion("x"))) as server:
        assert main(command(server.address, rows, tmp_path / "run", attacks="prefill")) == 2
        assert "'prefill' writes the beginning of the answer" in capsys.readouterr().err
        given = flags(address=server.address, forget=rows, output=tmp_path / "run", rows=1)
        assert main(["attack", *given]) == 0
    assert {"prefill", "mention", "mixed", "after_turn"} <= found_in(tmp_path / "run")["skipped"].keys()


@pytest.mark.parametrize(
    "header",
    [
        *("2", "0", "-5", "soon", "nan", "inf", "1e9", None),
        pytest.param(formatdate(time.time() + 3600, usegmt=True), id="in an hour"),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_address_is_asked_again_when_it_says(
    rows: Path, tmp_path: Path, waited: list[float], header: str | None, status: int
) -> None:
    answers = iter([Reply({}, status, {} if header is None else {"Retry-After": header})])
    with chat_server(lambda body: next(answers, Reply(completion("yes")))) as server:
        assert main(command(server.address, rows, tmp_path / "run", attacks="mention")) == 0
    expected = {"2": 2.0, "0": 0.0, "-5": 0.0, "soon": 1.0, "nan": 1.0, "inf": 300.0, "1e9": 300.0, None: 1.0}
    assert waited == [expected.get(header, 300.0)]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Reply(b"<html>hello</html>"), "is no JSON"),
        (Reply(b"[" * 100_000), "is no JSON"),
        (Reply(b""), "is no JSON"),
        (Reply({"error": "odd"}), "expected choices"),
        (Reply({"choices": []}), "expected choices"),
        (Reply([1, 2]), "expected choices"),
        (Reply(completion(7)), "expected choices"),
        (Reply({"no": "such"}, 404), "status 404"),
        (Reply({}, 302, {"Location": "http://127.0.0.1:9/"}), "status 302"),
        (Reply({"error": "bad key"}, 401), "GRUN_API_KEY"),
        (Reply({}, 429), "does not answer after 6 tries: status 429"),
        (Reply({}, 500), "does not answer after 6 tries: status 500"),
    ],
    ids=str,
)
def test_nonsense_is_one_line_and_nothing_is_written(
    rows: Path, tmp_path: Path, waited: list[float], capsys: Any, said: Reply, words: str
) -> None:
    with chat_server(lambda body: said) as server:
        assert main(command(server.address, rows, tmp_path / "run")) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"grun: --address '{server.address}'")
    assert words in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("listed", [{"data": []}, {}, [], "x", {"data": [{"id": 3}]}], ids=str)
def test_an_address_that_lists_no_model_asks_for_a_name(rows: Path, tmp_path: Path, capsys: Any, listed: Any) -> None:
    with chat_server(lambda body: Reply(completion("x")), listed) as server:
        assert main(command(server.address, rows, tmp_path / "run")) == 2
        assert "--served-model" in capsys.readouterr().err
        assert main(command(server.address, rows, tmp_path / "run", served_model="mine")) == 0
    assert server.asked[0]["model"] == "mine"


def test_an_address_that_does_not_answer(rows: Path, tmp_path: Path, waited: list[float], capsys: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert main(command(address, rows, tmp_path / "run")) == 2
    assert "does not answer after 6 tries" in capsys.readouterr().err
    assert waited == [1, 2, 4, 8, 16]
    assert not (tmp_path / "run").exists()


def test_a_server_that_says_nothing_runs_out_of_time(
    rows: Path, tmp_path: Path, waited: list[float], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(served, "TRIES", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(command(address, rows, tmp_path / "run", timeout=0.2)) == 2
    assert "timed out" in capsys.readouterr().err


def test_a_server_that_stops_keeps_what_is_measured(
    rows: Path, tmp_path: Path, waited: list[float], capsys: Any
) -> None:
    left = [12]

    def reply(body: dict[str, Any]) -> Reply:
        left[0] -= 1
        return Reply(completion("yes")) if left[0] >= 0 else Reply({}, 503)

    with chat_server(reply) as server:
        assert main(command(server.address, rows, tmp_path / "run")) == 1
        assert "What is measured is kept" in capsys.readouterr().err
        kept = len(list((tmp_path / "run" / "evidence" / "after").iterdir()))
        assert kept == 2
        left[0], before = 1000, len(server.asked)
        assert main(command(server.address, rows, tmp_path / "run")) == 0
        assert main(command(server.address, rows, tmp_path / "whole")) == 0
    assert server.asked[before]["messages"] == server.asked[0]["messages"]
    for name in ("probes.jsonl", "table.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_prompts_that_are_refused_are_left_out(rows: Path, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        said = body["messages"][-1]["content"]
        return (
            Reply({"error": "too long"}, 400) if said.isupper() or len(body["messages"]) > 1 else Reply(completion("x"))
        )

    with chat_server(reply) as server:
        assert main(command(server.address, rows, tmp_path / "run")) == 0
    found = found_in(tmp_path / "run")
    assert found["attacks"]["case"]["left_out"] == 3
    assert "upper" not in found["attacks"]["case"]["variants"]
    assert found["skipped"] == {"few_shot": "the address refuses every probe"}


def test_the_key_goes_to_the_server_and_nowhere_else(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("GRUN_API_KEY", "very-secret")
    with chat_server(lambda body: Reply(completion("\ud800 half"))) as server:
        assert main(command(server.address, rows, tmp_path / "run")) == 0
    assert {body["key"] for body in server.asked} == {"Bearer very-secret"}
    said = capsys.readouterr()
    texts = [file.read_text(encoding="utf-8") for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert "very-secret" not in "".join([*texts, said.out, said.err])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "localhost:8000"}, ("--address is", "http://host:port/v1")),
        ({"address": "ftp://host/v1"}, ("--address is",)),
        ({"address": "http://"}, ("--address is",)),
        ({"address": "http://h/v1?x=1"}, ("--address is",)),
        ({"adapter": "a"}, ("--adapter and --address were both given",)),
        ({"ledger": "l"}, ("--ledger and --address were both given",)),
        ({"retain_only": "m"}, ("--retain-only needs --model",)),
        ({"timeout": 0}, ("--timeout is",)),
    ],
)
def test_wrong_settings_of_an_address(rows: Path, tmp_path: Path, capsys: Any, settings: Any, words: Any) -> None:
    assert main(command("http://127.0.0.1:9/v1", rows, tmp_path / "run", **settings)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


def test_a_name_without_an_address(rows: Path, tmp_path: Path, capsys: Any) -> None:
    given = flags(model="m", served_model="x", forget=rows, output=tmp_path / "run")
    assert main(["attack", *given]) == 2
    assert "--served-model was given without --address" in capsys.readouterr().err
