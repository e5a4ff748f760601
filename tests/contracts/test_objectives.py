"""The contract of every objective and retain loss: what it may read, what never matters to it, what it says of itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from grun.core.errors import UserError
from grun.core.records import Batch, SideSignals, Signals
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import reference_signals, side_signals
from grun.training.loss.terms import split_sides
from grun.training.objectives import SIDES as KNOWN_SIDES
from grun.training.objectives import needs_of, objective_options, objectives, retain_losses
from support.objective_kit import HIDDEN, LENGTHS, SIDES, VOCABULARY, everything, gradients, leaves_of, of_side

QUANTITIES = {
    "targets": "targets_N",
    **{f"{base}logps": f"{base}logps_N" for base in ("", "ref_")},
    **{f"{base}logits": f"{base}logits_NV" for base in ("", "ref_")},
    **{f"{base}hidden": f"{base}hidden_ND" for base in ("", "ref_")},
}
EVERY = [*objectives.names(), *retain_losses.names()]
SUMMARY = r"[A-Z][^\n]*[.:]"


def loss_of(name: str, sides: Mapping[str, SideSignals], steering: Tensor | None) -> Tensor:
    """An objective's loss, or a retain loss's; no name is both."""
    if name in retain_losses.names():
        return retain_losses.get(name).target(sides["retain"])
    return objectives.get(name).target(Signals(sides, steering))


def declared(name: str) -> dict[str, set[str]]:
    """Quantities by side that a leaf says it needs."""
    if name in retain_losses.names():
        return {"retain": set(retain_losses.get(name).info["needs"])} if retain_losses.get(name).info["needs"] else {}
    return needs_of(objectives.get(name), retain_losses.get("none"))


def test_no_name_is_both_an_objective_and_a_retain_loss() -> None:
    assert set(objectives.names()).isdisjoint(retain_losses.names())


class Noting(dict[str, Tensor]):
    """Quantities of a side that note which of them were read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("name", EVERY)
def test_exactly_what_is_declared_is_read(name: str) -> None:
    rows, signals = everything()
    noting = {side: Noting(own.quantities) for side, own in signals.sides.items()}
    sides = {side: SideSignals(own.mask_BT, noting[side]) for side, own in signals.sides.items()}
    loss_of(name, sides, rows["steering"])
    assert {side: own.read for side, own in noting.items() if own.read} == declared(name)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_not_declared_cannot_be_read(name: str) -> None:
    _, signals = everything()
    needs = declared(name)
    for side, own in signals.sides.items():
        wanted = needs.get(side, set())
        trimmed = SideSignals(own.mask_BT, {quantity: own.quantities[quantity] for quantity in wanted})
        for quantity, attribute in QUANTITIES.items():
            if quantity in wanted:
                assert torch.equal(getattr(trimmed, attribute), own.quantities[quantity])
            else:
                with pytest.raises(ValueError, match=rf"'{quantity}'.*declare '<side>\.{quantity}' in `needs`"):
                    getattr(trimmed, attribute)


@pytest.mark.parametrize("name", objectives.names())
def test_objectives_look_only_at_what_they_declare(name: str) -> None:
    _, signals = everything()
    needs = needs_of(objectives.get(name), retain_losses.get("none"))
    trimmed = {
        side: SideSignals(signals.sides[side].mask_BT, {q: signals.sides[side].quantities[q] for q in quantities})
        for side, quantities in needs.items()
    }
    found = objectives.get(name).target(Signals(trimmed, signals.steering_D))
    assert torch.equal(found, objectives.get(name).target(signals))


@pytest.mark.parametrize("name", EVERY)
def test_padding_never_changes_a_loss(name: str) -> None:
    rows, _ = everything()

    def value(padding: tuple[int, int]) -> float:
        return loss_of(name, {side: of_side(rows[side], padding) for side in SIDES}, rows["steering"]).item()

    assert value((1, 0)) == pytest.approx(value((6, 9)), rel=1e-14)


