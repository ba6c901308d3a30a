"""What is held of a recording's past: pieces of a long array, of which parts can be let go of."""

from collections import deque
from collections.abc import Iterator

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array


class History:
    """An array that grows along its last axis; what is not needed any more takes no memory."""

    def __init__(self, fill: float, least: int) -> None:
        """Hold nothing yet.

        Args:
            fill: what is read where values were passed over.
            least: length to which pieces grow at least: of live audio they come one by one.
        """
        self._fill = np.float32(fill)
        self._least = least
        self.pieces: deque[Float32Array] = deque()  # successive ones, (..., any number)
        self.first = 0  # number of the first value held
        self.end = 0  # number of the value behind the last one held

    def append(self, new: Float32Array) -> None:
        """Add values `(..., n)`."""
        if not new.shape[-1]:
            return
        self.end += new.shape[-1]
        if self.pieces and self.pieces[-1].shape[-1] < self._least:
            new = np.concatenate((self.pieces.pop(), new), axis=-1)
        self.pieces.append(new)

    def forget(self, before: int) -> None:
        """Let go of the values before number `before`; their memory goes piece by piece."""
        while self.pieces and self.first < before:
            piece = self.pieces.popleft()
            rest = piece[..., before - self.first :]
            if rest.shape[-1]:
                self.pieces.appendleft(rest)
            self.first += piece.shape[-1] - rest.shape[-1]

    def pass_over(self, start: int, end: int) -> None:
        """Let go of the values `[start, end)`, piece by piece, though some before them are held.

        Where they are asked for all the same, they read as `fill`.
        """
        kept: deque[Float32Array] = deque()
        first, passed = self.first, 0
        for piece in self.pieces:
            behind = first + piece.shape[-1]
            if start <= first and behind <= end:
                passed += piece.shape[-1]
                if passed > piece.shape[-1]:
                    kept.pop()
                # All of its values are one in memory.
                kept.append(np.broadcast_to(self._fill, (*piece.shape[:-1], passed)))
            else:
                kept.append(piece)
            first = behind
        self.pieces = kept

    def between(self, start: int, end: int) -> Iterator[Float32Array]:
        """The values `[start, end)`, as far as they are held, in pieces."""
        first = self.first
        for piece in self.pieces:
            part = piece[..., max(0, start - first) : max(0, end - first)]
            if part.shape[-1]:
                yield part
            first += piece.shape[-1]
