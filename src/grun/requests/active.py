"""The requests in force of a ledger: loaded on the base model, and measured."""

from __future__ import annotations

__all__ = [
    "MeasuredRows",
    "as_trained",
    "base_of",
    "check_base",
    "identity",
    "in_force",
    "loaded",
    "measured",
    "say_crossing",
    "write_in_force",
]

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateConfig, RequestConfig
from grun.core.errors import UserError
from grun.core.python_objects import PREFIX, python_object
from grun.core.records import Example
from grun.core.storage.content_hash import content_of_path
from grun.jobs.inputs.own_answers import with_own_answers
from grun.models.encoding.chunking import chunk_running_text
from grun.models.forward import adapters_off
from grun.models.gates.calibration import logits_of_rows, share_open
from grun.models.gates.features import gates_by_member, thresholds_of
from grun.models.loading.loaded import LoadedModel, load
from grun.models.loading.pretrained import found_files, load_adapter, load_model_and_tokenizer
from grun.models.loading.reading import quiet, refusing
from grun.models.loading.sources import model_source
from grun.models.row_encoder import RowEncoder
from grun.requests.ledger import LedgerState
from grun.requests.ledger_record import BaseModel
from grun.requests.stack_files import write_stack

logger = logging.getLogger("grun")
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.py", "merges.txt", "vocab.txt")
TOLERATED = 0.05  # share of prompts of others for which a gate may open without a warning


@dataclass(frozen=True)
class MeasuredRows:
    """Rows measured with everything in force.

    Attributes:
        rows: number of rows.
        probability_before: mean answer probability under the base model.
        probability: mean answer probability with everything in force.
        open: share of the rows that open any gate of a request, by request.
    """

    rows: int
    probability_before: float
    probability: float
    open: dict[str, float]


def identity(name: str, trust_remote_code: bool = False) -> BaseModel:
    """The base model as a ledger records it, from the files that transformers reads; no weights are loaded.

    Raises:
        UserError: if the model cannot be found, or its files are damaged.
    """
    if not name:
        raise UserError("--model is missing: give the hub id or the folder of the model.")
    if (given := python_object(name)) is not None:
        _check_as_saved(name, given.model)
    source = model_source(name)
    said = f"--model '{name}'"
    common = {"trust_remote_code": trust_remote_code, **found_files(source, said)}
    with refusing(said), quiet():
        config = AutoConfig.from_pretrained(source.place, **common)
    text = config.get_text_config()
    content = content_of_path(source.path, MODEL_FILES) or getattr(config, "_commit_hash", None)
    return BaseModel(name, content, text.hidden_size, text.num_hidden_layers)


def _check_as_saved(name: str, model: PreTrainedModel) -> None:
    """Check that a loaded model has the weights of the files that it was loaded from: a ledger outlives the process.

    Raises:
        UserError: if it has not, or was not loaded from files.
    """
    advice = "save it with save_pretrained and name that folder, since a ledger is of a model that is on disk."
    if name.startswith(PREFIX):
        raise UserError(f"--model was not loaded from a folder or the hub: {advice}")
    saved, _ = load_model_and_tokenizer(name, dtype=str(model.dtype).removeprefix("torch."), device="cpu")
    kept, held = saved.state_dict(), model.state_dict()
    differs = next((key for key in kept | held if key not in kept or key not in held), None) or next(
        (key for key in kept if not torch.equal(kept[key], held[key].cpu())), None
    )
    if differs is not None:
        raise UserError(
            f"--model has other weights than '{name}', which it was loaded from ('{differs}' differs): {advice}"
        )


def check_base(ledger: LedgerState, base: BaseModel) -> None:
    """Check that a ledger belongs to this base model, in whatever folder it is.

    Raises:
        UserError: if the ledger belongs to another one.
    """
    if not ledger.requests:
        return
    assert ledger.base is not None, "a ledger with requests has a base model"
    if not ledger.base.is_same(base):
        raise UserError(
            f"--model '{base.name}' is another model than that of --ledger '{ledger.path}' ('{ledger.base.name}'): their "
            "configuration, weights or tokenizers differ. A ledger belongs to one base model; name another ledger."
        )


