"""What decoding asks of an inference engine; `openvino_backend` provides it.

The protocol is the seam for tests (a fake backend) and for other engines.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

SILENCE_FEATURE = -1.5
"""Every feature of digital silence, as `log_mel.normalize` makes it."""

N_LOGITS = 4
"""Positions whose logits a step returns at most: <|sot|>, language, task and <|notimestamps|>."""


class DecoderSession(Protocol):
    """One batch of token rows being decoded against encoded audio. Close it when done."""

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        ...

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens.

        Args:
            tokens: int64 `(batch, n)`.

        Returns:
            float32 logits `(batch, min(n, N_LOGITS), n_vocab)` of the last positions; valid until
            the next step.
        """
        ...

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row `i` continue what was row `rows[i]` (beam search)."""
        ...

    def keep(self, rows: Sequence[int]) -> bool:
        """Go on with these rows alone, in rising order, as the session's only ones.

        Returns:
            False where rows cannot leave: then all stay, at this and any later call.
        """
        ...

    def follow(self) -> bool:
        """Keep what tokens attend to, for `attention`; called before the first step.

        Returns:
            False where that is not known: `Backend.align` tells it.
        """
        ...

    def attention(self, row: int, n_positions: int, pooled: int) -> Iterator[Float32Array]:
        """What a row's positions attend to, where the session was told to follow.

        Args:
            row: as rows are numbered now. It was never reordered.
            n_positions: how many positions count, the first ones.
            pooled: audio positions that are taken together as one of these.

        Returns:
            for one alignment head after the other float32 `(length, n_positions)`, in proportion
            to the attention.
        """
        ...

    def close(self) -> None:
        """Give the engine's buffers back."""
        ...


class FollowsNothing:
    """What sessions share that do not know what tokens attend to."""

    def follow(self) -> bool:
        """See `DecoderSession.follow`."""
        return False

    def attention(self, row: int, n_positions: int, pooled: int) -> Iterator[Float32Array]:
        """See `DecoderSession.attention`."""
        raise RuntimeError("this session follows nothing")


class Backend(Protocol):
    """A loaded model. Safe to use from several threads."""

    @property
    def n_mels(self) -> int:
        """Mel bands the encoder takes."""
        ...

    @property
    def n_audio_ctx(self) -> int:
        """Positions the encoder gives for a window: half its frames."""
        ...

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Frames of 10 ms that a window may have, the fewest first; the last is a whole window."""
        ...

    @property
    def n_text_ctx(self) -> int:
        """Positions the decoder has."""
        ...

    @property
    def n_vocab(self) -> int:
        """Tokens the decoder chooses from."""
        ...

    @property
    def device(self) -> str:
        """The device that executes the graphs, as results name it."""
        ...

    @property
    def kv_cache(self) -> str:
        """The kind of cache in use, as results name it."""
        ...

    @property
    def precision(self) -> str:
        """The arithmetic in use, as results name it."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether what is decoded is to be what PyTorch decodes, rather than to be fast."""
        ...

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows: `(batch, n_mels, frames)` to `(batch, frames // 2, n_audio_state)`."""
        ...

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        """Begin decoding encoded windows.

        Args:
            audio: float32 `(windows, n_audio_ctx, n_audio_state)` from `encode`.
            rows_per_window: token rows that share a window (beams or samples); rows
                `[i * rows_per_window, (i + 1) * rows_per_window)` belong to window `i`.
        """
        ...

    def silence(self) -> Float32Array:
        """A whole window of digital silence encoded, `(1, n_audio_ctx, n_audio_state)`."""
        ...

    @property
    def n_streams(self) -> int:
        """Batches that `in_streams` decodes side by side."""
        ...

    def in_streams(self) -> "Backend":
        """The same model for several callers at once: each is slower, together they are faster."""
        ...

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """What the tokens of finished texts attend to, for word times.

        Args:
            audio: float32 `(windows, n_audio_ctx, n_audio_state)` from `encode`.
            tokens: int64 `(windows, n)`, each row from `<|startoftranscript|>` on.

        Returns:
            float32 `(windows, n - 1)`, the probability of each token but the first after those
            before it, among text tokens (of others it means nothing); and float32 `(windows,
            alignment heads, n, n_audio_ctx)`, the cross-attention of the model's alignment heads,
            which adds up to 1 over the audio.

        Raises:
            ModelError: the model folder lacks the graph for it.
        """
        ...


class SingleStream(ABC):
    """What backends share that decode one batch at a time."""

    _silence: Float32Array | None = None

    @property
    @abstractmethod
    def n_mels(self) -> int:
        """Mel bands the encoder takes."""

    @property
    @abstractmethod
    def window_frames(self) -> tuple[int, ...]:
        """Frames of 10 ms that a window may have; the last is a whole window."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The arithmetic in use."""

    @property
    def is_exact(self) -> bool:
        """In f32."""
        return self.precision == "f32"

    @abstractmethod
    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows."""

    @property
    def n_streams(self) -> int:
        """One."""
        return 1

    def in_streams(self) -> Self:
        """This backend: it is no faster with several callers."""
        return self

    def silence(self) -> Float32Array:
        """A whole window of digital silence encoded; computed once."""
        if self._silence is None:
            shape = (1, self.n_mels, self.window_frames[-1])
            self._silence = self.encode(np.full(shape, SILENCE_FEATURE, np.float32))
        return self._silence
