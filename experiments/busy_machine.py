"""Steps a second of the demo's small model, alone and beside a process that keeps one core busy.

python experiments/busy_machine.py

Two settings, each alone and beside the busy process, in turn: the default of the command line (one thread for a small model,
passive waiting), and two threads that spin while they wait. Prints ratios to the default alone; all of them are of this run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from grun.core.process.threads import COUNTS, WAITING

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "two spinning threads": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
}
BUSY = "while True: pass"


def steps_per_second(setting: dict[str, str], beside: bool, epochs: float) -> float:
    """Steps a second of one training, in a process of its own.

    Args:
        setting: environment variables.
        beside: another process is busy meanwhile.
        epochs: length of the training.
    """
    environment = {name: value for name, value in os.environ.items() if name not in (*COUNTS, *WAITING)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if beside:
            busy = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(busy.kill)
        command = [sys.executable, "-m", "grun", "finetune", "--benchmark", "fictional", "--device", "cpu", "--quiet"]
        subprocess.run(
            [*command, "--epochs", str(epochs), "--output", f"{folder}/run"], env=environment | setting, check=True
        )
        log = json.loads((Path(folder) / "run" / "log.json").read_text(encoding="utf-8"))
    return float(next(entry["train_steps_per_second"] for entry in log if "train_steps_per_second" in entry))


def main() -> None:
    """Measure all settings, in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=float, default=0.5, help="length of each training")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each setting; their median counts")
    given = parser.parse_args()
    found: dict[tuple[str, bool], list[float]] = {(name, beside): [] for name in SETTINGS for beside in (False, True)}
    for _ in range(given.repeats):
        for (name, beside), values in found.items():
            values.append(steps_per_second(SETTINGS[name], beside, given.epochs))
    medians = {key: statistics.median(values) for key, values in found.items()}
    whole = medians["default", False]
    print("| setting | other process | steps a second | of the default alone |\n| --- | --- | ---: | ---: |")
    for (name, beside), value in medians.items():
        print(f"| {name} | {'busy' if beside else 'none'} | {value:.1f} | {value / whole:.2f} |")


if __name__ == "__main__":
    main()
