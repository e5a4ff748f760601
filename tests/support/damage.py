"""Rules that damage copies of models and adapters, each in a way that must be refused."""

from __future__ import annotations

__all__ = ["ADAPTER_DAMAGE", "MODEL_DAMAGE", "Bomb", "Damage", "edit_json", "edit_tensors"]

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], None]
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9\n"


class Bomb:
    """What pickling runs when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def edit_json(name: str, **changes: Any) -> Damage:
    """Change settings in a JSON file; `None` removes one."""

    def damage(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        settings.update(changes)
        kept = {key: value for key, value in settings.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return damage


def pipe(name: str) -> Damage:
    """Put a named pipe, to which nobody writes, in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def edit_tensors(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Damage:
    """Change the tensors of a safetensors file, in place or by what the function returns."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        changed = change(tensors)
        save_file(tensors if changed is None else changed, folder / name, metadata={"format": "pt"})

    return damage


def content(name: str, new: bytes | str | Callable[[bytes], bytes]) -> Damage:
    """Replace the content of a file."""

    def damage(folder: Path) -> None:
        old = (folder / name).read_bytes() if (folder / name).exists() else b""
        made = new(old) if callable(new) else new
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)

    return damage


def without(name: str) -> Damage:
    """Remove a file."""
    return lambda folder: (folder / name).unlink()


def pickled(name: str, weights: str, value: Any) -> Damage:
    """A pickled file in the place of safetensors."""

    def damage(folder: Path) -> None:
        (folder / weights).unlink()
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        elif isinstance(value, Bomb):
            (folder / name).write_bytes(pickle.dumps(value))
        else:
            torch.save(value, folder / name)

    return damage


def first_value(pattern: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    """Set one value of the first tensor whose name has the pattern."""

    def change(tensors: dict[str, Tensor]) -> None:
        key = next(key for key in tensors if pattern in key)
        tensors[key].view(-1)[0] = value

    return change


def any_json(name: str) -> dict[str, Damage]:
    """What every JSON file may be instead."""
    return {
        f"{name} is a list": content(name, "[1, 2]"),
        f"{name} is a number": content(name, "7"),
        f"{name} is empty": content(name, ""),
        f"{name} is cut off": content(name, lambda old: old[: len(old) // 2]),
        f"{name} is no UTF-8": content(name, lambda old: old[:20] + b"\xff\xfe" + old[20:]),
        f"{name} is nested deeply": content(name, "[" * 100_000),
        f"{name} is an object nested deeply": content(name, '{"a":' * 100_000),
        f"{name} is a pointer": content(name, LFS),
    }


def any_safetensors(name: str) -> dict[str, Damage]:
    """What every safetensors file may be instead."""
    return {
        f"{name} is cut off": content(name, lambda old: old[: len(old) // 2]),
        f"{name} is cut off in its header": content(name, lambda old: old[:100]),
        f"{name} is empty": content(name, b""),
        f"{name} is a pointer": content(name, LFS),
        f"{name} is noise": content(name, bytes(range(256)) * 4),
        f"{name} has a huge header": content(name, b"\xff" * 8 + b"{}"),
        f"{name} is missing": without(name),
    }


def _sharded(change: Callable[[Path, dict[str, Any]], None]) -> Damage:
    """Split a model into two shards with an index, then change it."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        where = {key: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, key in enumerate(names)}
        for file in set(where.values()):
            own = {key: tensors[key] for key in names if where[key] == file}
            save_file(own, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        change(folder, index)
        (folder / "model.safetensors.index.json").write_text(str(index.pop("raw", "")) or json.dumps(index))

    return damage


def _without_a_shard(folder: Path, index: dict[str, Any]) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def _rename(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new): value for key, value in tensors.items()}


W, C, T = "model.safetensors", "config.json", "tokenizer.json"
MODEL_DAMAGE: dict[str, Damage] = {
    **any_json(C),
    **any_json(T),
    "tokenizer_config.json is a list": content("tokenizer_config.json", "[1, 2]"),
    "generation_config.json is cut off": content("generation_config.json", '{"a":'),
    "generation_config.json ends answers with a text": edit_json("generation_config.json", eos_token_id="</s>"),
    "generation_config.json ends answers with texts": edit_json("generation_config.json", eos_token_id=[2, "</s>"]),
    "the tokenizer's longest text is a text": edit_json("tokenizer_config.json", model_max_length="many"),
    "tokenizer.json has no model": content(T, "{}"),
    "tokenizer.json has a model of a wrong type": edit_json(T, model="BPE"),
    **any_safetensors(W),
    "no model_type": edit_json(C, model_type=None),
    "unknown model_type": edit_json(C, model_type="grunmel"),
    "model_type is a number": edit_json(C, model_type=3),
    "model_type is a list": edit_json(C, model_type=["llama"]),
    "model_type of an encoder and decoder": edit_json(C, model_type="t5"),
    **{f"model_type {kind}": edit_json(C, model_type=kind) for kind in ("gpt2", "mistral", "qwen2", "bert", "opt")},
    "more layers than were saved": edit_json(C, num_hidden_layers=6),
    "fewer layers than were saved": edit_json(C, num_hidden_layers=2),
    **{
        f"{name} {value!r}": edit_json(C, **{name: value})
        for name, values in {
            "num_hidden_layers": (-1, 0, 10**9, "4", 2.5),
            "vocab_size": (-1, 0, 10**12, "320", 400, 200),
            "hidden_size": (-32, 64, 10**9, "32", [32]),
            "intermediate_size": (-1, 48, 10**12, "64"),
            "num_attention_heads": (0, -4, "4", 3, 10**9),
            "num_key_value_heads": (3, "2", 4),
            "max_position_embeddings": ("256",),
            "rms_norm_eps": ("small", math.nan),
        }.items()
        for value in values
    },
    "whole numbers": edit_tensors(W, lambda t: {k: v.to(torch.int8) for k, v in t.items()}),
    "weights are a pipe": pipe(W),
    "a tensor is missing": edit_tensors(
        W, lambda t: {k: v for k, v in t.items() if k != "model.layers.2.mlp.up_proj.weight"}
    ),
    "the head is missing": edit_tensors(W, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
    "a layer is missing": edit_tensors(W, lambda t: {k: v for k, v in t.items() if "layers.1." not in k}),
    "no tensors": edit_tensors(W, lambda t: {"a": torch.zeros(2)}),
    "a wrong shape": edit_tensors(W, lambda t: t.update({"model.norm.weight": torch.ones(7)})),
    "other names": edit_tensors(W, lambda t: _rename(t, "self_attn", "attention")),
    "biases that the model does not have": edit_tensors(
        W, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    ),
    "a layer too many": edit_tensors(W, lambda t: t.update({"model.layers.4.input_layernorm.weight": torch.ones(32)})),
    **{
        f"{value} in {name}": edit_tensors(W, first_value(name, value))
        for name in ("embed_tokens", "norm.weight", "layers.3.mlp.down_proj")
        for value in (float("nan"), float("inf"), -float("inf"))
    },
    "a shard is missing": _sharded(_without_a_shard),
    "an index that is a list": _sharded(lambda f, i: i.update(raw="[]")),
    "an index without a map": _sharded(lambda f, i: i.update(weight_map=3)),
    "an index cut off": _sharded(lambda f, i: i.update(raw='{"weight_map": {"a"')),
    "an index of other tensors": _sharded(lambda f, i: i["weight_map"].update(x="model-00001-of-00002.safetensors")),
    "an index of files elsewhere": _sharded(lambda f, i: i["weight_map"].update(x="../../../etc/passwd")),
    "an index of numbers": _sharded(lambda f, i: i.update(weight_map={"a": 1})),
    "a pickle that runs code": pickled("pytorch_model.bin", W, Bomb()),
    "a pickle of torch that runs code": pickled("pytorch_model.bin", W, {"a": Bomb()}),
    "a pickle cut off": pickled("pytorch_model.bin", W, b"PK\x03\x04 and then nothing"),
    "an empty pickle": pickled("pytorch_model.bin", W, b""),
    "a pickle that is a list": pickled("pytorch_model.bin", W, [torch.ones(2)]),
    "a pickle that is text": pickled("pytorch_model.bin", W, b"hello"),
}

A, S = "adapter_model.safetensors", "adapter_config.json"
WRONG_SETTINGS: dict[str, tuple[Any, ...]] = {
    "layers": ("abc", [], [99], [-1], 3, [float("nan")], {"a": 1}, [1]),
    "rank": (-1, 0, 10**9, "2", 1.5, 3, float("nan")),
    "gate": ("deep", 3),
    "gate_hidden": ("abc", [10**12], [-1], [16], [float("inf")]),
    "gate_layer": (99, -3, "a"),
    "topic_layer": ("x", 99),
    "topic_kept": ([10**10, 10**10],),
    "lexicon": ([1, 2], "x", [-1, 0, 0], [10**10, 1, 1]),
    "scale": ("big", float("nan"), float("inf"), -1),
    "gate_places": ("x", [float("nan")], [float("inf")]),
    "hidden_size": (64, "32"),
    "num_layers": (9, "4"),
    "members": ({}, [], {"a": 1}, {"a": {"rnak": 1}}, {"a": {}}),
    "base_weights": (3, "x"),
    "init_seed": (-1, "a"),
}
ADAPTER_DAMAGE: dict[str, Damage] = {
    **any_json(S),
    **any_safetensors(A),
    "a pickle that runs code": pickled("adapter_model.bin", A, Bomb()),
    "a pickle of torch that runs code": pickled("adapter_model.bin", A, {"a": Bomb()}),
    "a pickle cut off": pickled("adapter_model.bin", A, b"PK\x03\x04 and then nothing"),
    "an empty pickle": pickled("adapter_model.bin", A, b""),
    "a tensor that has no place": edit_tensors(A, lambda t: {**t, "base_model.model.other.weight": torch.zeros(2)}),
    "whole numbers": edit_tensors(A, lambda t: {k: v.to(torch.int32) for k, v in t.items()}),
    "truth values": edit_tensors(A, lambda t: {k: v > 0 for k, v in t.items()}),
    "weights are a pipe": pipe(A),
    "base_weights is a text of another kind": edit_json(S, base_weights="a b c"),
    "unknown peft_type": edit_json(S, peft_type="GRUNN"),
    "peft_type is a list": edit_json(S, peft_type=["GRUN"]),
    "no peft_type": edit_json(S, peft_type=None),
    "an object without settings": content(S, "{}"),
    "an unknown setting": edit_json(S, rnak=4),
    **{
        f"{name} {value!r}": edit_json(S, **{name: value})
        for name, values in WRONG_SETTINGS.items()
        for value in values
    },
    "a tensor is missing": edit_tensors(A, lambda t: {k: v for k, v in list(t.items())[1:]}),
    "a tensor too many": edit_tensors(A, lambda t: t.update({next(iter(t)).replace("1.", "2.", 1): torch.ones(2)})),
    "a wrong shape": edit_tensors(A, lambda t: t.update({next(iter(t)): torch.ones(5, 5)})),
    "other names": edit_tensors(A, lambda t: _rename(t, "grun_edit", "grun_edits")),
    **{
        f"{value} in {name}": edit_tensors(A, first_value(name, value))
        for name, value in (
            ("rotation", float("nan")),
            ("grun_edit", float("inf")),
            ("threshold", float("nan")),
            ("threshold", float("inf")),
            ("grun_gate", float("nan")),
        )
    },
}
