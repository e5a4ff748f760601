"""Writes the folder `earlier`: files of every kind that a version of grun leaves behind, for later versions to read.

    python tests/golden/write_earlier.py inputs   # a model and rows; they are the same whatever version wrote them
    PYTHONPATH=<src of the earlier version> python tests/golden/write_earlier.py runs

The second step knows nothing of the package but its command line, so it runs with any version. All paths are relative to the
folder, as they would be in a working directory, and `commands.json` keeps every command line for the tests to repeat.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

EARLIER = Path(__file__).parent / "earlier"
UNLEARN = (
    "unlearn --model model --forget forget.jsonl --retain retain.jsonl --layers 1,3 --objective npo --steps 40 "
    "--evaluate-every 5 --batch-size 4 --withhold 0.25 --device cpu --output"
)
CALIBRATE = "calibrate --model model --normal normal.jsonl --alpha 0.2 --delta 0.1 --device cpu"
EVALUATE = (
    "evaluate --model model --data forget=forget.jsonl --data retain=retain.jsonl --data holdout=normal.jsonl "
    "--max-new-tokens 8 --no-figures --device cpu --adapter"
)
ADD = (
    "request add {rows} --ledger ledger --model model --retain retain.jsonl --layers 1,3 --steps 20 --evaluate-every 5 "
    "--batch-size 4 --withhold 0.25 --keep-data --keep-features --why {why} --device cpu"
)
COMMANDS = {
    "unlearned": f"{UNLEARN} unlearned",
    "interrupted": f"{UNLEARN} interrupted",
    "calibrated": f"{CALIBRATE} --adapter unlearned --forget forget.jsonl --output calibrated",
    "first request": ADD.format(rows="forget_1.jsonl", why="first"),
    "second request": ADD.format(rows="forget_2.jsonl", why="second"),
    "calibrated requests": f"request {CALIBRATE} --ledger ledger",
    "exported_both": "request export exported_both --ledger ledger",
    "suspended": "request suspend r0002 --ledger ledger",
    "exported_first": "request export exported_first --ledger ledger",
    "evaluation": f"{EVALUATE} unlearned --output evaluation",
    "evaluation_first": f"{EVALUATE} exported_first --output evaluation_first",
    "evaluation_interrupted": f"{EVALUATE} unlearned --output evaluation_interrupted",
    "comparison": "compare evaluation evaluation_first --output comparison",
}
INTERRUPTED = {
    "interrupted": "interrupted/checkpoints/checkpoint-15/trainer_state.json",
    "evaluation_interrupted": "evaluation_interrupted/evidence/before/forget.jsonl",
}


def machine() -> dict[str, str]:
    """What decides the last bits of a result: the libraries, and how the processor rounds with them."""
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(EARLIER / "model")
    found: list[torch.Tensor] = []
    for width in (7, 23, 40):
        ids = torch.randint(320, (8, width), generator=generator)
        loss = model(input_ids=ids, labels=ids).loss
        found += [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]
        found += torch.linalg.qr(torch.randn(32, 4, generator=generator))
    digest = hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in found))
    return {"torch": torch.__version__, "transformers": transformers.__version__, "rounding": digest.hexdigest()}


def write_inputs() -> None:
    """Write a tiny model that knows some answers, and rows with everything that metrics look at."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.material import invented_rows, memorise, write_rows
    from support.tiny_models import tiny_tokenizer

    forget, retain, normal = invented_rows("Lund", 8), invented_rows("Marl", 24), invented_rows("Nord", 24)
    EARLIER.mkdir(exist_ok=True)
    memorise(forget + retain).save_pretrained(EARLIER / "model")
    tiny_tokenizer().save_pretrained(EARLIER / "model")
    write_rows(EARLIER / "retain.jsonl", retain)
    write_rows(EARLIER / "normal.jsonl", normal)
    complete = [_with_other_words(row) for row in forget]
    write_rows(EARLIER / "forget.jsonl", complete)
    write_rows(EARLIER / "forget_1.jsonl", complete[:4])
    write_rows(EARLIER / "forget_2.jsonl", complete[4:])


def _with_other_words(row: dict[str, str]) -> dict[str, object]:
    return {
        **row,
        "paraphrased_question": row["question"].replace("Where was", "In which town was"),
        "paraphrased_answer": row["answer"].replace("In the", "It was the"),
        "perturbed_answer": [row["answer"].replace("Lund", other) for other in ("Marl", "Nord")],
        "alternative_answer": "In a city by the sea.",
    }


def write_runs() -> None:
    """Carry out all commands in their order; some are interrupted as soon as a file is there."""
    kept = {"model", *(file.name for file in EARLIER.glob("*.jsonl"))}
    for file in EARLIER.iterdir():
        if file.name not in kept:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    cache = {"GRUN_CACHE_DIR": str(EARLIER / ".cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name, command in COMMANDS.items():
        process = subprocess.Popen(
            [sys.executable, "-m", "grun", *command.split()], cwd=EARLIER, env={**os.environ, **cache}
        )
        if name in INTERRUPTED:
            while not (EARLIER / INTERRUPTED[name]).exists():
                time.sleep(0.002)
            process.send_signal(signal.SIGINT)
        if process.wait() != (130 if name in INTERRUPTED else 0):
            raise SystemExit(f"{name}: {command} ended with {process.returncode}")
    shutil.rmtree(EARLIER / ".cache")
    torch.set_num_threads(1)  # as in the commands
    (EARLIER / "commands.json").write_text(json.dumps({"machine": machine(), "commands": COMMANDS}, indent=2) + "\n")


if __name__ == "__main__":
    {"inputs": write_inputs, "runs": write_runs}[sys.argv[1]]()
