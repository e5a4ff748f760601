"""The fit of gates for topics: what they keep, what they are judged on, and the map that they look through."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from grun.models.gates.topics import fitting as topic_fitting
from grun.models.gates.topics import head as topic_head
from grun.models.gates.topics.fitting import OPEN_LOGIT, KeptPrompts, fit_topic_gate, withheld_logits
from grun.models.gates.topics.head import learnt_head
from grun.models.gates.topics.prompt_states import PromptStates
from grun.models.tuner.readers.topic import TopicGate, TopicHead, embedding
from support.topic_kit import random_units

WIDTH, STATE = 6, 24


def kept_prompts(count: int, groups: int, seed: int, kind: str = "g") -> KeptPrompts:
    """Random prompts; without groups every one is alone."""
    drawn = random.Random(seed)
    names = (f"{kind} {drawn.randrange(groups) if groups else i}" for i in range(count))
    return KeptPrompts(random_units(count, WIDTH, seed), tuple(names))


def gate_with(forget: Tensor, normal: Tensor, nearest: int) -> TopicGate:
    gate = TopicGate(STATE, WIDTH, nearest=nearest)
    gate.keep(forget, normal)
    gate.scale.fill_(7.0)
    gate.bias.fill_(-0.5)
    return gate


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_a_prompt_is_judged_by_a_gate_that_does_not_keep_its_group(seed: int, nearest: int, groups: int) -> None:
    forget, normal = kept_prompts(20, groups, seed), kept_prompts(40, groups + 2, seed + 1)
    gate = gate_with(forget.embedding_NK, normal.embedding_NK, nearest)
    for prompts in (forget, normal, KeptPrompts(random_units(5, WIDTH, seed + 2), ("somewhere else",) * 5)):
        found_N = withheld_logits(gate, prompts, forget, normal)
        for i, group in enumerate(prompts.groups):
            near, far = [
                kept.embedding_NK[[k for k, name in enumerate(kept.groups) if name != group]]
                for kept in (forget, normal)
            ]
            if min(len(near), len(far)) >= nearest:
                expected_1 = gate_with(near, far, nearest).logits(prompts.embedding_NK[i : i + 1])
                torch.testing.assert_close(found_N[i : i + 1], expected_1, atol=1e-4, rtol=1e-4)


def test_prompts_of_no_group_that_is_kept_are_judged_by_the_gate_as_it_is() -> None:
    forget, normal = kept_prompts(30, 0, 0, "f"), kept_prompts(700, 5, 1, "n")
    gate = gate_with(forget.embedding_NK, normal.embedding_NK, 3)
    other = KeptPrompts(random_units(600, WIDTH, 2), ("other",) * 600)  # more than one part of the product
    torch.testing.assert_close(withheld_logits(gate, other, forget, normal), gate.logits(other.embedding_NK))


@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.sampled_from([0, 2, 9]))
@settings(max_examples=40, deadline=None)
def test_at_most_the_rate_of_normal_prompts_is_above_the_open_logit(seed: int, rate: float, groups: int) -> None:
    forget, normal = kept_prompts(12, 0, seed, "f"), kept_prompts(60, groups, seed + 1, "n")
    gate = TopicGate(STATE, WIDTH)
    kept = fit_topic_gate(gate, forget, normal, rate)
    logits_N = withheld_logits(gate, normal, forget, kept)
    share = float((logits_N > OPEN_LOGIT + 1e-4).float().mean())
    assert share <= rate + 1e-6
    if rate < 1:  # and no fewer than that, but for prompts with the same logit
        assert float((logits_N >= OPEN_LOGIT - 1e-4).float().mean()) >= int(rate * 60) / 60
    assert torch.equal(gate.forget, forget.embedding_NK)
    assert kept.groups == normal.groups
    assert torch.equal(gate.normal, normal.embedding_NK)


def test_of_many_normal_prompts_the_closest_are_kept_and_some_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_fitting, "MOST_KEPT", 40)
    forget, normal = kept_prompts(5, 0, 0, "f"), kept_prompts(300, 0, 1, "n")
    chosen = [fit_topic_gate(TopicGate(STATE, WIDTH), forget, normal, 0.01, seed=seed) for seed in (0, 0, 1)]
    assert [len(kept.groups) for kept in chosen] == [40] * 3
    assert chosen[0].groups == chosen[1].groups != chosen[2].groups
    closest = (normal.embedding_NK @ forget.embedding_NK.T).amax(1).topk(20).indices.tolist()
    for kept in chosen:
        numbers = [int(group.split()[1]) for group in kept.groups]
        assert numbers == sorted(numbers)
        assert set(closest) <= set(numbers)
        assert torch.equal(kept.embedding_NK, normal.embedding_NK[numbers])
        assert max(numbers) - min(numbers) > 200


# --- the head ---

TOPIC_COUNT, TEXTS, LENGTH, TELLING = 24, 8, 10, 6


def made_up(seed: int = 0) -> tuple[PromptStates, list[int]]:
    """Texts on topics: two of ten tokens tell the topic, in a few directions; noise in all other directions is larger."""
    generator = torch.Generator().manual_seed(seed)
    topics_TF = torch.randn(TOPIC_COUNT, TELLING, generator=torch.Generator().manual_seed(99))
    own, labels = [], []
    for topic in range(TOPIC_COUNT):
        for _ in range(TEXTS):
            h_PD = 1.5 * torch.randn(LENGTH, STATE, generator=generator)
            h_PD[:, :TELLING] *= 0.2
            h_PD[3:5, :TELLING] += topics_TF[topic]
            own.append((20 * h_PD).to(torch.bfloat16))
            labels.append(topic)
    return PromptStates(50 * torch.ones(3, STATE, dtype=torch.bfloat16), own), labels


def embedded(head: TopicHead, states: PromptStates) -> Tensor:
    parts = []
    for h_PD in states.own:
        h_1PD = torch.cat([states.shared_PD, h_PD])[None].float()
        parts.append(embedding(head.summary(h_1PD, torch.ones(h_1PD.shape[:2], dtype=torch.bool))))
    return torch.cat(parts)


def found_topics(embedding_NK: Tensor, labels: list[int]) -> float:
    """Share of texts whose nearest other text is on the same topic."""
    similarity_NN = (embedding_NK @ embedding_NK.T).fill_diagonal_(-2.0)
    label_N = torch.tensor(labels)
    return float((label_N[similarity_NN.argmax(1)] == label_N).float().mean())


@pytest.fixture(scope="module")
def head() -> TopicHead:
    return learnt_head(*made_up(), WIDTH, seed=3)


def test_a_learnt_head_tells_topics_of_texts_that_it_never_saw(head: TopicHead) -> None:
    states, labels = made_up(seed=1)
    embedding_NK = embedded(head, states)
    torch.testing.assert_close(embedding_NK.norm(dim=1), torch.ones(len(labels)))
    means_ND = nn.functional.normalize(torch.stack([h_PD.float().mean(0) for h_PD in states.own]), dim=1)
    learnt, plain = found_topics(embedding_NK, labels), found_topics(means_ND, labels)
    assert learnt > plain + 0.2
    assert learnt > 0.6


def test_a_head_depends_on_its_seed_alone(head: TopicHead) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    again = learnt_head(*made_up(), WIDTH, seed=3)
    assert torch.equal(torch.get_rng_state(), before), "the global random state is left alone"
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(head).items())
    assert again.digest == head.digest
    assert learnt_head(*made_up(), WIDTH, seed=4).digest != head.digest


def test_a_head_for_raw_states_is_the_one_that_was_learnt_on_standardised_ones() -> None:
    states, _ = made_up()
    torch.manual_seed(0)
    pooling: Any = topic_head._Pooling(*topic_head._moments(states), WIDTH)
    nn.init.normal_(pooling.attention.weight)
    pooling.eval()
    with torch.no_grad():
        h_PD, shared_PD = states.own[0], states.shared_PD
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(topic_head, "DROPPED", 0)
            expected_NK = pooling(shared_PD, [h_PD, *states.own[1:4]])
    found_NK = embedded(pooling.head(), PromptStates(shared_PD, states.own[:4]))
    torch.testing.assert_close(found_NK, expected_NK, atol=1e-4, rtol=1e-4)
