"""Divides live audio into turns: speech up to a pause, as a conversation has them."""

from dataclasses import dataclass

import numpy as np

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.constant_offset import ConstantOffset
from whisper_npu.runtime.features.vad import CHUNK, SpeechMap
from whisper_npu.runtime.transcription.model import WhisperModel

_FIRST = 2  # chunks of speech in a row with which a turn begins: one alone may be a click
_HYSTERESIS = 0.15  # speech goes on at a probability that is lower by so much, as in `vad.py`
_LEAST_THRESHOLD = 0.01


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """A turn has begun.

    Attributes:
        at: its first sample, counted from the start of the session; the padding is included.
    """

    at: int


@dataclass(frozen=True, slots=True, eq=False)
class TurnAudio:
    """Audio of the turn that has begun.

    Attributes:
        samples: float32 `(n_samples,)`, mono at 16 kHz; they follow on the turn's last samples.
    """

    samples: Float32Array


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The turn has ended.

    Attributes:
        at: the first sample after it; the pause is included.
    """

    at: int


TurnEvent = TurnStarted | TurnAudio | TurnEnded


class TurnDetector:
    """Finds turns in a stream of audio. It holds no more than the padding before a turn."""

    def __init__(
        self,
        model: WhisperModel,
        *,
        threshold: float = 0.5,
        padding: float = 0.3,
        silence: float = 0.5,
    ) -> None:
        """Begin between two turns.

        Args:
            model: its speech detector is used.
            threshold: probability from which audio is speech, above 0 and below 1.
            padding: seconds before the speech that belong to its turn.
            silence: seconds without speech that end a turn.

        Raises:
            UsageError: an argument is out of range.
        """
        if not 0 < threshold < 1:
            raise UsageError(f"threshold is {threshold}; give a number above 0 and below 1")
        if padding < 0 or not silence > 0:
            raise UsageError("padding and silence are seconds: 0 or more, and above 0")
        self._speech = SpeechMap(model.voice_activity.detector(), threshold)
        self._offset = ConstantOffset()
        self._begins_at = threshold
        self._goes_on_at = max(threshold - _HYSTERESIS, _LEAST_THRESHOLD)
        self._padding = round(padding * SAMPLE_RATE)
        self._silence = round(silence * SAMPLE_RATE)
        self._audio = np.empty(0, np.float32)  # not given out yet
        self._begin = 0  # its first sample
        self._n_judged = 0  # chunks
        self._n_loud = 0  # chunks of speech in a row, between turns
        self._n_quiet = 0  # chunks without speech in a row, in a turn
        self._is_open = False

    def __repr__(self) -> str:
        """How much it has heard, and whether a turn is open."""
        state = "in a turn" if self._is_open else "between turns"
        return f"<TurnDetector, {state}: {self.n_samples / SAMPLE_RATE:.1f} s heard>"

    @property
    def is_open(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._is_open

    @property
    def n_samples(self) -> int:
        """Samples heard."""
        return self._begin + len(self._audio)

    def hear(self, samples: Float32Array) -> list[TurnEvent]:
        """Take the next samples, float32 `(n_samples,)`, mono at 16 kHz; return what they bring."""
        self._audio = np.concatenate((self._audio, samples))
        self._speech.hear(self._offset.remove(samples))
        start, end = self._n_judged * CHUNK / SAMPLE_RATE, self.n_samples / SAMPLE_RATE
        probabilities, _ = self._speech.between(start, end)
        self._speech.forget(end)
        events: list[TurnEvent] = []
        for probability in probabilities.tolist():
            self._n_judged += 1
            events += self._go_on(probability) if self._is_open else self._look(probability)
        if self._is_open:
            events += self._give_out(self._n_judged * CHUNK)
        else:
            kept = self._padding + _FIRST * CHUNK
            self._drop(self._n_judged * CHUNK - kept)
        return events

    def cut(self) -> Float32Array:
        """End the turn here, or between turns: return the audio that was not given out.

        Returns:
            float32 `(n_samples,)`; between two turns at least as long as the padding, if there was
            so much audio since the last turn.
        """
        audio, self._audio = self._audio, np.empty(0, np.float32)
        self._begin += len(audio)
        self._is_open, self._n_loud = False, 0
        return audio

    def _look(self, probability: float) -> list[TurnEvent]:
        """Judge a chunk between two turns."""
        self._n_loud = self._n_loud + 1 if probability >= self._begins_at else 0
        if self._n_loud < _FIRST:
            return []
        self._is_open, self._n_loud, self._n_quiet = True, 0, 0
        self._drop((self._n_judged - _FIRST) * CHUNK - self._padding)
        return [TurnStarted(self._begin)]

    def _go_on(self, probability: float) -> list[TurnEvent]:
        """Judge a chunk in a turn."""
        self._n_quiet = 0 if probability >= self._goes_on_at else self._n_quiet + 1
        if self._n_quiet * CHUNK < self._silence:
            return []
        self._is_open = False
        end = self._n_judged * CHUNK
        return [*self._give_out(end), TurnEnded(end)]

    def _give_out(self, end: int) -> list[TurnEvent]:
        given = self._audio[: max(0, end - self._begin)]
        self._drop(end)
        return [TurnAudio(given)] if len(given) else []

    def _drop(self, before: int) -> None:
        n = min(max(0, before - self._begin), len(self._audio))
        self._audio = self._audio[n:]
        self._begin += n
