"""Losses and gradient norms of 20 optimiser steps of every objective, on a tiny model with rows of text, and their file.

    python tests/golden/regenerate.py   # writes tests/golden/curves.json anew

Gate and edit are trained together, so that every term of the loss reaches the weights from the first step on. The values in
the repository were computed by the version that wrote `earlier`: they may only change with a change of the method that
is meant to change them.
"""

from __future__ import annotations

__all__ = ["CURVES", "EARLIER_GATES", "QUANTITIES", "STEPS", "cases", "curves_of"]

import json
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from grun.cli.main import main
from grun.training.objectives import objectives

HERE = Path(__file__).parent
CURVES = HERE / "curves.json"
STEPS = 20
QUANTITIES = ("loss", "loss_forget", "loss_retain", "loss_gate", "grad_norm")
# The defaults of the earlier version.
EARLIER_GATES = ("--gate", "mlp", "--topic-layer", "none", "--false-positive-rate", "0.01")
TOGETHER = ("--no-fit-gate-first", "--no-calibrate")
SLOWER = (
    "--learning-rate",
    "1e-2",
)  # than the preset's 2e-2, where rounding would grow to something visible in 20 steps
MORE = {
    "satimp": (*SLOWER, "--forget-weight", "100"),  # the model is so sure of its answers that satimp hardly sees them
    "wga": SLOWER,
}
REFUSALS = (
    "--refusals",
    str(HERE / "refusals.txt"),
)  # the sentences that were drawn from when the values were computed
DRAWN = ("dpo", "idk", "idk_deep")  # objectives that read refusals
DIGITS = 7  # significant ones, as many as float32 has


def cases() -> dict[str, tuple[str, ...]]:
    """Flags by name: every objective, then every other retain loss, and npo as the presets have it."""
    more = MORE | dict.fromkeys(DRAWN, REFUSALS)
    own = {name: ("--objective", name, *TOGETHER, *more.get(name, ())) for name in objectives.names()}
    npo = ("--objective", "npo")
    retain = {f"npo, {name}": (*npo, "--retain-loss", name, *TOGETHER) for name in ("kl", "mse", "none")}
    presets = {"npo, gate first": npo, "npo, paper": (*npo, "--preset", "paper", *SLOWER)}
    return own | retain | presets


def curves_of(flags: tuple[str, ...]) -> dict[str, list[float]]:
    """Values by quantity, one per step."""
    with tempfile.TemporaryDirectory() as folder:
        given = ["--model", "earlier/model", "--forget", "earlier/forget.jsonl", "--retain", "earlier/retain.jsonl"]
        paths = [word if word.startswith("--") else str(HERE / word) for word in given]
        sizes = ["--layers", "1,3", "--batch-size", "4", "--withhold", "0.25", "--device", "cpu", *EARLIER_GATES]
        steps = ["--steps", str(STEPS), "--evaluate-every", str(STEPS), "--trainer", "logging_steps=1"]
        code = main(["unlearn", *paths, *sizes, *steps, *flags, "--output", f"{folder}/run"])
        assert code == 0, f"grun unlearn {' '.join(flags)} ended with {code}"
        log = json.loads((Path(folder) / "run" / "log.json").read_text())
    entries = [entry for entry in log if "loss" in entry]
    return {name: [entry[name] for entry in entries] for name in QUANTITIES if name in entries[0]}


def write() -> None:
    """Write the file, a line per quantity."""
    blocks = []
    for name, flags in cases().items():
        rounded = {
            kind: [float(f"{value:.{DIGITS}g}") for value in values] for kind, values in curves_of(flags).items()
        }
        lines = ",\n".join(f"    {json.dumps(kind)}: {json.dumps(values)}" for kind, values in rounded.items())
        blocks.append(f"  {json.dumps(name)}: {{\n{lines}\n  }}")
    CURVES.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    write()
