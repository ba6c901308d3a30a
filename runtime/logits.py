"""Rules that forbid tokens before one is chosen (openai/whisper, `decoding.py`).

Each rule sets the logits of forbidden tokens to minus infinity, in place, for a whole batch.
`tokens` holds what has been sampled so far, without the prompt: `(batch, n_sampled)`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.backend import Float32Array, Int64Array


class LogitFilter(Protocol):
    """A rule over a batch of logits `(batch, n_vocab)`."""

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid tokens in place."""
        ...


class SuppressTokens:
    """Forbids tokens everywhere."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.asarray(sorted(set(tokens)), np.int64)

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid the tokens."""
        logits[:, self._tokens] = -np.inf


class SuppressFirst:
    """Forbids tokens as the first: a transcript begins with neither blank nor end."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.asarray(tokens, np.int64)

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid the tokens if nothing has been sampled."""
        if tokens.shape[1] == 0:
            logits[:, self._tokens] = -np.inf


class TimestampRules:
    """Timestamps come in pairs, never go back, and win when they are likelier than any text."""

    def __init__(
        self,
        *,
        timestamp_begin: int,
        no_timestamps: int,
        eot: int,
        max_initial_index: int | None,
    ) -> None:
        """Set the rules up.

        Args:
            timestamp_begin: the token `<|0.00|>`.
            no_timestamps: the token `<|notimestamps|>`.
            eot: the token `<|endoftext|>`; text tokens are below it.
            max_initial_index: how many steps of 20 ms the first timestamp may be late, or None.
        """
        self._begin = timestamp_begin
        self._no_timestamps = no_timestamps
        self._eot = eot
        self._max_initial_index = max_initial_index

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid what breaks the rules."""
        begin, eot = self._begin, self._eot
        logits[:, self._no_timestamps] = -np.inf
        n_sampled = tokens.shape[1]
        if n_sampled == 0:
            logits[:, :begin] = -np.inf
            if self._max_initial_index is not None:
                logits[:, begin + self._max_initial_index + 1 :] = -np.inf
        else:
            was_timestamp = tokens[:, -1] >= begin
            before_was_timestamp = (
                tokens[:, -2] >= begin if n_sampled > 1 else np.ones(len(tokens), bool)
            )
            logits[was_timestamp & before_was_timestamp, begin:] = -np.inf
            logits[was_timestamp & ~before_was_timestamp, :eot] = -np.inf

            stamps = np.where(tokens >= begin, tokens, 0)
            latest = stamps.max(axis=1)  # they never go back, so the latest is the largest
            for row in np.flatnonzero(latest):
                # A segment that has just been closed may begin where it ended; one that is open
                # may not end where it began, or it would have no length.
                closed = was_timestamp[row] and not before_was_timestamp[row]
                logits[row, begin : latest[row] + (0 if closed else 1)] = -np.inf

        # If all timestamps together are likelier than the likeliest text, sample a timestamp.
        # The normaliser of the softmax is common to both sides and drops out.
        text = logits[:, :begin].max(axis=1)
        stamps_max = logits[:, begin:].max(axis=1)
        reachable = np.isfinite(stamps_max)
        if reachable.any():
            rows = np.flatnonzero(reachable)
            shifted = logits[rows, begin:] - stamps_max[rows, None]
            total = stamps_max[rows] + np.log(np.exp(shifted).sum(axis=1))
            logits[rows[total > text[rows]], :begin] = -np.inf


class ReachEnd:
    """Forbids the end of text behind a timestamp from which speech goes on.

    Whisper leaves the last sentence of a full window to the next one. A window that was cut at a
    pause has no next one for it: what is left unsaid would be lost.
    """

    def __init__(
        self, reach: npt.NDArray[np.float64], *, timestamp_begin: int, eot: int, step: float
    ) -> None:
        """Set the rule up.

        Args:
            reach: seconds that the text of each row must reach, float64 `(rows,)`.
            timestamp_begin: the token `<|0.00|>`.
            eot: the token `<|endoftext|>`.
            step: seconds from one timestamp to the next.
        """
        self._earliest = timestamp_begin + np.ceil(reach / step).astype(np.int64)
        self._begin = timestamp_begin
        self._eot = eot

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid the end where it would be too early and anything else is possible."""
        if tokens.shape[1] == 0:
            return
        last = tokens[:, -1]
        for row in np.flatnonzero((last >= self._begin) & (last < self._earliest)):
            end = logits[row, self._eot].copy()
            logits[row, self._eot] = -np.inf
            if not np.isfinite(logits[row].max()):
                logits[row, self._eot] = end


def log_softmax(logits: Float32Array) -> Float32Array:
    """Log probabilities along the last axis."""
    peak = logits.max(axis=-1, keepdims=True)
    shifted = logits - peak
    total: Float32Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return total


def log_normalizer(logits: Float32Array) -> Float32Array:
    """Log of the sum of exponentials along the last axis, `(batch,)`."""
    total = np.empty(logits.shape[:-1], np.float32)
    # Row by row, in one buffer that stays in the cache: new memory for all rows costs four times
    # as much as the exponentials.
    row = np.empty(logits.shape[-1], np.float32)
    for place in np.ndindex(total.shape):
        peak = logits[place].max()
        np.exp(np.subtract(logits[place], peak, out=row), out=row)
        total[place] = peak + np.log(row.sum())
    return total
