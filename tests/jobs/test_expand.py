"""Rows about a topic from its name: frames, what a model writes and which of it is kept, files, and `--topic`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import grun
from grun.cli.main import main
from grun.core.config.jobs import ExpandConfig, UnlearnConfig
from grun.core.records import Example
from grun.jobs import unlearn as job
from grun.jobs.inputs import unlearning
from grun.jobs.inputs.expansion import expand
from grun.jobs.inputs.expansion.frames import FRAMES, filled
from grun.jobs.inputs.expansion.knowledge import BEGINNINGS, FACT, NEUTRAL, knowledge_of, log_probabilities
from grun.jobs.inputs.expansion.names import gives_away, made_up, mentions, plain
from grun.jobs.inputs.expansion.writing import Writer, described, neighbour_names, paraphrases, questions
from grun.jobs.inputs.topic_files import FOLDER, read_topic
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import encode
from grun.models.forward import side_signals
from grun.models.loading.loaded import LoadedModel, load
from support.launching import TORCHRUN, launch
from support.material import Material, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer

SMALL: dict[str, Any] = {"layers": "1,3", "steps": 2, "batch_size": 8, "device": "cpu", "topic_layer": "none"}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
HERE = ["--device", "cpu", "--force-topic"]


@pytest.fixture
def roomy(tmp_path: Path) -> Path:
    """A tiny model whose context has room for examples to go on from."""
    tiny_model(max_position_embeddings=2048).save_pretrained(tmp_path / "roomy")
    tiny_tokenizer().save_pretrained(tmp_path / "roomy")
    return tmp_path / "roomy"


@pytest.fixture
def base(roomy: Path) -> LoadedModel:
    return load(str(roomy), ExpandConfig(device="cpu"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three frames, and few ordinary rows to keep."""
    monkeypatch.setattr(unlearning, "ORDINARY", 12)
    monkeypatch.setattr(expand, "filled", lambda name: filled(name)[:3])
    monkeypatch.setattr(expand, "MOST_EACH", 3)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the writer say given texts, and the base model find them all better than a neutral one."""

    def say(texts: Sequence[str], better: Callable[[str], bool] = lambda _: True) -> None:
        monkeypatch.setattr(
            Writer, "sample", lambda self, kind, prompts, limit, count=8: [list(texts) for _ in prompts]
        )
        monkeypatch.setattr(Writer, "better", lambda self, rows, form, neutral: [row for row in rows if better(row)])

    return say


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {file.name: lines(file) for file in sorted(folder.glob("*.jsonl"))}


def test_frames_ask_about_the_name_in_many_shapes_and_none_twice() -> None:
    assert set(FRAMES) >= {"who", "what", "when", "where", "why", "how", "instruct", "terse"}
    pairs = filled("Lund {x}")
    assert len(pairs) == 42
    texts = [text for pair in pairs for text in pair]
    assert all("Lund {x}" in text for text in texts)
    assert Counter(map(plain, texts)).most_common(1)[0][1] == 1


@pytest.mark.parametrize(
    ("text", "name", "held", "given_away"),
    [
        ("Where is a volcano?", "volcanoes", True, True),
        ("Where do volcanic rocks come from?", "volcanoes", False, True),
        ("Who was Beethoven?", "Ludwig van Beethoven", True, True),
        ("Who was Ludwig?", "Ludwig van Beethoven", False, True),
        ("What is HARRY POTTER'S school?", "Harry Potter", True, True),
        ("What does a potting shed hold?", "Harry Potter", False, False),
        ("Who sang for the van?", "Ludwig van Beethoven", False, False),
        ("A teacher drinks.", "tea", True, True),
        ("Ein Haus.", "Öl", False, False),
    ],
)
def test_names_are_found_in_texts(text: str, name: str, held: bool, given_away: bool) -> None:
    assert mentions(text, name) == held
    assert gives_away(text, name) == given_away


def test_made_up_names_have_the_form_of_the_name() -> None:
    one, other = made_up("Ada van Lund", 0), made_up("Ada van Lund", 1)
    assert one != other
    assert one == made_up("Ada van Lund", 0)
    assert [(len(word), word[0].isupper()) for word in one.split()] == [(3, True), (3, False), (4, True)]


QUESTIONS = """How deep is the harbour of Lund?
- Who was born in Lund?
- Who was born in LUND ?
- Where is Lund, and why? Say so.
- Name three towns.
- Lund lies where
- Lund?
- How many penguins live in Lund?
- See https://lund.example for where Lund is.
- Describe the market place of Lund.
- Where does Lund get its"""


def test_questions_that_break_a_rule_are_dropped(base: LoadedModel, said: Callable[..., None]) -> None:
    writer, known = Writer(base, base, "Lund", 0), {"how deep is the harbour of lund"}
    said([QUESTIONS])
    assert questions(writer, 9, known) == ["Who was born in Lund?", "Describe the market place of Lund."]
    assert questions(writer, 9, known) == []
    assert questions(writer, 1, set()) == ["How deep is the harbour of Lund?"]


def test_questions_that_make_the_name_less_likely_are_dropped(base: LoadedModel, said: Callable[..., None]) -> None:
    asked: list[str] = []
    said([QUESTIONS], better=lambda text: asked.append(text) or "harbour" not in text)  # type: ignore[func-returns-value]
    found = questions(Writer(base, base, "Lund", 0), 9, set())
    assert found == ["Who was born in Lund?", "Describe the market place of Lund."]
    assert "How deep is the harbour of this?" in asked


def test_better_texts_are_those_after_which_the_name_is_no_less_likely(base: LoadedModel) -> None:
    middle, *texts = (f"Where is the house of the author number {i}?" for i in (3, *range(10, 30)))
    kept = Writer(base, base, "Lund", 0).better(texts, "{text} Answer:", middle)
    neutral, *found = log_probabilities(base, [f"{text} Answer:" for text in (middle, *texts)], "Lund")
    assert kept == [text for text, value in zip(texts, found, strict=True) if value >= neutral]
    assert 0 < len(kept) < 20


def test_paraphrases_are_the_first_that_is_new(base: LoadedModel, said: Callable[..., None]) -> None:
    said(["Who was born in Lund?\nQuestion: x", "Who is a native of Lund?", "Who comes from there?"])
    asked = ["Who was born in Lund?", "What is Lund known for?"]
    known = {plain(text) for text in asked}
    assert paraphrases(Writer(base, base, "Lund", 0), asked, known) == ["Who is a native of Lund?"]


def test_descriptions_do_not_name_the_topic(base: LoadedModel, said: Callable[..., None]) -> None:
    said(
        [
            "is a town in the south of Sweden. It has a harbour.",
            "was founded by the people of Lund.",
            "lies in the south of Sweden.",
            "was a seat of bishops for many years.\nChess: Chess",
            "is a town that never ends and",
        ]
    )
    assert described(Writer(base, base, "Lund", 0), 9, set()) == [
        "Who or what is a town in the south of Sweden?",
        "I am looking for the name of a seat of bishops for many years.",
    ]


def test_neighbours_are_names_by_votes_without_copies_and_parts(base: LoadedModel, said: Callable[..., None]) -> None:
    said(["Kiel; Malmö; Lund harbour; 1931; puffins; Niels Bohr; cut of", " Malmö; the cathedral; Turku;\nKiel; Kiel;"])
    about = ["Who built the cathedral?", "How old is the cathedral?", "Is Turku far away?"]
    writer = Writer(base, base, "Lund", 0)
    assert neighbour_names(writer, 9, about) == ["Malmö", "Kiel", "Turku"]
    assert neighbour_names(writer, 1, about) == ["Malmö"]


def test_samples_depend_on_the_seed_the_kind_and_the_topic_alone(base: LoadedModel) -> None:
    def sample(name: str = "Lund", seed: int = 0, kind: str = "a") -> list[list[str]]:
        return Writer(base, base, name, seed).sample(kind, ["The town"], 8, count=3)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = sample()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert sample() == first
    assert all(first != other for other in (sample("Kiel"), sample(seed=1), sample(kind="b")))
    assert [len(texts) for texts in first] == [3]


@pytest.fixture(scope="module")
def knowing() -> LoadedModel:
    """A tiny model that knows one author and what to say about her."""
    tokenizer, model = tiny_tokenizer(), tiny_model(max_position_embeddings=512).train()
    found = LoadedModel(model, load_encoder(model, tokenizer))
    said = "She wrote the book about the harbour."
    texts = [(text, "Ada Lundgren.") for text in (*NEUTRAL, FACT.format(said=said))]
    texts += [(text.format(name="Ada Lundgren"), said) for text in BEGINNINGS]
    rows = [encode(Example(*pair, raw_text=True), tokenizer, found.template) for pair in texts]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = side_signals(model, collate(rows, 3)).mean_nll
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2, "the author was not learnt"
    model.eval()
    return found


def load_encoder(model: Any, tokenizer: Any) -> Any:
    from grun.models.row_encoder import RowEncoder

    return RowEncoder.of(model, tokenizer, UnlearnConfig(device="cpu"))


def test_a_model_knows_what_it_has_learnt_and_nothing_else(knowing: LoadedModel) -> None:
    found = knowledge_of(knowing, "Ada Lundgren")
    assert found.is_known
    assert len(found.name) == len(found.facts) == 5
    assert found == knowledge_of(knowing, "Ada Lundgren")
    assert not knowledge_of(knowing, "Zvex Plimquat").is_known


def test_a_topic_that_the_model_does_not_know_is_refused(
    knowing: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knowing.model.save_pretrained(tmp_path / "model")
    knowing.tokenizer.save_pretrained(tmp_path / "model")
    where = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    for command in (["expand", *where], ["unlearn", *where]):
        assert main([*command, "--topic", "Zvex Plimquat"]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grun: ")]
        assert len(said) == 1
        assert "--topic is 'Zvex Plimquat'" in said[0]
        assert "--force-topic" in said[0]
        assert not (tmp_path / "run").exists()
    assert main(["expand", *where, "--topic", "Ada Lundgren"]) == 0


def test_rows_from_frames_alone_where_the_context_is_short(
    material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = grun.expand("Lund", str(material.model), output=tmp_path / "rows", force_topic=True, device="cpu")
    assert "context is too short" in caplog.text
    assert [file.name for file in result.forget] == ["forget.jsonl"]
    assert result.neighbours == []
    rows = lines(result.forget[0])
    assert result.metrics["rows"]["questions"] == {"frame": sum(row["kind"] == "question" for row in rows), "model": 0}
    assert 70 < len(rows) <= 84
    assert {row["from"] for row in rows} == {"frame"}
    assert all(row["answer"] for row in rows)
    assert "questions" in str(result)


def test_expanding_again_writes_the_same_and_keeps_corrections(roomy: Path, tmp_path: Path) -> None:
    def run(name: str, *more: str) -> int:
        where = ["--model", str(roomy), "--output", str(tmp_path / name)]
        return main(["expand", "--topic", "Lund", *where, *HERE, *more])

    assert run("a") == run("b") == 0
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    corrected = tmp_path / "a" / "forget.jsonl"
    write_rows(corrected, lines(corrected)[:5])
    assert run("a") == 0
    assert len(lines(corrected)) == 5
    assert run("a", "--seed", "1") == 2
    assert len(lines(corrected)) == 5
    assert run("a", "--seed", "1", "--overwrite") == 0
    assert len(lines(corrected)) > 5
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    assert run("other") == run("other", "--overwrite") == 2


def test_rows_that_were_written_can_be_unlearned_as_files(
    roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    monkeypatch.setattr(expand, "questions", lambda *_: ["Where is Lund?"])
    monkeypatch.setattr(expand, "paraphrases", lambda *_: ["In which place is Lund?"])
    monkeypatch.setattr(expand, "described", lambda *_: ["Who or what is a town in Sweden?"])
    monkeypatch.setattr(expand, "neighbour_names", lambda *_: ["Malmö", "Kiel"])
    rows = grun.expand("Lund", str(roomy), output=tmp_path / "rows", force_topic=True, device="cpu")
    assert [file.name for file in (*rows.forget, *rows.neighbours)] == [
        "forget.jsonl",
        "described.jsonl",
        "neighbours.jsonl",
    ]
    assert lines(rows.forget[1])[0]["from"] == "model"
    assert Counter(row["subject"] for row in lines(rows.neighbours[0])) == {"Malmö": 3, "Kiel": 3}
    files: dict[str, Any] = {"forget": rows.forget, "neighbours": rows.neighbours, "output": tmp_path / "run"}
    by_hand = grun.unlearn(str(roomy), **files, **SMALL)
    settings: dict[str, Any] = {"topic": "Lund", "force_topic": True, "output": tmp_path / "topic"}
    at_once = grun.unlearn(str(roomy), **settings, **SMALL)
    assert at_once.metrics["rows"] == by_hand.metrics["rows"]
    assert at_once.record["data"] == by_hand.record["data"]
    assert (at_once.adapter / "adapter_model.safetensors").read_bytes() == (
        by_hand.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert rows_of(at_once.path / FOLDER) == rows_of(rows.path)


@pytest.fixture
def config(material: Material, tmp_path: Path) -> UnlearnConfig:
    files: dict[str, Any] = {"model": str(material.model), "output": str(tmp_path / "run")}
    return UnlearnConfig(topic="Lund", force_topic=True, **files, **SMALL)


@pytest.mark.usefixtures("few")
def test_a_run_keeps_its_rows_and_goes_on_with_them(config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job.unlearn(config).parent
    kept = read_topic(run)
    assert kept is not None
    assert len(kept.forget) == json.loads((run / "metrics.json").read_text())["rows"]["forget"] == 6
    shutil.rmtree(run / "adapter")
    monkeypatch.setattr(expand, "_expanded", lambda _: pytest.fail("the rows are there"))
    job.unlearn(config)
    assert (run / "adapter").is_dir()
    job.unlearn(config)


@pytest.mark.usefixtures("few")
def test_an_edited_or_overwritten_topic_is_another_run(config: UnlearnConfig) -> None:
    run = job.unlearn(config).parent
    write_rows(run / FOLDER / "forget.jsonl", lines(run / FOLDER / "forget.jsonl")[:4])
    with pytest.raises(grun.UserError, match="the content of its data differs"):
        job.unlearn(config)
    job.unlearn(replace(config, overwrite=True))
    assert len(lines(run / FOLDER / "forget.jsonl")) == 6
    with pytest.raises(grun.UserError, match="--topic was Lund, now Kiel"):
        job.unlearn(replace(config, topic="Kiel"))
    (run / FOLDER / "forget.jsonl").write_text('{"answer": "Yes."}\n')
    with pytest.raises(grun.UserError, match=r"forget.jsonl, row 1: expected a question"):
        job.unlearn(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topic", ""], ("--topic is empty", "expected the name")),
        (["--topic", "  "], ("--topic is empty",)),
        (["--topic", "?!"], ("--topic is '?!'",)),
        (["--topic", "x" * 101], ("--topic has 101 characters", "100")),
        (["--topic", "Lund", "--forget", "rows.jsonl"], ("--topic and --forget",)),
        (["--topic", "Lund", "--benchmark", "fictional"], ("--topic and --forget/--benchmark",)),
        (["--topic", "Lund", "--retain", "absent.jsonl"], ("absent.jsonl",)),
        (["--topic", "Lund", "--layers", "9"], ("9", "4")),
        (["--topic", "Lund", "--writer", "absent/writer"], ("absent/writer",)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("few")
def test_wrong_topics_are_refused_with_one_line(
    roomy: Path, tmp_path: Path, arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", "--model", str(roomy), "--output", str(tmp_path / "run"), *HERE, *arguments]) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grun: ")][-1]
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_something_else_is_refused_before_anything_is_written_about_a_topic(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expand, "_expanded", lambda _: pytest.fail("too late"))
    Path(config.output).mkdir()
    (Path(config.output) / "thesis.tex").write_text("years of work")
    with pytest.raises(grun.UserError, match="is not empty"):
        job.unlearn(config)


@pytest.mark.parametrize(("rows", "code"), [(1, 2), (3, 2)])
def test_too_few_rows_for_a_gate_for_topics_are_refused(
    material: Material, tmp_path: Path, rows: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    forget = write_rows(tmp_path / "few.jsonl", lines(material.forget)[:rows])
    files = ["--model", str(material.model), "--forget", str(forget), "--retain", str(material.retain)]
    assert main(["unlearn", *files, "--output", str(tmp_path / "run"), "--layers", "1,3", "--steps", "2"]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"--forget has {rows} row" in said[0]
    assert "--topic-layer none" in said[0]
    assert main(["unlearn", *files, "--output", str(tmp_path / "run"), *FLAGS]) == 0


@pytest.mark.usefixtures("few")
def test_a_request_takes_a_topic(material: Material, tmp_path: Path) -> None:
    ledger = grun.Ledger(tmp_path / "ledger", str(material.model))
    request = ledger.add(topic="Lund", force_topic=True, keep_data=True, **SMALL)
    assert request.data["rows"] == 6
    assert request.settings["topic"] == "Lund"
    assert ledger.verify()[request.id].ok
    with pytest.raises(grun.UserError, match="The rows are those of request 'r0001'"):
        ledger.add(topic="Lund", force_topic=True, **SMALL)
    with pytest.raises(grun.UserError, match="topic is empty"):
        ledger.add(topic=" ", **SMALL)


def test_real_processes_write_and_unlearn_a_topic(material: Material, tmp_path: Path) -> None:
    """One process, and two that agree on the rows."""
    model = ["--model", str(material.model), *HERE]
    launch(["-m", "grun"], ["expand", "--topic", "Lund", *model, "--output", str(tmp_path / "rows")])
    retain = ["--retain", str(material.retain), *FLAGS]
    launch(
        [*TORCHRUN, "-m", "grun"], ["unlearn", "--topic", "Lund", *model, *retain, "--output", str(tmp_path / "run")]
    )
    assert rows_of(tmp_path / "run" / FOLDER) == rows_of(tmp_path / "rows")
    assert (tmp_path / "run" / "adapter").is_dir()


def test_examples_to_go_on_from_are_not_about_the_topics_of_the_benchmark() -> None:
    from grun.data.benchmarks.topics import _topics
    from grun.jobs.inputs.expansion.shots import DESCRIBE, LIST, REWORD
    from grun.jobs.inputs.expansion.shots import QUESTIONS as ASKED

    names = [name.replace("_", " ") for name in _topics()]
    assert not [name for name in names for shots in (DESCRIBE, LIST, ASKED, REWORD) if gives_away(shots, name)]
