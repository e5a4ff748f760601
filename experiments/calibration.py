"""A check of the guarantee for normal prompts: 10,000 prompts that nothing has seen, at two levels.

    python experiments/sequential.py --output runs/sequential      # makes the model and the ledger
    python experiments/calibration.py --work runs/sequential

Normal prompts are questions about invented people, one question per person. Some of them calibrate everything that is in force
in the ledger, and 10,000 others are then asked. The experiment counts the prompts that open a gate and those whose greedy
answer (20 tokens) differs from the base model's. In other streams a share of the people has one name or both names in common
with a forgotten person, or is known to the model and was not shown to unlearning. Where both names are the same, no question
tells two people apart, and the guarantee costs forgetting. The last stream meets gates that were learnt from poor retain rows.
Writes `docs/results/calibration.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import write_results
from sequential import OPTIONS

from grun.core.config.requests import CalibrateRequestsConfig
from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.models.encoding.encode import encode_prompt
from grun.models.encoding.templates import resolve_template
from grun.models.forward import adapters_off, context_length
from grun.models.gates.calibration import logits_of_prompts, share_open
from grun.models.gates.features import thresholds_of
from grun.models.generation import greedy
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.decision import is_open
from grun.requests.ledger import ACTIVE, LedgerState
from grun.requests.operations import calibrate_active, export

LEVELS = {0.01: 1_000, 0.001: 5_000}  # calibration prompts by alpha
STREAMS = {  # ledger, share of special prompts, their kind
    "other people": ("ledger", 0.0, ""),
    "one in ten shares a name": ("ledger", 0.1, "one name"),
    "one in ten is known to the model": ("ledger", 0.1, "known"),
    "one in twenty has the same full name": ("ledger", 0.05, "both names"),
    "one in ten is known, gates from poor retain rows": ("ledger-poor", 0.1, "known"),
}
DELTA, ASKED, TOKENS, PEOPLE = 0.05, 10_000, 20, 400
FIRST_SEED = 1_000  # no benchmark has one of these


def normal_prompts(count: int, share: float, special: str, names: Sequence[str], known: Sequence[str]) -> list[Example]:
    """Questions about invented people, one per person, a share of them special.

    Args:
        count: number of prompts.
        share: share of special prompts.
        special: `one name` or `both names` in common with one of `names`, or `known`: one of these prompts instead.
    """
    found: list[Example] = []
    seed = FIRST_SEED
    while len(found) < count:
        draw = random.Random(seed)
        data = load_benchmark("fictional", seed=seed, options={"people": str(PEOPLE), "phrasings": "1"})
        rows: dict[str, list[Example]] = {}
        for split in ("forget", "retain", "retain_heldout"):
            for row in data.splits[split]:
                rows.setdefault(str(row.subject), []).append(row)
        for subject, own in rows.items():
            prompt = draw.choice(own).prompt
            if draw.random() < share:
                if special == "known":
                    prompt = draw.choice(known)
                else:
                    name = draw.choice(names).split()
                    for part in (0, 1) if special == "both names" else (draw.randrange(2),):
                        prompt = prompt.replace(subject.split()[part], name[part])
            found.append(Example(prompt, "-"))
        seed += 1
    random.Random(0).shuffle(found)
    return found[:count]


@torch.no_grad()
def asked(model_folder: str, adapter: Path, prompts: list[Example], forget: list[Example]) -> dict[str, Any]:
    """Shares of the prompts that open a gate, and of the answers that stay the same."""
    base, tokenizer = load_model_and_tokenizer(model_folder, device="cpu")
    template = resolve_template("auto", tokenizer)
    rows = RowEncoder(tokenizer, template, None, 64, base.device)
    model = load_adapter(base, str(adapter))
    threshold_G = thresholds_of(model)
    logits_NG = logits_of_prompts(model, rows, prompts)
    ids = [encode_prompt(row, tokenizer, template, context_length(model)) for row in prompts]
    after = greedy(model, tokenizer, ids, TOKENS, 64)
    with adapters_off(model):
        before = greedy(model, tokenizer, ids, TOKENS, 64)
    same = [one == other for one, other in zip(before, after, strict=True)]
    shut = (~is_open(logits_NG, threshold_G).any(1)).tolist()
    return {
        "normal": share_open(logits_NG, threshold_G).as_json(),
        "forget": share_open(logits_of_prompts(model, rows, forget), threshold_G).as_json(),
        "identical": sum(same) / len(same),
        "identical_where_shut": sum(s for s, x in zip(same, shut, strict=True) if x) / sum(shut),
    }


def stream(folder: Path, learnt: str, share: float, special: str) -> dict[str, Any]:
    """Results for one stream of normal prompts, with the thresholds as learnt and at every level."""
    model, ledger = str(folder / "target" / "model"), folder / "calibrated-ledger"
    shutil.rmtree(ledger, ignore_errors=True)
    shutil.copytree(folder / learnt, ledger)
    rows = [
        json.loads(line)
        for i, request in enumerate(LedgerState.read(ledger).requests.values())
        if request.state == ACTIVE
        for line in (folder / f"request-{i + 1}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    forget, names = [Example(row["prompt"], "-") for row in rows], sorted({row["subject"] for row in rows})
    known = [row.prompt for row in load_benchmark("fictional", options=OPTIONS["fictional"]).splits["retain_heldout"]]
    pool = normal_prompts(ASKED + sum(LEVELS.values()), share, special, names, known)
    prompts, rest = pool[:ASKED], pool[ASKED:]
    found = {"as learnt": asked(model, export(str(ledger), str(folder / "as-learnt")), prompts, forget)}
    for alpha, count in LEVELS.items():
        file = folder / f"normal-{alpha}.jsonl"
        file.write_text("".join(json.dumps({"prompt": row.prompt}) + "\n" for row in rest[:count]), encoding="utf-8")
        rest = rest[count:]
        promise: dict[str, Any] = {"alpha": alpha, "delta": DELTA, "normal": [str(file)]}
        said = calibrate_active(CalibrateRequestsConfig(ledger=str(ledger), model=model, device="cpu", **promise))
        adapter = export(str(ledger), str(folder / f"calibrated-{alpha}"))
        found[f"alpha {alpha}"] = asked(model, adapter, prompts, forget) | {"calibration": said.record}
    return found


def main() -> None:
    """Calibrate at both levels for every stream, ask the prompts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/sequential", help="folder that sequential.py made")
    folder = Path(parser.parse_args().work)
    found = {name: stream(folder, *settings) for name, settings in STREAMS.items()}
    lines = [
        "| normal prompts | thresholds | calibration prompts | open a gate, of 10,000 | share (95 % interval) | greedy answer "
        "identical | where gates are shut | forget prompts that open a gate |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, levels in found.items():
        for level, one in levels.items():
            normal, (low, high) = one["normal"], one["normal"]["interval"]
            count = one["calibration"]["normal_prompts"] if "calibration" in one else "–"
            share = f"{normal['share']:.4f} ({low:.4f} to {high:.4f})"
            ends = f"{one['identical']:.4f} | {one['identical_where_shut']:.4f} | {one['forget']['share']:.3f}"
            lines.append(f"| {name} | {level} | {count} | {normal['open']} | {share} | {ends} |")
    write_results("calibration", found, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
