"""Every job as a command on tiny material, each with a directory of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.material import Material

TINY = ["--hidden-size", "32", "--layers", "2", "--heads", "2", "--vocab-size", "300", "--epochs", "3"]


@dataclass(frozen=True)
class Places:
    """Where commands find and put things.

    Attributes:
        folder: of everything that a test writes.
        material: model and rows.
        adapter: a gated adapter for the model.
        reference: what the reference implementation would have trained.
        normal: file of normal prompts.
    """

    folder: Path
    material: Material
    adapter: Path
    reference: Path
    normal: Path

    @property
    def log(self) -> Path:
        """File for what a command says."""
        return self.folder / "said.log"


def flags(**values: object) -> list[str]:
    """Settings as flags."""
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def _shared(places: Places, name: str) -> list[str]:
    return flags(model=places.material.model, output=places.folder / name, device="cpu")


def _unlearn(places: Places, name: str, *more: str) -> list[str]:
    rows = flags(forget=places.material.forget, retain=places.material.retain, steps=12, evaluate_every=5, batch_size=4)
    return ["unlearn", *_shared(places, name), *rows, *more]


def _gated(places: Places, name: str) -> list[str]:
    return _unlearn(places, name, "--layers", "1,3", "--objective", "idk", "--topic-layer", "none")


def _lora(places: Places, name: str) -> list[str]:
    return _unlearn(places, name, "--adapt", "lora", "--objective", "gd")


def _full(places: Places, name: str) -> list[str]:
    return _unlearn(places, name, "--adapt", "full", "--objective", "npo", "--learning-rate", "1e-4")


def _scratch(places: Places, name: str) -> list[str]:
    data = flags(data=places.material.retain, output=places.folder / name, batch_size=4, save_every=5, device="cpu")
    return ["finetune", *TINY, *data]


def _further(places: Places, name: str) -> list[str]:
    data = flags(data=places.material.retain, batch_size=4, save_every=5, epochs=2)
    return ["finetune", *_shared(places, name), *data]


def _evaluate(places: Places, name: str) -> list[str]:
    data = [f"forget={places.material.forget}", f"retain={places.material.retain}"]
    sources = [part for one in data for part in ("--data", one)]
    settings = flags(adapter=places.adapter, metrics="probability", max_new_tokens=4)
    return ["evaluate", *_shared(places, name), *sources, *settings]


def _attack(places: Places, name: str) -> list[str]:
    names = "case,few_shot,mention,adapter_removed,suffix_search"
    rows = flags(forget=places.material.forget, retain=places.material.retain, rows=3)
    settings = flags(adapter=places.adapter, attacks=names, max_new_tokens=3, samples=2, search_steps=2)
    return ["attack", *_shared(places, name), *rows, *settings]


def _calibrate(places: Places, name: str) -> list[str]:
    settings = flags(adapter=places.adapter, normal=places.normal, alpha=0.2, forget=places.material.forget)
    return ["calibrate", *_shared(places, name), *settings]


def _import(places: Places, name: str) -> list[str]:
    return ["import", *_shared(places, name), *flags(checkpoint=places.reference)]


def _request(places: Places, name: str) -> list[str]:
    rows = flags(retain=places.material.retain, steps=12, evaluate_every=5, batch_size=4, layers="1,3", id="one")
    where = flags(ledger=places.folder / name, model=places.material.model, device="cpu", topic_layer="none")
    return ["request", "add", str(places.material.forget), *where, *rows]


def _of_ledger(*words: str) -> Callable[[Places, str], list[str]]:
    """A command on a ledger that holds the request `one`."""

    def command(places: Places, name: str) -> list[str]:
        return ["request", *words, "--ledger", str(places.folder / name)]

    return command


def _calibrate_requests(places: Places, name: str) -> list[str]:
    where = flags(ledger=places.folder / name, model=places.material.model, device="cpu")
    return ["request", "calibrate", *where, *flags(normal=places.normal, alpha=0.2)]


def _export(places: Places, name: str) -> list[str]:
    return ["request", "export", str(places.folder / name / "exported"), "--ledger", str(places.folder / name)]


def _sweep(places: Places, name: str) -> list[str]:
    shared: dict[str, object] = {"forget": places.material.forget, "retain": places.material.retain}
    shared |= {"model": places.material.model, "steps": 12, "evaluate_every": 5, "batch_size": 4, "device": "cpu"}
    settings = [part for key, value in shared.items() for part in ("--set", f"{key}={value}")]
    return ["sweep", *flags(output=places.folder / name, vary="adapt=lora", evaluate="metrics=probability"), *settings]


COMMANDS: dict[str, Callable[[Places, str], list[str]]] = {
    "unlearn": _gated,
    "unlearn lora": _lora,
    "unlearn full": _full,
    "finetune from scratch": _scratch,
    "finetune": _further,
    "evaluate": _evaluate,
    "attack": _attack,
    "calibrate": _calibrate,
    "import": _import,
    "request add": _request,
}
CHANGES: dict[str, Callable[[Places, str], list[str]]] = {
    "request suspend": _of_ledger("suspend", "one"),
    "request withdraw": _of_ledger("withdraw", "one"),
    "request calibrate": _calibrate_requests,
    "request export": _export,
}
SLOW: dict[str, Callable[[Places, str], list[str]]] = {"sweep": _sweep}  # its runs are processes that start anew
