"""Gates are fitted on exactly what they read, to convergence, and their thresholds keep their promise."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.core.errors import UserError
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.gates.features import (
    GateFeatures,
    concatenated,
    gate_features,
    gate_logits,
    gates_of,
    load_features,
    readings_of_gates,
    save_features,
)
from grun.models.gates.fitting import ALONE, Place, chosen_thresholds, fit_gates, set_thresholds
from grun.models.tuner.call.decision import is_open
from grun.models.tuner.edit import Gate
from support.adapter_kit import attach
from support.tiny_models import tiny_model


def share_set(model: Any, forget: list[GateFeatures], normal: list[GateFeatures], rate: float) -> float:
    """Set thresholds from features, and tell the share of the normal prompts that opens a gate."""
    gates = [gate for _, gate in gates_of(model)]
    normal_NG = gate_logits(normal, gates)
    threshold_G = set_thresholds(model, gate_logits(forget, gates), [(normal_NG, rate)], [ALONE] * len(gates))
    return float(is_open(normal_NG, threshold_G).any(1).float().mean())


NAMES, OTHERS = range(20, 28), range(40, 72)  # tokens: a name is two of them
WORDS = range(100, 130)


def prompts(names: range, count: int, seed: int) -> list[Encoded]:
    """Rows of shared words around one name of two tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        first = names[2 * (i % (len(names) // 2))]
        words = torch.tensor(WORDS)[torch.randint(len(WORDS), (7,), generator=generator)].tolist()
        at = int(torch.randint(0, 6, (1,), generator=generator))
        ids = [*words[:at], first, first + 1, *words[at:], 5, 2]
        rows.append(Encoded(tuple(ids), len(ids) - 2, 0))
    return rows


def features(model: Any, rows: list[Encoded]) -> list[GateFeatures]:
    return gate_features(model, [collate(rows[i : i + 8], 3) for i in range(0, len(rows), 8)])


@pytest.mark.parametrize("reads", ["last", "prompt"])
@pytest.mark.parametrize("gate_layer", [None, 0, 1])
def test_features_are_the_hidden_states_of_one_row_at_a_time(reads: str, gate_layer: int | None) -> None:
    model = attach(gate_reads=reads, gate_layer=gate_layer)
    rows, base = prompts(NAMES, 5, 0), tiny_model()
    found = features(model, rows)
    layers = (
        [gate_layer] if gate_layer is not None else [1 + 1, 3 + 1]
    )  # the output of a layer is the input of the next
    assert len(found) == len(layers)
    for part, layer in zip(found, layers, strict=True):
        for i, row in enumerate(rows):
            with torch.no_grad():
                hidden: list[torch.Tensor] = []
                handle = base.model.layers[min(layer, 3)].register_forward_hook(
                    lambda module, args, output, keep=hidden, top=layer > 3: keep.append(output if top else args[0])
                )
                base(input_ids=torch.tensor([row.input_ids]))
                handle.remove()
            state = hidden[0][0][0] if isinstance(hidden[0], tuple) else hidden[0][0]
            start = row.prompt_length - 1 if reads == "last" else 0
            expected = state[start : row.prompt_length]
            torch.testing.assert_close(part.row(i), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_distinct_states_give_the_logits_of_whole_prompts(window: int) -> None:
    model = attach(gate_layer=0, gate_hidden=[32], gate_window=window)
    rows = prompts(NAMES, 40, 0)
    (found,), ((_, gate),) = features(model, rows), gates_of(model, "default")
    read = {token for row in rows for token in row.input_ids[: row.prompt_length]}
    assert len(found.h_UD) == len(read)  # the input of the first layer depends on the token alone
    with torch.no_grad():
        said = found.logits(gate)
        for i in range(len(rows)):
            h_1PD = found.row(i)[None]
            expected = gate(h_1PD, torch.ones(h_1PD.shape[:2], dtype=torch.bool))[0, 0]
            torch.testing.assert_close(said[i], expected, rtol=1e-5, atol=1e-5)


def test_features_are_kept_and_put_one_after_the_other(tmp_path: Path) -> None:
    model = attach(gate_layer=0, gate_hidden=[32], gate_window=3)
    ((_, gate),) = gates_of(model, "default")
    (first,), (second,) = features(model, prompts(NAMES, 6, 0)), features(model, prompts(OTHERS, 9, 1)[:5])
    second = dataclasses.replace(second, at_NP=second.at_NP[:, :-2], mask_NP=second.mask_NP[:, :-2])  # shorter prompts
    with torch.no_grad():
        both = concatenated([first, second]).logits(gate)
        torch.testing.assert_close(both, torch.cat([first.logits(gate), second.logits(gate)]))
        read = [*readings_of_gates(model), *readings_of_gates(model)]
        save_features(tmp_path / "kept", [first, second], read)
        for kept, own in zip(load_features(tmp_path / "kept", read), (first, second), strict=True):
            assert torch.equal(kept.logits(gate), own.logits(gate))
    other = attach(gate_layer=1, gate_hidden=[32], gate_window=3)
    with pytest.raises(UserError, match="read something else"):
        load_features(tmp_path / "kept", 2 * readings_of_gates(other))
    (tmp_path / "kept").write_bytes(b"something else")
    with pytest.raises(UserError, match="holds no gate features"):
        load_features(tmp_path / "kept", read)


def fitted(seed: int = 0, **options: Any) -> tuple[Any, dict[str, list[GateFeatures]]]:
    model = attach(gate_layer=0, gate_hidden=[32], **options)
    for _, gate in gates_of(model, "default"):
        for layer in gate.layers:
            torch.nn.init.normal_(layer.get_parameter("weight"), std=0.2, generator=torch.Generator().manual_seed(1))
    parts = {
        "forget": features(model, prompts(NAMES, 96, 1)),
        "retain": features(model, prompts(OTHERS[:24], 192, 2)),
        "withheld": features(model, prompts(OTHERS[24:], 32, 3)),
    }
    fit_gates(model, parts["forget"], parts["retain"], parts["withheld"], seed=seed)
    return model, parts


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 0.95), ({"gate_window": 1}, 0.4), ({"gate": "linear"}, 0.4)],  # without a window some names are missed
    ids=str,
)
def test_a_fitted_gate_opens_for_the_names_and_for_no_others(options: dict, least: float) -> None:
    model, parts = fitted(**options)
    gate = gates_of(model, "default")[0][1]
    rate = share_set(model, parts["forget"], parts["withheld"], 0.01)
    with torch.no_grad():
        opened = {name: gate.value(part[0].logits(gate)) for name, part in parts.items()}
    assert rate == 0.0
    assert (opened["forget"] > 0.5).float().mean() > least
    assert bool((opened["withheld"] == 0).all())
    assert (opened["retain"] > 0).float().mean() < 0.02
    again = features(model, prompts(NAMES, 32, 77))  # the same names in sentences never seen
    with torch.no_grad():
        assert (gate.value(again[0].logits(gate)) > 0.5).float().mean() > least - 0.05


def test_a_windowed_gate_wants_both_parts_of_a_name() -> None:
    model, parts = fitted()
    share_set(model, parts["forget"], parts["withheld"], 0.01)
    gate = gates_of(model, "default")[0][1]
    whole = prompts(NAMES, 16, 9)
    half = [Encoded(tuple(101 if i in NAMES and i % 2 else i for i in r.input_ids), r.prompt_length, 0) for r in whole]
    with torch.no_grad():
        of_whole, of_half = (features(model, rows)[0].logits(gate) for rows in (whole, half))
    assert float((of_whole > of_half).float().mean()) > 0.9


def test_fitting_is_deterministic_and_leaves_edits_alone() -> None:
    states = [{k: v.clone() for k, v in fitted()[0].state_dict().items() if ".grun_" in k} for _ in range(2)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    fresh = {k: v for k, v in attach(gate_layer=0, gate_hidden=[32]).state_dict().items() if ".grun_edit." in k}
    assert all(torch.equal(v, states[0][k]) for k, v in fresh.items())


class Stub:
    """A model whose gates give the logits they are told to."""

    def __init__(self, gates: int) -> None:
        from types import SimpleNamespace

        made = [Gate(1) for _ in range(gates)]
        with torch.no_grad():
            for gate in made:
                gate.layers[0].get_parameter("weight").fill_(1.0)
                gate.layers[0].get_parameter("bias").zero_()
        layers = [SimpleNamespace(index=i, gates={"default": gate}) for i, gate in enumerate(made)]
        self.base_model = SimpleNamespace(runtime=SimpleNamespace(layers=layers))

    @staticmethod
    def features(logits_NG: torch.Tensor) -> list[GateFeatures]:
        at, mask = torch.arange(len(logits_NG))[:, None], torch.ones(len(logits_NG), 1, dtype=torch.bool)
        return [GateFeatures(column[:, None], at, mask) for column in logits_NG.unbind(1)]


LOGITS = st.lists(st.integers(-30, 30).map(lambda i: i / 4), min_size=6, max_size=90)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.integers(1, 3), st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]), st.integers(0, 9))
def test_the_bound_on_false_positives_holds_for_the_union_of_gates(
    logits: list[float], gates: int, rate: float, seed: int
) -> None:
    normal_NG = torch.tensor(logits)[: len(logits) // gates * gates].view(-1, gates)
    forget_NG = torch.randn(20, gates, generator=torch.Generator().manual_seed(seed)) + 3
    model: Any = Stub(gates)
    told = share_set(model, model.features(forget_NG), model.features(normal_NG), rate)
    values = [gate.value(normal_NG[:, i]) for i, (_, gate) in enumerate(gates_of(model, "default"))]
    observed = float((torch.stack(values).amax(0) > 0).float().mean())
    assert observed == pytest.approx(told)
    assert observed <= rate + 1e-6


def test_the_threshold_lies_in_a_gap_nearer_to_the_forget_prompts() -> None:
    model: Any = Stub(1)
    normal, forget = torch.linspace(-5, -1, 50)[:, None], torch.full((20, 1), 3.0)
    assert share_set(model, model.features(forget), model.features(normal), 0.0) == 0.0
    assert float(gates_of(model, "default")[0][1].threshold) == pytest.approx(5 / 3, abs=1e-5)
    share_set(model, model.features(-forget), model.features(normal), 0.0)
    assert float(gates_of(model, "default")[0][1].threshold) == pytest.approx(-1.0)
    assert math.isfinite(float(gates_of(model, "default")[0][1].threshold))


@given(
    seed=st.integers(0, 10_000),
    shares=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4),
    position=st.floats(0, 1),
    rate=st.floats(0, 0.2),
)
def test_thresholds_keep_their_bound_whatever_the_places(
    seed: int, shares: list[float], position: float, rate: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    normal_NG = torch.randn(200, len(shares), generator=generator)
    forget_NG = torch.randn(40, len(shares), generator=generator) + 2
    places = [Place(share, position) for share in shares]
    threshold_G = chosen_thresholds(forget_NG, [(normal_NG, rate)], places)
    assert int(is_open(normal_NG, threshold_G).any(1).sum()) <= int(rate * 200)
    lowest_G = chosen_thresholds(forget_NG, [(normal_NG, rate)], [Place(share, 0.0) for share in shares])
    exceeding_G = (normal_NG > lowest_G).sum(0)
    most = int(exceeding_G.max())
    for i, share in enumerate(shares):
        if share == max(shares) == 1.0:
            assert exceeding_G[i] == most
        assert exceeding_G[i] <= share * max(most, int(rate * 200))


def test_a_threshold_lies_in_the_gap_where_its_place_says() -> None:
    forget_NG, normal_NG = torch.full((20, 3), 9.0), torch.full((20, 3), 1.0)
    places = [Place(1.0, 0.0), Place(1.0, 0.25), Place(1.0, 1.0)]
    threshold_G = chosen_thresholds(forget_NG, [(normal_NG, 0.0)], places)
    torch.testing.assert_close(threshold_G, torch.tensor([1.0, 3.0, 9.0]))
