"""Joins an encoder on one device and a decoder on another to one model."""

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.protocol import (
    Backend,
    DecoderSession,
    Float32Array,
    Int64Array,
    SingleStream,
)


class SplitBackend(SingleStream):
    """Encodes with one backend and decodes with another; both hold the same model."""

    def __init__(self, encoder: Backend, decoder: Backend) -> None:
        """Join two backends.

        Raises:
            ModelError: they do not hold the same model.
        """
        for size in ("n_mels", "n_audio_ctx", "n_text_ctx", "n_vocab"):
            if getattr(encoder, size) != getattr(decoder, size):
                raise ModelError(f"encoder and decoder are of two models: {size} differs")
        self._encoder = encoder
        self._decoder = decoder

    @property
    def n_mels(self) -> int:
        """Number of mel bands of the features."""
        return self._encoder.n_mels

    @property
    def n_audio_ctx(self) -> int:
        """Number of encoder positions of a window."""
        return self._encoder.n_audio_ctx

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Frame numbers of the windows that both take, shortest first."""
        decoder = self._decoder.window_frames
        return tuple(frames for frames in self._encoder.window_frames if frames in decoder)

    @property
    def n_text_ctx(self) -> int:
        """Number of decoder positions."""
        return self._decoder.n_text_ctx

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._decoder.n_vocab

    @property
    def device(self) -> str:
        """The devices of both parts."""
        return f"encoder on {self._encoder.device}, decoder on {self._decoder.device}"

    @property
    def placements(self) -> dict[str, str]:
        """The device that executes each part, by name."""
        return {"encoder": self._encoder.device, "decoder": self._decoder.device}

    @property
    def kv_cache(self) -> str:
        """The decoder's kind of key/value cache."""
        return self._decoder.kv_cache

    @property
    def precision(self) -> str:
        """The precision of both parts."""
        if self._encoder.precision == self._decoder.precision:
            return self._decoder.precision
        return f"encoder {self._encoder.precision}, decoder {self._decoder.precision}"

    @property
    def is_exact(self) -> bool:
        """Whether both parts compute exactly."""
        return self._encoder.is_exact and self._decoder.is_exact

    @property
    def window_bytes(self) -> int:
        """Memory for the states of one window in the decoder."""
        return self._decoder.window_bytes

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows; see `Backend.encode`."""
        return self._encoder.encode(features)

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        """Begin decoding; see `Backend.start`."""
        return self._decoder.start(audio, rows_per_window)

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """The attention of the tokens; see `Backend.align`."""
        return self._decoder.align(audio, tokens)
