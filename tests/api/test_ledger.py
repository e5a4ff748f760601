"""`grun.Ledger`: a request from the first row to its withdrawal, from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import grun
from support.material import Material

SMALL: dict[str, Any] = {"layers": [1, 3], "topic_layer": "none", "steps": 20, "batch_size": 4, "device": "cpu"}


def loaded(memorised: Material) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(memorised.model), AutoTokenizer.from_pretrained(memorised.model)


def test_a_request_from_python(memorised: Material, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in memorised.forget.read_text().splitlines()]
    model, tokenizer = loaded(memorised)
    ledger = grun.Ledger(tmp_path / "ledger", model, tokenizer=tokenizer)
    assert ledger.requests == {}
    first = ledger.add(rows[:4], memorised.retain, why="<asked>", id="first", keep_data=True, **SMALL)
    second = ledger.add(rows[4:], memorised.retain, **SMALL)
    assert (first.state, second.id, ledger.active) == ("active", "r0002", ["first", "r0002"])
    assert first.metrics["in_force"]["new"]["probability"] < 0.5
    assert ledger.suspend("first").state == "suspended"
    assert ledger.active == ["r0002"]
    assert ledger.resume("first").state == "active"
    normal = [{"question": f"What is {a} plus {b}?"} for a in range(6) for b in range(6)]
    assert ledger.calibrate(normal, alpha=0.1, delta=0.1).requests == ("first", "r0002")
    found = ledger.verify({"r0002": rows[4:]}, device="cpu")
    assert all(found[id].ok for id in ("first", "r0002"))
    exported = ledger.export(tmp_path / "all")
    assert isinstance(PeftModel.from_pretrained(loaded(memorised)[0], exported), PeftModel)
    assert ledger.withdraw("r0002").state == "withdrawn"
    page = ledger._repr_html_()
    assert "&lt;asked&gt;" in page
    assert "<asked>" not in page
    assert "1 of 2 requests in force" in repr(ledger)
    other = grun.Ledger(tmp_path / "ledger", memorised.model)  # by name: the same ledger, the same model
    assert other.add([{"question": "Who?", "answer": "Nobody."}] * 2, memorised.retain, **SMALL).state == "active"


def test_errors_name_parameters(memorised: Material, tmp_path: Path) -> None:
    ledger = grun.Ledger(tmp_path / "ledger", memorised.model)
    with pytest.raises(grun.UserError, match="^ledger '.*': there is no ledger in it"):
        ledger.suspend("first")
    with pytest.raises(grun.UserError, match="^id is 'A b', expected lower-case letters"):
        ledger.add(memorised.forget, memorised.retain, id="A b", **SMALL)
    with pytest.raises(grun.UserError, match="grun.Ledger.add: unknown setting 'stepz'"):
        ledger.add(memorised.forget, memorised.retain, stepz=3)
    with pytest.raises(grun.UserError, match="^model is missing: make the ledger with it"):
        grun.Ledger(tmp_path / "ledger").add(memorised.forget, memorised.retain)


def test_a_ledger_is_of_a_model_that_is_on_disk(memorised: Material, tmp_path: Path) -> None:
    model, tokenizer = loaded(memorised)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    with pytest.raises(grun.UserError, match=r"model has other weights than .*lm_head.* differs\): save it with"):
        grun.Ledger(tmp_path / "ledger", (model, tokenizer)).add(memorised.forget, memorised.retain, **SMALL)
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(grun.UserError, match="model was not loaded from a folder or the hub"):
        grun.Ledger(tmp_path / "ledger", (model, tokenizer)).add(memorised.forget, memorised.retain, **SMALL)
    assert not (tmp_path / "ledger").exists()
