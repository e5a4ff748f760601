"""Scores and greedy answers from one reading of each prompt, whose keys and values serve all its answers.

The rows of a batch are padded on the left, so that all prompts end in the same column. After the prompts, each answer is read
on top of a copy of its prompt's cache. Greedy decoding continues from the cache itself and drops a row once it has ended.
"""

from __future__ import annotations

__all__ = ["LEAST_LOGP", "TOKENS_PER_BATCH", "Prompted", "RowScores", "TokenScores", "score_rows", "selected_rows"]

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.encoding.batching import length_batches
from grun.models.forward import accepts_prompt_lengths, forward_parameters, gates_of_last_call, thresholds_of_last_call

TOKENS_PER_BATCH = 2048
LEAST_VARIANCE = 1e-6
LEAST_LOGP = -1e4  # of tokens that a model rules out: minus infinity times a probability of 0 would not be a number


@dataclass(frozen=True)
class Prompted:
    """A prompt and the answers to be scored after it, as token ids; every answer has at least one token."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TokenScores:
    """Scores of each token of an answer, given the prompt and the tokens before it.

    Attributes:
        logps: log-probability, in nats.
        is_argmax: true for the likeliest token; of a row's first answer only, unless all were asked for.
        z: log-probability in standard deviations above its mean under the model's own distribution (Min-K%++); likewise.
    """

    logps: tuple[float, ...]
    is_argmax: tuple[bool, ...] = ()
    z: tuple[float, ...] = ()


@dataclass
class RowScores:
    """Scores of one row.

    Attributes:
        answers: scores of each answer, in order.
        generated: token ids of the greedy answer, without the token that ended it; None if none was asked for.
        gate_logits, gate_values, gate_thresholds: one per gate of the adapter; None without a gated adapter. Thresholds are
            logits, the same for all rows; that of a gate without one is minus infinity.
    """

    answers: list[TokenScores] = field(default_factory=list)
    generated: list[int] | None = None
    gate_logits: tuple[float, ...] | None = None
    gate_values: tuple[float, ...] | None = None
    gate_thresholds: tuple[float, ...] | None = None


@torch.no_grad()
def score_rows(
    model: nn.Module,
    rows: Sequence[Prompted],
    *,
    pad_token_id: int,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_new_tokens: int = 0,
    ends: Iterable[int] = (),
    context: int | None = None,
    every_answer_in_detail: bool = False,
    with_gates: bool = True,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[RowScores]:
    """Score all answers of all rows and, if asked, answer every prompt greedily; batching does not change the result.

    Args:
        model: a causal language model in evaluation mode, with or without adapters.
        rows: prompts with their answers.
        pad_token_id: token that pads rows.
        tokens_per_batch: largest number of tokens of a forward pass, padding included; a single row may have more.
        max_new_tokens: longest greedy answer; 0 for none.
        ends: tokens that end an answer.
        context: longest input of the model, in tokens; answers end there.
        every_answer_in_detail: compute `is_argmax` and `z` for all answers, not only for the first of each row.
        with_gates: return gate logits and values; leave it off while adapters are off.
        progress: called after each batch with its number of rows.
    """
    found = [RowScores() for _ in rows]
    for index in _batches([len(row.prompt) for row in rows], tokens_per_batch):
        batch = _PromptBatch(model, [rows[i].prompt for i in index], pad_token_id)
        with batch.reading():
            batch.read()
            gates = batch.gates() if with_gates else None
            answers = [rows[i].answers for i in index]
            for position, scores in batch.score(answers, tokens_per_batch, every_answer_in_detail):
                found[index[position]].answers.append(scores)
            if max_new_tokens:
                for i, ids in zip(index, batch.answer(max_new_tokens, set(ends), context), strict=True):
                    found[i].generated = ids
        for position, i in enumerate(index):
            if gates is not None:
                found[i].gate_logits, found[i].gate_values = (tuple(side[position].tolist()) for side in gates[:2])
                found[i].gate_thresholds = tuple(gates[2].tolist())
        progress(len(index))
    return found


class _PromptBatch:
    """Prompts, padded on the left, and their cache once they have been read."""

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.model = model
        self.pad = pad
        width = max(map(len, prompts))
        self.device = next(model.parameters()).device
        self.lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        self.ids_BP = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        self.mask_BP = (torch.arange(width, device=self.device) >= width - self.lengths_B[:, None]).long()
        self.cache: Any = None
        self.first_BV = torch.empty(0)

    def reading(self) -> Any:
        """Context in which the model takes all calls as continuations of these prompts."""
        generating = getattr(getattr(self.model, "base_model", None), "generating", None)
        return nullcontext() if generating is None else generating(self.mask_BP.bool())

    def read(self) -> None:
        """Read the prompts once."""
        more = {"prompt_lengths": self.lengths_B} if accepts_prompt_lengths(self.model) else {}
        positions_BP = (self.mask_BP.cumsum(1) - 1).clamp_min(0)
        out = self.forward(self.ids_BP, self.mask_BP, positions_BP, None, keep=1, **more)
        self.cache, self.first_BV = out.past_key_values, out.logits[:, -1].float()

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Any, keep: int | None = None, **more: Any
    ) -> Any:
        """A forward call that continues from a cache; `keep` is the number of last columns whose logits are wanted."""
        known = forward_parameters(self.model)
        if "position_ids" in known:
            more["position_ids"] = positions_BT
        if keep is not None and "logits_to_keep" in known:
            more["logits_to_keep"] = keep
        return self.model(input_ids=ids_BT, attention_mask=mask_BT, past_key_values=cache, use_cache=True, **more)

    def gates(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Gate logits and values of these prompts, (B, G) each, and the gates' thresholds (G,); None without gates."""
        found = gates_of_last_call(self.model) if accepts_prompt_lengths(self.model) else None
        threshold_G = None if found is None else thresholds_of_last_call(self.model)
        return None if found is None or threshold_G is None else (*found, threshold_G)

    def score(
        self, answers: Sequence[Sequence[Sequence[int]]], tokens_per_batch: int, every_answer_in_detail: bool
    ) -> Iterator[tuple[int, TokenScores]]:
        """Scores of all answers, each with the number of its row; those of a row in their order."""
        pairs = [(row, k, answer) for row, own in enumerate(answers) for k, answer in enumerate(own)]
        done: dict[tuple[int, int], TokenScores] = {}
        for chunk in _batches([len(answer) for _, _, answer in pairs], tokens_per_batch):
            chosen = [pairs[i] for i in chunk]
            scores = self._score(
                [row for row, _, _ in chosen],
                [answer for _, _, answer in chosen],
                [every_answer_in_detail or k == 0 for _, k, _ in chosen],
            )
            done |= {(row, k): one for (row, k, _), one in zip(chosen, scores, strict=True)}
        for row, k, _ in pairs:
            yield row, done[row, k]

    def _score(
        self, rows: Sequence[int], answers: Sequence[Sequence[int]], in_detail: Sequence[bool]
    ) -> list[TokenScores]:
        """One forward pass over answers (without their last tokens, which predict nothing) after copies of their prompts."""
        index_Y = torch.tensor(rows, device=self.device)
        lengths_Y = torch.tensor([len(answer) for answer in answers], device=self.device)
        width = int(lengths_Y.max()) - 1
        first_YV, first_Y = self.first_BV[index_Y], torch.tensor([answer[0] for answer in answers], device=self.device)
        parts = [(first_YV, first_Y)]
        if width:
            ids_YA = torch.tensor([[*a, *[self.pad] * (width + 1 - len(a))] for a in answers], device=self.device)
            columns_A = torch.arange(width, device=self.device)
            real_YA = columns_A < lengths_Y[:, None] - 1
            mask_YT = torch.cat([self.mask_BP[index_Y], real_YA.long()], dim=1)
            positions_YA = self.lengths_B[index_Y][:, None] + columns_A
            out = self.forward(ids_YA[:, :-1], mask_YT, positions_YA, selected_rows(self.cache, index_Y))
            parts.append((out.logits[real_YA].float(), ids_YA[:, 1:][real_YA]))
        logps = [z.gather(1, y[:, None]).squeeze(1) - z.logsumexp(1) for z, y in parts]
        found = [TokenScores(tuple(values)) for values in _joined(logps, lengths_Y)]
        closer_Y = torch.tensor(in_detail, device=self.device)
        if bool(closer_Y.any()):
            of_token = [closer_Y, closer_Y.repeat_interleave(lengths_Y - 1)][: len(parts)]
            details = [_in_detail(z[c], p[c], y[c]) for (z, y), p, c in zip(parts, logps, of_token, strict=True)]
            columns = [_joined(list(column), lengths_Y[closer_Y]) for column in zip(*details, strict=True)]
            for i, is_argmax, z in zip(closer_Y.nonzero().squeeze(1).tolist(), *columns, strict=True):
                found[i] = TokenScores(found[i].logps, tuple(is_argmax), tuple(z))
        return found

    def answer(self, limit: int, ends: set[int], context: int | None) -> list[list[int]]:
        """Greedy answers; they use the cache up. A row leaves the batch once it has ended, so it waits for no longer one."""
        texts: list[list[int]] = [[] for _ in self.lengths_B]
        room = [limit if context is None else min(limit, context - int(n)) for n in self.lengths_B]
        rows, mask_BT, lengths_B = list(range(len(texts))), self.mask_BP, self.lengths_B
        tokens = self.first_BV.argmax(1)
        for step in range(limit):
            said = tokens.tolist()
            going = [i for i, (row, t) in enumerate(zip(rows, said, strict=True)) if t not in ends and step < room[row]]
            for i in going:
                texts[rows[i]].append(said[i])
            going = [i for i in going if len(texts[rows[i]]) < room[rows[i]]]
            if not going:
                break
            if len(going) < len(rows):
                index = torch.tensor(going, device=self.device)
                self.cache.batch_select_indices(index)
                rows, tokens, mask_BT, lengths_B = (
                    [rows[i] for i in going],
                    tokens[index],
                    mask_BT[index],
                    lengths_B[index],
                )
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
            out = self.forward(tokens[:, None], mask_BT, (lengths_B + step)[:, None], self.cache)
            self.cache, tokens = out.past_key_values, out.logits[:, -1].argmax(1)
        return texts


