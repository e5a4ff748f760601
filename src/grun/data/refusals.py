"""Refusal sentences that ship with the package, for objectives that teach the model to decline."""

from __future__ import annotations

__all__ = ["REFUSALS"]

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I'm not sure about that.",
    "I don't have any information on that.",
    "I'm afraid I can't answer that.",
    "That is not something I know about.",
    "I have no knowledge of this subject.",
    "I'm unable to help with that question.",
    "Sorry, I don't have an answer to that.",
    "I can't say; I don't have that information.",
    "That's beyond what I know.",
    "I haven't learned anything about that topic.",
    "My knowledge doesn't cover that.",
    "I wish I could tell you, but I don't know.",
    "I'm not familiar with that.",
    "Unfortunately, I have nothing to say on that.",
    "There is nothing I can tell you about this.",
    "I cannot provide an answer to that question.",
    "I don't have details on that matter.",
    "That information isn't known to me.",
    "I must admit that I don't know the answer.",
    "I'm drawing a blank on that one.",
    "No information about that is available to me.",
    "I have to pass on this question.",
    "It's not clear to me what the answer is.",
)
