"""Chooses the next token of each row of a batch, and the row that is a window's text.

Follows openai/whisper's `decoding.py`: greedy choice, sampling, beam search, and ranking by
likelihood.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.decoding.logit_filters import log_normalizer
from whisper_npu.runtime.engines.protocol import Float32Array, Int64Array


class Candidate:
    """A finished row: its tokens without end of text, and the sum of their log probabilities."""

    def __init__(self, tokens: tuple[int, ...], sum_logprob: float) -> None:
        self.tokens = tokens
        self.sum_logprob = sum_logprob


class Sampler:
    """Greedy choice at temperature 0, samples above; every row is independent of the others."""

    def __init__(
        self,
        temperature: float,
        eot: int,
        rngs: Sequence[np.random.Generator],
        prefix_tokens: Sequence[int] = (),
    ) -> None:
        """Take one random generator per row, so that no row depends on its neighbours."""
        n_rows = len(rngs)
        self._temperature = temperature
        self._eot = eot
        self._rngs = rngs
        self._rows = np.arange(n_rows)
        self._scratch: Float32Array | None = None
        self.tokens = _rows_of(prefix_tokens, n_rows)
        self.sum_logprobs = np.zeros(n_rows)
        self.finished = np.zeros(n_rows, bool)

    def choose(self, logits: Float32Array) -> list[int] | None:
        """Take one token per row from filtered logits `(rows, n_vocab)`.

        Returns:
            None: every row continues its own past.
        """
        if self._scratch is None:
            self._scratch = np.empty(logits.shape[1], np.float32)
        chosen = self._with_chance(logits).argmax(axis=-1)
        gained = logits[self._rows, chosen] - log_normalizer(logits, self._scratch)
        gained[self.finished] = 0
        chosen[self.finished] = self._eot
        self.sum_logprobs += gained
        self.tokens = np.concatenate((self.tokens, chosen[:, None]), axis=1)
        self.finished |= chosen == self._eot
        return None

    def end(self, rows: npt.NDArray[np.bool_]) -> None:
        """End some rows at their last token: bool `(rows,)`."""
        self.finished |= rows

    def _with_chance(self, logits: Float32Array) -> Float32Array:
        """Logits whose largest is a sample from softmax(logits / temperature).

        This is the Gumbel-max trick.
        """
        if self._temperature == 0:
            return logits
        noise = np.stack([rng.gumbel(size=logits.shape[1]) for rng in self._rngs])
        return logits + (self._temperature * noise).astype(np.float32)

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return bool(self.finished.all())

    def candidates(self, n_windows: int) -> list[list[Candidate]]:
        """The rows of each window."""
        rows = [
            Candidate(tuple(row[row != self._eot].tolist()), float(total))
            for row, total in zip(self.tokens, self.sum_logprobs, strict=True)
        ]
        group = len(rows) // n_windows
        return [rows[i * group : (i + 1) * group] for i in range(n_windows)]


class BeamSearch:
    """The likeliest continuations of each window's beams (openai/whisper, `BeamSearchDecoder`)."""

    def __init__(
        self,
        n_rows: int,
        beam_size: int,
        patience: float,
        eot: int,
        prefix_tokens: Sequence[int] = (),
    ) -> None:
        self._beam_size = beam_size
        self._eot = eot
        self._max_candidates = round(beam_size * patience)
        self.tokens = _rows_of(prefix_tokens, n_rows)
        self.sum_logprobs = np.zeros(n_rows)
        self._ended: list[dict[tuple[int, ...], float]] = [{} for _ in range(n_rows // beam_size)]
        self.finished = np.zeros(n_rows, bool)  # never set: ended beams are replaced
        self._given_up = np.zeros(n_rows // beam_size, bool)

    def choose(self, logits: Float32Array) -> list[int]:
        """Extend the beams by one token from filtered logits `(rows, n_vocab)`.

        Returns:
            for every new row, the index of the old row that it continues.
        """
        size = self._beam_size
        best = np.argpartition(logits, -(size + 1), axis=-1)[:, -(size + 1) :]
        logprobs = np.take_along_axis(logits, best, axis=-1) - log_normalizer(logits)[:, None]
        sources: list[int] = []
        tokens: list[tuple[int, ...]] = []
        sums: list[float] = []
        for window, ended in enumerate(self._ended):
            scores: dict[tuple[int, ...], tuple[float, int]] = {}
            for row in range(window * size, (window + 1) * size):
                past = tuple(self.tokens[row].tolist())
                for token, logprob in zip(best[row].tolist(), logprobs[row].tolist(), strict=True):
                    scores[(*past, token)] = (self.sum_logprobs[row] + logprob, row)
            kept = 0
            newly_ended: dict[tuple[int, ...], float] = {}
            for sequence, (score, row) in sorted(scores.items(), key=lambda item: -item[1][0]):
                if sequence[-1] == self._eot:
                    newly_ended[sequence] = score
                    continue
                tokens.append(sequence)
                sums.append(score)
                sources.append(row)
                kept += 1
                if kept == size:
                    break
            for sequence, score in sorted(newly_ended.items(), key=lambda item: -item[1]):
                if len(ended) >= self._max_candidates:
                    break
                ended[sequence] = score
        self.tokens = np.array(tokens, np.int64)
        self.sum_logprobs = np.array(sums)
        return sources

    def end(self, rows: npt.NDArray[np.bool_]) -> None:
        """End the windows whose first, likeliest beam is marked: bool `(rows,)`."""
        self._given_up |= rows[:: self._beam_size]

    @property
    def done(self) -> bool:
        """Whether every window was ended or has `patience * beam_size` ended candidates."""
        return all(
            given_up or len(ended) >= self._max_candidates
            for ended, given_up in zip(self._ended, self._given_up, strict=True)
        )

    def candidates(self, n_windows: int) -> list[list[Candidate]]:
        """The ended beams of each window, filled up to `beam_size` with the best open beams."""
        found = []
        for window, ended in enumerate(self._ended):
            rows = range(window * self._beam_size, (window + 1) * self._beam_size)
            for row in sorted(rows, key=lambda row: -self.sum_logprobs[row]):
                if len(ended) >= self._beam_size:
                    break
                ended[(*self.tokens[row].tolist(), self._eot)] = float(self.sum_logprobs[row])
            found.append([Candidate(tokens[:-1], total) for tokens, total in ended.items()])
        return found


def _rows_of(tokens: Sequence[int], n_rows: int) -> Int64Array:
    return np.tile(np.array(tokens, np.int64), (n_rows, 1))


def rank(candidates: Sequence[Candidate], length_penalty: float | None) -> Candidate:
    """The candidate of highest log probability per token, or by Google NMT's length penalty."""

    def score(candidate: Candidate) -> float:
        length = len(candidate.tokens)
        if length_penalty is None:
            return candidate.sum_logprob / max(length, 1)
        return candidate.sum_logprob / float(((5 + length) / 6) ** length_penalty)

    return max(candidates, key=score)
