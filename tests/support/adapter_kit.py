"""What the adapter tests share: models with an adapter that clearly does something, and padded rows."""

from __future__ import annotations

__all__ = ["CONFIGS", "Padded", "attach", "config_id", "make_rows", "pad", "pad_one", "randomise", "reference_state"]

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from grun.models.tuner.config import GrunConfig
from support.tiny_models import VOCABULARY, tiny_model

PAD, FIRST_WORD = 3, 10
CONFIGS: tuple[dict[str, Any], ...] = tuple(
    {"gate_reads": reads, "edit_from": edit, "gate_layer": layer}
    for reads, edit, layer in product(("last", "prompt"), ("last_prompt_only", "last_prompt_on"), (None, 1))
)


def config_id(options: dict[str, Any]) -> str:
    """A readable name of a parametrised configuration."""
    return "-".join(str(value) for value in options.values())


def attach(model: Any = "llama", seed: int = 2, **options: Any) -> Any:
    """A model (or tiny architecture) in evaluation mode, with a randomised adapter at layers 1 and 3."""
    base = tiny_model(model) if isinstance(model, str) else model
    options = {"rank": 2, "layers": [1, 3], "gate_hidden": [8], **options}
    peft_model = get_peft_model(base, GrunConfig(**options)).eval()
    randomise(peft_model, seed)
    return peft_model


def randomise(model: PeftModel, seed: int = 1, adapter: str = "default") -> None:
    """Give an adapter random parameters: edits that change the output, gates that differ between prompts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".grun_" in name and f".{adapter}." in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.copy_(noise * (0.6 if ".grun_edit." in name else 0.8))


@dataclass(frozen=True)
class Padded:
    """A padded batch; labels are -100 on prompts and padding."""

    ids_BT: Tensor
    mask_BT: Tensor
    labels_BT: Tensor
    prompt_lengths_B: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward call, with `prompt_lengths`."""
        return {"input_ids": self.ids_BT, "attention_mask": self.mask_BT, "prompt_lengths": self.prompt_lengths_B}

    def row(self, logits_BTV: Tensor, i: int) -> Tensor:
        """Row `i` of batched logits, without padding."""
        return logits_BTV[i][self.mask_BT[i].bool()]


def make_rows(count: int = 4, seed: int = 0) -> list[tuple[Tensor, int]]:
    """Rows of random tokens of different lengths, and the length of each one's prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        prompt, answer = 3 + (5 * i) % 7, 2 + (3 * i) % 4
        rows.append((torch.randint(FIRST_WORD, VOCABULARY, (prompt + answer,), generator=generator), prompt))
    return rows


def pad(rows: list[tuple[Tensor, int]], side: str = "right", extra: int = 0) -> Padded:
    """Rows in one batch, padded on one side (`extra` columns more than needed), or "both"."""
    width = max(len(ids) for ids, _ in rows) + extra
    ids_BT = torch.full((len(rows), width), PAD)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -100)
    for i, (ids, prompt) in enumerate(rows):
        start = {"right": 0, "left": width - len(ids), "both": (width - len(ids)) // 2}[side]
        ids_BT[i, start : start + len(ids)] = ids
        mask_BT[i, start : start + len(ids)] = 1
        labels_BT[i, start + prompt : start + len(ids)] = ids[prompt:]
    return Padded(ids_BT, mask_BT, labels_BT, torch.tensor([prompt for _, prompt in rows]))


def pad_one(row: tuple[Tensor, int]) -> Padded:
    """One row, unpadded."""
    return pad([row])


def reference_state(model: PeftModel) -> dict[str, Tensor]:
    """A copy of an adapter's checkpoint whose tensors can be differentiated."""
    state = get_peft_model_state_dict(model)
    return {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in state.items()}
