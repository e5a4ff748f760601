"""Growth of training from a cached prefix with forget examples, depth and prompt length, and its memory.

    python experiments/scaling.py

Time is the seconds of a whole job: the pass over all rows, and one step for every eight forget examples. The model is a Llama
of hidden size 256 with random weights, edited at 65 %, 80 % and the end of its depth. One of the three numbers is varied at a
time, and a straight line is fitted to each. Memory is the peak of the process's resident set on 16 rows: inference (a forward
pass without gradients) against a training step, the cache of those rows included in both.
Writes `docs/results/scaling.json`, `.md` and `.png`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, TokenEncoder, write_results
from matplotlib.figure import Figure
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.tuner.config import GrunConfig
from grun.training.forward_engines.prefix.engine import PrefixEngine

USUAL = {"examples": 400, "depth": 12, "prompt": 32}
VARIED = {"examples": [100, 400, 1000, 2000, 4000], "depth": [6, 12, 18, 24, 30], "prompt": [16, 64, 128, 192, 256]}
NAMES = {"examples": "forget examples", "depth": "decoder layers", "prompt": "tokens of a prompt"}
VOCABULARY, ANSWER, ROWS = 4096, 32, 8


def prepared(depth: int, hidden: int = 256) -> tuple[Any, TokenEncoder]:
    """A model with an adapter whose gate is frozen, as after its fit."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=depth,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
    )
    model = get_peft_model(LlamaForCausalLM(config).eval(), GrunConfig(gate_layer=0, layers=[0.65, 0.8, 1.0]))
    for name, parameter in model.named_parameters():
        if ".grun_gate." in name:
            parameter.requires_grad = False
    return model, TokenEncoder()


def drawn(count: int, prompt: int, seed: int) -> list[Encoded]:
    """Random rows."""
    draw = random.Random(seed)
    return [
        Encoded(tuple(draw.randrange(10, VOCABULARY) for _ in range(prompt + ANSWER)), prompt, 0) for _ in range(count)
    ]


def stepped(engine: PrefixEngine, rows: list[Encoded], optimizer: torch.optim.Optimizer) -> None:
    """A training step on some rows."""
    side = engine.signals(engine.model, engine.batch(rows), {"logps"})
    optimizer.zero_grad()
    side.mean_nll.backward()
    optimizer.step()


def seconds(examples: int, depth: int, prompt: int) -> float:
    """Seconds of a whole job."""
    model, encoder = prepared(depth)
    forget, retain = drawn(examples, prompt, 1), drawn(examples, prompt, 2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    start = time.perf_counter()
    engine = PrefixEngine(model, encoder)
    engine.add([*forget, *retain])
    for at in range(0, examples, ROWS):
        stepped(engine, [*forget[at : at + ROWS], *retain[at : at + ROWS]], optimizer)
    return time.perf_counter() - start


def peak_mib(work: Any) -> float:
    """Peak of the resident set while `work` runs, in MiB; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    work()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory() -> dict[str, float]:
    """Peaks of inference and of training on the same rows, in MiB."""
    model, encoder = prepared(16, hidden=512)
    rows = drawn(16, 32, 1)
    whole = collate(rows, 0)
    engine = PrefixEngine(model, encoder)
    engine.add(rows)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    @torch.no_grad()
    def infer() -> None:
        with model.disable_adapter():
            model(**whole.model_inputs())

    infer()
    stepped(engine, rows, optimizer)
    found = {"inference": peak_mib(infer), "training": peak_mib(lambda: stepped(engine, rows, optimizer))}
    return {**found, "cache": engine.facts["prefix_cache"]["bytes"] / 2**20}


def main() -> None:
    """Measure, fit and draw."""
    used = memory()
    seconds(**{**USUAL, "examples": 64})  # a warm-up: some work is done once only
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    found: dict[str, Any] = {}
    lines = ["| varied | values | seconds | straight line | share explained |", "| --- | --- | --- | --- | ---: |"]
    for axes, (name, values) in zip(figure.subplots(1, 3), VARIED.items(), strict=True):
        measured = [seconds(**{**USUAL, name: value}) for value in values]
        slope, offset = np.polyfit(values, measured, 1)
        explained = float(np.corrcoef(values, measured)[0, 1] ** 2)
        found[name] = {"values": values, "seconds": measured, "slope": slope, "offset": offset, "explained": explained}
        cells = [NAMES[name], ", ".join(map(str, values)), ", ".join(f"{one:.1f}" for one in measured)]
        lines.append("| " + " | ".join([*cells, f"{offset:.2f} + {slope:.4f} n", f"{explained:.4f}"]) + " |")
        axes.plot(values, measured, "o", color="#4477AA")
        axes.plot([0, values[-1]], [offset, offset + slope * values[-1]], color="#666666", linewidth=0.8)
        axes.set(xlabel=NAMES[name], ylabel="seconds", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    lines += ["", f"Peak memory: inference {used['inference']:.0f} MiB, training {used['training']:.0f} MiB "]
    lines[-1] += (
        f"({used['training'] / used['inference']:.2f} times); the cache of these rows, {used['cache']:.0f} MiB, in both."
    )
    record = {
        "usual": USUAL,
        "found": found,
        "peak_mib": used,
    }
    write_results("scaling", record, "\n".join(lines) + "\n")
    figure.savefig(RESULTS / "scaling.png", dpi=130)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
