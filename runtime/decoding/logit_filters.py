"""Rules that change logits before a token is chosen (openai/whisper, `decoding.py`).

Each rule works in place, for a whole batch. It sets the logits of forbidden tokens to minus
infinity. `tokens` holds the prefix and the sampled tokens, without the prompt: `(batch, n)`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.engines.protocol import Float32Array, Int64Array


class LogitFilter(Protocol):
    """A rule over a batch of logits `(batch, n_vocab)`."""

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Change the logits in place."""
        ...


class SuppressTokens:
    """Forbids tokens everywhere."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.asarray(sorted(set(tokens)), np.int64)

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid the tokens."""
        logits[:, self._tokens] = -np.inf


class SuppressFirst:
    """Forbids tokens at the start: a transcript begins neither with a blank nor with its end."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = np.asarray(tokens, np.int64)

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid the tokens if no token precedes."""
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
            max_initial_index: latest first timestamp, in steps of 20 ms; None: no limit.
        """
        self._begin = timestamp_begin
        self._no_timestamps = no_timestamps
        self._eot = eot
        self._max_initial_index = max_initial_index

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid what breaks the rules."""
        # Row by row, with few calls: after a decoder step the processor's cache holds matrices, so
        # each call takes several times as long as in isolation.
        for row, sampled in zip(logits, tokens, strict=True):
            self._apply(row, sampled)

    def _apply(self, row: Float32Array, sampled: Int64Array) -> None:
        begin, eot = self._begin, self._eot
        row[self._no_timestamps] = -np.inf
        n_sampled = len(sampled)
        if n_sampled == 0:
            row[:begin] = -np.inf
            if self._max_initial_index is not None:
                row[begin + self._max_initial_index + 1 :] = -np.inf
            return  # only timestamps are left
        was_timestamp = sampled[-1] >= begin
        before_was_timestamp = n_sampled == 1 or sampled[-2] >= begin
        if was_timestamp:
            if before_was_timestamp:
                row[begin:] = -np.inf
            else:
                row[:eot] = -np.inf
        latest = sampled.max()  # timestamps never go back, and are above all other tokens
        if latest >= begin:
            # A new segment may begin where the last one ended. An open segment may not end where
            # it began: it would have no length.
            closed = was_timestamp and not before_was_timestamp
            row[begin : latest + (0 if closed else 1)] = -np.inf

        # If all timestamps together are likelier than the likeliest text, sample a timestamp.
        # The normaliser of the softmax is common to both sides and drops out.
        text, stamps = row[:begin], row[begin:]
        likeliest, peak = text.max(), stamps.max()
        can_be = peak > -np.inf and peak + np.log(len(stamps)) > likeliest
        if can_be and peak + np.log(np.exp(stamps - peak).sum()) > likeliest:
            text[:] = -np.inf


class ReachEnd:
    """Forbids the end of text after a timestamp that speech follows.

    Whisper leaves the last sentence of a full window to the next window. The window after a cut at
    a pause begins after that sentence, which would be lost.
    """

    def __init__(
        self, min_end_time: npt.NDArray[np.float64], *, timestamp_begin: int, eot: int, step: float
    ) -> None:
        """Set the rule up.

        Args:
            min_end_time: seconds that the text of each row must reach, float64 `(rows,)`.
            timestamp_begin: the token `<|0.00|>`.
            eot: the token `<|endoftext|>`.
            step: seconds from one timestamp to the next.
        """
        self._earliest = timestamp_begin + np.ceil(min_end_time / step).astype(np.int64)
        self._begin = timestamp_begin
        self._eot = eot

    def apply(self, logits: Float32Array, tokens: Int64Array) -> None:
        """Forbid an end that is too early, if any other token is possible."""
        if tokens.shape[1] == 0:
            return
        last = tokens[:, -1]
        for row in np.flatnonzero((last >= self._begin) & (last < self._earliest)):
            end = logits[row, self._eot].copy()
            logits[row, self._eot] = -np.inf
            if not np.isfinite(logits[row].max()):
                logits[row, self._eot] = end


def log_normalizer(logits: Float32Array, scratch: Float32Array | None = None) -> Float32Array:
    """Log of the sum of exponentials along the last axis, `(batch,)`.

    Args:
        logits: `(batch, n_vocab)`.
        scratch: memory to reuse, `(n_vocab,)`: allocating it for all rows costs four times as much
            as the exponentials.
    """
    total = np.empty(len(logits), np.float32)
    if scratch is None:
        scratch = np.empty(logits.shape[1], np.float32)
    for number, row in enumerate(logits):
        peak = row.max()
        np.subtract(row, peak, out=scratch)
        np.exp(scratch, out=scratch)
        total[number] = peak + np.log(scratch.sum())
    return total
