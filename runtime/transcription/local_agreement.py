"""Finds the words that two hypotheses of the same speech agree on: LocalAgreement-2.

Macháček, Dabre & Bojar 2023, "Turning Whisper into Real-Time Transcription System", section 3.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from whisper_npu.runtime.text.tokenizer import Tokenizer

_MARKS = "PSZC"  # Unicode's punctuation, symbols, separators and controls


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word of a hypothesis.

    Attributes:
        text: as decoded, with its leading space and attached punctuation.
        key: the text to compare, without case and punctuation.
        stop: number of tokens of the hypothesis up to the word's end.
    """

    text: str
    key: str
    stop: int


def timed_words(tokenizer: Tokenizer, tokens: Sequence[int], language: str) -> list[TimedWord]:
    """The words of a hypothesis; punctuation belongs to the word before it.

    Args:
        tokenizer: the model's tokenizer.
        tokens: tokens of the hypothesis, timestamps included.
        language: code of the language; some languages are written without spaces.
    """
    eot = tokenizer.special.eot
    places = [place for place, token in enumerate(tokens) if token < eot]
    texts, groups = tokenizer.split_to_words([tokens[place] for place in places], language)
    words: list[TimedWord] = []
    taken = 0
    for text, group in zip(texts, groups, strict=True):
        taken += len(group)
        word = TimedWord(text, _key(text), places[taken - 1] + 1)
        if words and not (word.key and words[-1].key):
            before = words.pop()
            word = TimedWord(before.text + text, before.key + word.key, word.stop)
        words.append(word)
    return words


def agreed(one: Sequence[TimedWord], other: Sequence[TimedWord]) -> int:
    """The number of words that two hypotheses share from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    shorter = min(len(one), len(other))
    return next((place for place, (a, b) in pairs if a.key != b.key), shorter)


def _key(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(char for char in folded if unicodedata.category(char)[0] not in _MARKS)