class Bigram(nn.Module):
    """A model whose prediction and hidden state depend on the present token alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.float64)
        self.head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)

    def forward(self, input_ids: Tensor, **_: Any) -> Output:
        return Output(self.head(self.layer(input_ids)))


@dataclass
class Output:
    """What a model returns."""

    logits: Tensor


def loss_of_rows(name: str, other: Callable[[int], int], fill: int, extra: int) -> float:
    """The loss of rows of tokens. Their answers and the tokens before these are always the same.

    Args:
        name: of the leaf.
        other: replaces the earlier tokens of prompts.
        fill: token of the padding.
        extra: columns of padding more than needed.
    """
    encoded = []
    for i in range(len(SIDES)):
        for length in LENGTHS:
            answer = [(3 * i + 5 * length + t) % VOCABULARY for t in range(length)]
            prompt = [other(t) for t in range(2 + (i + length) % 3)] + [(i + length) % VOCABULARY]
            encoded.append(Encoded((*prompt, *answer), len(prompt), 0))
    narrow = collate(encoded, fill)
    batch = Batch(
        pad(narrow.input_ids_BT, (0, extra), value=fill),
        pad(narrow.attention_mask_BT, (0, extra)),
        pad(narrow.labels_BT, (0, extra), value=-100),
        narrow.prompt_lengths_B,
    )
    model, base = Bigram(0), Bigram(1)
    wanted = {"logps", "logits", "hidden"}
    joined = side_signals(model, batch, wanted=wanted, layer=model.layer)
    reference = split_sides(reference_signals(base, batch, wanted=wanted, layer=base.layer), SIDES, {})
    sides = split_sides(joined, SIDES, {side: one.quantities for side, one in reference.items()})
    return loss_of(name, sides, torch.ones(HIDDEN)).item()


@pytest.mark.parametrize("name", EVERY)
def test_tokens_of_prompts_and_of_padding_are_never_targets(name: str) -> None:
    expected = loss_of_rows(name, lambda t: 1, fill=0, extra=0)
    assert math.isfinite(expected)
    assert loss_of_rows(name, lambda t: 2 + t % 3, fill=0, extra=0) == expected
    assert loss_of_rows(name, lambda t: 1, fill=4, extra=5) == expected


@pytest.mark.parametrize("name", EVERY)
def test_losses_of_parts_average_to_the_loss_of_the_whole(name: str) -> None:
    """Gradient accumulation and several processes: parts of a batch with different numbers of tokens."""
    rows, signals = everything()
    joined = {side: [rows[side][:2], rows[side][2:]] for side in SIDES}
    mean_count = {side: sum(LENGTHS) / 2 for side in SIDES}
    parts = []
    for part in range(2):
        sides = {}
        for side in SIDES:
            alone = of_side(joined[side][part])
            sides[side] = SideSignals(alone.mask_BT, alone.quantities, mean_count[side])
        parts.append(loss_of(name, sides, rows["steering"]))
    whole = loss_of(name, signals.sides, rows["steering"])
    assert sum(part.item() for part in parts) / 2 == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_is_a_scalar_that_is_the_same_when_asked_again(name: str) -> None:
    rows, signals = everything()
    before = {side: {q: v.clone() for q, v in own.quantities.items()} for side, own in signals.sides.items()}
    found = loss_of(name, signals.sides, rows["steering"])
    assert found.shape == ()
    assert torch.equal(found, loss_of(name, signals.sides, rows["steering"]))
    assert all(
        torch.equal(signals.sides[side].quantities[q], v) for side, own in before.items() for q, v in own.items()
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradients_are_finite_however_sure_the_model_is(name: str, scale: float) -> None:
    """In float32, as in training; at 1e4 every answer token is certain or impossible."""
    rows, _ = everything()
    for side in SIDES:
        for row in rows[side]:
            row.logits = (scale * row.logits.detach()).float().requires_grad_()
            row.base_logits = (scale * row.base_logits).float()
            row.hidden, row.base_hidden = row.hidden.detach().float().requires_grad_(), row.base_hidden.float()
    sides = {side: of_side(rows[side]) for side in SIDES}
    loss = loss_of(name, sides, rows["steering"].float())
    assert bool(loss.isfinite())
    if name != "none":
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(loss, leaves_of(rows)))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "none"])
def test_every_loss_has_something_to_teach(name: str) -> None:
    rows, signals = everything()
    found = gradients(loss_of(name, signals.sides, rows["steering"]), leaves_of(rows))
    assert any(bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("name", EVERY)
def test_needs_name_sides_and_quantities_that_there_are(name: str) -> None:
    for side, quantities in declared(name).items():
        assert side in KNOWN_SIDES
        assert quantities <= QUANTITIES.keys()


def test_every_objective_names_its_paper_and_a_retain_loss_that_exists() -> None:
    for entry in objectives:
        assert "arXiv" in entry.info["paper"]
        assert entry.info["retain"] in retain_losses.names()
        assert "`" in (entry.target.__doc__ or ""), f"{entry.name} does not say its formula"


@pytest.mark.parametrize("entry", [*objectives, *retain_losses], ids=lambda entry: entry.name)
def test_every_leaf_says_what_it_is(entry: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.name)
    assert entry.target.__name__ == entry.name
    assert re.match(SUMMARY, entry.summary)
    if entry.info["needs"]:
        assert re.search(r"arXiv \d{4}\.\d{5}", entry.info["paper"])


@pytest.mark.parametrize("name", objectives.names())
def test_weights_are_numbers_that_are_not_negative(name: str) -> None:
    for weight in ("forget_weight", "retain_weight"):
        value = objectives.get(name).info.get(weight, 1.0)
        assert isinstance(value, float)
        assert value >= 0


@pytest.mark.parametrize("name", objectives.names())
def test_options_are_typed_described_and_read_from_text(name: str) -> None:
    entry = objectives.get(name)
    hints = get_type_hints(entry.target)
    assert hints["signals"] is Signals
    assert hints["return"] is Tensor
    for option, parameter in entry.parameters.items():
        assert isinstance(parameter.default, hints[option])
        assert re.search(rf"^ +{option}: \S", entry.target.__doc__ or "", re.MULTILINE)
        assert objective_options(entry, {option: str(parameter.default)}) == {option: parameter.default}
        for wrong in ("many", "nan", "inf"):
            with pytest.raises(
                UserError, match=rf"option '{option}' of objective '{name}' is '?{wrong}'?, expected a num"
            ):
                objective_options(entry, {option: wrong})
    with pytest.raises(UserError, match=rf"objective '{name}' has no option 'nothing'"):
        objective_options(entry, {"nothing": "1"})


@pytest.mark.parametrize("name", objectives.names())
def test_lower_bounds_of_options_are_kept_by_their_defaults(name: str) -> None:
    entry = objectives.get(name)
    for option, low in entry.info.get("above", {}).items():
        assert entry.parameters[option].default > low
        with pytest.raises(
            UserError, match=rf"option '{option}' of objective '{name}' is {low}, expected a number above"
        ):
            objective_options(entry, {option: str(low)})
