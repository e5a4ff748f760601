"""Rows about a topic from its name: frames, what a model writes and which of it is kept, and topics that it knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example
from grun.data.benchmarks.topics import _topics
from grun.jobs.inputs.expansion import shots
from grun.jobs.inputs.expansion.frames import FRAMES, filled
from grun.jobs.inputs.expansion.knowledge import BEGINNINGS, FACT, NEUTRAL, Knowledge, knowledge_of, log_probabilities
from grun.jobs.inputs.expansion.names import gives_away, made_up, mentions, plain
from grun.jobs.inputs.expansion.writing import Writer, described, neighbour_names, paraphrases, questions
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import encode
from grun.models.forward import side_signals
from grun.models.loading.loaded import LoadedModel
from grun.models.row_encoder import RowEncoder
from support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the writer say given texts, and the base model find them all better than a neutral one."""

    def say(texts: Sequence[str], better: Callable[[str], bool] = lambda _: True) -> None:
        monkeypatch.setattr(
            Writer, "sample", lambda self, kind, prompts, limit, count=8: [list(texts) for _ in prompts]
        )
        monkeypatch.setattr(Writer, "better", lambda self, rows, form, neutral: [row for row in rows if better(row)])

    return say


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
    found = LoadedModel(model, RowEncoder.of(model, tokenizer, UnlearnConfig(device="cpu")))
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


def test_a_model_knows_what_it_has_learnt_and_nothing_else(knowing: LoadedModel) -> None:
    found = knowledge_of(knowing, "Ada Lundgren")
    assert found.is_known
    assert len(found.name) == len(found.facts) == 5
    assert found == knowledge_of(knowing, "Ada Lundgren")
    assert not knowledge_of(knowing, "Zvex Plimquat").is_known


@pytest.mark.parametrize(
    ("name", "facts", "is_known"),
    [
        ((-1.0, -3.7, -4.2), (-9.0, -11.0, -12.0), True),
        ((-3.2, -3.7, -4.2), (-79.0, -81.0, -82.0), False),  # easy to say, and that is all
        ((-1.0, -3.7, -4.2), (-12.0, -11.0, -12.0), False),
        ((-3.8, -3.7, -4.2), (-9.0, -11.0, -12.0), False),
    ],
)
def test_a_known_name_is_ahead_of_made_up_ones_and_likely(
    name: tuple[float, ...], facts: tuple[float, ...], is_known: bool
) -> None:
    assert Knowledge(name, facts).is_known == is_known


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


def test_examples_to_go_on_from_are_not_about_the_topics_of_the_benchmark() -> None:
    names = [name.replace("_", " ") for name in _topics()]
    shown = (shots.DESCRIBE, shots.LIST, shots.QUESTIONS, shots.REWORD)
    assert not [name for name in names for text in shown if gives_away(text, name)]
