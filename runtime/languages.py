"""The languages of Whisper, by code and English name (openai/whisper, `tokenizer.py`).

Users and files also use codes of other standards, and codes with a region.
"""

from difflib import get_close_matches

from whisper_npu.errors import UsageError

DETECT = "auto"  # the value for no language, where a language can be given

LANGUAGES = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}

# Other English names, and old, macro- and individual languages' codes for Whisper's languages.
_ALIASES = {
    "bokmål": "no",
    "burmese": "my",
    "castilian": "es",
    "dari": "fa",
    "farsi": "fa",
    "filipino": "tl",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
    "fil": "tl",
    "in": "id",
    "iw": "he",
    "ji": "yi",
    "jv": "jw",
    "mo": "ro",
    "nb": "no",
    "zh-yue": "yue",
}
# The codes of ISO 639-2 (both kinds) and 639-3; containers use them for their tracks' languages.
_THREE_LETTERS = """
    af afr, am amh, ar ara arb, as asm, az aze azj, ba bak, be bel, bg bul, bn ben, bo bod tib,
    br bre, bs bos, ca cat, cs ces cze, cy cym wel, da dan, de deu ger, el ell gre, en eng, es spa,
    et est ekk, eu eus baq, fa fas per pes prs, fi fin, fo fao, fr fra fre, gl glg, gu guj, ha hau,
    he heb, hi hin, hr hrv, ht hat, hu hun, hy hye arm, id ind, is isl ice, it ita, ja jpn, jw jav,
    ka kat geo, kk kaz, km khm, kn kan, ko kor, la lat, lb ltz, ln lin, lo lao, lt lit, lv lav lvs,
    mg mlg plt, mi mri mao, mk mkd mac, ml mal, mn mon khk, mr mar, ms msa may zsm, mt mlt,
    my mya bur, ne nep npi, nl nld dut, nn nno, no nor nob, oc oci, pa pan, pl pol, ps pus pbt,
    pt por, ro ron rum mol, ru rus, sa san, sd snd, si sin, sk slk slo, sl slv, sn sna, so som,
    sq sqi alb als, sr srp, su sun, sv swe, sw swa swh, ta tam, te tel, tg tgk, th tha, tk tuk,
    tl tgl, tr tur, tt tat, uk ukr, ur urd, uz uzb uzn, vi vie, yi yid ydd, yo yor, zh zho chi cmn
"""
_CODES = {
    **{name: code for code, name in LANGUAGES.items()},
    **_ALIASES,
    **{
        other: code
        for code, *others in (entry.split() for entry in _THREE_LETTERS.split(","))
        for other in others
    },
    **{code: code for code in LANGUAGES},
}


def find_language(language: str) -> str | None:
    """Return Whisper's code of a language; None if Whisper does not know the language.

    Args:
        language: a code of ISO 639, with or without a region or script (`pt-BR`, `zh_Hant_TW`), or
            an English name; in any case.
    """
    wanted = language.strip().lower().replace("_", "-")
    return _CODES.get(wanted) or _CODES.get(wanted.partition("-")[0])


def language_code(language: str) -> str:
    """Return Whisper's code of a language in any form of `find_language`.

    Raises:
        UsageError: Whisper knows no such language; the message lists similar names.
    """
    code = find_language(language)
    if code is not None:
        return code
    names = [*LANGUAGES.values(), *(name for name in _ALIASES if len(name) > 3)]
    alike = get_close_matches(language.strip().lower(), names, cutoff=0.7)
    raise UsageError(
        f"unknown language {language!r}"
        + (f"; did you mean {' or '.join(alike)}?" if alike else ";")
        + " `whisper-npu transcribe --list-languages` prints all, `auto` detects it"
    )
