"""Languages that captions are written in: the script of each, its letters, and what Tesseract calls it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caption_extents.errors import InputError

_LATIN = "abcdefghijklmnopqrstuvwxyz"

_SAMPLES = {
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщьюя",
    "greek": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώ",
    "han": "的一是不了人我在有他",
    "kana": "あいうえおかきくけこアイウエオカキクケコ",
    "hangul": "가나다라마바사이는을",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "hebrew": "אבגדהוזחטיכלמנסעפצקרשת",
    "devanagari": "कखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह",
    "bengali": "কখগঘচছজঝটঠডঢণতথদধনপফবভমযরলশষসহ",
    "tamil": "கஙசஞடணதநபமயரலவழளறன",
    "telugu": "కఖగఘచఛజఝటఠడఢణతథదధనపఫబభమయరలవశషసహ",
    "kannada": "ಕಖಗಘಚಛಜಝಟಠಡಢಣತಥದಧನಪಫಬಭಮಯರಲವಶಷಸಹ",
    "malayalam": "കഖഗഘചഛജഝടഠഡഢണതഥദധനപഫബഭമയരലവശഷസഹ",
    "gujarati": "કખગઘચછજઝટઠડઢણતથદધનપફબભમયરલવશષસહ",
    "gurmukhi": "ਕਖਗਘਚਛਜਝਟਠਡਢਣਤਥਦਧਨਪਫਬਭਮਯਰਲਵਸਹ",
    "sinhala": "කඛගඝචඡජඣටඨඩඪණතථදධනපඵබභමයරලවශෂසහ",
    "thai": "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮ",
    "lao": "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟມຢຣລວສຫອຮ",
    "khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអ",
    "burmese": "ကခဂဃငစဆဇဈညဋဌဍဎဏတထဒဓနပဖဗဘမယရလဝသဟဠအ",
    "ethiopic": "ሀለሐመሠረሰቀበተኀነአከወዐዘየደገጠጰጸፀፈፐ",
    "armenian": "աբգդեզէըթժիլխծկհձղճմյնշոչպջռսվտրցւփքօֆ",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
}
"""Letters that a reader of a script must know."""

_TABLE = """
en English latin eng
af Afrikaans latin afr êëéèïîôû
az Azerbaijani latin aze əğıöşüç
bs Bosnian latin bos čćđšž
ca Catalan latin cat àçéèíïòóúü
cs Czech latin ces áčďéěíňóřšťúůýž
cy Welsh latin cym âêîôûŵŷ
da Danish latin dan æøå
de German latin deu äöüß
es Spanish latin spa áéíñóúü
et Estonian latin est äõöüšž
eu Basque latin eus ñü
fi Finnish latin fin äöå
fil Filipino latin fil ñ
fr French latin fra àâæçéèêëîïôœùûüÿ
ga Irish latin gle áéíóú
gl Galician latin glg áéíñóú
hr Croatian latin hrv čćđšž
hu Hungarian latin hun áéíóöőúüű
id Indonesian latin ind
is Icelandic latin isl áðéíóúýþæö
it Italian latin ita àèéìòù
la Latin latin lat
lb Luxembourgish latin ltz äéë
lt Lithuanian latin lit ąčęėįšųūž
lv Latvian latin lav āčēģīķļņšūž
ms Malay latin msa
mt Maltese latin mlt ċġħż
nl Dutch latin nld éëïóöü
no Norwegian latin nor æøå
pl Polish latin pol ąćęłńóśźż
pt Portuguese latin por áâãàçéêíóôõú
ro Romanian latin ron ăâîșț
sk Slovak latin slk áäčďéíĺľňóôŕšťúýž
sl Slovenian latin slv čšž
sq Albanian latin sqi çë
sv Swedish latin swe åäö
sw Swahili latin swa
tr Turkish latin tur çğıöşü
vi Vietnamese vietnamese vie ăâđêôơưạảãáàậầấẩẫắằặẳẵẹẻẽéèệềếểễịỉĩíìọỏõóòộồốổỗớờợởỡụủũúùứừựửữỳýỵỷỹ
be Belarusian cyrillic bel
bg Bulgarian cyrillic bul
kk Kazakh cyrillic kaz
ky Kyrgyz cyrillic kir
mk Macedonian cyrillic mkd
mn Mongolian cyrillic mon
ru Russian cyrillic rus
sr Serbian cyrillic srp
tg Tajik cyrillic tgk
uk Ukrainian cyrillic ukr
el Greek greek ell
zh Chinese han chi_sim
zh-hans Chinese han chi_sim
zh-cn Chinese han chi_sim
zh-hant Chinese han chi_tra
zh-tw Chinese han chi_tra
zh-hk Chinese han chi_tra
ja Japanese han jpn
ko Korean hangul kor
ar Arabic arabic ara
fa Persian arabic fas
ps Pashto arabic pus
ur Urdu arabic urd
ug Uyghur arabic uig
he Hebrew hebrew heb
yi Yiddish hebrew yid
hi Hindi devanagari hin
mr Marathi devanagari mar
ne Nepali devanagari nep
sa Sanskrit devanagari san
bn Bengali bengali ben
as Assamese bengali asm
ta Tamil tamil tam
te Telugu telugu tel
kn Kannada kannada kan
ml Malayalam malayalam mal
gu Gujarati gujarati guj
pa Punjabi gurmukhi pan
si Sinhala sinhala sin
th Thai thai tha
lo Lao lao lao
km Khmer khmer khm
my Burmese burmese mya
am Amharic ethiopic amh
hy Armenian armenian hye
ka Georgian georgian kat
"""
"""Tag, name, script, Tesseract's code, and letters beyond those of the script."""

