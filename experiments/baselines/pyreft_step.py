"""A training step of the same gated intervention with pyreft; run by the experiments with an interpreter that has pyreft.

    /path/to/python experiments/baselines/pyreft_step.py setting.json

`setting.json` holds the model's configuration, the layers, the rows and the number of repeats. The seconds of each repeat go
to standard output as JSON: of training steps, or, with `generate`, of answers without and with the intervention. Needs pyreft
0.1.0, pyvene 0.1.8 and a release of transformers that they work with (4.45.1).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyreft
import pyvene
import torch
from pyreft.interventions import LowRankRotateLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class GatedLoreft(
    pyvene.SourcelessIntervention, pyvene.TrainableIntervention, pyvene.DistributedRepresentationIntervention
):
    """`h + sigmoid(f(h)) * R^T (W h + b - R h)` with an MLP d-256-64-1 for `f`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, keep_last_dim=True)
        rank = settings["low_rank_dimension"]
        rotation = LowRankRotateLayer(self.embed_dim, rank, init_orth=True)
        self.rotate_layer = torch.nn.utils.parametrizations.orthogonal(rotation)
        self.learned_source = nn.Linear(self.embed_dim, rank)
        self.gate = nn.Sequential(
            nn.Linear(self.embed_dim, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        self.logits: list[Tensor] = []

    def forward(self, base: Tensor, source: Any = None, subspaces: Any = None) -> Tensor:
        logit = self.gate(base)
        self.logits.append(logit)
        rotation: Any = self.rotate_layer
        edit = torch.matmul(self.learned_source(base) - rotation(base), rotation.weight.T)
        return (base + torch.sigmoid(logit) * edit).to(base.dtype)


def intervened(model: nn.Module, setting: dict[str, Any]) -> tuple[Any, list[GatedLoreft]]:
    """The model in pyreft's wrapper, and the intervention of each layer."""
    sizes = {"embed_dim": setting["model"]["hidden_size"], "low_rank_dimension": setting["rank"]}
    gates = [GatedLoreft(**sizes) for _ in setting["layers"]]
    parts = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": setting["rank"],
            "intervention": gate,
        }
        for layer, gate in zip(setting["layers"], gates, strict=True)
    ]
    return pyreft.get_reft_model(model, pyreft.ReftConfig(representations=parts), set_device=False), gates


def padded(rows: list[list[int]], prompts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and labels of the rows, padded on the right to one width."""
    ids_BT = torch.full((len(rows), max(map(len, rows))), 0)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens = torch.tensor(row)
        ids_BT[i, : len(row)], mask_BT[i, : len(row)], labels_BT[i, prompt : len(row)] = tokens, 1, tokens[prompt:]
    return ids_BT, mask_BT, labels_BT


def logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability of each label from the second column on, 0 where there is none."""
    return -nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2), labels_BT[:, 1:], reduction="none", ignore_index=-100
    )


def forget_loss(objective: str, logps_BT: Tensor, base_logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """The objective on the first half of the rows."""
    half = len(labels_BT) // 2
    if objective == "npo":
        with torch.no_grad():
            reference_BT = logps(base_logits_BTV, labels_BT)
        ratio_B = (logps_BT - reference_BT)[:half].sum(1)
        return -(2 / 0.1) * nn.functional.logsigmoid(-0.1 * ratio_B).mean()
    sign = 1.0 if objective == "gd" else -1.0
    return sign * logps_BT[:half].sum() / (labels_BT[:half] != -100).sum()


def training_step(adapted: Any, gates: list[GatedLoreft], setting: dict[str, Any]) -> Callable[[], None]:
    """A step on the same rows again and again; the first half of them is to be forgotten, the second to be kept."""
    prompts = setting["prompts"]
    ids_BT, mask_BT, labels_BT = padded(setting["rows"], prompts)
    half = len(ids_BT) // 2
    positions = [[[prompt - 1] for prompt in prompts]] * len(gates)
    target_B = torch.cat([torch.ones(half), torch.zeros(len(ids_BT) - half)])
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=4e-3)

    def step() -> None:
        for gate in gates:
            gate.logits.clear()
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
        base, out = adapted(inputs, unit_locations={"sources->base": (None, positions)}, output_original_output=True)
        logps_BT = logps(out.logits, labels_BT)
        forget = forget_loss(setting["objective"], logps_BT, base.logits, labels_BT)
        retain = -logps_BT[half:].sum() / (labels_BT[half:] != -100).sum()
        logits_BG = torch.cat([gate.logits[-1].view(len(ids_BT), 1) for gate in gates], dim=1)
        gate_loss = nn.functional.binary_cross_entropy_with_logits(logits_BG, target_B[:, None].expand_as(logits_BG))
        optimizer.zero_grad()
        (forget + retain + 10.0 * gate_loss).backward()
        optimizer.step()

    return step


def answering(model: Any, adapted: Any, setting: dict[str, Any]) -> list[Callable[[], Any]]:
    """An answer to the prompts without and one with the intervention."""
    width, count = setting["generate"]["prompt"], setting["generate"]["tokens"]
    ids_BT = padded(setting["rows"], setting["prompts"])[0][:, :width]
    prompt = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
    more: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    last = [[[ids_BT.shape[1] - 1]] * len(ids_BT)] * len(setting["layers"])
    where = {"unit_locations": {"sources->base": (None, last)}, "intervene_on_prompt": True}
    return [lambda: model.generate(**prompt, **more), lambda: adapted.generate(prompt, **where, **more)]


def main() -> None:
    """Time training steps, or answers."""
    setting = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(setting["threads"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**setting["model"]))
    adapted, gates = intervened(model, setting)
    works = answering(model, adapted, setting) if "generate" in setting else [training_step(adapted, gates, setting)]
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
