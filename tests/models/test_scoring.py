"""Shared-prefix scoring and answering against plain loops, for every architecture, adapter and way of batching."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from grun.models.scoring import Prompted, score_rows
from support.adapter_kit import attach
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

PAD = 3


def rows(count: int = 5, seed: int = 0) -> list[Prompted]:
    generator = torch.Generator().manual_seed(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 300, (length,), generator=generator).tolist())

    return [
        Prompted(ids(3 + 5 * i % 9), tuple(ids(1 + (3 * i + 2 * k) % 6) for k in range(i % 4))) for i in range(count)
    ]


def forward(model: nn.Module, ids: list[int], prompt: int) -> torch.Tensor:
    """Logits of one unpadded row, without any cache."""
    more = {"prompt_lengths": torch.tensor([prompt])} if hasattr(model, "peft_config") else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **more).logits[0]


def plain(model: nn.Module, row: Prompted, limit: int, ends: set[int]) -> tuple[list, list[int]]:
    """Scores of every token of every answer, and the greedy answer, one token and one forward call at a time."""
    answers = []
    for answer in row.answers:
        logits = forward(model, [*row.prompt, *answer], len(row.prompt))[len(row.prompt) - 1 : -1].double()
        scores = []
        for token, z in zip(answer, logits, strict=True):
            logps = z.log_softmax(0)
            mean = (logps.exp() * logps).sum()
            deviation = (logps.exp() * (logps - mean) ** 2).sum().clamp_min(1e-6).sqrt()
            scores.append(
                (logps[token].item(), int(logps.argmax()) == token, ((logps[token] - mean) / deviation).item())
            )
        answers.append(scores)
    said: list[int] = []
    while len(said) < limit:
        token = int(forward(model, [*row.prompt, *said], len(row.prompt))[-1].argmax())
        if token in ends:
            break
        said.append(token)
    return answers, said


def assert_equal(
    model: nn.Module, found: list, given: list[Prompted], limit: int = 0, ends: frozenset[int] = frozenset()
) -> None:
    for row, scores in zip(given, found, strict=True):
        answers, said = plain(model, row, limit, set(ends))
        assert len(scores.answers) == len(answers)
        for k, (ours, expected) in enumerate(zip(scores.answers, answers, strict=True)):
            columns = (ours.logps, ours.is_argmax, ours.z) if k == 0 else (ours.logps,)
            for i, column in enumerate(columns):
                assert list(column) == pytest.approx([token[i] for token in expected], abs=1e-4)
        if limit:
            assert scores.generated == said


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_and_answers_equal_plain_loops(arch: str) -> None:
    model = tiny_model(arch)
    ends = frozenset({int(forward(model, list(rows()[0].prompt), 3)[-1].argmax())})  # one row ends at once
    found = score_rows(model, rows(), pad_token_id=PAD, tokens_per_batch=40, max_new_tokens=6, ends=ends)
    assert found[0].generated == []
    assert_equal(model, found, rows(), 6, ends)


@pytest.mark.parametrize("edit_from", ["last_prompt_only", "last_prompt_on"])
@pytest.mark.parametrize("reads", ["last", "prompt"])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2", "opt"])
def test_adapters_edit_where_they_should(arch: str, reads: str, edit_from: str) -> None:
    model = attach(arch, gate_reads=reads, edit_from=edit_from, gate_layer=1)
    found = score_rows(model, rows(), pad_token_id=PAD, tokens_per_batch=64, max_new_tokens=5)
    assert_equal(model, found, rows(), 5)
    for row, scores in zip(rows(), found, strict=True):
        forward(model, [*row.prompt, 11], len(row.prompt))
        said = model.base_model.last_gates["default"]
        assert scores.gate_logits == pytest.approx(said.logits_BG[0].tolist(), abs=1e-5)
        assert scores.gate_values == pytest.approx(said.values_BG[0].tolist(), abs=1e-5)
        assert scores.gate_thresholds == tuple(said.threshold_G.tolist())


@pytest.mark.parametrize("tokens_per_batch", [1, 17, 60, 10_000])
def test_results_do_not_depend_on_how_rows_are_batched(tokens_per_batch: int) -> None:
    model, given = tiny_model(), rows(9)
    one = score_rows(model, given, pad_token_id=PAD, tokens_per_batch=1, max_new_tokens=4)
    other = score_rows(model, given, pad_token_id=PAD, tokens_per_batch=tokens_per_batch, max_new_tokens=4)
    for a, b in zip(one, other, strict=True):
        assert a.generated == b.generated
        for x, y in zip(a.answers, b.answers, strict=True):
            assert x.logps == pytest.approx(y.logps, abs=1e-5)
            assert x.z == pytest.approx(y.z, abs=1e-4)


def test_answers_end_where_the_context_does() -> None:
    model, given = tiny_model(), rows(4)
    found = score_rows(model, given, pad_token_id=PAD, max_new_tokens=20, context=12)
    free = score_rows(model, given, pad_token_id=PAD, max_new_tokens=20)
    for row, short, long in zip(given, found, free, strict=True):
        assert short.generated == (long.generated or [])[: 12 - len(row.prompt)]


def test_every_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = tiny_model(), rows(4)
    read: list[int] = []
    before = model.forward

    def counted(*args, **kwargs):
        read.append(int(kwargs["input_ids"].numel()))
        return before(*args, **kwargs)

    counted.__signature__ = __import__("inspect").signature(before)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", counted)
    score_rows(model, given, pad_token_id=PAD)
    prompts = len(given) * max(len(row.prompt) for row in given)
    answers = [len(answer) - 1 for row in given for answer in row.answers]
    assert read == [prompts, len(answers) * max(answers)]


def test_tokens_that_are_ruled_out_give_numbers() -> None:
    model = tiny_model()
    model.lm_head = nn.Sequential(model.lm_head, RuleOut())
    scores = score_rows(model, [Prompted((11, 12), ((13, 20, 14), (20, 21)))], pad_token_id=PAD)[0].answers
    assert all(torch.isfinite(torch.tensor(scores[0].z)))
    assert scores[0].logps[1] == scores[1].logps[0] == -torch.inf


class RuleOut(nn.Module):
    """Minus infinity for one token of the vocabulary."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([20]), -torch.inf)


def test_padding_of_the_tokenizer_does_not_matter() -> None:
    assert tiny_tokenizer().pad_token_id == PAD
    found = [score_rows(tiny_model(), rows(), pad_token_id=pad, max_new_tokens=3) for pad in (PAD, 0)]
    assert [one.generated for one in found[0]] == [one.generated for one in found[1]]
