"""Cost of a training step from a cached prefix, on whole rows, with pyreft, LoRA, full fine-tuning: ratios of one run.

    python experiments/training_step.py [--pyreft-python /path/to/python]

The model is a Llama of 16 layers and hidden size 512 with random weights and edits at layers 10, 12 and 15; 8 forget and 8
retain rows are as long as TOFU's. Each way takes a step of the same optimiser on the same rows. The ways take turns, so that
other work of the machine falls on all of them. pyreft needs an environment of its own and is timed in a separate process.
Whole runs of `grun unlearn` follow, from a cached prefix and by the plain path. Earlier times stay where a part is not asked
for again. Writes `docs/results/training_step.json` and `.md`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import LAYERS, MODEL, RANK, RESULTS, TokenEncoder, with_pyreft, write_results
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from grun.core.config.jobs import UnlearnConfig
from grun.data.benchmarks import load_benchmark
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import with_presets
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import gates_of_last_call
from grun.models.loading.from_scratch import learn_tokenizer
from grun.models.tuner.config import GrunConfig
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.forward_engines.plain import PlainEngine
from grun.training.forward_engines.prefix.engine import PrefixEngine
from grun.training.loss.recipe import recipe_of
from grun.training.loss.terms import loss_terms, split_sides
from grun.training.trainer import JoinSides

WAYS = ("cached prefix", "plain path", "LoRA, rank 4", "full fine-tuning", "bare forward")


def drawn_rows(count: int, seed: int) -> list[Encoded]:
    """Random tokens; prompts and answers as long as in TOFU (15 to 40 and 20 to 80 tokens)."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        prompt, answer = round(draw.triangular(15, 40, 25)), round(draw.triangular(20, 80, 45))
        rows.append(Encoded(tuple(draw.randrange(10, MODEL["vocab_size"]) for _ in range(prompt + answer)), prompt, 0))
    return rows


def adapted(model: nn.Module, preset: str) -> nn.Module:
    """The model with a GRUN adapter: the paper's setting, or ours with a frozen gate, as after its fit."""
    if preset == "paper":
        return get_peft_model(model, GrunConfig.paper(rank=RANK, layers=LAYERS))
    found = get_peft_model(model, GrunConfig(rank=RANK, layers=LAYERS, gate_layer=0))
    for name, parameter in found.named_parameters():
        if ".grun_gate." in name:
            parameter.requires_grad = False
    return found


def step_of(
    model: nn.Module, rows: dict[str, list[Encoded]], objective: str, preset: str, engine: ForwardEngine
) -> Callable[[], None]:
    """A training step on the same rows again and again; quantities of the base model are computed beforehand."""
    config = with_presets(UnlearnConfig(objective=objective, preset=preset if preset == "paper" else "default"))
    recipe = recipe_of(config)
    gated = any(p.requires_grad for n, p in model.named_parameters() if ".grun_gate." in n)
    references = {
        side: engine.references(rows[side], range(len(rows[side])), recipe.references(side)) for side in recipe.sides
    }
    items = [
        {side: (rows[side][i], {q: v[i] for q, v in references[side].items()}) for side in recipe.sides}
        for i in range(len(rows["retain"]))
    ]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    join = JoinSides(engine)
    wanted = recipe.wanted()

    def step() -> None:
        batch = join(items)
        joined = engine.signals(model, batch, wanted)
        sides = split_sides(joined, batch["sides"], batch["references"], batch["token_counts"])
        gates = gates_of_last_call(model) if gated else None
        terms = loss_terms(recipe, sides, None if gates is None else gates[0])
        loss = recipe.weights.forget * terms.forget
        loss = loss if terms.retain is None else loss + recipe.weights.retain * terms.retain
        loss = loss if terms.gate is None else loss + recipe.weights.gate * terms.gate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ways_of(rows: dict[str, list[Encoded]], objective: str, preset: str) -> dict[str, Callable[[], None]]:
    """A step of every way, each with its own model."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**MODEL)).eval()
    cached, plain = (adapted(copy.deepcopy(base), preset) for _ in range(2))
    encoder = TokenEncoder()
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    tuned = copy.deepcopy(base).requires_grad_(True)
    whole = collate([row for side in rows.values() for row in side], encoder.pad)

    @torch.no_grad()
    def bare() -> None:
        base(**whole.model_inputs())

    return {
        "cached prefix": step_of(cached, rows, objective, preset, PrefixEngine(cached, encoder)),
        "plain path": step_of(plain, rows, objective, preset, PlainEngine(plain, encoder)),
        "LoRA, rank 4": step_of(lora, rows, objective, "none", PlainEngine(lora, encoder)),
        "full fine-tuning": step_of(tuned, rows, objective, "none", PlainEngine(tuned, encoder)),
        "bare forward": bare,
    }


def timed(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every step of every way; the ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, step in ways.items():
            start = time.perf_counter()
            step()
            if turn:  # the first time includes work that is done once
                found[name].append(time.perf_counter() - start)
    return found


def pyreft_seconds(python: str, rows: dict[str, list[Encoded]], objective: str, repeats: int) -> list[float]:
    """Seconds of a step with pyreft."""
    both = [row for side in rows.values() for row in side]
    ids, prompts = [row.input_ids for row in both], [row.prompt_length for row in both]
    return with_pyreft(python, rows=ids, prompts=prompts, objective=objective, repeats=repeats)[0]


def whole_jobs(objective: str, steps: int) -> dict[str, dict[str, float]]:
    """Facts of whole runs of `grun unlearn`, both ways: fitted gates, a validation every 25 steps, the best state kept."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        data = load_benchmark("fictional", seed=0)
        texts = [f"{row.prompt} {row.answer}" for rows in data.splits.values() for row in rows]
        tokenizer = learn_tokenizer(texts, MODEL["vocab_size"])
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**MODEL)).save_pretrained(f"{folder}/target")
        tokenizer.save_pretrained(f"{folder}/target")
        for way, cached in (("cached prefix", True), ("plain path", False)):
            config = UnlearnConfig(
                model=f"{folder}/target",
                benchmark="fictional",
                objective=objective,
                layers=",".join(map(str, LAYERS)),
                batch_size=8,
                steps=steps,
                prefix_cache=cached,
                output=f"{folder}/{cached}",
            )
            start = time.perf_counter()
            unlearn(config)
            facts = json.loads(Path(f"{folder}/{cached}/metrics.json").read_text())
            cache = facts.get("prefix_cache", {})
            found[way] = {**cache, "seconds": time.perf_counter() - start, "building": cache.get("seconds", 0.0)}
    return found


