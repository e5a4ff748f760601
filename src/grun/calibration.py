"""`grun calibrate`: thresholds that leave normal prompts alone, with a guarantee."""

from __future__ import annotations

__all__ = [
    "calibrate",
    "calibrated",
    "learnt_places",
    "logits_of_prompts",
    "logits_of_rows",
    "promised",
    "prompts_of",
    "say",
    "share_open",
    "unseen",
]

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor

from grun.adapters.config import GrunConfig
from grun.batches import Encoded
from grun.caching import content_of_folder
from grun.config import UnlearnConfig
from grun.errors import UserError
from grun.files import atomic_directory, read_json
from grun.gate_features import gate_logits, gates_by_member, gates_of, held_gates, thresholds_of
from grun.models import adapter_folder, load_adapter, load_model_and_tokenizer, model_folder
from grun.readers import read_examples
from grun.records import Example
from grun.request_config import CalibrateConfig
from grun.rows import RowEncoder
from grun.runs import CONFIG, RunDirectory, fingerprint
from grun.settings import from_mapping
from grun.sides import load_sides
from grun.thresholds import LOW_QUANTILE, Guarantee, guaranteed_thresholds, usual_place

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
    folder = adapter_folder(config.adapter)
    learnt = read_json(Path(folder).parent / CONFIG)
    normal = unseen(normal, {config.adapter: learnt if isinstance(learnt, dict) else {}}, guarantee)
    contents = [content_of_folder(name) for name in (folder, model_folder(config.model))]
    data = " ".join([fingerprint({"normal": normal, "forget": forget}), *map(str, contents)])
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
    rows, learnt_G = RowEncoder.of(base, tokenizer, config), learnt_places(model)
    run.start()
    forget_NG = logits_of_prompts(model, rows, forget) if forget else None
    place_G, lower = learnt_G, False
    if forget_NG is not None and adapter.members is None:  # of a stack, every gate knows a part of the forget prompts
        place_G, lower = forget_NG.quantile(LOW_QUANTILE, dim=0), True
    threshold_G, found = calibrated(model, rows, normal, place_G, guarantee, lower=lower)
    for (_, gate), threshold in zip(gates_of(model), threshold_G, strict=True):
        gate.threshold.copy_(threshold)
    for name, own in gates_by_member(model).items():
        adapter.parts[name].gate_places = learnt_G[own].tolist()
    if forget_NG is not None:
        found["forget_open"] = share_open(forget_NG, threshold_G)
    with atomic_directory(target) as directory:
        model.save_pretrained(str(directory))
    run.write_json(RECORD, found)
    run.mark_complete(time.monotonic() - started)
    say(found)
    return target


def learnt_places(model: Any) -> Tensor:
    """Where the gates (G,) open as they were learnt, also if they were calibrated since: that threshold is not independent.

    Raises:
        UserError: if an adapter says so of another number of gates than it has.
    """
    places: list[float] = []
    known: dict[str, Iterator[float]] = {}
    for (layer, part), threshold in zip(held_gates(model), thresholds_of(model).tolist(), strict=True):
        learnt = layer.configs[part].gate_places
        place = threshold if learnt is None else next(known.setdefault(part, iter(learnt)), None)
        if place is None:
            raise UserError(f"The adapter is damaged: its gate_places are {learnt}, fewer than it has gates.")
        places.append(place)
    return usual_place(torch.tensor(places, dtype=torch.float32))


def promised(config: CalibrateConfig) -> tuple[Guarantee, list[Example]]:
    """What is to be promised, and the normal prompts for it.

    Raises:
        UserError: for unreadable prompts, or too few.
    """
    if not config.normal:
        raise UserError("--normal is missing: give a file of normal prompts that unlearning has not seen.")
    guarantee = Guarantee(config.alpha, config.delta)
    known: dict[str, str] = {}
    normal: list[Example] = []
    for source in config.normal:
        rows = prompts_of([source], config)
        if (content := fingerprint({"": rows})) in known:
            raise UserError(f"--normal '{source}' holds the same rows as '{known[content]}'; give every prompt once.")
        known[content] = source
        normal += rows
    _check_enough(normal, guarantee)
    return guarantee, normal


