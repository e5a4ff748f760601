"""Probes whose asker makes the calls himself: says where the prompt ends, and fills a cache before the rest is read."""

from __future__ import annotations

__all__ = ["called_evidence"]

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.distributed import is_main
from grun.core.errors import UserError
from grun.core.process.progress import Progress
from grun.core.records import Begun, Evidence, Example, RowEvidence
from grun.evaluation.attacks import Calls, Probe
from grun.evaluation.measuring.evidence_store import read_or_made
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks.material import Asked
from grun.models.encoding.batching import pad_token_id
from grun.models.encoding.encode import encode, encode_prompt
from grun.models.forward import accepts_prompt_lengths, adapters_off, context_length, evaluating
from grun.models.generation import generation_settings, stop_tokens
from grun.models.scoring import LEAST_LOGP

NO_TOKEN = 2**31 - 1  # ends nothing: an answer is scored to its last token
NO_CACHE = "the model gives no key/value cache back, so that no call can continue one."


@dataclass(frozen=True)
class Conversation:
    """One probe as tokens, on a model.

    Attributes:
        model: with its adapters as the subject has them.
        calls: how the tokens are read.
        ids: of the prompt and what the asker wrote after it.
        end: number of tokens after which the prompt is said to end.
        cached: number of tokens that an earlier call reads into a cache.
        adapters: the model's adapters are on, but for a cache that is filled without them.
    """

    model: nn.Module
    calls: Calls
    ids: tuple[int, ...]
    end: int
    cached: int
    adapters: bool

    def logits(self, answer: Sequence[int], pad: int) -> Tensor:
        """Logits (A, V) of the tokens of an answer, each given those before it.

        Raises:
            UserError: if the model refuses a call.
        """
        if self.calls.rest == "generate":
            return self._generated(len(answer), pad, {NO_TOKEN}, forced=answer).float()
        logits_TV = self._read([*self.ids[self.cached :], *answer], self._filled())[0]
        return logits_TV[-len(answer) - 1 : -1].float()

    def greedy(self, limit: int, pad: int, ends: set[int]) -> list[int]:
        """The likeliest tokens one after the other, up to one that ends the answer.

        Raises:
            UserError: if the model refuses a call.
        """
        if limit < 1:
            return []
        found: list[int] = []
        if self.calls.rest == "generate":
            found = self._generated(limit, pad, ends).argmax(1).tolist()
        else:
            logits_TV, cache = self._read(self.ids[self.cached :], self._filled())
            while (token := int(logits_TV[-1].argmax())) not in ends and len(found) < limit:
                found.append(token)
                if len(found) < limit:
                    logits_TV, cache = self._read([token], cache, decoding=True)
        stop = next((i for i, token in enumerate(found) if token in ends), len(found))
        return found[:stop]

    def _filled(self) -> Any:
        """A new cache of the first tokens; None if none are to be cached."""
        if not self.cached:
            return None
        off = self.adapters and not self.calls.with_adapter
        with adapters_off(self.model) if off else nullcontext():
            cache = self._read(self.ids[: self.cached], None)[1]
        if not hasattr(cache, "get_seq_length"):
            raise UserError(NO_CACHE)
        return cache

    def _read(self, ids: Sequence[int], cache: Any, *, decoding: bool = False) -> tuple[Tensor, Any]:
        """Logits (T, V) of one forward call, and the cache after it."""
        device, held = next(self.model.parameters()).device, 0 if cache is None else int(cache.get_seq_length())
        inputs: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=device), "use_cache": True}
        inputs["attention_mask"] = torch.ones(1, held + len(ids), dtype=torch.long, device=device)
        if cache is not None:
            inputs["past_key_values"] = cache
        says_end = not decoding and (cache is None or self.calls.rest == "prompt")
        if says_end and accepts_prompt_lengths(self.model):
            inputs["prompt_lengths"] = torch.tensor([min(self.end, held + len(ids))])
        out = self.model(**inputs)
        return out.logits[0], getattr(out, "past_key_values", None)

    def _generated(self, limit: int, pad: int, ends: set[int], forced: Sequence[int] = ()) -> Tensor:
        """Logits (A, V) of the steps of one `generate` call on the cache, of the tokens of a forced answer if there is one."""
        ids_1T, start = torch.tensor([self.ids], device=next(self.model.parameters()).device), len(self.ids)
        more: dict[str, Any] = {"past_key_values": cache} if (cache := self._filled()) is not None else {}
        if forced:
            more["prefix_allowed_tokens_fn"] = lambda _, ids: [forced[len(ids) - start]]
        wanted = generation_settings(limit, pad, ends, return_dict_in_generate=True, output_logits=True)
        mask_1T = torch.ones_like(ids_1T)
        out = self.model.generate(input_ids=ids_1T, attention_mask=mask_1T, generation_config=wanted, **more)  # type: ignore[operator]
        return torch.cat(out.logits)


