"""Measuring models: everything is measured once per row, then every metric reads it."""

from __future__ import annotations

__all__ = ["HOLDOUT", "evaluate_model", "measure"]

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from grun.core.distributed import gathered, is_main, rank, wait, world
from grun.core.errors import UserError
from grun.core.records import Evidence, Example, RowEvidence, Score
from grun.data.paraphrases import PARAPHRASED, Splits, with_paraphrases
from grun.evaluation.evidence_store import EvidenceStore
from grun.evaluation.gather import EVERYTHING, gather
from grun.evaluation.scores import needs_of_metrics, score, usual_metrics
from grun.models.encoding.templates import Template
from grun.models.scoring import TOKENS_PER_BATCH

T = TypeVar("T")
HOLDOUT = "holdout"
NOT_NEEDED = {
    HOLDOUT: {"generated", "fluency", "paraphrased", "perturbed"}
}  # by split; attacks look at true answers only


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    *,
    forget_split: str | None,
    template: Template,
    needs: Collection[str] = EVERYTHING,
    holdout: Sequence[Example] = (),
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_new_tokens: int = 200,
    answer_tokens: Mapping[str, int] = MappingProxyType({}),
    max_length: int | None = None,
    adapters: bool = True,
    base: nn.Module | None = None,
    store: EvidenceStore | None = None,
    retain_log: EvidenceStore | None = None,
    label: str = "evaluate",
) -> dict[str, Evidence]:
    """Evidence of every split of `with_paraphrases(splits)`, with a progress bar on standard error.

    Args:
        forget_split: name of the split that is to be forgotten; others are compared with it.
        needs: what metrics look at; what nobody needs is not computed.
        holdout: rows like those of the forget split that no model was trained on.
        answer_tokens: longest greedy answer of splits where that is not `max_new_tokens`.
        base: the model before unlearning, where it is another one than `model` with adapters off.
        store: keeps the evidence of every split as soon as it is complete, and has that of an interrupted evaluation.
        retain_log: evidence of a model trained on retain data only, of the same rows.
        label: of the progress bar.

    Raises:
        UserError: for an empty split, a `forget_split` that is not among them, or a retain log of other rows.
    """
    every = with_paraphrases(splits)
    if forget_split is not None and forget_split not in every:
        raise UserError(f"the forget split '{forget_split}' is not among the splits {', '.join(every)}.")
    if holdout and "holdout" in needs and forget_split is not None:
        every[HOLDOUT] = tuple(holdout)
    logs = {name: retain_log.read(name, rows) if retain_log else None for name, rows in every.items()}
    rows: dict[str, tuple[RowEvidence, ...]] = {}
    total = sum(len(_own_share(examples)) for examples in every.values())
    with tqdm(total=total, desc=label, unit="row", disable=None if is_main() else True, dynamic_ncols=True) as bar:
        for name, examples in every.items():
            looked_at = set(needs) - NOT_NEEDED.get(name, set() if name == forget_split else {"gradient"})
            limit = answer_tokens.get(name.removesuffix(PARAPHRASED), max_new_tokens)
            asked = f"{sorted(looked_at)}, {limit} tokens"
            kept = None if store is None else store.read(name, examples, asked)
            if kept is None:
                share = gather(
                    model,
                    tokenizer,
                    _own_share(examples),
                    template=template,
                    needs=looked_at,
                    tokens_per_batch=tokens_per_batch,
                    max_new_tokens=limit,
                    max_length=max_length,
                    adapters=adapters,
                    base=base,
                    progress=bar.update,
                )
                kept = _joined_shares(gathered(share), len(examples))
            else:
                bar.update(len(_own_share(examples)))
            rows[name] = kept
            if store is not None and is_main():
                store.write(name, kept, asked)
            wait()
    forget, paraphrased = rows.get(forget_split or ""), rows.get(f"{forget_split}{PARAPHRASED}")
    unseen, unseen_log = rows.pop(HOLDOUT, None), logs.pop(HOLDOUT, None)
    found = {}
    for name, own in rows.items():
        if name in (forget_split, f"{forget_split}{PARAPHRASED}"):
            found[name] = Evidence(name, own, holdout=unseen, retain_log=logs[name], holdout_retain_log=unseen_log)
        else:
            found[name] = Evidence(name, own, forget, paraphrased, retain_log=logs[name])
    return found


def _own_share(rows: Sequence[T]) -> Sequence[T]:
    """What this process measures of a split: every `world`-th row."""
    return rows[rank() :: world()]


def _joined_shares(shares: Sequence[Sequence[T]], count: int) -> tuple[T, ...]:
    """The rows of all processes in their order."""
    return tuple(shares[i % len(shares)][i // len(shares)] for i in range(count))


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    *,
    forget_split: str | None,
    template: Template,
    metrics: Sequence[str] | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    max_new_tokens: int = 200,
    max_length: int | None = None,
    adapters: bool = True,
    label: str = "evaluate",
) -> dict[str, dict[str, Score]]:
    """Scores of a model by split and metric. What no metric looks at is not computed.

    Raises:
        UserError: for an empty split, an unknown metric, or a `forget_split` that is not among the splits.
    """
    evidence = measure(
        model,
        tokenizer,
        splits,
        forget_split=forget_split,
        template=template,
        needs=needs_of_metrics(metrics or usual_metrics()),
        tokens_per_batch=tokens_per_batch,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        adapters=adapters,
        label=label,
    )
    return score(evidence, metrics or usual_metrics())
