"""Runs a checkpoint in PyTorch as an engine, so that other engines can be compared with it.

It decodes by the same rules as they do: what differs is the model's arithmetic alone.
"""

from collections.abc import Sequence

import numpy as np
import torch

from whisper_npu.errors import UsageError
from whisper_npu.export.checkpoint import Checkpoint
from whisper_npu.export.parity_reference import expected_logits
from whisper_npu.runtime.engines.protocol import (
    N_LOGITS,
    Float32Array,
    Int64Array,
    NoAttention,
    SingleStream,
    check_room,
)


class TorchBackend(SingleStream):
    """A checkpoint on the processor, in f32, without a cache of past states."""

    device = "CPU (PyTorch)"
    kv_cache = "off"
    precision = "f32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Use a checkpoint.

        Args:
            checkpoint: the loaded checkpoint.
        """
        self._checkpoint = checkpoint
        self._sizes = checkpoint.dimensions

    @property
    def n_mels(self) -> int:
        """Mel bands of the encoder's input."""
        return self._sizes.n_mels

    @property
    def n_audio_ctx(self) -> int:
        """Positions of an encoded window."""
        return self._sizes.n_audio_ctx

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Whole windows only."""
        return (2 * self.n_audio_ctx,)

    @property
    def n_text_ctx(self) -> int:
        """Positions of the decoder."""
        return self._sizes.n_text_ctx

    @property
    def n_vocab(self) -> int:
        """Size of the decoder's vocabulary."""
        return self._sizes.n_vocab

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows; see `Backend.encode`."""
        encoder = self._checkpoint.model.model.encoder
        hidden = encoder(torch.from_numpy(np.ascontiguousarray(features)))
        encoded: Float32Array = hidden.last_hidden_state.numpy()
        return encoded

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> "_Session":
        """Start decoding encoded windows; see `Backend.start`."""
        return _Session(self._checkpoint, np.repeat(audio, rows_per_window, axis=0))

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """Refuse: no comparison needs word times.

        Raises:
            UsageError: always.
        """
        raise UsageError("PyTorch's attention is not available; compare without word times")


class _Session(NoAttention):
    """A batch of token rows; each step computes the whole context."""

    def __init__(self, checkpoint: Checkpoint, audio: Float32Array) -> None:
        self._checkpoint = checkpoint
        self._audio = audio
        self._tokens = np.empty((len(audio), 0), np.int64)

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._tokens.shape[1]

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        check_room(self.length, n_new, self._checkpoint.dimensions.n_text_ctx)
        self._tokens = np.concatenate((self._tokens, tokens), axis=1)
        logits = expected_logits(self._checkpoint, self._audio, self._tokens)
        return logits[:, -min(n_new, N_LOGITS) :]

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._tokens = self._tokens[list(rows)]

    def keep(self, rows: Sequence[int]) -> bool:
        """Keep all rows; see `DecoderSession.keep`."""
        return False

    def close(self) -> None:
        """Release the tokens and the audio."""
        self._tokens = self._tokens[:0]
