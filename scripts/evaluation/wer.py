"""Word error rates in detail: what was lost where, and how sure the rate is."""

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

# An output is truncated when this many words or characters in a row are missing from it, ...
_LOST_RUN = {"WER": 8, "CER": 20}
# ... or it is shorter than this share of the reference, by at least so many (of two words, one may
# be missing for other reasons).
_SHORT_SHARE = 0.5
_SHORT_BY = {"WER": 4, "CER": 10}
_ALIGNMENT_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Comparison:
    """A hypothesis beside its reference.

    Attributes:
        edits: The counts.
        empty: Words were said, and none came out.
        truncated: Some came out, but a stretch of the reference is missing: 8 words (20
            characters) in a row, or more than half of all, at least 4 words (10 characters).
        alignment: Reference above hypothesis, edits marked; empty if they agree.
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
    # A stretch without edits leaves an empty line of marks.
    return "\n".join(lines).replace("\n\n\n", "\n\n").strip("\n")


def bootstrap_interval(counts: Sequence[Edits]) -> tuple[float, float] | None:
    """Interval that holds the corpus error rate with 95 % confidence, in percent.

    The percentile bootstrap over recordings (Bisani & Ney 2004, "Bootstrap estimates for
    confidence intervals in ASR performance evaluation"), with a fixed seed. None for fewer than
    two recordings with words: they say nothing about their spread.
    """
    if not _has_spread(counts):
        return None
    return _middle(_resampled_rates(counts))


def bootstrap_difference(
    counts: Sequence[Edits], baseline: Sequence[Edits]
) -> tuple[float, float] | None:
    """Interval of the error rate of `counts` minus that of `baseline`, in percentage points.

    Both are of the same recordings in the same order and are drawn together, so that what makes a
    recording hard for both cancels out: an interval without 0 in it is a real difference.
    """
    if not _has_spread(counts):
        return None
    return _middle(_resampled_rates(counts) - _resampled_rates(baseline))


def _has_spread(counts: Sequence[Edits]) -> bool:
    return sum(edits.words > 0 for edits in counts) >= 2


def _middle(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """What lies between the tails, for the confidence wanted."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _resampled_rates(counts: Sequence[Edits]) -> npt.NDArray[np.float64]:
    """Error rates `(n,)` of corpora drawn with replacement; the same draws for the same sizes."""
    errors = np.array([edits.errors for edits in counts], dtype=np.float64)
    words = np.array([edits.words for edits in counts], dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    rates = []
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        draws = rng.integers(len(counts), size=(_RESAMPLES_AT_ONCE, len(counts)))
        drawn_words = words[draws].sum(axis=1)
        spoken = drawn_words > 0  # nothing but recordings without speech drawn: there is no rate
        rates.append(100 * errors[draws].sum(axis=1)[spoken] / drawn_words[spoken])
    return np.concatenate(rates)
