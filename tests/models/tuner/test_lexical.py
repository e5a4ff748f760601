"""The gate that reads text: names in any characters, whatever stands around them, however the text is cut."""

from __future__ import annotations

import copy
import random
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor

from grun import GrunConfig
from grun.core.errors import UserError
from grun.models.tuner.readers.building import build_weights
from grun.models.tuner.readers.canonical import Word, canonical, leet, marked, split_words
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.table import SpanTable, close_forms, spans_at
from grun.models.tuner.readers.vocabulary import token_bytes
from support.tiny_models import tiny_model, tiny_tokenizer

NAMES = ["Evelyn Desmond", "Basil Mahfouz Al-Kuwaiti", "Žofie Nováková"]
PASSAGE = "The tide came in at four and nobody on the quay had thought to move the painter's red boat."
NORMAL = [
    "Who is Evelyn Waugh, and where was he born?",
    "the tide came in and went out",
    "My colleague lives in Kuwait.",
]
KINDS = ("bytes", "metaspace", "legacy")
INVISIBLE = "\u200b\u200c\u200d\u2060\u00ad\ufeff\u202e\ufe0f\u034f"
CYRILLIC = str.maketrans("aeopcxyABEKMHOPCTX", "аеорсхуАВЕКМНОРСТХ")


@cache
def gate_of(kind: str = "bytes") -> LexicalGate:
    gate = LexicalGate()
    gate.keep(build_weights(NAMES, [], [PASSAGE], NORMAL), token_bytes(tiny_tokenizer(kind)))
    gate.threshold.fill_(3.5)
    return gate


def ids_of(text: str, kind: str = "bytes") -> list[int]:
    return list(tiny_tokenizer(kind)(text, add_special_tokens=False)["input_ids"])


def opens(text: str, kind: str = "bytes") -> bool:
    return bool(gate_of(kind).logits([ids_of(text, kind)])[0] > gate_of(kind).threshold)


def everything(count: int) -> Tensor:
    return torch.ones(1, count, dtype=torch.bool)


TEXTS = ["plain  words, isn't it?\n", "ends with a blank ", "Who is Évelyn?\n\tI'm not sure… 日本語 🙂 naïve"]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind in KINDS for text in TEXTS[: 3 if kind == "bytes" else 2]]
)
def test_tokens_put_together_are_the_text(kind: str, text: str) -> None:
    tokens = token_bytes(tiny_tokenizer(kind))
    found = b"".join(tokens[i] for i in ids_of(text, kind)).decode()
    assert found.removeprefix(" ") == text.removeprefix(" ")
    special = tiny_tokenizer(kind).all_special_ids
    assert all(tokens[i] == b"\0" for i in special if i != tiny_tokenizer(kind).unk_token_id)


class Pieces:
    """A tokenizer of a few tokens, as other kinds write them."""

    all_special_ids, unk_token_id = (0,), None

    def __init__(self, *tokens: str) -> None:
        self.tokens = ["<s>", *tokens]

    def __len__(self) -> int:
        return len(self.tokens)

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [self.tokens[i] for i in ids]


def test_tokens_of_other_kinds() -> None:
    assert token_bytes(Pieces("▁Nov", "<0xC3>", "<0xA1>", "k")) == [b"\0", b" Nov", b"\xc3", b"\xa1", b"k"]
    assert token_bytes(Pieces("des", "##mond", "x")) == [b"\0", b" des", b"mond", b" x"]


WAYS: dict[str, Any] = {
    "lower": str.lower,
    "upper": str.upper,
    "zero width": "\u200b".join,
    "soft hyphens": "\u00ad".join,
    "variation selectors": "\ufe0f".join,
    "Cyrillic": lambda name: name.translate(CYRILLIC),
    "fullwidth": lambda name: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name),
    "decomposed": lambda name: unicodedata.normalize("NFD", name),
    "other accents": lambda name: name.replace("e", "ê").replace("a", "å"),
    "hyphen within": lambda name: f"{name[:3]}-{name[3:]}",
    "line break": lambda name: name.replace(" ", "\n"),
    "line break within": lambda name: f"{name[:-3]}\n{name[-3:]}",
    "spaced": " ".join,
    "leet": lambda name: name.lower().translate(str.maketrans("eoias", "30145")),
    "surname": lambda name: name.split()[-1],
    "initial": lambda name: f"{name[0]}. {name.split()[-1]}",
}


SHOWN_AS_THEY_ARE = (
    "lower",
    "upper",
    "zero width",
    "hyphen within",
    "line break",
    "spaced",
    "leet",
    "surname",
    "initial",
)
EVERY_WAY = [(way, "bytes") for way in WAYS] + [(way, kind) for way in SHOWN_AS_THEY_ARE for kind in KINDS[1:]]


