"""Every metric of a whole evaluation equals a straightforward one: one row, one answer, one forward call at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grun.core.records import Example
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics
from grun.evaluation.scores import score, summarise
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.adapter_kit import attach
from support.material import memorise
from support.plain_evaluation import METRICS, Plain, PlainRow
from support.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEMPLATE = resolve_template("qa", TOKENIZER)
NAMES = ("Ada", "Bo", "Cleo", "Dov", "Eli", "Fay")
LONGEST = 12


def rows(kind: str) -> tuple[Example, ...]:
    return tuple(
        Example(
            f"Where was {kind} {name} born?",
            f"In the town of {kind}{i}" + ", by the sea" * (i % 3) + ".",
            paraphrased_answer=f"{name} was born in {kind}{i}." if i % 2 else None,
            perturbed_answers=tuple(f"{name} was born in {kind}{i + k}{'!' * k}" for k in (1, 2, 3)),
        )
        for i, name in enumerate(NAMES)
    )


FORGET, RETAIN, HOLDOUT = rows("Lund"), rows("Marl"), rows("Quin")
SPLITS = {"forget": FORGET, "retain": RETAIN}
NEEDS = frozenset(need for entry in metrics for need in entry.info["needs"])


def learnt(steps: int) -> nn.Module:
    known = [{"question": r.prompt, "answer": r.answer} for r in (*FORGET, *RETAIN)]
    return memorise(known, steps)


@pytest.fixture(scope="module")
def subjects() -> dict[str, nn.Module]:
    model = learnt(120)
    return {"memorised": model, "grun": attach(learnt(120), gate_layer=1), "random": tiny_model()}


def plain_row(row: Example) -> PlainRow:
    def ids(answer: str) -> tuple[list[int], list[int]]:
        one = encode(Example(row.prompt, answer), TOKENIZER, TEMPLATE)
        return list(one.input_ids[: one.prompt_length]), list(one.input_ids[one.prompt_length :])

    prompt, gold = ids(row.answer)
    paraphrased = ids(row.paraphrased_answer)[1] if row.paraphrased_answer else None
    return PlainRow(prompt, gold, paraphrased, [ids(answer)[1] for answer in row.perturbed_answers], row.answer)


@pytest.mark.parametrize("subject", ["memorised", "grun", "random"])
def test_every_metric_equals_the_straightforward_evaluation(
    subjects: dict[str, nn.Module], subject: str, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"forget_split": "forget", "holdout": HOLDOUT}
    settings = MeasureSettings(TEMPLATE, NEEDS, max_new_tokens=LONGEST, tokens_per_batch=200)
    log = EvidenceStore(tmp_path)
    other = tiny_model(initializer_range=0.3)
    measure(Subject(other, TOKENIZER, store=log), SPLITS, settings, **shared)
    model = subjects[subject]
    found = score(measure(Subject(model, TOKENIZER), SPLITS, settings, retain_log=log, **shared), metrics.names())
    plain, reference = (Plain(m.eval(), TOKENIZER, LONGEST) for m in (model, other))
    holdout = [plain_row(row) for row in HOLDOUT]
    for name, expected in METRICS.items():
        splits = (
            ["forget"] if "holdout" in metrics.get(name).info["needs"] or name == "forget_quality" else list(SPLITS)
        )
        for split in splits:
            given = [plain_row(row) for row in SPLITS[split]]
            value = expected(plain, given, holdout=holdout, other=reference)
            assert found[split][name].value == pytest.approx(value, abs=1e-4), f"{name} of {split}"


def test_perplexity_is_that_of_the_base_model_on_what_the_adapter_says(subjects: dict[str, nn.Module]) -> None:
    model = subjects["grun"]
    settings = MeasureSettings(TEMPLATE, frozenset({"token_logps", "generated", "fluency"}), max_new_tokens=LONGEST)
    evidence = measure(Subject(model, TOKENIZER), SPLITS, settings, forget_split="forget")
    base, plain = Plain(learnt(120), TOKENIZER, LONGEST), Plain(model, TOKENIZER, LONGEST)
    logps: list[float] = []
    for row in FORGET:
        one = plain_row(row)
        ids: list[int] = []
        while len(ids) < LONGEST:
            token = int(plain.logits(one.prompt, [*ids, 0])[-1].argmax())
            if token == TOKENIZER.eos_token_id:
                break
            ids.append(token)
        logps += base.logps(one.prompt, ids) if ids else []
    found = score(evidence, ["perplexity_under_base"])["forget"]["perplexity_under_base"]
    assert found.value == pytest.approx(float(torch.tensor(logps).mean().neg().exp()), rel=1e-4)


def test_model_utility_is_the_harmonic_mean_of_its_parts(subjects: dict[str, nn.Module]) -> None:
    settings = MeasureSettings(TEMPLATE, max_new_tokens=LONGEST)
    evidence = measure(Subject(subjects["memorised"], TOKENIZER), SPLITS, settings, forget_split=None)
    found = score(evidence)
    parts = [found["retain"][name].value for name in ("probability", "rouge_l_recall", "truth_ratio_utility")]
    parts += [
        found["forget"][name].value for name in ("probability_normalised", "rouge_l_recall", "truth_ratio_utility")
    ]
    value = summarise(evidence, {"retain": False, "forget": True})["model_utility"].value
    assert value == pytest.approx(len(parts) / sum(1 / (part or 0) for part in parts))
    assert summarise(evidence, {})["model_utility"].value is None
    assert "'general' was not measured" in str(summarise(evidence, {"general": True})["model_utility"].reason)
