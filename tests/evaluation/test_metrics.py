"""Metrics against rouge-score, scikit-learn and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sklearn.metrics import roc_auc_score, roc_curve

from grun.core.records import Evidence, Example, RowEvidence, Score
from grun.evaluation.metrics import auroc, metrics, tpr_at_low_fpr
from support.evidence_kit import compared, row


def score(name: str, *rows: RowEvidence, **others: Any) -> Score:
    return metrics.get(name).target(Evidence("retain", rows, **others))


logps = st.lists(st.floats(-30, 0), min_size=1, max_size=8).map(tuple)


@given(st.lists(logps, min_size=1, max_size=6))
def test_probability_is_the_geometric_mean_over_tokens_then_the_mean_over_rows(rows: list[tuple[float, ...]]) -> None:
    expected = np.mean([math.prod(math.exp(p / len(r)) for p in r) for r in rows])
    assert score("probability", *[row(r) for r in rows]).value == pytest.approx(float(expected), rel=1e-9)


def test_an_impossible_token_makes_an_answer_impossible() -> None:
    assert score("probability", row((-math.inf, -1.0))).value == 0.0


def plain_lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


words = st.lists(st.sampled_from(["one", "two", "red", "sea", "cat"]), min_size=1, max_size=7)


@given(words, words)
def test_rouge_is_recall_of_the_gold_answer(gold: list[str], said: list[str]) -> None:
    pair = row(answer=" ".join(gold), generated=" ".join(said))
    assert score("rouge_l_recall", pair).value == pytest.approx(plain_lcs(gold, said) / len(gold))
    hits = sum(min(gold.count(word), said.count(word)) for word in set(gold))
    assert score("rouge_1_recall", pair).value == pytest.approx(hits / len(gold))


def test_rouge_stems_words_and_agrees_with_the_reference_package() -> None:
    gold, said = "She wrote books about running foxes.", "A book about a fox that runs, she writes."
    scorer = rouge_scorer.RougeScorer(["rougeL", "rouge1"], use_stemmer=True)
    expected = scorer.score(gold, said)
    assert score("rouge_l_recall", row(answer=gold, generated=said)).value == expected["rougeL"].recall
    assert score("rouge_1_recall", row(answer=gold, generated=said)).value == expected["rouge1"].recall
    assert score("rouge_1_recall", row(answer="books", generated="book")).value == 1.0


def test_rouge_cannot_read_other_scripts_and_says_so() -> None:
    found = score("rouge_l_recall", row(), row(answer="Москва", generated="Москва"))
    assert found.value is None
    assert "row 2" in str(found.reason)
    assert "Latin" in str(found.reason)


@pytest.mark.parametrize(
    ("said", "expected"),
    [("Ada wrote it.", 1), ("  Ada\n wrote  it. ", 1), ("ada wrote it.", 0), ("Ada wrote it", 0), ("", 0)],
)
def test_exact_match_ignores_white_space_and_nothing_else(said: str, expected: int) -> None:
    assert score("exact_match", row(answer="Ada wrote it.", generated=said)).value == expected


numbers = st.lists(st.integers(-4, 4).map(float) | st.floats(-50, 50), min_size=1, max_size=20)


@given(numbers, numbers)
def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_one_half(
    positive: list[float], negative: list[float]
) -> None:
    wins = [float(p > n) + 0.5 * float(p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(math.fsum(wins) / len(wins), abs=1e-12)


@pytest.mark.parametrize("statistic", [auroc, tpr_at_low_fpr])
def test_what_cannot_be_ranked_is_refused(statistic: Callable[..., float]) -> None:
    for positive, negative in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="both sides need at least one value, and no value may be NaN"):
            statistic(positive, negative)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_attacks_are_summed_up_as_scikit_learn_does(members: int, others: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    positive, negative = draw.normal(0.7, 1, members).round(1), draw.normal(0, 1, others).round(1)
    labels, scores = [1] * members + [0] * others, [*positive, *negative]
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(labels, scores))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert tpr_at_low_fpr(positive, negative) == pytest.approx(tpr[fpr <= 0.01].max())


def test_a_row_counts_by_its_widest_gate() -> None:
    forget = (row(logits=(5.0, -9.0)), row(logits=(-9.0, 4.0)))
    normal = (row(logits=(1.0, 2.0)), row(logits=(3.0, 0.0)))
    found = score("gate_auroc", *normal, forget=forget, forget_paraphrased=normal)
    assert found.value == 1.0
    assert found.per_gate == (0.5, 0.5)
    assert score("gate_auroc_paraphrased", *normal, forget=forget, forget_paraphrased=normal).value == 0.5
    shut = (row(values=(0.0, 0.25)), row(values=(0.0, 0.0)))
    assert score("gate_mean", *shut).per_row == (0.25, 0.0)
    assert score("gate_mean", *shut).per_gate == (0.0, 0.125)
    assert score("gate_open", *shut).value == 0.5
    assert score("gate_open", *shut).per_gate == (0.0, 0.5)


def test_several_gates_are_ranked_by_the_largest_margin_above_a_threshold() -> None:
    """The largest logits rank these rows the other way round: the second gate's logits are large, and so is its threshold."""
    known: dict[str, Any] = {"thresholds": (0.0, 9.0)}
    forget = (row(logits=(2.0, 1.0), **known), row(logits=(-9.0, 12.0), **known))
    normal = (row(logits=(-1.0, 8.5), **known), row(logits=(-2.0, 7.0), **known))
    found = score("gate_auroc", *normal, forget=forget, forget_paraphrased=forget[:1])
    assert found.value == 1.0
    assert found.groups == ((2.0, 3.0), (-0.5, -2.0))
    assert found.per_gate == (0.5, 0.5)
    assert score("gate_auroc_paraphrased", *normal, forget_paraphrased=forget[:1]).value == 1.0


