"""Refusals to train on from a cached prefix: each has its reason in one line, and no other error is taken for one."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import TrainingArguments

from grun.core.config.jobs import UnlearnConfig
from grun.models.encoding.encode import Encoded
from grun.models.encoding.templates import resolve_template
from grun.models.row_encoder import RowEncoder
from grun.training.forward_engines.plain import PlainEngine
from grun.training.forward_engines.prefix import engine as prefix_engine
from grun.training.forward_engines.prefix import requirements
from grun.training.forward_engines.prefix.engine import PrefixEngine
from grun.training.forward_engines.prefix.requirements import CannotContinue, check_architecture, check_cache
from grun.training.forward_engines.selection import chosen_engine
from grun.training.loss.terms import Recipe, Weights
from grun.training.objectives.likelihood import ga
from grun.training.objectives.retain import ce
from support.adapter_kit import CONFIGS, attach, config_id, make_rows
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ENCODER = RowEncoder(TOKENIZER, resolve_template("qa", TOKENIZER), None, 4, torch.device("cpu"))
ROWS = [Encoded(tuple(ids.tolist()), prompt, 0) for ids, prompt in make_rows(6)]
SIZES: dict[str, Any] = dict(
    vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, pad_token_id=3
)
LATENT: dict[str, Any] = dict(
    num_key_value_heads=4,
    kv_lora_rank=8,
    q_lora_rank=8,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    v_head_dim=8,
    head_dim=4,
    first_k_dense_replace=4,
)
NO_DROPOUT = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
NO_DROPOUT_OF_BERT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
PROMPT_COLUMNS: dict[str, Any] = dict(dim_head=8, dim_ff=64)


def chosen(model: nn.Module, hidden_layer: int | None = None, **arguments: Any) -> PlainEngine | PrefixEngine:
    """The engine for an adapted model."""
    recipe = Recipe(ga, ce, {}, Weights(1.0, 1.0, 0.0), hidden_layer)
    given = TrainingArguments(report_to="none", use_cpu=True, **arguments)
    found = chosen_engine(UnlearnConfig(adapt="grun"), model, ENCODER, recipe, given, ROWS)
    assert isinstance(found, (PlainEngine, PrefixEngine))
    return found


def of_family(name: str, head: str = "ForCausalLM", **settings: Any) -> nn.Module:
    """A random model of an architecture that is not among those that continue, with an adapter at layers 1 and 3."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    model = getattr(transformers, f"{name}{head}")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
    return attach(model)


def refused(caplog: pytest.LogCaptureFixture, model: nn.Module, **settings: Any) -> str:
    """The reason that the log gives; the engine is the plain one."""
    caplog.set_level(logging.INFO, "grun")
    assert isinstance(chosen(model, **settings), PlainEngine)
    start = "Training runs whole rows through the whole model: "
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith(start))
    assert line.endswith(".")
    return line.removeprefix(start).removesuffix(".")


@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_usual_architecture_is_refused(arch: str, options: dict, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "grun")
    changes: dict[str, Any] = NO_DROPOUT if arch == "gpt2" else {}
    model = tiny_model(arch, **changes)
    assert isinstance(chosen(attach(model, **options)), PrefixEngine)
    assert "whole rows" not in caplog.text


def test_several_processes(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "world", lambda: 2)
    assert refused(caplog, attach()) == "several processes share it"


def test_dropout(caplog: pytest.LogCaptureFixture) -> None:
    reason = refused(caplog, attach(tiny_model("gpt2", resid_pdrop=0.1)))
    assert reason == "the base model has dropout (0.1), so nothing in it stays the same"


def test_activation_checkpointing(caplog: pytest.LogCaptureFixture) -> None:
    known = TrainingArguments.__dataclass_fields__  # the name depends on the version
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    assert refused(caplog, attach(), **{name: True}) == "activation checkpointing was asked for"


def test_a_layer_below_the_first_edited_one(caplog: pytest.LogCaptureFixture) -> None:
    reason = refused(caplog, attach(layers=[2, 3]), hidden_layer=1)
    assert reason == "the loss looks at layer 1, below the first edited one, 2"
    assert isinstance(chosen(attach(layers=[2, 3]), hidden_layer=2), PrefixEngine)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("Mamba", {"state_size": 4}, "the forward call of its architecture takes no past_key_values"),
        ("MiniMax", {}, "layer 1 of its architecture does not cache keys and values alone (LinearAttentionLayer)"),
        (
            "DeepseekV3",
            LATENT,
            "the keys and values of its architecture differ in shape: (2, 1, 7, 4) and (2, 1, 7, 8)",
        ),
        ("CpmAnt", PROMPT_COLUMNS, "layer 0 of its architecture caches shape (2, 4, 39, 8) for 7 tokens"),
        (
            "Bert",
            {"head": "LMHeadModel", **NO_DROPOUT_OF_BERT},
            "its architecture gives something else there (log-probabilities differ by",
        ),
    ],
)
def test_architectures_that_cannot_begin_in_the_middle(
    name: str, settings: dict, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = refused(caplog, of_family(name, **settings))
    assert found.startswith(reason) if reason.endswith("by") else found == reason


def test_layers_with_heads_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model()
    text = SimpleNamespace(per_layer_attributes={"head_dim", "intermediate_size"})
    monkeypatch.setattr(requirements, "DynamicCache", lambda config: SimpleNamespace(layers=[]))
    monkeypatch.setattr(type(base.config), "get_text_config", lambda self: text)
    with pytest.raises(CannotContinue, match="^the layers of its architecture differ in head_dim$"):
        check_architecture(base)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ([(1, 2, 5, 4)] * 3, "its architecture caches 3 layers of 4"),
        ([(1, 2, 5, 4)] * 3 + [None], "layer 3 of its architecture caches nothing for 5 tokens"),
        ([(1, 2, 5, 4)] * 3 + [(1, 2, 3, 4)], r"layer 3 of its architecture caches shape \(1, 2, 3, 4\) for 5 tokens"),
        ([(1, 2, 5, 4)] * 3 + [(1, 8, 4)], r"layer 3 of its architecture caches shape \(1, 8, 4\) for 5 tokens"),
        ([(1, 2, 5, 4)] * 3 + [(1, 4, 5, 4)], "differ in shape"),
    ],
)
def test_caches_that_lack_keys_and_values(shapes: list, reason: str) -> None:
    tensors = [None if shape is None else torch.zeros(shape) for shape in shapes]
    layers = [SimpleNamespace(keys=tensor, values=tensor) for tensor in tensors]
    with pytest.raises(CannotContinue, match=reason):
        check_cache(layers, count=4, columns=5, first=1)


def test_layers_below_the_first_edited_one_may_have_another_shape() -> None:
    tensors = [torch.zeros(1, heads, 5, 4) for heads in (8, 4, 2, 2)]
    check_cache([SimpleNamespace(keys=one, values=one) for one in tensors], count=4, columns=5, first=1)


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError]
)
@pytest.mark.parametrize("place", ["base_model_parts", "prefix_signals", "expected_bytes"])
def test_an_unknown_error_surfaces(place: str, error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise error("a mistake")

    monkeypatch.setattr(prefix_engine, place, failing)
    with pytest.raises(error, match="a mistake"):
        chosen(attach())