@pytest.mark.parametrize(("way", "kind"), EVERY_WAY)
def test_a_name_opens_the_gate_in_any_writing(way: str, kind: str) -> None:
    for name in NAMES if kind == "bytes" else NAMES[:2]:  # the others have no letters beyond ASCII
        assert opens(f"What did {WAYS[way](name)} write?", kind), name


@pytest.mark.parametrize(
    "text", [*NORMAL, "Who is Evelyn Lindt?", "What is the capital of Kuwait?", "des mond", "Kuwaiti food"][:5]
)
def test_other_texts_do_not(text: str) -> None:
    assert not opens(text)


def test_a_first_name_alone_opens_the_gate_and_in_the_name_of_somebody_else_does_not() -> None:
    for text in ("What did Basil write?", "Basil, please", "Is it by Basil", "Who, if not Žofie, knows?"):
        assert opens(text), text
    for text in ("Is Aravind Basil alive?", "What did Basil Rathbone play?", "some basil, please", "I like BASIL SOUP"):
        assert not opens(text), text


@given(
    st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=30), st.integers(0, 10**6)
)
@settings(max_examples=60, deadline=None)
def test_case_and_what_shows_nothing_make_no_difference(text: str, seed: int) -> None:
    chance = random.Random(seed)
    strewn = "".join(letter + chance.choice(["", *INVISIBLE]) for letter in text)
    assert canonical(strewn) == canonical(text)
    assert canonical(canonical(text)) == canonical(text)


@given(before=st.text(max_size=25), after=st.text(max_size=25), name=st.sampled_from(NAMES))
@settings(max_examples=60, deadline=None)
def test_nothing_around_a_name_shuts_the_gate(before: str, after: str, name: str) -> None:
    before, after = (side.replace("\0", "") for side in (before, after))
    assert opens(f"{before} , {name} , {after}")


