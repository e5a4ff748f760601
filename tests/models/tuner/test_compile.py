"""`torch.compile` of the base model, of the whole model or of its layers changes nothing that adapters do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.adapter_kit import attach, make_rows, pad


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_part(model: Any, part: str) -> None:
    """Parts are traced and guarded as always; only the code that they become is that of eager mode, for the bits' sake."""
    layers = [layer.base_layer for layer in model.base_model.runtime.layers]
    for module in {"base": [model.get_base_model()], "whole": [model], "layers": layers}[part]:
        module.compile(backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at all of them
@pytest.mark.parametrize("part", ["base", "whole", "layers"])
def test_compiled_models_answer_and_learn_as_others_do(part: str) -> None:
    plain, compiled = (attach(gate_layer=0, gate_window=2) for _ in range(2))
    compile_part(compiled, part)
    batch = pad(make_rows(2))
    prompts = {"input_ids": torch.tensor([[20, 30, 40, 50], [21, 31, 41, 51]])}
    prompts["attention_mask"] = torch.ones_like(prompts["input_ids"])
    found = []
    for model in (plain, compiled):
        answers = [model.generate(**prompts, max_new_tokens=5, min_new_tokens=5, do_sample=False)]
        for buffer in (b for name, b in model.named_buffers() if name.endswith("threshold")):
            buffer.fill_(1e9)  # from here on nothing is edited
        answers.append(model.generate(**prompts, max_new_tokens=5, min_new_tokens=5, do_sample=False))
        for buffer in (b for name, b in model.named_buffers() if name.endswith("threshold")):
            buffer.fill_(-1e9)
        model.train()
        loss = model(**batch.inputs).logits.square().mean()
        loss.backward()
        gradients = [p.grad for name, p in model.named_parameters() if ".grun_edit." in name]
        found.append((answers, loss.detach(), gradients))
    (answers, loss, gradients), (compiled_answers, compiled_loss, compiled_gradients) = found
    assert not torch.equal(*answers)
    assert all(torch.equal(a, b) for a, b in zip(answers, compiled_answers, strict=True))
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_gradients, gradients)