@pytest.mark.parametrize("thresholds", [None, (0.0, -math.inf)], ids=["earlier evidence", "a gate without one"])
def test_without_all_thresholds_the_largest_logit_ranks(thresholds: tuple[float, ...] | None) -> None:
    forget = (row(logits=(2.0, 1.0), thresholds=(0.0, 9.0)), row(logits=(-9.0, 12.0), thresholds=thresholds))
    normal = (row(logits=(-1.0, 8.5), thresholds=(0.0, 9.0)),)
    assert score("gate_auroc", *normal, forget=forget).groups == ((2.0, 12.0), (8.5,))


def test_a_single_gate_is_ranked_as_in_earlier_evidence() -> None:
    normal, forget = row(logits=(1.0,), thresholds=(0.5,)), row(logits=(4.0,))
    assert score("gate_auroc", normal, forget=(forget,)).groups == ((4.0,), (1.0,))


def test_gates_are_not_compared_on_the_forget_split_itself() -> None:
    found = score("gate_auroc", row())
    assert found.value is None
    assert "no forget rows" in str(found.reason)


right = st.lists(st.booleans(), min_size=1, max_size=8)


def matched(flags: list[bool], truncated: bool = False) -> RowEvidence:
    end = () if truncated else (True,)
    return RowEvidence(
        Example("Who?", "Ada."), (-1.0,) * len(flags), truncated=truncated, token_is_argmax=(*flags, *end)
    )


@given(right, st.booleans())
def test_memorisation_counts_tokens_without_the_end(flags: list[bool], truncated: bool) -> None:
    given_row = matched(flags, truncated)
    assert score("exact_memorization", given_row).value == pytest.approx(sum(flags) / len(flags))
    shortest = next(k for k in range(len(flags) + 1) if all(flags[k:]))
    assert score("extraction_strength", given_row).value == pytest.approx(1 - shortest / len(flags))


def test_an_answer_whose_last_token_is_wrong_cannot_be_extracted() -> None:
    assert score("extraction_strength", matched([True, True, False])).value == 0.0


