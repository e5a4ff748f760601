"""What adapters cost in `generate`: 64 tokens with none, one, ten and a hundred of them; ratios of one run.

    python benchmarks/generation.py [--pyreft-python /path/to/python]

A Llama of 16 layers and hidden size 512 with random weights, edits at layers 10, 12 and 15, prompts of 30 tokens, 1 and 8 at a
time. Gates are forced shut (any prompt but those to be forgotten) or open. The ways take turns. pyreft is timed in a process
of its own, beside a bare model of its own. Writes `docs/results/generation.json` and `.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from grun.adapters.config import GrunConfig

RESULTS = Path(__file__).parent.parent / "docs" / "results"
LAYERS, RANK, PROMPT, TOKENS = [10, 12, 15], 4, 30, 64
MODEL: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}


def with_adapters(base: nn.Module, count: int, is_open: bool, **settings: Any) -> Any:
    """The model with so many adapters, all active, their gates forced open or shut."""
    model: Any = None
    for i in range(count):
        config = GrunConfig(rank=RANK, layers=LAYERS, **settings)
        if model is None:
            model = get_peft_model(copy.deepcopy(base), config, adapter_name="a0")
        else:
            model.add_adapter(f"a{i}", config)
    model.base_model.set_adapter([f"a{i}" for i in range(count)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".grun_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith("threshold"):
                buffer.fill_(-1e9 if is_open else 1e9)
    return model.eval()


def answered(model: Any, ids: torch.Tensor) -> float:
    """Seconds of one answer to all prompts."""
    start = time.perf_counter()
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return time.perf_counter() - start


def with_pyreft(python: str, rows: int, repeats: int) -> list[list[float]]:
    """Seconds without and with the intervention."""
    setting = {"model": MODEL, "layers": LAYERS, "rank": RANK, "objective": "npo", "repeats": repeats}
    setting |= {"rows": [[5] * (PROMPT + 2)] * rows, "prompts": [PROMPT] * rows, "threads": torch.get_num_threads()}
    setting |= {"generate": {"prompt": PROMPT, "tokens": TOKENS}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(setting, file)
        file.flush()
        script = Path(__file__).with_name("pyreft_step.py")
        done = subprocess.run([python, str(script), file.name], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Time everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyreft-python", help="interpreter of an environment with pyreft 0.1.0 and pyvene 0.1.8")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**MODEL)).eval()
    paper = {"gate_hidden": [256, 64], "gate_reads": "last", "gate_layer": None, "edit_from": "last_prompt_only"}
    ways = {
        "bare model": base,
        "one adapter, shut": with_adapters(base, 1, False, gate_layer=0),
        "one adapter, open": with_adapters(base, 1, True, gate_layer=0),
        "one adapter, the paper's setting, open": with_adapters(base, 1, True, **paper),
        "10 adapters, shut": with_adapters(base, 10, False, gate_layer=0),
        "100 adapters, shut": with_adapters(base, 100, False, gate_layer=0),
        "100 adapters, open": with_adapters(base, 100, True, gate_layer=0),
    }
    found: dict[str, Any] = {}
    lines = ["| rows | way | median, ms | over the bare model |", "| ---: | --- | ---: | ---: |"]
    for rows in (1, 8):
        ids = torch.randint(10, MODEL["vocab_size"], (rows, PROMPT))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.repeats + 1):
            for name, model in ways.items():
                one = answered(model, ids)
                if turn:
                    seconds[name].append(one)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        over = {name: value / medians["bare model"] - 1 for name, value in medians.items()}
        if given.pyreft_python:
            bare, intervened = with_pyreft(given.pyreft_python, rows, given.repeats)
            seconds |= {"pyreft, bare model": bare, "pyreft": intervened}
            medians["pyreft"] = statistics.median(intervened)
            over["pyreft"] = medians["pyreft"] / statistics.median(bare) - 1
        found[str(rows)] = {"seconds": seconds, "median": medians, "over_the_bare_model": over}
        lines += [f"| {rows} | {name} | {1000 * value:.0f} | {over[name]:+.1%} |" for name, value in medians.items()]
    record = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "model": MODEL,
        "found": found,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "generation.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "generation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
