"""Names that nobody has, of the form and script of a name."""

from __future__ import annotations

__all__ = ["UnknownNames", "parts_of"]

import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from itertools import groupby

# What words are put together from, where the rows hold too little: syllables, or letters that marks may follow.
PIECES = {
    "LATIN": "bal dor fen gar hul jos kel lum mir nor pel rin sol tam vel wes yar zan bri cla dre fro gli kra pla sto tri mo",
    "CYRILLIC": "бал дор фен гар хул кел лум мир нор пел рин сол там вел зан бри кла дре фро гли кра пла сто три мо на",
    "GREEK": "βαλ δορ φεν γαρ χουλ κελ λουμ μιρ νορ πελ ριν σολ ταμ βελ ζαν βρι κλα δρε φρο κρα πλα στο τρι μο να",
    "ARABIC": "ب ت ج ح د ر ز س ش ص ط ع ف ق ك ل م ن ه و ي",
    "HEBREW": "א ב ג ד ה ו ז ח ט י כ ל מ נ ס ע פ צ ק ר ש ת",
    "DEVANAGARI": "क ख ग घ च छ ज ट ठ ड त थ द ध न प फ ब भ म य र ल व श स ह",
    "THAI": "ก ข ค ง จ ช ด ต ท น บ ป พ ม ย ร ล ว ส ห",
    "HANGUL": "강 경 규 근 길 남 대 덕 동 림 만 명 무 문 미 병 복 빈 산 상 서 석 선 설 성 세 소 송 수 숙 원 윤 재 정 준 진",
    "CJK": "安 白 柏 成 程 池 川 丹 方 谷 海 河 宏 江 金 景 康 林 梅 明 南 平 青 秋 山 石 松 泰 田 文 武 西 新 雪",
    "HIRAGANA": "か き く け こ さ し す せ そ た ち つ て と な に ね の は ひ ふ ま み む も や ゆ よ ら り る れ",
    "KATAKANA": "カ キ ク ケ コ サ シ ス セ ソ タ チ テ ト ナ ニ ネ ノ ハ ヒ フ マ ミ ム モ ヤ ユ ヨ ラ リ ル レ",
}
WITH_SYLLABLES = frozenset(["LATIN", "CYRILLIC", "GREEK"])
VOWELS = frozenset("aeiouyаеиоуыэюяёіїєαεηιουω")
KEPT_LETTERS = frozenset("ーっゃゅょッャュョァィゥェォ")  # they only lengthen or change the letter before them
NUMERAL = re.compile("[IVX]{2,}")  # as in "Henry VIII"
FEW = 12  # pieces
NEAR = 80  # code points between letters of one script
CANDIDATES, TRIES = 6, 20


def parts_of(text: str) -> list[tuple[bool, str]]:
    """A text in runs of letters with their marks, and what stands between them; true for the former."""
    found = groupby(text, lambda letter: unicodedata.category(letter)[0] in "LM")
    return [(is_word, "".join(letters)) for is_word, letters in found]


class UnknownNames:
    """Makes names that no text holds, always the same ones for a name.

    Words keep their number, their script, their capitals, and about their length; what stands between them stays. Syllables
    come from the names of all rows, so that an unknown name looks like one of them, but none from the name itself. Words
    that normal texts write in small letters stay ("University of"), unless the name has no others.

    Args:
        names: of all rows.
        texts: in which no made-up word may stand.
        usual: words that stay, in lower case.
        seed: of the run.
    """

    def __init__(self, names: Iterable[str], texts: Iterable[str], usual: Collection[str], seed: int) -> None:
        self._usual, self._seed = usual, seed
        self._known = {part.casefold() for text in texts for is_word, part in parts_of(text) if is_word}
        pools: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for word in (part for name in names for is_word, part in parts_of(name) if is_word):
            pieces = _pieces(word.lower())
            if _script(word) in WITH_SYLLABLES and len(pieces) > 1:  # a piece is never a whole name
                pools[_script(word)].update(dict.fromkeys(pieces))
        for word in self._known:
            if _script(word) not in PIECES:
                pools[_script(word)].update(dict.fromkeys(sorted({piece[0] for piece in _pieces(word)})))
        self._pools = {script: sorted(pieces) for script, pieces in pools.items()}

    def like(self, name: str, number: int) -> str:
        """The unknown name of a number in place of a name."""
        parts = parts_of(name)
        words = [part for is_word, part in parts if is_word]
        changed = {word for word in words if word.casefold() not in self._usual and not NUMERAL.fullmatch(word)}
        changed = changed or set(words)
        draw = random.Random(f"unknown {self._seed} {number} {name.casefold()}")
        made = {word: self._word(word, words, draw) for word in dict.fromkeys(words) if word in changed}
        return "".join(made.get(part, part) for _, part in parts)

    def _word(self, word: str, name: Sequence[str], draw: random.Random) -> str:
        """Another word in the form of a word, of the letters of its script."""
        pieces, script = _pieces(word), _script(word)
        own = {text for one in name for piece in _pieces(one.lower()) for text in (piece, piece[0])}
        found = [piece for piece in self._pools.get(script, ()) if piece not in own]
        if len(found) < FEW:
            found += [piece for piece in _usual_pieces(script, word[0]) if piece not in {*own, *found}]
        if not found:
            return word[::-1]
        new = [""]
        for _ in range(TRIES):
            new = [_put_together(pieces, found, script, draw) for _ in range(CANDIDATES)]
            new = [one for one in new if one.casefold() not in self._known] or new
            if new[0].casefold() not in self._known:
                break
        best = min(new, key=lambda one: abs(len(one) - len(word)))
        return best.upper() if word.isupper() else best.capitalize() if word[:1].isupper() else best


def _put_together(pieces: Sequence[str], found: Sequence[str], script: str, draw: random.Random) -> str:
    """As many pieces as a word has; letters keep their marks."""
    if script in WITH_SYLLABLES:
        if sum(map(len, pieces)) == 1:
            return draw.choice(found)[0]
        return "".join(draw.choice(found) for _ in pieces)
    return "".join(piece if piece in KEPT_LETTERS else draw.choice(found) + piece[1:] for piece in pieces)


def _pieces(word: str) -> list[str]:
    """The syllables of a word or, in scripts without known vowels, its letters with their marks."""
    if _script(word) not in WITH_SYLLABLES:
        return _clusters(word)
    letters = _clusters(word)
    is_vowel = [unicodedata.normalize("NFD", letter)[0].lower() in VOWELS for letter in letters]
    found = letters[:1]
    for i, letter in enumerate(letters[1:], 1):
        if not is_vowel[i] and i + 1 < len(letters) and is_vowel[i + 1] and any(is_vowel[:i]):
            found.append(letter)
        else:
            found[-1] += letter
    return found


def _clusters(word: str) -> list[str]:
    """Letters, each with the marks that follow it."""
    found: list[str] = []
    for letter in word:
        if found and unicodedata.category(letter)[0] == "M":
            found[-1] += letter
        else:
            found.append(letter)
    return found


@cache
def _usual_pieces(script: str, letter: str) -> tuple[str, ...]:
    """Pieces of a script: those listed, else the letters around one."""
    if script in PIECES:
        return tuple(PIECES[script].split())
    around = map(chr, range(max(0, ord(letter) - NEAR), ord(letter) + NEAR))
    alike = (other for other in around if unicodedata.category(other) == unicodedata.category(letter))
    return tuple(other.lower() for other in alike if _script(other) == script)


def _script(word: str) -> str:
    """The first word of the name of a word's first letter: LATIN, HANGUL; empty if it has no name."""
    return unicodedata.name(word[:1], "").partition(" ")[0]
