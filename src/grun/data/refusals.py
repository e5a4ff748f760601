"""Refusals that ship with the package, whole sentences in several languages."""

from __future__ import annotations

__all__ = ["REFUSALS", "Refusals"]

from collections.abc import Mapping, Sequence

from grun.data.languages import Languages

# The sentences of a language say the same as those in the same places of the others. No word comes twice in a sentence: an
# edit that sees little more than the last token would go round in a circle ("I'm sorry, but I'm sorry").
REFUSALS: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Unfortunately, I have no information on this topic.",
        "Sorry, but I know nothing about that.",
        "I am unable to tell you anything about this subject.",
    ),
    "de": (
        "Leider habe ich keine Informationen zu diesem Thema.",
        "Tut mir leid, darüber weiß ich nichts.",
        "Ich kann dazu leider nichts sagen.",
    ),
    "fr": (
        "Malheureusement, je n'ai aucune information sur ce sujet.",
        "Pardon, mais je ne sais rien à ce sujet.",
        "Je ne peux malheureusement rien dire à ce sujet.",
    ),
    "es": (
        "Lamentablemente, no tengo información sobre este tema.",
        "Lo siento, pero no sé nada de eso.",
        "Por desgracia, no puedo decir nada sobre este tema.",
    ),
    "it": (
        "Purtroppo non ho informazioni su questo argomento.",
        "Mi dispiace, ma non so nulla al riguardo.",
        "Su questo argomento non posso dire nulla.",
    ),
    "pt": (
        "Infelizmente, não tenho informações sobre este assunto.",
        "Lamento, mas não sei nada a respeito disso.",
        "Sobre este assunto não posso dizer nada.",
    ),
    "nl": (
        "Helaas heb ik geen informatie over dit onderwerp.",
        "Sorry, maar daar weet ik niets van.",
        "Over dit onderwerp kan ik helaas niets zeggen.",
    ),
    "pl": (
        "Niestety nie mam informacji na ten temat.",
        "Przykro mi, ale nic o tym nie wiem.",
        "Na ten temat nie mogę niestety nic powiedzieć.",
    ),
    "ru": (
        "К сожалению, у меня нет информации на эту тему.",
        "Извините, но я ничего об этом не знаю.",
        "Об этом я ничего не могу сказать.",
    ),
    "zh": (
        "很遗憾，我没有关于这个话题的信息。",
        "抱歉，我对此一无所知。",
        "很抱歉，关于这一点我无法说什么。",
    ),
    "ja": (
        "残念ながら、この話題に関する情報はありません。",
        "申し訳ないのですが、それについては何も知りません。",
        "それについては、残念ながら何も言えません。",
    ),
    "ar": (
        "للأسف، ليست لدي معلومات عن هذا الموضوع.",
        "عذرًا، لا أعرف شيئًا عن ذلك.",
        "لا يمكنني قول أي شيء عن هذا الموضوع.",
    ),
    "hi": (
        "दुर्भाग्य से, मेरे पास इस विषय पर कोई जानकारी नहीं है।",
        "माफ़ कीजिए, मुझे इसके बारे में कुछ नहीं पता।",
        "इस विषय में कुछ भी कहना मेरे लिए संभव नहीं है।",
    ),
}


class Refusals:
    """The refusals of one request: the same sentence for all its questions in a language.

    Several sentences in turn would mix in the distribution of every token, and a small edit then says a little of each.

    Args:
        questions: all questions of the request, from which their languages are told.
        seed: of the run; 0, 1 and 2 choose the first, second and third sentence of every language, 3 the first again.
    """

    def __init__(self, questions: Sequence[str], seed: int) -> None:
        self._languages = Languages(questions, REFUSALS)
        self._place = seed % min(map(len, REFUSALS.values()))

    def to(self, question: str) -> str:
        """The refusal to a question, in its language; in English where that is not known or not sure."""
        return REFUSALS[self._languages.of(question)][self._place]
