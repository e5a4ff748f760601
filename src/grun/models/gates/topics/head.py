"""Learning of the map from hidden states to embeddings of topics, once for a base model."""

from __future__ import annotations

__all__ = ["learnt_head"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grun.models.gates.topics.prompt_states import PromptStates
from grun.models.tuner.readers.topic import TopicHead

STEPS = 400
TOPICS, TEXTS = 64, 4  # of a batch, and of each of its topics
TEMPERATURE = 0.1
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
DROPPED = 77  # of 256 values


class _Pooling(nn.Module):
    """The head in the form that is learnt: on standardised states, with one prompt after the other."""

    def __init__(self, mean_D: Tensor, std_D: Tensor, width: int) -> None:
        super().__init__()
        self.mean_D, self.std_D = mean_D, std_D
        self.attention = nn.Linear(len(mean_D), 1, bias=False)
        self.projection = nn.Linear(len(mean_D), width)
        nn.init.zeros_(self.attention.weight)

    def forward(self, shared_PD: Tensor, own: Sequence[Tensor]) -> Tensor:
        """Unit vectors (N, K) of prompts from the states of the tokens that all begin with, and of their own tokens."""
        prompt_M = torch.arange(len(own)).repeat_interleave(torch.tensor([len(h_PD) for h_PD in own]))
        h_MD = torch.cat([shared_PD, *own])
        h_MD = _dropout((_scaled(h_MD) - self.mean_D) / self.std_D)
        attention_M = self.attention(h_MD).squeeze(1)
        weighted_MK = (attention_M - attention_M.max().detach()).exp()[:, None] * self.projection(h_MD)
        shared_PK, own_MK = weighted_MK.tensor_split([len(shared_PD)])
        sums_NK = shared_PK.sum(0).expand(len(own), -1).index_add(0, prompt_M, own_MK)
        return nn.functional.normalize(sums_NK, dim=1)

    def head(self) -> TopicHead:
        """The head for raw states; the mean that is taken off changes every attention logit by the same number."""
        weight_KD = (self.projection.weight / self.std_D).detach()
        offset_K = (self.projection.bias - weight_KD @ self.mean_D).detach()
        return TopicHead((self.attention.weight[0] / self.std_D).detach(), weight_KD, offset_K)


def learnt_head(states: PromptStates, topics: Sequence[int], width: int, *, seed: int = 0) -> TopicHead:
    """Learn an embedding in which texts on one topic lie closer together than texts on different ones.

    Supervised contrastive learning (Khosla et al., arXiv 2004.11362, eq. 2) on texts of different forms: what the form of a
    text adds to its states is suppressed, and so are the words that all topics share.

    Args:
        states: of the texts, at one layer of the base model.
        topics: number of each text's topic.
        width: size K of the embedding.
        seed: of the initial weights and of the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Pooling(*_moments(states), width)
        texts: dict[int, list[int]] = {}
        for text, topic in enumerate(topics):
            texts.setdefault(topic, []).append(text)
        known = [own for own in texts.values() if len(own) > 1]
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            drawn = torch.randperm(len(known), generator=generator)[:TOPICS].tolist()
            chosen = [_drawn(known[topic], generator) for topic in drawn]
            rows = [text for own in chosen for text in own]
            label_N = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(own) for own in chosen]))
            optimizer.zero_grad()
            _contrastive_loss(model(states.shared_PD, [states.own[i] for i in rows]), label_N).backward()
            optimizer.step()
            schedule.step()
    return model.head()


def _drawn(texts: Sequence[int], generator: torch.Generator) -> list[int]:
    return [texts[i] for i in torch.randperm(len(texts), generator=generator)[:TEXTS].tolist()]


def _contrastive_loss(embedding_NK: Tensor, label_N: Tensor) -> Tensor:
    """Cross-entropy (nats) of each text's partners among all other texts of the batch."""
    itself_NN = torch.eye(len(label_N), dtype=torch.bool)
    logits_NN = (embedding_NK @ embedding_NK.T / TEMPERATURE).masked_fill(itself_NN, -math.inf)
    partner_NN = (label_N[:, None] == label_N) & ~itself_NN
    return -logits_NN.log_softmax(1)[partner_NN].mean()


def _dropout(h_MD: Tensor) -> Tensor:
    """Dropout in place, from one random byte per value: torch's own draws take half of the time of learning."""
    words = torch.empty(-(-h_MD.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep_MD = (words.view(torch.uint8)[: h_MD.numel()] >= DROPPED).view(h_MD.shape)
    return h_MD.mul_(keep_MD).mul_(256 / (256 - DROPPED))


def _scaled(h_MD: Tensor) -> Tensor:
    """States with a root mean square of 1, as `TopicHead.states` scales them."""
    h_MD = h_MD.float()
    return h_MD * h_MD.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt()


def _moments(states: PromptStates) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of the prompts' own states, scaled; prompt by prompt, since all take much memory."""
    total_D, squares_D = torch.zeros(2, states.shared_PD.shape[1], dtype=torch.float64)
    for h_PD in states.own:
        scaled_PD = _scaled(h_PD).double()
        total_D, squares_D = total_D + scaled_PD.sum(0), squares_D + scaled_PD.square().sum(0)
    count = sum(map(len, states.own))
    mean_D = total_D / count
    std_D = (squares_D / count - mean_D.square()).clamp_min(0.0).sqrt()
    return mean_D.float(), std_D.clamp_min(1e-6).float()
