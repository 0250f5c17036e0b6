"""Made-up caption texts in many scripts.

The caption model looks at shapes, not at meaning, so words drawn from each script's common letters serve as well as
real sentences, and nobody's text is copied.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Script:
    """A writing system: its letters, how long its words are, and whether spaces separate them."""

    name: str
    language: str
    """A language that fontconfig knows to need this script, as an RFC 3066 code."""
    letters: str
    word_lengths: tuple[int, int] = (2, 9)
    spaced: bool = True
    uppercase: bool = False

    @property
    def needs_shaping(self) -> bool:
        """Whether letters join, or stand in another order than they are written."""
        return self.name in _SHAPED


_SHAPED = frozenset(
    {
        *("arabic", "urdu", "hebrew", "devanagari", "bengali", "tamil", "telugu", "kannada", "malayalam"),
        *("gujarati", "gurmukhi", "sinhala", "khmer", "burmese"),
    }
)


def _range(first: int, last: int) -> str:
    return "".join(chr(code) for code in range(first, last + 1))


def _legacy(encoding: str, rows: range) -> str:
    """The characters of some rows of a 94x94 legacy set, which hold a language's most common characters."""
    characters = []
    for row in rows:
        for cell in range(0xA1, 0xFF):
            try:
                characters.append(bytes([row, cell]).decode(encoding))
            except UnicodeDecodeError:
                continue
    return "".join(characters)


@cache
def scripts() -> dict[str, Script]:
    """Every script by name."""
    # Every third or so of the common characters: shapes enough, and fonts stay small when they are packed.
    han = _legacy("gb2312", range(0xB0, 0xD8))[::3]
    traditional = _legacy("big5", range(0xA4, 0xC6))[::4]
    known = [
        Script("latin", "en", "etaoinshrdlucmfwypvbgkqjxz" * 2 + "àáâäãåçèéêëìíîïñòóôöùúûüß", (1, 10), True, True),
        Script("cyrillic", "ru", "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэф", (2, 11), True, True),
        Script("greek", "el", "αοιετσνηυρπκμλωδγχθφβξζψάέήίόύώ", (2, 10), True, True),
        Script("han", "zh-cn", han, (2, 9), False),
        Script("han-traditional", "zh-tw", traditional, (2, 9), False),
        Script("japanese", "ja", _range(0x3042, 0x3093) * 3 + _range(0x30A2, 0x30F3) + han[:600], (3, 10), False),
        Script("hangul", "ko", _legacy("euc-kr", range(0xB0, 0xC9))[::2], (1, 5)),
        Script("arabic", "ar", "ابتثجحخدذرزسشصضطظعغفقكلمنهويءةى", (2, 8)),
        Script("hebrew", "he", "אבגדהוזחטיכלמנסעפצקרשת", (2, 7)),
        Script("devanagari", "hi", _range(0x0915, 0x0939) * 2 + "ािीुूेैोौं", (2, 7)),
        Script("bengali", "bn", _range(0x0995, 0x09A8) * 2 + "ািীুূেৈোৌং", (2, 7)),
        Script("tamil", "ta", "கஙசஞடணதநபமயரலவழளறன" * 2 + "ாிீுூெேைொோௌ", (2, 8)),
        Script("thai", "th", _range(0x0E01, 0x0E2E) * 2 + "ะาเแโใไิีุู", (4, 14), False),
        Script("telugu", "te", _range(0x0C15, 0x0C28) * 2 + _range(0x0C2A, 0x0C30) + "ాిీుూెేొో", (2, 8)),
        Script("kannada", "kn", _range(0x0C95, 0x0CA8) * 2 + _range(0x0CAA, 0x0CB0) + "ಾಿೀುೂೆೇೊೋ", (2, 8)),
        Script("malayalam", "ml", _range(0x0D15, 0x0D28) * 2 + _range(0x0D2A, 0x0D39) + "ാിീുൂെേൊോ", (2, 9)),
        Script("gujarati", "gu", _range(0x0A95, 0x0AA8) * 2 + _range(0x0AAA, 0x0AB0) + "ાિીુૂેૈોૌ", (2, 7)),
        Script("gurmukhi", "pa", _range(0x0A15, 0x0A28) * 2 + _range(0x0A2A, 0x0A30) + "ਾਿੀੁੂੇੈੋੌ", (2, 7)),
        Script("sinhala", "si", _range(0x0D9A, 0x0DB1) * 2 + "ාැිීුූෙේො", (2, 7)),
        Script("khmer", "km", _range(0x1780, 0x17A2) * 2 + "ាិីុូេែៃោ", (3, 12), False),
        Script("lao", "lo", "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟມຢຣລວສຫອຮ" * 2 + "ະາເແໂໃໄິີຸູ", (4, 12), False),
        Script("burmese", "my", _range(0x1000, 0x1020) * 2 + "ာိီုူေ", (3, 10), False),
        Script("ethiopic", "am", _range(0x1200, 0x1207) + _range(0x1210, 0x1247) + _range(0x1260, 0x1287), (2, 6)),
        Script("urdu", "ur", "ابپتٹثجچحخدڈذرڑزژسشصضطظعغفقکگلمنوہھءیے", (2, 8)),
        Script("vietnamese", "vi", "nhtcgaiumoeơưăâđêô" * 2 + "ạảãáàậấầắằẹếềệịíọốộờớợụúứừự", (2, 6), True, True),
        Script("central-european", "pl", "eaoinzwrstclkdpmuj" * 2 + "ąćęłńóśźżčďěňřšťůžőű", (1, 11), True, True),
        Script("turkish", "tr", "aeinrlıkdmytsubozüşgçhğvcöpfj", (2, 11), True, True),
        Script("armenian", "hy", _range(0x0561, 0x0586), (2, 9)),
        Script("georgian", "ka", _range(0x10D0, 0x10F0), (2, 9)),
    ]
    return {script.name: script for script in known}


