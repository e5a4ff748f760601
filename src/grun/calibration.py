"""`grun calibrate`: thresholds that leave normal prompts alone, with a guarantee."""

from __future__ import annotations

__all__ = [
    "calibrate",
    "calibrated",
    "logits_of_prompts",
    "promised",
    "prompts_of",
    "say",
    "share_open",
    "usual_place",
]

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from grun.adapters.config import GrunConfig
from grun.caching import content_of_folder
from grun.errors import UserError
from grun.files import atomic_directory, read_json
from grun.gate_features import gate_logits, gates_of, thresholds_of
from grun.models import adapter_folder, load_adapter, load_model_and_tokenizer
from grun.readers import read_examples
from grun.records import Example
from grun.request_config import CalibrateConfig
from grun.rows import RowEncoder
from grun.runs import RunDirectory, fingerprint
from grun.thresholds import LOW_QUANTILE, Guarantee, guaranteed_thresholds

logger = logging.getLogger("grun")
RECORD = "calibration.json"


def calibrate(config: CalibrateConfig) -> Path:
    """Write a copy of an adapter whose gates open for at most a share `alpha` of normal prompts, with confidence `1 - delta`.

    The gates decide on what they read of the base model. A gate that reads what others have edited may say something else
    once these are open, but then the prompt counts already: the share of prompts for which any gate opens is exactly this.

    Writes `adapter/` and `calibration.json` (prompts, thresholds, shares with exact 95 % intervals).

    Returns:
        The directory of the adapter.

    Raises:
        UserError: for wrong input; for too few normal prompts, with the number that is needed.
    """
    if not config.adapter:
        raise UserError("--adapter is missing: give the directory of the adapter, or of the run that learnt it.")
    guarantee, normal = promised(config)
    forget = prompts_of(config.forget, config)
    data = f"{fingerprint({'normal': normal, 'forget': forget})} {content_of_folder(adapter_folder(config.adapter))}"
    run = RunDirectory.open(config.output, config, "calibrate", config.overwrite, data=data)
    target = run.path / "adapter"
    if run.is_complete and target.is_dir():
        logger.info("%s is complete already; nothing to do.", run.path)
        return target
    started = time.monotonic()
    base, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    model: Any = load_adapter(base, config.adapter)
    adapter: Any = model.active_peft_config
    parts = adapter.parts.values() if isinstance(adapter, GrunConfig) else ()
    if not parts or any(part.gate == "none" for part in parts):
        raise UserError(
            f"--adapter '{config.adapter}' has no gate (or a part of it has none), so nothing can be promised."
        )
    rows = RowEncoder.of(base, tokenizer, config)
    run.start()
    forget_NG = logits_of_prompts(model, rows, forget) if forget else None
    place_G = _places(config.adapter, thresholds_of(model))
    if forget_NG is not None and adapter.members is None:  # of a stack, every gate knows a part of the forget prompts
        place_G = forget_NG.quantile(LOW_QUANTILE, dim=0)
    threshold_G, found = calibrated(logits_of_prompts(model, rows, normal), place_G, guarantee)
    for (_, gate), threshold in zip(gates_of(model), threshold_G, strict=True):
        gate.threshold.copy_(threshold)
    if forget_NG is not None:
        found["forget_open"] = share_open(forget_NG, threshold_G)
    with atomic_directory(target) as directory:
        model.save_pretrained(str(directory))
    run.write_json(RECORD, found)
    run.mark_complete(time.monotonic() - started)
    say(found)
    return target


def _places(adapter: str, threshold_G: Tensor) -> Tensor:
    """Where gates open as they were learnt, also if the adapter was calibrated since: its thresholds are not independent."""
    known = read_json(Path(adapter_folder(adapter)).parent / RECORD)
    return usual_place(threshold_G) if known is None else torch.tensor(known["places"])


def promised(config: CalibrateConfig) -> tuple[Guarantee, list[Example]]:
    """What is to be promised, and the normal prompts for it.

    Raises:
        UserError: for unreadable prompts, or too few.
    """
    if not config.normal:
        raise UserError("--normal is missing: give a file of normal prompts that unlearning has not seen.")
    guarantee, normal = Guarantee(config.alpha, config.delta), prompts_of(config.normal, config)
    if len(normal) < guarantee.prompts_needed:
        raise UserError(
            f"--normal has {len(normal)} prompts, too few for --alpha {config.alpha:g} with --delta {config.delta:g}: "
            f"{guarantee.prompts_needed} are needed."
        )
    return guarantee, normal


def calibrated(normal_NG: Tensor, place_G: Tensor, guarantee: Guarantee) -> tuple[Tensor, dict[str, Any]]:
    """Thresholds (G,), and what is written down about them."""
    threshold_G = guaranteed_thresholds(normal_NG, place_G, guarantee)
    return threshold_G, {
        "alpha": guarantee.alpha,
        "delta": guarantee.delta,
        "normal_prompts": len(normal_NG),
        "normal_prompts_needed": guarantee.prompts_needed,
        "normal_prompts_allowed_open": guarantee.allowed(len(normal_NG)),
        "thresholds": threshold_G.tolist(),
        "places": place_G.tolist(),
        "normal_open": share_open(normal_NG, threshold_G),
    }


def usual_place(threshold_G: Tensor) -> Tensor:
    """Where gates are to open if nothing is known of forget prompts: at their thresholds, or half open at a logit of 0."""
    return torch.where(threshold_G.isfinite(), threshold_G, 0.0)


@torch.no_grad()
def logits_of_prompts(model: Any, rows: RowEncoder, examples: Sequence[Example]) -> Tensor:
    """What the gates of an adapter say of prompts (N, G), on the CPU, in the order of `gates_of`."""
    features = rows.features(model, rows.encode(examples))
    return gate_logits(features, [gate for _, gate in gates_of(model)]).cpu()


def share_open(logits_NG: Tensor, threshold_G: Tensor) -> dict[str, Any]:
    """How many prompts open any gate, with the exact (Clopper-Pearson) 95 % interval of the share."""
    count, prompts = int((logits_NG > threshold_G).any(1).sum()), len(logits_NG)
    interval = binomtest(count, prompts).proportion_ci()
    return {"open": count, "prompts": prompts, "share": count / prompts, "interval": [interval.low, interval.high]}


def say(found: dict[str, Any]) -> None:
    """Tell the user what was found."""
    for name, words in (("normal_open", "normal prompts"), ("forget_open", "prompts to forget")):
        if name in found:
            one = found[name]
            logger.info("%d of %d %s open a gate (%.2f %%).", one["open"], one["prompts"], words, 100 * one["share"])
    logger.info(
        "With confidence %g at most %g of all prompts like those in --normal do; the others get the base model's own output.",
        1 - found["delta"],
        found["alpha"],
    )


def prompts_of(sources: Sequence[str], config: CalibrateConfig) -> list[Example]:
    """Prompts in files or hub data sets; answers are not looked at."""
    return [row for source in sources for row in read_examples(source, columns=config.columns, need_answers=False)]