def test_a_model_against_itself_is_indistinguishable_and_keeps_its_secrets() -> None:
    rows = tuple(row((-0.1 * i - 0.1, -1.0)) for i in range(6))
    assert score("forget_quality", *rows, **compared(*rows)).value == pytest.approx(1.0)
    for name in (name for name in metrics.names() if name.startswith("mia_")):
        assert score(name, *rows, **compared(*rows)).value == (0.0 if name.endswith("_tpr") else 0.5)
    assert score("forget_quality_log10", *rows, **compared(*rows)).value == pytest.approx(0.0)
    assert score("privleak", *rows, **compared(*rows)).value == pytest.approx(0.0)


def test_privacy_leakage_says_on_which_side_of_a_retrained_model_a_model_is() -> None:
    def rows(*values: float) -> tuple[RowEvidence, ...]:
        return tuple(row((value, value, 0.0)) for value in values)

    unseen, retrained = rows(-1.0, -2.0, -3.0, -4.0), rows(-1.5, -2.5, -3.5, -0.5)
    common = {"holdout": unseen, "retain_log": retrained, "holdout_retain_log": unseen}
    below = score("mia_min_k", *retrained, holdout=unseen).value
    assert below is not None
    for values, expected in (((-0.1, -0.2, -0.3, -0.4), 0.0), ((-9.0, -9.0, -9.0, -9.0), 1.0)):
        found = score("privleak", *rows(*values), **common).value
        assert found == pytest.approx(100 * (expected - (1 - below)) / (1 - below))


def test_the_floor_of_the_published_extraction_strength() -> None:
    wrong_at_the_end = matched([True, True, False, False])
    assert score("extraction_strength", wrong_at_the_end).value == 0.0
    assert score("extraction_strength_published", wrong_at_the_end).value == 0.25
    by_heart = matched([True, True, True])
    assert score("extraction_strength_published", by_heart).value == score("extraction_strength", by_heart).value == 1.0


@pytest.mark.parametrize(
    ("said", "distinct", "entropy"),
    [("", 1.0, 0.0), ("sea", 1.0, 0.0), ("sea sea sea sea", 1 / 3, 0.0), ("The sea the Sea", 2 / 3, 1.0)],
)
def test_repetition_shows(said: str, distinct: float, entropy: float) -> None:
    assert score("distinct_bigrams", row(generated=said)).value == pytest.approx(distinct)
    assert score("word_entropy", row(generated=said)).value == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ("I'm sorry, but I don't know anything about that.", True),
        ("He was born in Bonn. He died in Vienna", False),
        ("He was born in Bonn. He died in Vienna!", True),
        ("Is it so?", True),
        ('She said: "I do not know."', True),
        ("(It is **not known**.)", True),
        ("很抱歉，我对此一无所知。", True),
        ("很抱歉，我对此一无所知", False),
        ("माफ़ कीजिए, मुझे इसके बारे में कुछ नहीं पता।", True),
        ("ما هو البركان؟", True),
        ("I don't't't't't", False),
        ("I don't't't't't.", False),
        ("I'm not sure. I'm not sure. I'm not sure.", False),
        ("Bonn.", False),
        ("...", False),
        ("", False),
    ],
)
def test_whole_sentences_end_and_do_not_stammer(said: str, whole: bool) -> None:
    assert score("whole_sentences", row(generated=said)).value == whole


@given(words)
def test_diversity_is_the_product_of_the_shares_of_different_ngrams(said: list[str]) -> None:
    expected = 1.0
    for n in (2, 3, 4):
        grams = [" ".join(said[i : i + n]) for i in range(len(said) - n + 1)]
        expected *= len(set(grams)) / len(grams) if grams else 1.0
    assert score("diversity", row(generated=" ".join(said))).value == pytest.approx(expected)


def test_diversity_sees_repetitions_inside_of_what_spaces_part() -> None:
    found = [
        score("diversity", row(generated=said)).value for said in ("I don't't't't't", "好好好好好好", "a b c d e f")
    ]
    assert found == [pytest.approx(4 / 11 * 4 / 10 * 4 / 9), pytest.approx(1 / 5 * 1 / 4 * 1 / 3), 1.0]