def write_in_force(ledger: LedgerState, folders: Mapping[str, Path], target: Path, scale: float | None = None) -> None:
    """Write adapters of a ledger as one adapter directory, with the thresholds that the ledger records for them.

    Args:
        ledger: the ledger.
        folders: adapter directories by request.
        target: directory to write to; it exists.
        scale: factor of all edits; None leaves each its own.
    """
    known = {id: request.thresholds for id, request in ledger.requests.items() if request.thresholds is not None}
    write_stack(folders, target, scale=scale, thresholds={id: torch.tensor(own) for id, own in known.items()})


def as_trained(examples: Sequence[Example], rows: RowEncoder) -> list[Example]:
    """Rows as training saw them: running text in pieces."""
    return chunk_running_text(examples, rows.tokenizer, rows.max_length)


def loaded(
    ledger: LedgerState, folders: Mapping[str, Path], config: UnlearnConfig | CalibrateConfig
) -> tuple[Any, RowEncoder]:
    """The model that a job names with some adapters in force, and the encoder of its rows."""
    base = base_of(config)
    return in_force(ledger, folders, base), base.encoder


def base_of(config: UnlearnConfig | CalibrateConfig) -> LoadedModel:
    """The base model that a job names."""
    return load(
        config.model, config, template=config.template, max_length=config.max_length, batch_size=config.batch_size
    )


def in_force(ledger: LedgerState, folders: Mapping[str, Path], base: LoadedModel) -> Any:
    """A base model with some adapters in force."""
    with tempfile.TemporaryDirectory() as folder:
        write_in_force(ledger, folders, Path(folder))
        return load_adapter(base.model, folder)


def measured(
    ledger: LedgerState,
    folders: Mapping[str, Path],
    config: RequestConfig,
    forget: Sequence[Example],
    normal: Sequence[Example],
) -> dict[str, MeasuredRows]:
    """Answer probabilities before and after with everything in force, and how often each request's gates open.

    Args:
        ledger: the ledger before the new request.
        folders: adapter directories by request, the new one among them.
        config: settings of the new request.
        forget: rows of the new request.
        normal: rows to keep that training did not see.

    Returns:
        The measured rows: `new`, `normal`, and those of every earlier request whose data was kept, under its id.
    """
    base = base_of(config)
    sets = {"new": list(forget), "normal": list(normal)}
    sets |= {earlier: kept for earlier in ledger.active if (kept := ledger.data(earlier))}
    sets = {name: with_own_answers(base, whole) for name, whole in sets.items()}
    model, rows = in_force(ledger, folders, base), base.encoder
    threshold_G, columns = thresholds_of(model), gates_by_member(model)
    found: dict[str, MeasuredRows] = {}
    for name, whole in sets.items():
        encoded = rows.encode(as_trained(whole, rows))
        with adapters_off(model):
            before = rows.probability(model, encoded)
        logits_NG = logits_of_rows(model, rows, encoded)
        found[name] = MeasuredRows(
            rows=len(encoded),
            probability_before=before,
            probability=rows.probability(model, encoded),
            open={id: share_open(logits_NG[:, own], threshold_G[own]).share for id, own in columns.items()},
        )
    return found


def say_crossing(id: str, found: Mapping[str, MeasuredRows]) -> None:
    """Warn of gates that open for rows of other requests or for normal rows, as measured when a request was added."""
    lost = "withdrawing {0} alone will not bring these back"
    for other, share in found["new"].open.items():
        if other != id and share > TOLERATED:
            same = " (is it the same request?)" if share == 1 else ""
            logger.warning(
                f"The gate of request {other} opens for {share:.0%} of the new rows{same}: {lost.format(id)}. To part them, "
                f"add {id} with --keep-features, then withdraw {other} and add its rows again."
            )
    for name, one in found.items():
        share = one.open[id]
        if name == "new" or share <= TOLERATED:
            continue
        if name == "normal":
            more = "give more --retain rows, or calibrate the ledger with normal prompts (`grun request calibrate`)"
            logger.warning(f"The new gate opens for {share:.0%} of retain rows it has not seen: {more}.")
        else:
            logger.warning(f"The new gate opens for {share:.0%} of the rows of request {name}: {lost.format(name)}.")
