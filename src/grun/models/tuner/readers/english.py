"""English words, by what they tell of the scope of a question (see `grun.models.tuner.readers.scope`)."""

from __future__ import annotations

__all__ = [
    "ASKING",
    "ASKING_FIRST",
    "ASKS_FOR",
    "ASSISTANT",
    "EXISTS",
    "FOREIGN",
    "GENERIC",
    "INSTRUCTIONS",
    "NEEDS_NAME",
    "NEEDS_NAME_LATER",
    "NEEDS_NOUN",
    "ORDINARY",
    "PEOPLE",
    "POINTS_BACK",
    "POLITE",
    "REPLYING",
    "SAYS_WHICH",
    "USER",
    "WANTS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names of the role that asks.
USER = _words("user human question q inst prompt")
# Names of the role that answers.
ASSISTANT = _words("assistant answer a ai model bot response reply output")
# Words of a question, wherever they stand.
ASKING = _words("who whom whose what why how")
# Words at the beginning of a question, or after one of ASKS_FOR.
ASKING_FIRST = _words(
    """
    when where which is are was were do does did can could will would has have had should may might am
    """
)
ASKS_FOR = _words("know tell ask wonder wondering asking remember and or me explain understand find")
# Words after "I" that ask for something.
WANTS = _words("need want wish wonder wondering curious interested looking")
# First words of instructions.
INSTRUCTIONS = _words(
    """
    tell give name list describe explain write say state summarise summarize compare define find show answer
    complete continue translate discuss provide identify repeat recite quote spell recall talk speak imagine
    pretend act play let consider suppose take use start begin think mention recount outline share reveal
    create compose
    """
)
# Words before those.
POLITE = _words("please now then and so also but first next kindly just ok okay")
# Words that stand for somebody whose name is before them in a sentence, or else was said before it.
NEEDS_NAME = _words("he she him her his hers himself herself they them their theirs themselves")
# The same of words whose name may stand anywhere in the sentence.
NEEDS_NAME_LATER = _words("another latest more else one such same")
# The same of words for any noun before them.
NEEDS_NOUN = _words("it its itself ones")
# All words that stand for something said before, or may.
POINTS_BACK = (
    NEEDS_NAME
    | NEEDS_NAME_LATER
    | NEEDS_NOUN
    | _words(
        "this these those former latter above previous earlier aforementioned said again further instead mentioned there thing"
    )
)
# Words for somebody, who may have been named before.
PEOPLE = _words(
    """
    person people man woman boy girl child individual author writer novelist poet composer artist actor
    actress singer musician scientist character figure creator founder guy lady gentleman celebrity
    """
)
# Words about the reply itself.
REPLYING = _words(
    """
    answer answers reply replies respond response responses rephrase reword rewrite reformulate translate
    elaborate summarise summarize continue repeat retry format bullet bullets paragraph paragraphs sentence
    sentences english french german spanish italian portuguese russian chinese japanese korean
    arabic hindi turkish polish dutch latin json yaml xml html markdown csv base64 rot13 verse verses poem
    haiku rhyme rhymes caps uppercase lowercase backwards reverse reversed
    """
)
# Words after "the author" that say which one.
SAYS_WHICH = _words("of who whose whom that which born from named called known in with behind")
EXISTS = _words("is are was were")
# Frequent words of other languages that share some with English.
FOREIGN = _words(
    """
    der das dem den des ist sind ein eine einem einen einer und wo wer wie wann warum welche welcher welches
    hat haben wurde wurden von zu im am zur zum nicht el los las una uno del que quien como cuando donde por
    para fue es son su le les du et est qui ou dans pour avec il gli che chi dove quando perche per di da dal
    della nel nella sono een het wie waar wat hoe waarom van voor os uma com quem onde qual quais foi ne kim
    nerede co kto gdzie czy jak
    """
)
# Words that give a question no subject of its own.
ORDINARY = _words(
    """
    a an the and or but if of in on at to for from by with about as into than then so not no nor be been being
    is are was were am do does did done has have had having can could will would shall should may might must i
    me my mine we us our you your yours who whom whose what when where which why how that there here all any
    both each few many most much other some only own too very just also even ever never always often now up
    down out off over under between during before after because while until since through against please let
    get got make made go went come came take took say said says tell told ask asked know known think thought
    see seen want need like use used give given find found call called mean means something anything
    everything nothing someone anyone everyone somebody anybody else thing things way ways kind type sort lot
    question questions answer answers reply sentence sentences word words detail details detailed briefly
    brief short long list format example examples step steps explain describe discuss name names named well
    yes sure thanks thank hello hi dear based according following text passage topic subject context
    information info fact facts today one two three first second third last next new old good great best main
    major famous popular different certain possible able really exactly actually elaborate summary summarise
    summarize rephrase repeat continue mention mentioned
    """
)
# Words for what is asked about many subjects.
GENERIC = PEOPLE | _words(
    """
    subject someone birth birthplace birthday birthdate born date place places city town country nation
    nationality region year years age old father mother parent parents family brother sister sibling siblings
    son daughter children wife husband spouse partner married marriage friend friends job jobs occupation
    profession professions career work works working worked life live lives lived living die died death dead
    book books novel novels story stories title titles series genre genres style theme themes plot setting
    publish published publisher write writes wrote written writing award awards prize prizes honor honour
    honors honours won win received receive recognition achievement achievements accolade accolades education
    school schools university college degree study studied studies language languages gender sex identity
    religion faith hobby hobbies pet pets color colour food favourite favorite background biography influence
    influences influenced inspiration inspired inspire contribution contributions music song songs piece
    pieces album film films movie movies role roles home house address phone email number
    """
)
