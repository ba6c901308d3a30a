"""Computes word error rates of texts that are normalised as in the Whisper paper."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Written without spaces between words: their error rate is of characters (Radford et al. 2022)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How text is compared.

    Attributes:
        language: Code of the language of the references.
        name: `WER`, or `CER` for languages written without spaces between words.
        unit: The counted unit: `words` or `characters`.
        normalizer: The normaliser of Whisper: `english` or `basic`.
        normalize: Applies the normaliser; spaces separate the units of its result.
    """

    language: str
    name: str
    unit: str
    normalizer: str
    normalize: Callable[[str], str]


def metric_for(language: str) -> Metric:
    """The metric for text in `language`, a code such as `en`, after appendix C of the paper.

    English has Whisper's English normaliser, other languages the basic one. For languages without
    spaces between words the text is split into graphemes, and the rate counts characters.
    """
    if language == "en":
        return Metric(language, "WER", "words", "english", EnglishTextNormalizer())
    if language in UNSPACED_LANGUAGES:
        return Metric(
            language, "CER", "characters", "basic", BasicTextNormalizer(split_letters=True)
        )
    return Metric(language, "WER", "words", "basic", BasicTextNormalizer())


@dataclass(frozen=True, slots=True)
class Edits:
    """Number of words (or characters) of a reference, and of the edits to a hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def errors(self) -> int:
        """Edits of all kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per 100 words; None if the references have no words."""
        return 100 * self.errors / self.words if self.words else None


def total(counts: Sequence[Edits]) -> Edits:
    """The edits of a corpus; every word counts the same in recordings of any length."""
    return Edits(
        sum(edits.substitutions for edits in counts),
        sum(edits.deletions for edits in counts),
        sum(edits.insertions for edits in counts),
        sum(edits.words for edits in counts),
    )


def align(reference: str, hypothesis: str, metric: Metric) -> tuple[Edits, jiwer.WordOutput]:
    """Count the edits from `reference` to `hypothesis` (Levenshtein, by jiwer).

    Returns:
        The counts, and jiwer's alignment of both.
    """
    output = jiwer.process_words(metric.normalize(reference), metric.normalize(hypothesis))
    words = len(output.references[0])
    return Edits(output.substitutions, output.deletions, output.insertions, words), output
