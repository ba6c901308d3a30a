"""The interface between decoding and an inference engine, such as `openvino/engine.py`.

It is the seam for tests (a fake backend) and for other engines.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import UsageError

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

SILENCE_FEATURE = -1.5
"""Every feature of digital silence, as `log_mel.normalize` makes it."""

N_LOGITS = 4
"""Most positions whose logits a step returns: <|sot|>, language, task and <|notimestamps|>."""


def check_room(length: int, n_new: int, n_text_ctx: int) -> None:
    """Make sure that further tokens fit the decoder's context.

    Args:
        length: positions decoded so far.
        n_new: further tokens.
        n_text_ctx: positions of the decoder.

    Raises:
        UsageError: they do not fit.
    """
    if length + n_new > n_text_ctx:
        raise UsageError(
            f"{length} + {n_new} tokens do not fit the decoder's context of {n_text_ctx}"
        )


class DecoderSession(Protocol):
    """A batch of token rows that is decoded against encoded audio. Close it when done."""

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
        """Let row `i` continue row `rows[i]` (beam search)."""
        ...

    def keep(self, rows: Sequence[int]) -> bool:
        """Keep only these rows, in rising order; they become the session's rows.

        Returns:
            False if rows cannot leave: then all rows stay, at this and any later call.
        """
        ...

    def record_attention(self) -> bool:
        """Record the attention of tokens, for `attention`; call it before the first step.

        Returns:
            False if the session cannot record it; then use `Backend.align`.
        """
        ...

    def attention(self, row: int, n_positions: int, pooled: int) -> Iterator[Float32Array]:
        """Return the recorded attention of a row's positions.

        Args:
            row: the row's present number. It must never have been reordered.
            n_positions: number of pooled positions to return, from the first on.
            pooled: audio positions that are pooled into one of them.

        Returns:
            for each alignment head in turn float32 `(length, n_positions)`, in proportion to the
            attention.
        """
        ...

    def close(self) -> None:
        """Release the engine's buffers."""
        ...


class NoAttention:
    """Base of sessions that cannot record attention."""

    def record_attention(self) -> bool:
        """See `DecoderSession.record_attention`."""
        return False

    def attention(self, row: int, n_positions: int, pooled: int) -> Iterator[Float32Array]:
        """See `DecoderSession.attention`."""
        raise RuntimeError("this session records no attention")


class Backend(Protocol):
    """A loaded model. Safe to use from several threads."""

    @property
    def n_mels(self) -> int:
        """Mel bands of the encoder's input."""
        ...

    @property
    def n_audio_ctx(self) -> int:
        """Positions of an encoded window: half its frames."""
        ...

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Possible lengths of a window in frames of 10 ms, rising; the last is a whole window."""
        ...

    @property
    def n_text_ctx(self) -> int:
        """Positions of the decoder."""
        ...

    @property
    def n_vocab(self) -> int:
        """Size of the decoder's vocabulary."""
        ...

    @property
    def device(self) -> str:
        """The device that executes the graphs, as named in results."""
        ...

    @property
    def kv_cache(self) -> str:
        """The kind of cache in use, as named in results."""
        ...

    @property
    def precision(self) -> str:
        """The arithmetic in use, as named in results."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether decoding should equal PyTorch's rather than be fast."""
        ...

    @property
    def can_align(self) -> bool:
        """Whether `align` gives word times."""
        ...

    @property
    def window_bytes(self) -> int:
        """Memory for the states of one window that is decoded, in bytes; 0 if it is not known."""
        ...

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows: `(batch, n_mels, frames)` to `(batch, frames // 2, n_audio_state)`."""
        ...

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        """Start decoding encoded windows.

        Args:
            audio: float32 `(windows, n_audio_ctx, n_audio_state)` from `encode`.
            rows_per_window: token rows that share a window (beams or samples); rows
                `[i * rows_per_window, (i + 1) * rows_per_window)` belong to window `i`.
        """
        ...

    def silence(self) -> Float32Array:
        """Return a whole encoded window of digital silence, `(1, n_audio_ctx, n_audio_state)`."""
        ...

    @property
    def n_streams(self) -> int:
        """Number of batches that `parallel` decodes in parallel."""
        ...

    def parallel(self) -> "Backend":
        """Return the same model for several callers at once: each is slower, together faster."""
        ...

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """Return the attention of the tokens of finished texts, for word times.

        Args:
            audio: float32 `(windows, n_audio_ctx, n_audio_state)` from `encode`.
            tokens: int64 `(windows, n)`, each row from `<|startoftranscript|>` on.

        Returns:
            float32 `(windows, n - 1)`, the probability of each token but the first, given the
            tokens before it, among text tokens (it has no meaning for other tokens); and float32
            `(windows, alignment heads, n, n_audio_ctx)`, the cross-attention of the model's
            alignment heads, which adds up to 1 over the audio.

        Raises:
            ModelError: the model folder lacks the graph for it.
        """
        ...


class SingleStream(ABC):
    """Base of backends that decode one batch at a time."""

    _silence: Float32Array | None = None

    @property
    @abstractmethod
    def n_mels(self) -> int:
        """Mel bands of the encoder's input."""

    @property
    @abstractmethod
    def window_frames(self) -> tuple[int, ...]:
        """Possible numbers of frames of 10 ms in a window; the last is a whole window."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The arithmetic in use."""

    @property
    def is_exact(self) -> bool:
        """Whether the arithmetic is f32, whatever form the weights are stored in."""
        return self.precision.partition(" ")[0] == "f32"

    @property
    def can_align(self) -> bool:
        """Whether `align` gives word times: it does not."""
        return False

    @property
    def window_bytes(self) -> int:
        """Memory for the states of one window: not known."""
        return 0

    @abstractmethod
    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows."""

    @property
    def n_streams(self) -> int:
        """Number of parallel streams: one."""
        return 1

    def parallel(self) -> Self:
        """Return this backend: several callers would make it no faster."""
        return self

    def silence(self) -> Float32Array:
        """Return an encoded whole window of digital silence; computed once."""
        if self._silence is None:
            shape = (1, self.n_mels, self.window_frames[-1])
            self._silence = self.encode(np.full(shape, SILENCE_FEATURE, np.float32))
        return self._silence
