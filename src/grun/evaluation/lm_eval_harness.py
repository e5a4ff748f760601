"""Models with adapters in lm-evaluation-harness: `grun lm-eval --model grun --model_args pretrained=...,adapter=...`.

The harness scores prompt and continuation in one call and does not pass the end of the prompt on, but an adapter acts at its
last token. Here every continuation is scored after its own prompt, which is read once for all of its continuations.
"""

from __future__ import annotations

__all__ = ["GrunLM", "run_harness"]

import sys
import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from grun.core.errors import UserError
from grun.core.process.progress import Progress
from grun.core.storage.directories import disk
from grun.models.encoding.batching import pad_token_id
from grun.models.forward import evaluating
from grun.models.loading.fit import Complete, check_decoder, check_finite
from grun.models.loading.pretrained import found_files, load_adapter
from grun.models.loading.reading import quiet, refusing
from grun.models.loading.sources import model_source
from grun.models.scoring import TOKENS_PER_BATCH, Prompted, score_rows

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, tokens of the prompt, tokens of the continuation


@register_model("grun")
class GrunLM(HFLM):
    """The harness's Hugging Face model with an adapter of any PEFT type on it.

    Args:
        pretrained: hub id or folder of the base model, or of the run that made it.
        adapter: folder of the adapter, or of the run that made it; without it, the base model.
        tokens_per_batch: most tokens of a forward pass that scores continuations, padding included.
        others: arguments of the harness's model `hf`.
    """

    def __init__(
        self, pretrained: str, adapter: str | None = None, tokens_per_batch: int = TOKENS_PER_BATCH, **others: Any
    ) -> None:
        source, self._said = model_source(pretrained), f"--model_args pretrained={pretrained}"
        files = found_files(source, self._said)
        with quiet(), refusing(self._said):
            super().__init__(pretrained=source.place, **files, **others)
        check_finite(self.model, self._said)
        check_decoder(self.model, self.tokenizer, self._said)
        self.tokens_per_batch = int(tokens_per_batch)
        if adapter is not None:
            self._model: Any = load_adapter(self.model, adapter)

    def _create_model(self, *args: Any, **others: Any) -> None:
        usual: Any = self.AUTO_MODEL_CLASS
        self.AUTO_MODEL_CLASS: Any = Complete(usual, self._said)
        try:
            super()._create_model(*args, **others)
        finally:
            self.AUTO_MODEL_CLASS = usual

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one.

        As in the harness, a request that is longer than the model's context loses its first tokens.
        """
        after: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, (_, prompt, continuation) in enumerate(requests):
            whole = (prompt + continuation)[-(self.max_length + 1) :]
            cut = len(whole) - min(len(continuation), len(whole) - 1)
            after[tuple(whole[:cut])][tuple(whole[cut:])].append(i)
        rows = [Prompted(prompt, tuple(continuations)) for prompt, continuations in after.items()]
        with (
            evaluating(self.model),
            Progress("prompts", len(rows), "prompt", shown=not disable_tqdm and self.rank == 0) as progress,
        ):
            scored = score_rows(
                self.model,
                rows,
                pad_token_id=pad_token_id(self.tokenizer),
                tokens_per_batch=self.tokens_per_batch,
                every_answer_in_detail=True,
                with_gates=False,
                progress=progress.update,
            )
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for continuations, scores in zip(after.values(), scored, strict=True):
            for places, one in zip(continuations.values(), scores.answers, strict=True):
                for i in places:
                    found[i] = (sum(one.logps), all(one.is_argmax))
        for (texts, _, _), value in zip(requests, found, strict=True):
            if texts is not None:  # windows of running text have none
                self.cache_hook.add_partial("loglikelihood", texts, value)
        return found


def run_harness(arguments: Sequence[str]) -> None:
    """Run the harness's own command line, with the model `grun` unless another one is named.

    Raises:
        UserError: if the harness fails by itself, without anything of this package at work.
    """
    given = list(arguments)
    if given and given[0] in ("ls", "validate"):
        sys.argv = ["lm-eval", *given]
    else:
        named = any(argument == "--model" or argument.startswith("--model=") for argument in given)
        command = given if given and given[0] == "run" else ["run", *given]
        sys.argv = ["lm-eval", *command, *([] if named else ["--model", "grun"])]
    try:
        cli_evaluate()
    except Exception as error:  # the harness and what it reads data sets with raise anything at all
        if _is_ours(error) or disk.reason_of(error) is not None:
            raise
        said = (str(error).strip() or "without a reason").splitlines()[0].rstrip(".")
        raise UserError(f"lm-evaluation-harness stopped ({type(error).__name__}): {said}.") from error


def _is_ours(error: Exception) -> bool:
    """True if a function of this package called what failed."""
    frames = traceback.walk_tb(error.__traceback__ and error.__traceback__.tb_next)
    return isinstance(error, UserError) or any(
        str(frame.f_globals.get("__name__")).startswith("grun.") for frame, _ in frames
    )
