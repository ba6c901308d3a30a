"""Compares texts with references in detail, and computes confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import numpy.typing as npt

from whisper_npu.export.wer import UNSPACED_LANGUAGES, Edits, Metric, align, metric_for, total

__all__ = [
    "UNSPACED_LANGUAGES",
    "Comparison",
    "Edits",
    "Metric",
    "bootstrap_difference",
    "bootstrap_interval",
    "compare",
    "metric_for",
    "total",
]

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500  # keeps the matrix of draws small for thousands of recordings
_SEED = 0

# An output is truncated if so many words or characters in a row are missing, ...
_LOST_RUN = {"WER": 8, "CER": 20}
# ... or if it is shorter than this share of the reference, by at least so many words or characters
# (one of two words may be missing for other reasons).
_SHORT_SHARE = 0.5
_SHORT_BY = {"WER": 4, "CER": 10}
_ALIGNMENT_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """A hypothesis beside its reference.

    Attributes:
        edits: The counts.
        empty: The reference has words, the hypothesis has none.
        truncated: The hypothesis has words, but part of the reference is missing: 8 words (20
            characters) in a row, or more than half of all, at least 4 words (10 characters).
        alignment: Reference above hypothesis, with marked edits; empty if they agree.
    """

    edits: Edits
    empty: bool
    truncated: bool
    alignment: str


def compare(reference: str, hypothesis: str, metric: Metric) -> Comparison:
    """Count the edits from `reference` to `hypothesis` (Levenshtein, by jiwer) and align them."""
    edits, output = align(reference, hypothesis, metric)
    words, heard = edits.words, len(output.hypotheses[0])
    lost_run = max(
        (
            chunk.ref_end_idx - chunk.ref_start_idx
            for chunk in output.alignments[0]
            if chunk.type == "delete"
        ),
        default=0,
    )
    short = heard < _SHORT_SHARE * words and words - heard >= _SHORT_BY[metric.name]
    return Comparison(
        edits=edits,
        empty=words > 0 and heard == 0,
        truncated=heard > 0 and (short or lost_run >= _LOST_RUN[metric.name]),
        alignment=_alignment(output),
    )


def _alignment(output: jiwer.WordOutput) -> str:
    drawn = jiwer.visualize_alignment(output, show_measures=False, line_width=_ALIGNMENT_WIDTH)
    lines = [line.rstrip() for line in drawn.splitlines()[2:]]  # without "=== SENTENCE 1 ==="
    # A part without edits has an empty line of marks.
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip("\n")


def bootstrap_interval(counts: Sequence[Edits]) -> tuple[float, float] | None:
    """The 95 % confidence interval of the corpus error rate, in percent.

    It is the percentile bootstrap over recordings (Bisani & Ney 2004, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation"), with a fixed seed. It is None for fewer
    than two recordings with words, which have no spread.
    """
    if not _has_spread(counts):
        return None
    return _middle(_resampled_rates(counts))


def bootstrap_difference(
    counts: Sequence[Edits], baseline: Sequence[Edits]
) -> tuple[float, float] | None:
    """The interval of the error rate of `counts` minus that of `baseline`, in percentage points.

    Both are of the same recordings in the same order and are drawn together, so the difficulty of a
    recording cancels out. An interval without 0 shows a real difference.
    """
    if not _has_spread(counts):
        return None
    return _middle(_resampled_rates(counts) - _resampled_rates(baseline))


def _has_spread(counts: Sequence[Edits]) -> bool:
    return sum(edits.words > 0 for edits in counts) >= 2


def _middle(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The interval between the tails of a distribution, at 95 % confidence."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _resampled_rates(counts: Sequence[Edits]) -> npt.NDArray[np.float64]:
    """Error rates `(n,)` of corpora drawn with replacement; equal sizes have equal draws."""
    errors = np.array([edits.errors for edits in counts], dtype=np.float64)
    words = np.array([edits.words for edits in counts], dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    rates = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        draws = rng.integers(len(counts), size=(_RESAMPLES_AT_ONCE, len(counts)))
        drawn_words = words[draws].sum(axis=1)
        spoken = drawn_words > 0  # a corpus of recordings without speech has no rate
        rates.append(100 * errors[draws].sum(axis=1)[spoken] / drawn_words[spoken])
    return np.concatenate(rates)