def _check_enough(normal: Sequence[Example], guarantee: Guarantee, left: str = "") -> None:
    if len(normal) < guarantee.prompts_needed:
        raise UserError(
            f"--normal has {len(normal)} prompts{left}, too few for --alpha {guarantee.alpha:g} with --delta "
            f"{guarantee.delta:g}: {guarantee.prompts_needed} are needed."
        )


def unseen(normal: Sequence[Example], runs: Mapping[str, Mapping[str, Any]], guarantee: Guarantee) -> list[Example]:
    """The normal prompts that are no retain rows of an adapter: gates were made to stay shut for those.

    A prompt that is a forget row stays: traffic may hold it, and it makes the promise no easier.

    Args:
        normal: the prompts.
        runs: settings of the runs that learnt the adapters, by the name of the adapter.
        guarantee: what is to be promised.

    Raises:
        UserError: if too few are left.
    """
    learnt: set[Any] = set()
    unknown: list[str] = []
    for name, settings in runs.items():
        try:
            sides = load_sides(from_mapping(UnlearnConfig, settings, name))
        except UserError:
            unknown.append(name)
            continue
        learnt |= {(row.turns, row.prompt) for row in (*sides.retain, *sides.validation)}
    if unknown:
        logger.warning(
            "The retain rows of %s cannot be read here: make sure that --normal holds none of them.",
            ", ".join(unknown),
        )
    left = [row for row in normal if (row.turns, row.prompt) not in learnt]
    if len(left) < len(normal):
        logger.warning(
            "%d of %d normal prompts are left out: they are retain rows of a gate.",
            len(normal) - len(left),
            len(normal),
        )
        _check_enough(left, guarantee, " that are no retain rows of a gate")
    return left


def calibrated(
    model: Any,
    rows: RowEncoder,
    normal: Sequence[Example],
    place_G: Tensor,
    guarantee: Guarantee,
    *,
    lower: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """Thresholds (G,) for the gates of a model, and what is written down about them.

    Every prompt is read in a batch and alone, since a deep gate's logit changes with the batch, in bfloat16 most of all: the
    larger reading counts, and thresholds are as far above it as any reading has moved. `place_G`, `lower`: see
    `guaranteed_thresholds`.

    Raises:
        UserError: if gates give no finite numbers.
    """
    encoded = rows.encode(normal)
    both = [logits_of_rows(model, rows, encoded, alone=alone) for alone in (False, True)]
    deviation_G = (both[0] - both[1]).abs().amax(0)
    normal_NG = torch.maximum(*both)
    try:
        threshold_G = guaranteed_thresholds(normal_NG, place_G, guarantee, deviation_G=deviation_G, lower=lower)
    except ValueError as error:
        raise UserError(f"Nothing can be promised: {error}.") from error
    return threshold_G, {
        "alpha": guarantee.alpha,
        "delta": guarantee.delta,
        "dtype": str(model.dtype).removeprefix("torch."),
        "normal_prompts": len(normal_NG),
        "normal_prompts_needed": guarantee.prompts_needed,
        "normal_prompts_allowed_open": guarantee.allowed(len(normal_NG)),
        "thresholds": threshold_G.tolist(),
        "places": place_G.tolist(),
        "deviations": deviation_G.tolist(),
        "normal_open": share_open(normal_NG, threshold_G),
    }


def logits_of_prompts(model: Any, rows: RowEncoder, examples: Sequence[Example]) -> Tensor:
    """What the gates of an adapter say of prompts (N, G), on the CPU, in the order of `gates_of`."""
    return logits_of_rows(model, rows, rows.encode(examples))


@torch.no_grad()
def logits_of_rows(model: Any, rows: RowEncoder, encoded: Sequence[Encoded], *, alone: bool = False) -> Tensor:
    """The same for rows that were encoded; `alone`: with every row in a batch of its own."""
    features = rows.features(model, encoded, alone=alone)
    return gate_logits(features, [gate for _, gate in gates_of(model)]).cpu()


def share_open(logits_NG: Tensor, threshold_G: Tensor) -> dict[str, Any]:
    """How many prompts open any gate, with the exact (Clopper-Pearson) 95 % interval of the share."""
    count, prompts = int((~(logits_NG <= threshold_G)).any(1).sum()), len(logits_NG)
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