def table(found: dict[str, Any], jobs: dict[str, Any]) -> str:
    """All measurements as Markdown."""
    head = ["objective", "setting", *WAYS, "pyreft", "plain / cached", "pyreft / cached", "full / cached"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(WAYS) + 4)]
    for name, one in found.items():
        medians = one["median"]
        cells = [f"{1000 * medians[way]:.0f} ms" if way in medians else "–" for way in (*WAYS, "pyreft")]
        ratios = [
            f"{medians[way] / medians['cached prefix']:.1f}" if way in medians else "–"
            for way in ("plain path", "pyreft", "full fine-tuning")
        ]
        lines.append("| " + " | ".join([*name.split(", "), *cells, *ratios]) + " |")
    for objective, ways in jobs.items():
        one, other = (ways[way]["seconds"] for way in ("cached prefix", "plain path"))
        lines += [
            "",
            f"A whole run of `grun unlearn` ({objective}, {ways['steps']} steps): {one:.0f} s from a cached prefix, ",
        ]
        lines[-1] += (
            f"{ways['cached prefix']['building']:.0f} s of them to build it, and {other:.0f} s by the plain path: "
        )
        lines[-1] += f"{other / one:.1f} times as fast."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Time the objectives that were asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyreft-python", help="interpreter of an environment with pyreft 0.1.0 and pyvene 0.1.8")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--steps", type=int, default=200, help="of the whole runs; 200 are the default of `grun unlearn`"
    )
    parser.add_argument("--objectives", nargs="*", default=["gd", "idk", "npo"], help="of the steps to time (again)")
    parser.add_argument(
        "--jobs", nargs="*", default=["npo", "idk"], help="objectives of the whole runs to time (again)"
    )
    given = parser.parse_args()
    rows = {"forget": drawn_rows(8, 1), "retain": drawn_rows(8, 2)}
    rows["refusal"] = [replace(row, input_ids=row.input_ids[: row.prompt_length + 12]) for row in rows["forget"]]
    file = RESULTS / "training_step.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found, jobs = known.get("steps", {}), known.get("whole_runs", {})
    for objective in given.objectives:
        for preset in ("default", "paper"):
            own = {side: rows[side] for side in ("refusal" if objective == "idk" else "forget", "retain")}
            seconds = timed(ways_of(own, objective, preset), given.repeats)
            gc.collect()
            if given.pyreft_python and preset == "paper":
                seconds["pyreft"] = pyreft_seconds(given.pyreft_python, own, objective, given.repeats)
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            found[f"{objective}, {preset}"] = {"seconds": seconds, "median": medians}
    for objective in given.jobs:
        jobs[objective] = {**whole_jobs(objective, given.steps), "steps": given.steps}
    record = {
        "model": MODEL,
        "steps": found,
        "whole_runs": jobs,
    }
    write_results("training_step", record, table(found, jobs))
    sys.stdout.write(table(found, jobs))


if __name__ == "__main__":
    main()