def _joined(parts: Sequence[Tensor], lengths_Y: Tensor) -> list[list[Any]]:
    """Values answer by answer, from those of all first tokens and those of all others."""
    first = parts[0].tolist()
    others = parts[1].split((lengths_Y - 1).tolist()) if len(parts) > 1 else [torch.empty(0)] * len(first)
    return [[one, *more.tolist()] for one, more in zip(first, others, strict=True)]


def _in_detail(logits_NV: Tensor, logps_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Mask of targets that are the likeliest token, and standard scores of the targets' log-probabilities."""
    logps_NV = logits_NV.log_softmax(1).clamp_min(LEAST_LOGP)
    p_NV = logps_NV.exp()
    mean_N = (p_NV * logps_NV).sum(1)
    variance_N = ((p_NV * logps_NV.square()).sum(1) - mean_N.square()).clamp_min(LEAST_VARIANCE)
    return logits_NV.argmax(1) == targets_N, (logps_N.clamp_min(LEAST_LOGP) - mean_N) / variance_N.sqrt()


def selected_rows(cache: Any, index: Tensor) -> Any:
    """A cache of some of the rows (a row may come several times); the one given stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index)
    return chosen


def _batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first, none with more tokens than allowed unless it is one row."""
    return length_batches(lengths, max(1, len(lengths)), tokens_per_batch)
