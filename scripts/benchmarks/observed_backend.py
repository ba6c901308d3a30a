"""A backend that records its calls: the time of the first token, and the amount of work.

It stands between a model and its backend, and passes all calls on unchanged.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from whisper_npu.runtime.engines.protocol import (
    N_LOGITS,
    Backend,
    DecoderSession,
    Float32Array,
    Int64Array,
)
from whisper_npu.runtime.transcription.model import WhisperModel

PREFILL, DECODER = "prefill", "decoder"  # names of the stages of a transcription


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the decoder.

    Attributes:
        stage: `prefill` for the first step of a session, else `decoder`.
        rows: Token rows that are decoded together.
        tokens: New tokens per row.
        past: Tokens before the new ones.
        audio_ctx: Positions of encoded audio that each row attends to.
        projected: Positions per row projected to the vocabulary.
    """

    stage: str
    rows: int
    tokens: int
    past: int
    audio_ctx: int
    projected: int


@dataclass
class Observations:
    """The calls of a backend since `clear`.

    Attributes:
        windows: Encoder positions of each encoded window.
        projected: Encoder positions of each window whose cross-attention was prepared.
        steps: Steps of the decoder.
        first_token: Time at which the first token of a text could be chosen (`time.perf_counter`);
            a session of one step is language detection and has none.
    """

    windows: list[int] = field(default_factory=list)
    projected: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    first_token: float | None = None

    def clear(self) -> None:
        """Forget everything."""
        self.windows.clear()
        self.projected.clear()
        self.steps.clear()
        self.first_token = None


class _ObservedSession:
    def __init__(self, session: DecoderSession, seen: Observations, audio_ctx: int) -> None:
        self._session = session
        self._seen = seen
        self._audio_ctx = audio_ctx
        self._first_step: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def step(self, tokens: Int64Array) -> Float32Array:
        past = self._session.length
        rows, n_new = tokens.shape
        logits = self._session.step(tokens)
        stage = PREFILL if self._first_step is None else DECODER
        projected = min(n_new, N_LOGITS)
        self._seen.steps.append(Step(stage, rows, n_new, past, self._audio_ctx, projected))
        if self._first_step is None:
            self._first_step = time.perf_counter()
        elif self._seen.first_token is None:  # a second step: the session decodes a text
            self._seen.first_token = self._first_step
        return logits

    def reorder(self, rows: Sequence[int]) -> None:
        self._session.reorder(rows)

    def close(self) -> None:
        self._session.close()


class _ObservedBackend:
    def __init__(self, backend: Backend, seen: Observations) -> None:
        self._backend = backend
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def parallel(self) -> Backend:
        return cast("Backend", _ObservedBackend(self._backend.parallel(), self._seen))

    def encode(self, features: Float32Array) -> Float32Array:
        audio = self._backend.encode(features)
        self._seen.windows += [audio.shape[1]] * len(audio)
        return audio

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        self._seen.projected += [audio.shape[1]] * len(audio)
        session = self._backend.start(audio, rows_per_window)
        return cast("DecoderSession", _ObservedSession(session, self._seen, audio.shape[1]))


def observe(model: WhisperModel) -> tuple[WhisperModel, Observations]:
    """The same model with an observed backend, and the record of its calls."""
    seen = Observations()
    backend = cast("Backend", _ObservedBackend(model.backend, seen))
    return WhisperModel(model.folder, backend), seen