def random_word(rng: random.Random, script: Script) -> str:
    """One word of the script."""
    length = rng.randint(*script.word_lengths)
    return "".join(rng.choice(script.letters) for _ in range(length))


def random_line(rng: random.Random, script: Script, max_letters: int) -> str:
    """A line of caption text of at most about ``max_letters`` letters, with punctuation and numbers now and then."""
    words: list[str] = []
    target = rng.randint(min(3, max_letters), max_letters)
    while sum(map(len, words)) < target:
        words.append(str(rng.randint(0, 2030)) if rng.random() < 0.04 else random_word(rng, script))
    line = (" " if script.spaced else "").join(words)[: max_letters + 4].strip()
    if script.uppercase and rng.random() < 0.2:
        line = line.upper()
    elif script.uppercase and rng.random() < 0.8:
        line = line[:1].upper() + line[1:]
    if rng.random() < 0.5:
        line += rng.choice(".?!,…") if script.spaced else rng.choice("。?!,…")
    kind = rng.random()
    if kind < 0.08:
        line = "- " + line
    elif kind < 0.11:
        line = "♪ " + line + " ♪"
    elif kind < 0.14:
        line = rng.choice(["[{}]", "({})", "“{}”", "<{}>", "{}: {}"]).format(line, line[: max(1, len(line) // 2)])
    return line


def small_edit(rng: random.Random, script: Script, line: str) -> str:
    """The same line with one letter, or its end, changed: captions that differ by very little."""
    if len(line) < 2:
        return line + random_word(rng, script)
    kind = rng.random()
    if kind < 0.6:
        at = len(line) - 1 if rng.random() < 0.4 else rng.randrange(len(line))
        replacement = rng.choice([letter for letter in script.letters if letter != line[at]])
        return line[:at] + replacement + line[at + 1 :]
    if kind < 0.7:
        return line[:-1] if len(line) > 3 and rng.random() < 0.5 else line + rng.choice(script.letters + ".!?…")
    cut = rng.randint(max(1, len(line) // 2), len(line) - 1)
    return line[:cut] + random_word(rng, script)
