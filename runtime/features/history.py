"""Holds the past of a recording as pieces of a long array; parts of it can be freed."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array


class History:
    """An array that grows along its last axis; released parts take no memory."""

    def __init__(self, fill: float, least: int) -> None:
        """Hold nothing yet.

        Args:
            fill: the value of parts that were passed over.
            least: the smallest length of a piece: live audio arrives value by value.
        """
        self._fill = np.float32(fill)
        self._least = least
        self.pieces: deque[Float32Array] = deque()  # successive pieces, (..., any number)
        self.first = 0  # number of the first value held
        self.end = 0  # number of the first value after them

    def append(self, new: Float32Array) -> None:
        """Add values `(..., n)`."""
        if not new.shape[-1]:
            return
        self.end += new.shape[-1]
        if self.pieces and self.pieces[-1].shape[-1] < self._least:
            new = np.concatenate((self.pieces.pop(), new), axis=-1)
        self.pieces.append(new)

    def forget(self, before: int) -> None:
        """Release the values before number `before`; memory is freed piece by piece."""
        while self.pieces and self.first < before:
            piece = self.pieces.popleft()
            rest = piece[..., before - self.first :]
            if rest.shape[-1]:
                self.pieces.appendleft(rest)
            self.first += piece.shape[-1] - rest.shape[-1]

    def pass_over(self, start: int, end: int) -> None:
        """Release the values `[start, end)`, piece by piece, and keep earlier values.

        Released values read as `fill`.
        """
        kept: deque[Float32Array] = deque()
        first, passed = self.first, 0
        for piece in self.pieces:
            behind = first + piece.shape[-1]
            if start <= first and behind <= end:
                passed += piece.shape[-1]
                if passed > piece.shape[-1]:
                    kept.pop()
                # All values of this piece share one value in memory.
                kept.append(np.broadcast_to(self._fill, (*piece.shape[:-1], passed)))
            else:
                kept.append(piece)
            first = behind
        self.pieces = kept

    def between(self, start: int, end: int) -> Iterator[Float32Array]:
        """Return the values `[start, end)` in pieces, as far as they are held."""
        first = self.first
        for piece in self.pieces:
            part = piece[..., max(0, start - first) : max(0, end - first)]
            if part.shape[-1]:
                yield part
            first += piece.shape[-1]