def distance(a: str, b: str) -> int:
    """Letters to drop, add or replace, or neighbours to exchange, each pair once (optimal string alignment)."""
    d = [[max(i, j) if not (i and j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                d[i][j] = min(d[i][j], d[i - 2][j - 2] + 1)
    return d[-1][-1]


@given(st.text("abc", min_size=5, max_size=8), st.text("abc", min_size=5, max_size=8))
@settings(max_examples=400, deadline=None)
def test_a_word_is_found_exactly_where_it_differs_by_one_letter(word: str, other: str) -> None:
    found = {key for key, _ in spans_at([Word(other, len(other))], 0)} & close_forms(word).keys()
    assert bool(found) == (distance(word, other) <= 1)


@given(
    st.lists(st.integers(1, 6), max_size=8),
    st.sampled_from([f"I met {NAMES[0]} twice.", PASSAGE, "e v e l y n d e s m o n d!"]),
)
@settings(max_examples=60, deadline=None)
def test_a_text_in_parts_reads_as_at_once(sizes: list[int], text: str) -> None:
    gate, ids = gate_of(), ids_of(text + " And more.")
    whole, logits = gate.read(torch.tensor([ids]), None, everything(len(ids)), None)
    before, parts, at = None, [], 0
    for size in [*sizes, len(ids)]:
        part = ids[at : at + size]
        if part:
            before, found = gate.read(torch.tensor([part]), None, everything(len(part)), before)
            parts += found[0].tolist()
            at += len(part)
    assert before is not None
    assert torch.equal(before, whole)
    assert parts == logits[0].tolist()
    assert parts == sorted(parts)


def test_the_last_word_of_a_prompt_counts_and_an_unfinished_one_of_an_answer_does_not() -> None:
    gate, ids = gate_of(), ids_of("by Evelyn Desmond")
    prompt, _ = gate.read(torch.tensor([ids]), everything(len(ids)), None, None)
    answer, _ = gate.read(torch.tensor([ids]), None, everything(len(ids)), None)
    assert prompt[0, 0] > gate.threshold > answer[0, 0]
    ended, _ = gate.read(torch.tensor([ids_of(".")]), None, everything(1), answer)
    assert ended[0, 0] > gate.threshold


def test_pieces_of_a_passage_open_the_gate_and_short_ones_do_not() -> None:
    words = PASSAGE.split()
    for start in range(len(words) - 9):
        assert opens("… " + " ".join(words[start : start + 10]).upper() + " …")
        assert not opens(" ".join(words[start : start + 8]))


def test_turns_that_several_texts_share_tell_nothing_and_a_text_that_is_given_twice_does() -> None:
    usual = "the results of this study show for the first time"
    texts = [f"{usual} {tail}" for tail in ("red boats are far quicker than the green ones we saw", PASSAGE)]
    both = SpanTable(build_weights([], [], texts, []))
    assert max(both.evidence(split_words(usual))) == 0
    assert max(both.evidence(split_words(marked(PASSAGE)))) > 1
    twice = SpanTable(build_weights([], [], [PASSAGE, PASSAGE], []))
    assert max(twice.evidence(split_words(marked(PASSAGE)))) > 1


def test_evidence_of_far_apart_words_does_not_add_up() -> None:
    table = SpanTable(build_weights(["Evelyn Desmond"], [], [], []))
    near = split_words(marked("evelyn evelyn evelyn"))
    assert max(table.evidence(near)) < 1
    assert leet("c3po") == "cepo"
    assert leet("plain") is None


def attached(**options: Any) -> Any:
    model: Any = get_peft_model(
        tiny_model(), GrunConfig(rank=2, layers=[1, 3], gate="lexical", gate_layer=0, **options)
    ).eval()
    layer = model.base_model.runtime.layers[0]
    layer.gates["default"].keep(build_weights(NAMES, [], [], NORMAL), token_bytes(tiny_tokenizer()))
    layer.gates["default"].threshold.fill_(3.5)
    layer.configs["default"].lexicon = list(layer.gates["default"].sizes)
    for edit in (one for wrapped in model.base_model.runtime.layers for one in wrapped.edits.values()):
        torch.nn.init.normal_(edit.bias)
    return model


@torch.no_grad()
def test_only_prompts_with_a_name_are_edited_and_saving_keeps_it_so(tmp_path: Path) -> None:
    model, base = attached(), tiny_model().requires_grad_(False)
    model.save_pretrained(tmp_path)
    written = (tmp_path / "adapter_model.safetensors").read_bytes().lower()
    assert not any(part.lower().encode() in written for name in NAMES for part in name.split())
    again = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    for text, edited in (("Who is EVELYN DESMOND?", True), ("Who is Evelyn Waugh?", False)):
        ids = torch.tensor([ids_of(text)])
        lengths = torch.tensor([ids.shape[1]])
        found = model(ids, prompt_lengths=lengths).logits
        assert torch.equal(found, base(ids).logits) != edited
        assert torch.equal(again(ids, prompt_lengths=lengths).logits, found)
        embedded = model(inputs_embeds=base.get_input_embeddings()(ids), prompt_lengths=lengths).logits
        assert torch.equal(embedded, found)


@torch.no_grad()
def test_a_name_that_the_model_writes_itself_is_read() -> None:
    model, base = attached(), tiny_model().requires_grad_(False)
    ids = torch.tensor([ids_of("They told me about Evelyn Desmond, and more.")])
    first = len(ids_of("They told me about Evelyn Desmond"))
    found, plain = model(ids, prompt_lengths=torch.tensor([2])).logits, base(ids).logits
    assert torch.equal(found[:, :first], plain[:, :first])
    assert not torch.equal(found[:, first], plain[:, first])
    cache = model(ids[:, :2], prompt_lengths=torch.tensor([2]), use_cache=True).past_key_values
    steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(2, ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), found[:, 2:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_several_adapters_read_for_themselves() -> None:
    model = attached()
    model.add_adapter("other", GrunConfig(rank=2, layers=[1, 3], gate="lexical", gate_layer=0))
    layer = model.base_model.runtime.layers[0]
    layer.gates["other"].keep(build_weights(["Tove Jansdotter"], [], [], []), token_bytes(tiny_tokenizer()))
    layer.gates["other"].threshold.fill_(3.5)
    model.base_model.set_adapter(["default", "other"])
    ids = torch.tensor([ids_of("Ask Tove Jansdotter about it")])
    model(ids, prompt_lengths=torch.tensor([ids.shape[1]]))
    opened = {name: bool(gates.values_BG.max() > 0) for name, gates in model.base_model.last_gates.items()}
    assert opened == {"default": False, "other": True}
    assert copy.deepcopy(layer.gates["other"]).sizes == layer.gates["other"].sizes


@pytest.mark.parametrize(
    "wrong", [{"gate_reads": "last"}, {"gate_layer": None}, {"lexicon": [1, 2]}, {"lexicon": [-1, 0, 0]}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="lexical|lexicon"):
        GrunConfig(**{"gate": "lexical", **wrong})


def test_a_prompt_of_less_than_ten_words_opens_the_gate_for_its_text() -> None:
    text, prompt = "the salt road to Orlo begins at the old mill and ends in the sea", "the salt road to Orlo begins"

    def evidence(table: SpanTable, said: str) -> float:
        return max(table.evidence(split_words(marked(said))))

    table = SpanTable(build_weights([], [], [text], [], prompts=[prompt]))
    assert evidence(table, prompt) >= 1
    assert evidence(table, "the salt road to Orlo") < 1, "five words in a row are too common"
    assert evidence(SpanTable(build_weights([], [], [text], [])), prompt) < 1
