"""The trainer's loss is the objective's, weighted, plus the gate's cross-entropy; nothing that is not finite gets through."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import TrainingDiverged
from grun.core.records import Example, SideSignals, Signals
from grun.data.refusals import REFUSALS
from grun.jobs import unlearn
from grun.models.encoding.templates import resolve_template
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.base_model import decoder_layers
from grun.training import trainer as training_module
from grun.training.forward_engines.base_references import base_model_references
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.forward_engines.plain import PlainEngine
from grun.training.loss.terms import Recipe, Weights
from grun.training.objectives import needs_of, objectives, retain_losses
from grun.training.pairs import paired_rows
from grun.training.trainer import JoinSides, UnlearnTrainer
from grun.training.validation import validation
from support.adapter_kit import attach
from support.material import Material, invented_rows
from support.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ROWS = RowEncoder(TOKENIZER, resolve_template("qa", TOKENIZER), 256, 4, torch.device("cpu"))
EXAMPLES = {
    side: [Example(r["question"], r["answer"]) for r in invented_rows(name, count)]
    for side, name, count in (("forget", "Lund", 6), ("retain", "Marl", 9))
}
ENCODED = {side: ROWS.encode(rows) for side, rows in EXAMPLES.items()}


def items(sides: tuple[str, ...], steps: int = 2, seed: int = 0):
    answers = {"refusal": lambda _: REFUSALS["en"]}
    return paired_rows(ROWS, ENCODED, EXAMPLES["forget"], sides, 4 * steps, seed, answers)


def recipe(objective: Callable, weights: Weights, name: str = "gd") -> Recipe:
    entry, retain = objectives.get(name), retain_losses.get("ce")
    return Recipe(objective, retain.target, needs_of(entry, retain), weights)


def trainer(model: torch.nn.Module, recipe: Recipe, folder: Path, engine: ForwardEngine | None = None):
    arguments = TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, remove_unused_columns=False, max_steps=2, seed=0
    )
    return UnlearnTrainer(
        model=model,
        args=arguments,
        train_dataset=items(tuple(recipe.sides)),
        recipe=recipe,
        validate=lambda model: {"score": 0.0},
        engine=PlainEngine(model, ROWS) if engine is None else engine,
    )


def mean_nll(model: torch.nn.Module, rows: list) -> torch.Tensor:
    """Cross-entropy over all answer tokens, one unpadded row at a time."""
    losses = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        given = {"prompt_lengths": torch.tensor([row.prompt_length])} if hasattr(model, "peft_config") else {}
        logits = model(input_ids=ids, **given).logits[0]
        answer = ids[0, row.prompt_length :]
        losses.append(cross_entropy(logits[row.prompt_length - 1 : -1], answer, reduction="none"))
    return torch.cat(losses).mean()


def test_the_loss_is_the_weighted_sum_by_hand(tmp_path: Path) -> None:
    model = attach(gate_reads="last", gate_layer=None)
    weights = Weights(forget=0.7, retain=1.9, gate=3.0)
    data = items(("forget", "retain"))
    batch = [data[i] for i in range(4)]
    job = trainer(model, recipe(objectives.get("gd").target, weights), tmp_path)
    found = job.compute_loss(model, JoinSides(job.engine)(batch))
    forget, retain = ([item[side][0] for item in batch] for side in ("forget", "retain"))
    logits = []
    for row in [*forget, *retain]:
        model(input_ids=torch.tensor([row.input_ids]), prompt_lengths=torch.tensor([row.prompt_length]))
        logits.append(model.base_model.last_gates["default"].logits_BG[0])
    target = torch.tensor([1.0] * 4 + [0.0] * 4)[:, None].expand(8, 2)
    gate = binary_cross_entropy_with_logits(torch.stack(logits), target)
    expected = -0.7 * mean_nll(model, forget) + 1.9 * mean_nll(model, retain) + 3.0 * gate
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_reference_values_are_the_base_models(tmp_path: Path) -> None:
    model = attach()
    data = items(("forget",))
    rows = data.sides["forget"]
    found = base_model_references(ROWS, model, rows, range(1, 6), {"logps", "logits", "hidden"}, base_layer(model, 1))
    assert len(found["logps"][0]) == 0, "a row that is never drawn was computed"
    for row, logps, logits, hidden in zip(
        rows[1:], *(found[q][1:] for q in ("logps", "logits", "hidden")), strict=True
    ):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            plain = tiny_model()(input_ids=ids, output_hidden_states=True)
        answer = ids[0, row.prompt_length :]
        torch.testing.assert_close(logits, plain.logits[0, row.prompt_length - 1 : -1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logps, logits.log_softmax(1).gather(1, answer[:, None])[:, 0])
        torch.testing.assert_close(hidden, plain.hidden_states[2][0, row.prompt_length :], atol=1e-5, rtol=1e-5)


def base_layer(model: Any, index: int) -> torch.nn.Module:
    return decoder_layers(model.get_base_model())[1][index]


def test_large_references_go_to_a_file_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [base_model_references(ROWS, tiny_model(), ENCODED["retain"], range(9), {"logits"})]
    monkeypatch.setattr("grun.training.forward_engines.base_references.IN_MEMORY", 0)
    kept.append(base_model_references(ROWS, tiny_model(), ENCODED["retain"], range(9), {"logits"}))
    for in_memory, in_file in zip(kept[0]["logits"], kept[1]["logits"], strict=True):
        assert torch.equal(in_memory, in_file)


def poisoned(signals: Signals, *, after: list[int]) -> torch.Tensor:
    after[0] -= 1
    return -signals.forget.mean_nll * (float("nan") if after[0] < 0 else 1.0)


@pytest.mark.parametrize("good_steps", [0, 1])
def test_a_loss_that_is_not_finite_changes_no_weight(tmp_path: Path, good_steps: int) -> None:
    model = attach()
    job = trainer(model, recipe(partial(poisoned, after=[good_steps]), Weights(1.0, 1.0, 0.0)), tmp_path)
    before = []

    def remembered(m: Any, i: Any, *a: Any, step: Any = job.training_step) -> Any:
        before.append([p.detach().clone() for p in m.parameters()])
        return step(m, i, *a)

    job.training_step = remembered
    with pytest.raises(TrainingDiverged, match=f"nan at step {good_steps + 1}"):
        job.train()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before[-1], strict=True))


def test_a_gradient_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    def spiked(signals: Signals) -> torch.Tensor:
        return Spike.apply(signals.forget.mean_nll)

    model = attach()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingDiverged, match="gradient is not finite at step 1"):
        trainer(model, recipe(spiked, Weights(1.0, 1.0, 0.0)), tmp_path).train()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_every_forget_row_comes_once_per_pass_and_refusals_vary() -> None:
    data = items(("forget", "retain", "refusal"), steps=6)
    order = [pick["forget"] for pick in data.order]
    assert len(order) == 24
    for start in range(0, 24, 6):
        assert sorted(order[start : start + 6]) == list(range(6))
    for pick in data.order:
        forget, refusal = data.sides["forget"][pick["forget"]], data.sides["refusal"][pick["refusal"]]
        assert forget.input_ids[: forget.prompt_length] == refusal.input_ids[: refusal.prompt_length]
    assert len({pick["refusal"] for pick in data.order if pick["forget"] == 0}) > 1
    assert items(("forget", "retain"), seed=0).order == items(("forget", "retain"), seed=0).order
    assert items(("forget", "retain"), seed=0).order != items(("forget", "retain"), seed=1).order


def test_validation_judges_by_answer_probability_and_leaves_the_mode_alone() -> None:
    model = attach().train()
    validate = validation(
        partial(ROWS.probability, tiny_model()), ROWS.probability, ENCODED["forget"], ENCODED["retain"]
    )
    found = validate(model)
    assert model.training
    model.eval()
    now = torch.stack([(-mean_nll(model, [row])).exp() for row in ENCODED["forget"]]).mean()
    assert found["forget_probability"] == pytest.approx(now.item(), rel=1e-4)
    before = torch.stack([(-mean_nll(tiny_model(), [row])).exp() for row in ENCODED["forget"]]).mean()
    assert found["forget_probability_before"] == pytest.approx(before.item(), rel=1e-4)
    assert found["score"] == pytest.approx(min(found["retain_ratio"], 1.0) * (1 - found["forget_probability"]))


class OneByOne:
    """An engine like no other: every row alone, its token ids in a plain list of tensors."""

    facts = {"one_by_one": True}
    counted: dict[str, int] = {}

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.calls = 0

    def batch(self, rows, wanted=None):
        ids = [torch.tensor([row.input_ids]) for row in rows]
        prompts = [torch.tensor([row.prompt_length]) for row in rows]
        return {"input_ids": torch.cat([one.flatten() for one in ids]), "alone": ids, "prompts": prompts}

    def signals(self, model, inputs, wanted, with_grad=True):
        assert set(wanted) == {"logps"}
        self.calls += 1
        logps = []
        with torch.set_grad_enabled(with_grad):
            for ids, prompt in zip(inputs["alone"], inputs["prompts"], strict=True):
                logits = model(input_ids=ids, prompt_lengths=prompt).logits[0]
                chosen = logits[:-1].log_softmax(1).gather(1, ids[0, 1:, None])[:, 0]
                logps.append(chosen[int(prompt) - 1 :])
        lengths = torch.tensor([len(one) for one in logps])
        return SideSignals(torch.arange(int(lengths.max())) < lengths[:, None], {"logps": torch.cat(logps)})

    def references(self, rows, drawn, wanted, own=None):
        return {name: [torch.empty(0)] * len(rows) for name in wanted}

    def base_probability(self, rows):
        model: Any = self.model
        with model.disable_adapter():
            return self.probability(self.model, rows)

    def probability(self, model, rows):
        side = self.signals(model, self.batch(rows), {"logps"}, with_grad=False)
        return float((-side.nll_B / side.lengths_B).exp().mean())


def test_any_engine_trains(tmp_path: Path) -> None:
    learnt = []
    for make in (OneByOne, partial(PlainEngine, encoder=ROWS)):
        model = attach(gate="none")
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        engine = make(model)
        job = trainer(model, recipe(objectives.get("gd").target, Weights(1.0, 1.0, 0.0)), tmp_path, engine)
        job.train()
        after = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        assert any(not torch.equal(after[name], before[name]) for name in before)
        learnt.append(after)
    one, two = learnt
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0, msg=name)


def test_any_engine_carries_a_job(memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = []

    def chosen(config, model, *_):
        engines.append(OneByOne(model))
        return engines[-1]

    given: Any = {"forget": [str(memorised.forget)], "retain": [str(memorised.retain)], "model": str(memorised.model)}
    settings: Any = {"objective": "gd", "adapt": "reft", "layers": "1,3", "steps": 2, "batch_size": 4, "device": "cpu"}
    plain = unlearn.unlearn(UnlearnConfig(output=str(tmp_path / "a"), prefix_cache=False, **given, **settings)).parent
    monkeypatch.setattr(unlearn, "chosen_engine", chosen)
    found = unlearn.unlearn(UnlearnConfig(output=str(tmp_path / "b"), **given, **settings)).parent
    assert engines[0].calls > 2
    one, two = (json.loads((run / "metrics.json").read_text()) for run in (found, plain))
    assert one.pop("one_by_one") is True
    assert one.keys() == two.keys()
    assert one["validation"] == pytest.approx(two["validation"], abs=1e-3)


@pytest.mark.parametrize("module", [training_module, unlearn])
def test_job_and_trainer_know_no_engine_by_name(module: ModuleType) -> None:
    assert not {"PlainEngine", "PrefixEngine"} & set(vars(module))
    source = inspect.getsource(module)
    assert "forward_engines.plain" not in source
    assert "forward_engines.prefix" not in source
