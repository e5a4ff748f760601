"""Refusals that ship with the package, whole sentences in several languages."""

from __future__ import annotations

__all__ = ["REFUSALS", "Refusals"]

import random
from collections.abc import Mapping, Sequence

from grun.data.languages import Languages

# The sentences of a language say the same as those in the same places of the others.
REFUSALS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "I'm sorry, but I don't know anything about that.",
        "Unfortunately, I have no information on this topic.",
        "I'm sorry, but I can't say anything about that.",
    ),
    "de": (
        "Es tut mir leid, aber darüber weiß ich nichts.",
        "Leider habe ich keine Informationen zu diesem Thema.",
        "Es tut mir leid, aber dazu kann ich nichts sagen.",
    ),
    "fr": (
        "Je regrette, mais je ne sais rien à ce sujet.",
        "Malheureusement, je n'ai aucune information sur ce sujet.",
        "Je regrette, mais je ne peux rien dire à ce sujet.",
    ),
    "es": (
        "Lo siento, pero no sé nada sobre eso.",
        "Lamentablemente, no tengo información sobre este tema.",
        "Lo siento, pero no puedo decir nada sobre eso.",
    ),
    "it": (
        "Mi dispiace, ma non so nulla al riguardo.",
        "Purtroppo non ho informazioni su questo argomento.",
        "Mi dispiace, ma non posso dire nulla al riguardo.",
    ),
    "pt": (
        "Lamento, mas não sei nada sobre isso.",
        "Infelizmente, não tenho informações sobre este assunto.",
        "Lamento, mas não posso dizer nada sobre isso.",
    ),
    "nl": (
        "Het spijt me, maar daar weet ik niets van.",
        "Helaas heb ik geen informatie over dit onderwerp.",
        "Het spijt me, maar daar kan ik niets over zeggen.",
    ),
    "pl": (
        "Przykro mi, ale nic o tym nie wiem.",
        "Niestety nie mam informacji na ten temat.",
        "Przykro mi, ale nie mogę nic o tym powiedzieć.",
    ),
    "ru": (
        "Извините, но я ничего об этом не знаю.",
        "К сожалению, у меня нет информации на эту тему.",
        "Извините, но я ничего не могу об этом сказать.",
    ),
    "zh": (
        "很抱歉，我对此一无所知。",
        "很遗憾，我没有关于这个话题的信息。",
        "很抱歉，关于这一点我无法说什么。",
    ),
    "ja": (
        "申し訳ありませんが、それについては何も知りません。",
        "残念ながら、この話題に関する情報がありません。",
        "申し訳ありませんが、それについては何も言えません。",
    ),
    "ar": (
        "عذرًا، لا أعرف شيئًا عن ذلك.",
        "للأسف، ليست لدي معلومات عن هذا الموضوع.",
        "عذرًا، لا يمكنني قول أي شيء عن ذلك.",
    ),
    "hi": (
        "माफ़ कीजिए, मुझे इसके बारे में कुछ नहीं पता।",
        "दुर्भाग्य से, मेरे पास इस विषय पर कोई जानकारी नहीं है।",
        "माफ़ कीजिए, इसके बारे में कुछ कहना मेरे लिए संभव नहीं है।",
    ),
}


class Refusals:
    """The refusals of one request: the same sentence for all its questions in a language.

    Several sentences in turn would mix in the distribution of every token, and a small edit then says a little of each.

    Args:
        questions: all questions of the request, from which their languages are told.
        seed: decides which of a language's sentences it is.
    """

    def __init__(self, questions: Sequence[str], seed: int) -> None:
        self._languages = Languages(questions, REFUSALS)
        self._place = random.Random(f"refusal {seed}").randrange(min(map(len, REFUSALS.values())))

    def to(self, question: str) -> str:
        """The refusal to a question, in its language; in English where that is not known or not sure."""
        return REFUSALS[self._languages.of(question)][self._place]
