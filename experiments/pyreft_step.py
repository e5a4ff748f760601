"""A training step of the same gated intervention with pyreft; run by `training_step.py` with an interpreter that has it.

    /path/to/python benchmarks/pyreft_step.py setting.json

`setting.json` says what model, which layers, how long rows are and how often to repeat; the seconds of each repeat go to
standard output as JSON: of training steps, or, with `generate`, of answers without and with the intervention. Needs pyreft
0.1.0, pyvene 0.1.8 and a release of transformers that they work with (4.45.1).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyreft
import pyvene
import torch
from pyreft.interventions import LowRankRotateLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class GatedLoreft(
    pyvene.SourcelessIntervention, pyvene.TrainableIntervention, pyvene.DistributedRepresentationIntervention
):
    """`h + sigmoid(f(h)) * R^T (W h + b - R h)` with an MLP d-256-64-1 for `f`."""

    def __init__(self, **settings):
        super().__init__(**settings, keep_last_dim=True)
        rank = settings["low_rank_dimension"]
        rotation = LowRankRotateLayer(self.embed_dim, rank, init_orth=True)
        self.rotate_layer = torch.nn.utils.parametrizations.orthogonal(rotation)
        self.learned_source = nn.Linear(self.embed_dim, rank)
        self.gate = nn.Sequential(
            nn.Linear(self.embed_dim, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        self.logits: list[torch.Tensor] = []

    def forward(self, base, source=None, subspaces=None):
        logit = self.gate(base)
        self.logits.append(logit)
        edit = torch.matmul(self.learned_source(base) - self.rotate_layer(base), self.rotate_layer.weight.T)
        return (base + torch.sigmoid(logit) * edit).to(base.dtype)


def main() -> None:
    """Time the steps."""
    setting = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**setting["model"]))
    parts = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": setting["rank"],
            "intervention": GatedLoreft(embed_dim=setting["model"]["hidden_size"], low_rank_dimension=setting["rank"]),
        }
        for layer in setting["layers"]
    ]
    adapted = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=parts), set_device=False)
    gates = [part["intervention"] for part in parts]
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=4e-3)
    rows = [torch.tensor(row) for row in setting["rows"]]
    prompts = setting["prompts"]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), 0)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)], labels[i, prompt : len(row)] = row, 1, row[prompt:]
    positions = [[[prompt - 1] for prompt in prompts]] * len(setting["layers"])
    half = len(rows) // 2
    target = torch.cat([torch.ones(half), torch.zeros(len(rows) - half)])

    def step() -> None:
        for gate in gates:
            gate.logits.clear()
        inputs = {"input_ids": ids, "attention_mask": mask}
        base, out = adapted(inputs, unit_locations={"sources->base": (None, positions)}, output_original_output=True)
        logp = -nn.functional.cross_entropy(
            out.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
        )
        if setting["objective"] == "npo":
            with torch.no_grad():
                reference = -nn.functional.cross_entropy(
                    base.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
                )
            ratio = (logp - reference)[:half].sum(1)
            forget = -(2 / 0.1) * nn.functional.logsigmoid(-0.1 * ratio).mean()
        else:
            sign = 1.0 if setting["objective"] == "gd" else -1.0
            forget = sign * logp[:half].sum() / (labels[:half] != -100).sum()
        retain = -logp[half:].sum() / (labels[half:] != -100).sum()
        logits = torch.cat([gate.logits[-1].view(len(rows), 1) for gate in gates], dim=1)
        gate_loss = nn.functional.binary_cross_entropy_with_logits(logits, target[:, None].expand_as(logits))
        optimizer.zero_grad()
        (forget + retain + 10.0 * gate_loss).backward()
        optimizer.step()

    def answer(bare: bool) -> None:
        prompt = {"input_ids": ids[:, : setting["generate"]["prompt"]]}
        prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        count = setting["generate"]["tokens"]
        more = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        if bare:
            model.generate(**prompt, **more)
            return
        last = [[[prompt["input_ids"].shape[1] - 1]] * len(rows)] * len(setting["layers"])
        adapted.generate(prompt, unit_locations={"sources->base": (None, last)}, intervene_on_prompt=True, **more)

    works = [step] if "generate" not in setting else [lambda: answer(True), lambda: answer(False)]
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(setting["repeats"] + 1):
        for work, own in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                own.append(time.perf_counter() - start)
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
