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
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import CONFIG, RunDirectory
from grun.jobs.inputs.calibration import promised, prompts_of, unseen
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

    The gates decide on what they read of the base model. A gate that reads what others have edited may say something else
    once these are open, but then the prompt counts already: the share of prompts for which any gate opens is exactly this.

    Writes `adapter/` and `calibration.json` (prompts, thresholds, shares with exact 95 % intervals, provenance).

    Returns:
        The directory of the adapter.

    Raises:
        UserError: for wrong input; for too few normal prompts, with the number that is needed.
    """
    if not config.adapter:
        raise UserError("--adapter is missing: give the directory of the adapter, or of the run that learnt it.")
    guarantee, normal = promised(config)
    forget = prompts_of(config.forget, config)
    folder = adapter_folder(config.adapter)
    learnt = read_json(Path(folder).parent / CONFIG)
    normal = unseen(normal, {config.adapter: learnt if isinstance(learnt, dict) else {}}, guarantee)
    contents = [content_of_path(path) for path in (folder, model_source(config.model).path)]
    data = " ".join([fingerprint({"normal": normal, "forget": forget}), *map(str, contents)]) + content_if_given(
        config.model
    )
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
    parts = adapter.parts.values() if isinstance(adapter, GrunConfig) else ()
    if not parts or any(part.gate == "none" for part in parts):
        raise UserError(
            f"--adapter '{config.adapter}' has no gate (or a part of it has none), so nothing can be promised."
        )
    rows, learnt_G = base.encoder, learnt_places(model)
    run.start()
    forget_NG = logits_of_prompts(model, rows, forget) if forget else None
    place_G, lower = learnt_G, False
    if forget_NG is not None and adapter.members is None:  # of a stack, every gate knows a part of the forget prompts
        place_G, lower = forget_NG.quantile(LOW_QUANTILE, dim=0), True
    found = calibrated(model, rows, normal, place_G, guarantee, lower=lower)
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


def say(found: Calibration) -> None:
    """Tell the user how many prompts open a gate, and the guarantee."""
    for one, words in ((found.normal_open, "normal prompts"), (found.forget_open, "prompts to forget")):
        if one is not None:
            logger.info("%d of %d %s open a gate (%.2f %%).", one.open, one.prompts, words, 100 * one.share)
    logger.info(
        "With confidence %g at most %g of all prompts like those in --normal do; the others get the base model's own output.",
        1 - found.delta,
        found.alpha,
    )
