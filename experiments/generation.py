"""Cost of adapters in `generate`: 64 tokens with none, one, ten and a hundred of them; ratios of one run.

    python experiments/generation.py [--pyreft-python /path/to/python]

The model is a Llama of 16 layers and hidden size 512 with random weights and edits at layers 10, 12 and 15. Prompts have 30
tokens and come 1 and 8 at a time. Gates are forced shut (as for any prompt but those to be forgotten) or open. The ways take
turns. pyreft is timed in a separate process, together with a bare model. Writes `docs/results/generation.json` and `.md`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from typing import Any

import torch
from common import LAYERS, MODEL, RANK, with_pyreft, write_results
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from grun.models.tuner.config import GrunConfig

PROMPT, TOKENS = 30, 64


def with_adapters(base: nn.Module, count: int, is_open: bool, **settings: Any) -> Any:
    """The model with `count` adapters, all active, their gates forced open or shut."""
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
    """Seconds that it takes to answer all prompts once."""
    start = time.perf_counter()
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    return time.perf_counter() - start


def main() -> None:
    """Time all ways and write the table."""
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
            generate = {"prompt": PROMPT, "tokens": TOKENS}
            both = {"rows": [[5] * (PROMPT + 2)] * rows, "prompts": [PROMPT] * rows, "repeats": given.repeats}
            bare, intervened = with_pyreft(given.pyreft_python, objective="npo", generate=generate, **both)
            seconds |= {"pyreft, bare model": bare, "pyreft": intervened}
            medians["pyreft"] = statistics.median(intervened)
            over["pyreft"] = medians["pyreft"] / statistics.median(bare) - 1
        found[str(rows)] = {"seconds": seconds, "median": medians, "over_the_bare_model": over}
        lines += [f"| {rows} | {name} | {1000 * value:.0f} | {over[name]:+.1%} |" for name, value in medians.items()]
    record = {
        "model": MODEL,
        "found": found,
    }
    write_results("generation", record, "\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