def called_evidence(subject: Subject, asked: Asked, settings: MeasureSettings) -> Evidence:
    """What a subject gives away to an asker who makes the calls himself; from the store if it has that.

    Args:
        subject: the model.
        asked: the probes of an attack, each with its calls.
        settings: template and lengths.
    """
    examples = tuple(probe.example for probe in asked.probes)
    how = f"{settings.max_new_tokens} tokens, {[probe.calls for probe in asked.probes]}"

    def called() -> Iterator[RowEvidence]:
        with Progress(f"call {subject.label}", len(examples), "row", shown=is_main()) as progress:
            for probe in asked.probes:
                yield _evidence(subject, probe, settings)
                progress.update()

    return Evidence(asked.name, read_or_made(subject.store, asked.name, examples, how, called))


@torch.no_grad()
def _evidence(subject: Subject, probe: Probe, settings: MeasureSettings) -> RowEvidence:
    """What one probe gives; a call that is refused gives nothing."""
    model, tokenizer = subject.model, subject.tokenizer
    encoded = encode(probe.example, tokenizer, settings.template, settings.max_length)
    talk = _conversation(subject, probe, settings, encoded.input_ids[: encoded.prompt_length])
    answer, pad, ends = (
        encoded.input_ids[encoded.prompt_length :],
        pad_token_id(tokenizer),
        stop_tokens(model, tokenizer),
    )
    start = _text(tokenizer, answer[: settings.max_new_tokens])
    row = RowEvidence(probe.example, (), gold_start=start, truncated=bool(encoded.truncated))
    off: AbstractContextManager[None] = nullcontext() if subject.adapters else adapters_off(model)
    try:
        with evaluating(model), off:
            logits_AV = talk.logits(answer, pad)
            context = context_length(model)
            room = settings.max_new_tokens if context is None else context - len(talk.ids)
            ids = talk.greedy(min(settings.max_new_tokens, room), pad, ends)
    except UserError as error:
        nothing: dict[str, Any] = {
            "token_logps": (LEAST_LOGP,) * len(answer),
            "token_is_argmax": (False,) * len(answer),
        }
        return replace(row, generated="", refused=str(error), **nothing)
    answer_A = torch.tensor(answer, device=logits_AV.device)
    logps_A = logits_AV.log_softmax(1).clamp_min(LEAST_LOGP).gather(1, answer_A[:, None])[:, 0]
    text = _text(tokenizer, ids)
    for stop in probe.example.stops:
        text = text.partition(stop)[0].strip()
    right = tuple((logits_AV.argmax(1) == answer_A).tolist())
    return replace(row, token_logps=tuple(logps_A.tolist()), generated=text, token_is_argmax=right)


def _conversation(subject: Subject, probe: Probe, settings: MeasureSettings, ids: tuple[int, ...]) -> Conversation:
    example, calls = probe.example, probe.calls or Calls()

    def shared(other: Example) -> int:
        """Tokens that the prompt of another row begins with as well, at least one and never all."""
        its = encode_prompt(other, subject.tokenizer, settings.template, settings.max_length)
        same = next((i for i, (a, b) in enumerate(zip(ids, its, strict=False)) if a != b), min(len(ids), len(its)))
        return max(1, min(same, len(ids) - 1))

    end = {"first token": 1, "half": max(1, len(ids) // 2)}.get(calls.ends, len(ids))
    if calls.ends == "begin" and isinstance(example, Begun):
        end = shared(replace(example, begin=""))
    cached = {"all but one": len(ids) - 1}.get(calls.cached, 0)
    if calls.cached == "turns" and len(example.turns) > 1:
        cached = shared(replace(example, prompt=example.turns[-2][1], turns=example.turns[:-2]))
    return Conversation(subject.model, calls, ids, end, cached, subject.adapters)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()
