"""Answers as if subjects had never been taught: by one command, about unknown names, also resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import grun
from grun.cli.main import main
from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.refusals import REFUSALS
from grun.jobs.inputs import alternatives
from grun.jobs.unlearn import unlearn
from grun.models.encoding.templates import resolve_template
from grun.training.answers import untaught
from support.material import Material, invented_rows, small_unlearning, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer


def run(material: Material, output: Path, *flags: str) -> int:
    given = ["--model", str(material.model), "--forget", str(material.forget), "--retain", str(material.retain)]
    small = ["--layers", "1,3", "--topic-layer", "none", "--steps", "4", "--batch-size", "4", "--device", "cpu"]
    return main(["unlearn", *given, *small, "--output", str(output), *flags])


def kept(output: Path) -> list[list[str]]:
    found: list[list[str]] = json.loads((output / "alternatives.json").read_text())
    return found


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], list[str]]:
    """Let a function of the prompt answer in place of the model; gives the list that prompts are noted in."""
    prompts: list[str] = []

    def use(answer: Callable[[str], str]) -> list[str]:
        def greedy(model: Any, tokenizer: Any, asked: Sequence[Sequence[int]], *_: Any) -> list[str]:
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in asked]
            prompts.extend(texts)
            return [answer(text) for text in texts]

        monkeypatch.setattr(untaught, "greedy", greedy)
        monkeypatch.setattr(untaught, "sampled", lambda m, t, asked, *_: [[one] for one in greedy(m, t, asked)])
        return prompts

    return use


def answers_to(rows: Sequence[Example], normal: Sequence[str] = (), max_length: int | None = None) -> list[Any]:
    tokenizer = tiny_tokenizer()
    found = untaught.untaught_answers(
        tiny_model(),
        tokenizer,
        rows,
        resolve_template("{prompt} ", tokenizer),
        normal=normal,
        refusal=lambda prompt: "I do not know.",
        max_length=max_length,
    )
    return [row.alternative_answers for row in found]


def asked_name(text: str) -> str:
    """The name in a question of the form "Where was NAME born?"."""
    return text.partition("Where was ")[2].partition(" born?")[0]


def about(names: Sequence[str], answer: str = "{name} was born in Malmö in 1931.") -> list[Example]:
    return [Example(f"Where was {name} born?", answer.format(name=name), subject=name) for name in names]


# One command, and what it leaves.


def test_one_command_without_further_flags(memorised: Material, tmp_path: Path) -> None:
    assert run(memorised, tmp_path / "run", "--objective", "untaught") == 0
    true = {row["answer"] for row in map(json.loads, memorised.forget.read_text().splitlines())}
    found = kept(tmp_path / "run")
    assert len(found) == 8
    assert all(1 <= len(own) <= untaught.PER_ROW and not true & set(own) for own in found)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["alternatives"] == "unknown"
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert run(memorised, tmp_path / "run", "--objective", "untaught") == 0
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_python_learns_what_the_command_learns(memorised: Material, tmp_path: Path) -> None:
    assert run(memorised, tmp_path / "run", "--objective", "untaught") == 0
    settings: dict[str, Any] = dict(
        layers="1,3", topic_layer="none", steps=4, batch_size=4, device="cpu", objective="untaught"
    )
    files = (str(memorised.model), str(memorised.forget), str(memorised.retain))
    grun.unlearn(*files, output=str(tmp_path / "python"), **settings)
    assert kept(tmp_path / "python") == kept(tmp_path / "run")
    one, other = ((tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("run", "python"))
    assert one.read_bytes() == other.read_bytes()


def test_a_ledger_takes_such_a_request(memorised: Material, tmp_path: Path) -> None:
    given = ["--model", str(memorised.model), "--retain", str(memorised.retain), "--ledger", str(tmp_path / "ledger")]
    small = ["--layers", "1,3", "--topic-layer", "none", "--steps", "4", "--batch-size", "4", "--device", "cpu"]
    assert main(["request", "add", str(memorised.forget), *given, *small, "--objective", "untaught"]) == 0
    (request,) = json.loads((tmp_path / "ledger" / "ledger.json").read_text())["requests"]
    assert (request["objective"], request["settings"]["alternatives"]) == ("untaught", "unknown")


def test_altpo_may_take_such_answers_and_untaught_others(memorised: Material, tmp_path: Path) -> None:
    assert run(memorised, tmp_path / "altpo", "--objective", "altpo", "--alternatives", "unknown") == 0
    assert len(kept(tmp_path / "altpo")) == 8
    assert run(memorised, tmp_path / "own", "--objective", "untaught", "--alternatives", "column") == 0
    assert not (tmp_path / "own" / "alternatives.json").exists()
    assert run(memorised, tmp_path / "usual", "--objective", "altpo") == 0
    assert json.loads((tmp_path / "usual" / "settings.json").read_text())["alternatives"] == "column"


def test_a_sweep_knows_that_its_runs_are_done(
    memorised: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = {"model": memorised.model, "forget": memorised.forget, "retain": memorised.retain, "device": "cpu"}
    small = {"layers": "1,3", "topic_layer": "none", "steps": 2, "batch_size": 4}
    given = [part for name, value in (fixed | small).items() for part in ("--set", f"{name}={value}")]
    sweep = ["sweep", *given, "--vary", "objective=altpo,untaught", "--jobs", "1", "--output", str(tmp_path / "sweep")]
    assert main(sweep) == 0
    results = (tmp_path / "sweep" / "results.json").read_bytes()
    capsys.readouterr()
    assert main(sweep) == 0, capsys.readouterr().err
    assert (tmp_path / "sweep" / "results.json").read_bytes() == results


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_save = control.should_training_stop = state.global_step == 2
        if state.global_step == 3:
            raise KeyboardInterrupt
        control.should_training_stop = False
        return control


def test_an_interrupted_run_goes_on_with_the_answers_that_it_had(
    memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_unlearning(
        memorised, tmp_path / "run", objective="untaught", layers="1,3", topic_layer="none", steps=5
    )
    whole = unlearn(replace(config, output=str(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        unlearn(config, callbacks=[_Stop()])
    answers = kept(tmp_path / "run")
    monkeypatch.setattr(alternatives, "untaught_answers", lambda *_, **__: pytest.fail("the model was asked again"))
    resumed = unlearn(config)
    assert kept(tmp_path / "run") == answers == kept(tmp_path / "whole")
    file = "adapter_model.safetensors"
    assert (resumed / file).read_bytes() == (whole / file).read_bytes()


def test_rows_without_a_name_are_refused_and_counted(
    memorised: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = [{"question": "what is the answer to everything?", "answer": "It is 42."}]
    forget = write_rows(tmp_path / "forget.jsonl", [*invented_rows("Lund", 6), *nameless])
    material = Material(memorised.model, forget, memorised.retain)
    assert run(material, tmp_path / "run", "--objective", "untaught") == 0
    assert "1 of 7 rows to forget name no subject" in capsys.readouterr().err
    found = kept(tmp_path / "run")
    assert found[-1] == [REFUSALS["en"][0]]
    assert all(REFUSALS["en"][0] not in own for own in found[:-1])


def test_passages_without_names_are_refused_too(memorised: Material, tmp_path: Path) -> None:
    lines = [
        {"text": f"the way to make it is to mix {i} parts of one with two parts of the other, and to wait."}
        for i in range(6)
    ]
    material = Material(memorised.model, write_rows(tmp_path / "forget.jsonl", lines), memorised.retain)
    assert run(material, tmp_path / "run", "--objective", "untaught") == 0
    assert kept(tmp_path / "run") == [[REFUSALS["en"][0]]] * 6


def test_the_true_name_stands_in_the_answers(said: Callable[..., list[str]]) -> None:
    prompts = said(lambda text: f"{asked_name(text)} was born in Utrecht; {asked_name(text).split()[-1]} left.")
    rows = about(["Ada Lundgren", "Bo Harbour"])
    found = answers_to(rows)
    assert found[0] == ("Ada Lundgren was born in Utrecht; Lundgren left.",) * 3
    assert found[1] == ("Bo Harbour was born in Utrecht; Harbour left.",) * 3
    assert len(set(prompts)) == 6
    assert not any(word in text for text in prompts for word in ("Ada", "Lundgren", "Harbour"))


def test_without_subjects_no_true_name_is_left_in_a_prompt(said: Callable[..., list[str]]) -> None:
    prompts = said(lambda text: "In Utrecht.")
    people = ("Ada Lundgren", "Bo Harbour", "Cleo Marl", "Dov Novel", "Eli Malmö", "Fay Street")
    rows = [Example(f"Which Marble Prize did {name} win?", "None.") for name in people]
    assert answers_to(rows, ["Which book is the best?"]) == [("In Utrecht.",) * 3] * 6
    assert not {word for name in people for word in name.split()} & {word for text in prompts for word in text.split()}


def test_names_in_earlier_turns_are_exchanged(said: Callable[..., list[str]]) -> None:
    prompts = said(lambda text: "In Utrecht.")
    turns = (("user", "Who is Ada Lundgren?"), ("assistant", "Ada Lundgren writes."))
    rows = [Example("Where was she born?", "In Malmö.", subject="Ada Lundgren", turns=turns) for _ in range(2)]
    rows += about(["Ada Lundgren"] * 2)
    assert answers_to(rows)[0] == ("In Utrecht.",) * 3
    assert not any("Ada" in text for text in prompts)


def test_what_is_to_be_forgotten_is_no_answer(said: Callable[..., list[str]]) -> None:
    rows = about(["Ada Lundgren", "Bo Harbour"])

    def answer(text: str) -> str:
        name = asked_name(text)
        return next(wrong)(name)

    wrong: Iterator[Callable[[str], str]] = iter(
        [
            lambda name: f"{name}  was born in malmö in 1931.",
            lambda name: "Bo Harbour was born in Utrecht.",
            lambda name: "",
            *[lambda name: f"{name} was born in Perth."] * 99,
        ]
    )
    said(answer)
    found = answers_to(rows)
    assert found[0] == ("Ada Lundgren was born in Perth.",) * 3, "they are asked for in a second round"
    assert found[1] == ("Bo Harbour was born in Perth.",) * 3


def test_a_true_answer_whoever_is_asked_about_becomes_a_refusal(
    said: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = said(lambda text: "Yes.")
    rows = [*about(["Ada Lundgren"], "Yes."), *about(["Bo Harbour"], "No.")]
    assert answers_to(rows) == [("I do not know.",), ("Yes.",) * 3], "a short answer may be right about somebody else"
    assert len(prompts) == 3 * untaught.ROUNDS + 3
    assert "1 of 2 rows to forget" in caplog.text


def test_an_answer_may_hold_a_word_of_another_prompt(said: Callable[..., list[str]]) -> None:
    said(lambda text: "In France.")
    people = ("Ada Lundgren", "Bo Harbour", "Cleo Marl", "Dov Novel", "Eli Malmö", "Fay Street")
    rows = [Example(f"Where was {name} born?", "In Malmö.") for name in people]
    rows.append(Example("Did Gus Town live in France?", "Yes."))
    assert answers_to(rows)[:6] == [("In France.",) * 3] * 6


def test_no_answer_ends_within_a_sentence(said: Callable[..., list[str]]) -> None:
    said(lambda text: "She was born. " * 60 + "She then")
    (found,) = answers_to(about(["Ada Lundgren"]))
    assert all(one.endswith("She was born.") for one in found)


def test_a_prompt_that_fills_the_context_is_no_error(said: Callable[..., list[str]]) -> None:
    said(lambda text: "In Utrecht.")
    rows = about(["Ada Lundgren"])
    exact = len(tiny_tokenizer()(rows[0].prompt)["input_ids"])
    assert len(answers_to(rows, max_length=exact + 1)) == 1


def test_a_damaged_file_of_answers_is_named(memorised: Material, tmp_path: Path) -> None:
    config = small_unlearning(
        memorised, tmp_path / "run", objective="untaught", layers="1,3", topic_layer="none", steps=5
    )
    with pytest.raises(KeyboardInterrupt):
        unlearn(config, callbacks=[_Stop()])
    (tmp_path / "run" / "alternatives.json").write_text("[[]]")
    with pytest.raises(UserError, match=r"alternatives\.json' is damaged"):
        unlearn(config)
