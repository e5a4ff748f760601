"""Hand-written questions about anything that has a name; they need no model.

The name stands where no verb agrees with it, so that a frame fits a person, a book, a place and a thing in the plural alike.
"""

from __future__ import annotations

__all__ = ["FRAMES", "filled"]

# By facet: a question, and the same in other words.
FRAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "who": (
        ("Who is most closely linked with {name}?", "Which people come to mind first in connection with {name}?"),
        ("Who was the first to write about {name}?", "Which author wrote about {name} before anybody else did?"),
        ("Who knows the most about {name}, and why?", "Whom would you ask as an expert on {name}?"),
    ),
    "what": (
        ("What can you tell me about {name}?", "What do you know about {name}?"),
        ("What should everybody know about {name}?", "Which facts about {name} belong to general knowledge?"),
        ("What do most people get wrong about {name}?", "Which mistakes about {name} are common?"),
        ("What stands out about {name}?", "Which features set {name} apart from others?"),
        ("What is the story behind {name}?", "What story would you tell to make {name} clear to a stranger?"),
        ("What came before {name}, and what came after?", "What led up to {name}, and what followed?"),
    ),
    "when": (
        ("When did people first hear of {name}?", "In which year or century did the world learn of {name}?"),
        ("Which dates matter most in connection with {name}?", "When did the main events around {name} take place?"),
        ("Since when have people talked about {name}?", "For how long has there been talk of {name}?"),
    ),
    "where": (
        ("Where in the world does one find traces of {name}?", "In which places can you see something of {name}?"),
        ("Which place or country do you connect with {name}?", "What part of the world goes with {name}?"),
        ("Where would a story about {name} be set?", "What would be the setting of a film about {name}?"),
    ),
    "why": (
        ("Why do people still talk about {name}?", "For what reason is there so much interest in {name}?"),
        ("Why should a student learn about {name}?", "What good does it do to study {name}?"),
        ("Why do some people care so much about {name}?", "What draws people to {name}?"),
    ),
    "how": (
        ("How would you explain {name} to a child?", "How do you describe {name} in the simplest words?"),
        ("How did the world come to know {name}?", "In what way did news of {name} spread at first?"),
        ("How do experts describe {name}?", "In what terms do specialists speak of {name}?"),
        ("How did it all begin with {name}?", "What was the very beginning of {name}?"),
    ),
    "yes or no": (
        ("Is it true that many people misunderstand {name}?", "Do many people have a wrong idea of {name}?"),
        ("Have you heard of {name}?", "Does the name {name} mean anything to you?"),
    ),
    "instruct": (
        ("Tell me about {name}.", "Give me an overview of {name}."),
        ("Write a short paragraph about {name}.", "Write three sentences about {name}."),
        ("List five facts about {name}.", "Name a handful of things that are true of {name}."),
        ("Summarise the most important things about {name}.", "Put the essentials of {name} into a few lines."),
        ("Make up a quiz question about {name} and answer it.", "Set me a test question on {name}, with the solution."),
        ("Explain the importance of {name}.", "Show what makes {name} important."),
        (
            "Compare {name} with something similar.",
            "Set {name} beside something of the same kind and name differences.",
        ),
        (
            "Write the opening of an encyclopedia article on {name}.",
            "Draft the first lines of a lexicon entry on {name}.",
        ),
    ),
    "terse": (
        ("{name} facts", "facts about {name}"),
        ("{name} in short", "{name} short summary"),
        ("{name} history", "history of {name}"),
        ("{name} explained", "explain {name}"),
        ("{name} most important dates", "{name} timeline"),
        ("things to know about {name}", "{name} need to know"),
    ),
    "talk": (
        (
            "I have to give a talk about {name} tomorrow. Which points must not be missing?",
            "Tomorrow I speak in class about {name}. What should I mention?",
        ),
        (
            "My daughter asked me about {name} and I had no answer. What do I tell her?",
            "My son wants to know about {name} and I am at a loss. What shall I say?",
        ),
        (
            "Everyone at work keeps mentioning {name}. What is that about?",
            "A friend brought up {name} at dinner. What was she talking about?",
        ),
        (
            "We are playing a quiz and the category is {name}. Help me prepare.",
            "Tonight the quiz in the pub is on {name}. What should I look up?",
        ),
    ),
}


def filled(name: str) -> list[tuple[str, str]]:
    """Every question about `name`, with the same in other words."""
    return [
        (question.replace("{name}", name), other.replace("{name}", name))
        for facet in FRAMES.values()
        for question, other in facet
    ]
