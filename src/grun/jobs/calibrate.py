"""`grun calibrate`: thresholds that leave normal prompts alone, with a guarantee."""

from __future__ import annotations

__all__ = ["calibrate", "say"]

import logging
import time
from pathlib import Path
from typing import Any

from grun.core.config.requests import CalibrateConfig
from grun.core.errors import UserError
from grun.core.provenance import provenance
from grun.core.storage.atomic_files import atomic_directory, read_json
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.content_hash import content_of_path
from grun.core.storage.run_directory import CONFIG, RunDirectory
from grun.jobs.inputs.calibration import calibration_prompts, unseen
from grun.models.gates.calibration import Calibration, calibrated, learnt_places, logits_of_prompts
from grun.models.gates.features import gates_by_member, gates_of
from grun.models.gates.guarantee import LOW_QUANTILE
from grun.models.loading.adapters import save_adapter
from grun.models.loading.loaded import content_if_given, load
from grun.models.loading.pretrained import adapter_folder, load_adapter
from grun.models.loading.sources import model_source
from grun.models.tuner.config import GrunConfig

logger = logging.getLogger("grun")
RECORD = "calibration.json"


@keeps("nothing but its settings is there yet")
@claims_output
def calibrate(config: CalibrateConfig) -> Path:
    """Write a copy of an adapter whose gates open for at most a share `alpha` of normal prompts, with confidence `1 - delta`.

    With prompts to forget in other words, the share that opens no gate is bounded with the same confidence, and kept below
    `miss_rate` if that is given.

    The gates decide on what they read of the base model. A gate that reads what others have edited may say something else
    once these are open, but then the prompt counts already: the share of prompts for which any gate opens is exactly this.

    Writes `adapter/` and `calibration.json` (prompts, thresholds, shares with exact 95 % intervals, provenance).

    Returns:
        The directory of the adapter.

    Raises:
        UserError: for wrong input; for too few prompts, with the number that is needed; if both bounds cannot be kept.
    """
    if not config.adapter:
        raise UserError("--adapter is missing: give the directory of the adapter, or of the run that learnt it.")
    prompts = calibration_prompts(config)
    folder = adapter_folder(config.adapter)
    learnt = read_json(Path(folder).parent / CONFIG)
    prompts = unseen(prompts, {config.adapter: learnt if isinstance(learnt, dict) else {}}, placed_by_forget=True)
    contents = [content_of_path(path) for path in (folder, model_source(config.model).path)]
    data = " ".join([prompts.fingerprint, *map(str, contents)]) + content_if_given(config.model)
    run = RunDirectory.open(config.output, config, "calibrate", config.overwrite, data=data)
    target = run.path / "adapter"
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    started = time.monotonic()
    base = load(
        config.model,
        config,
        template=config.template,
        max_length=config.max_length,
        batch_size=config.batch_size,
    )
    model: Any = load_adapter(base.model, config.adapter)
    adapter: Any = model.active_peft_config
    _check_gates(adapter, config.adapter)
    rows, learnt_G = base.encoder, learnt_places(model)
    forget_NG = logits_of_prompts(model, rows, prompts.forget) if prompts.forget else None
    place_G, lower = learnt_G, False
    if forget_NG is not None and adapter.members is None:  # of a stack, every gate knows a part of the forget prompts
        place_G, lower = forget_NG.quantile(LOW_QUANTILE, dim=0), True
    found = calibrated(
        model, rows, prompts.normal, place_G, prompts.guarantee, lower=lower, paraphrases=prompts.paraphrases
    )
    run.start()  # what cannot be promised replaces no earlier run
    for (_, gate), threshold in zip(gates_of(model), found.threshold_G, strict=True):
        gate.threshold.copy_(threshold)
    for name, own in gates_by_member(model).items():
        adapter.parts[name].gate_places = learnt_G[own].tolist()
    if forget_NG is not None:
        found = found.with_forget(forget_NG)
    with atomic_directory(target) as directory:
        save_adapter(model, directory)
    run.write_json(RECORD, {**found.as_json(), **provenance()})
    run.mark_complete(time.monotonic() - started)
    say(found)
    return target


def _check_gates(adapter: Any, name: str) -> None:
    parts = adapter.parts.values() if isinstance(adapter, GrunConfig) else ()
    if not parts or any(part.gate == "none" for part in parts):
        raise UserError(f"--adapter '{name}' has no gate (or a part of it has none), so nothing can be promised.")


def say(found: Calibration) -> None:
    """Tell the user how many prompts open a gate or none, and what holds for all prompts like them."""
    for one, words in ((found.normal_open, "normal prompts"), (found.forget_open, "prompts to forget")):
        if one is not None:
            logger.info("%d of %d %s open a gate (%.2f %%).", one.open, one.prompts, words, 100 * one.share)
    logger.info(
        "With confidence %g at most %g of all prompts like those in --normal do; the others get the base model's own output.",
        1 - found.delta,
        found.alpha,
    )
    if found.miss_rate is not None:
        logger.info(
            "Thresholds were set on %d paraphrases: with the same confidence at most %g of all such prompts open none.",
            found.paraphrases_set_on,
            found.miss_rate,
        )
    if (missed := found.paraphrases_missed) is not None:
        logger.info(
            "%d of %d %sparaphrases open no gate (%.2f %%): by these alone, with the same confidence, at most %.3g of all "
            "such prompts open none.",
            missed.missed,
            missed.prompts,
            "" if found.miss_rate is None else "other ",
            100 * missed.share,
            missed.bound,
        )