RIGHT_TO_LEFT = frozenset({"arabic", "hebrew"})

UNSPACED = frozenset({"han", "thai", "lao", "khmer", "burmese"})
"""Scripts that write words without spaces: pieces of a line are joined as they are."""


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        tag: BCP 47, in lower case.
        name: in English.
        script: as :func:`caption_extents.ocr.scripts.guess_script` names it.
        tesseract: Tesseract's code.
        letters: that a reader must know.
    """

    tag: str
    name: str
    script: str
    tesseract: str
    letters: frozenset[str]


def _read_table() -> dict[str, Language]:
    known = {}
    for line in _TABLE.strip().splitlines():
        tag, name, script, code, *more = line.split()
        sample = _SAMPLES["han"] + _SAMPLES["kana"] if tag == "ja" else _SAMPLES.get(script, _LATIN)
        known[tag] = Language(tag, name, script, code, frozenset(sample + "".join(more)))
    return known


LANGUAGES = _read_table()


def find_languages(tags: str) -> list[Language]:
    """The languages of a list such as ``zh,en``; of ``pt-BR`` the part that is known counts.

    Raises:
        InputError: one is not known.
    """
    found: list[Language] = []
    for tag in filter(None, re.split(r"[\s,+;]+", tags.strip().lower().replace("_", "-"))):
        parts = tag.split("-")
        known = next(
            (LANGUAGES[part] for n in range(len(parts), 0, -1) if (part := "-".join(parts[:n])) in LANGUAGES), None
        )
        if known is None:
            raise InputError(f"the language {tag!r} is not known; give one of {', '.join(sorted(LANGUAGES))}")
        if known not in found:
            found.append(known)
    if not found:
        raise InputError("no language is given; for example --language ru, or zh,en for several")
    return found


def language_of_script(script: str) -> Language | None:
    """A widespread language that is written in a script, as an example."""
    usual = {
        "latin": "en",
        "cyrillic": "ru",
        "arabic": "ar",
        "devanagari": "hi",
        "han": "zh",
        "bengali": "bn",
        "hebrew": "he",
    }
    if script in usual:
        return LANGUAGES[usual[script]]
    return next((language for language in LANGUAGES.values() if language.script == script), None)
