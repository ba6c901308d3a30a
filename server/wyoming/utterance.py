"""An utterance: audio up to `audio-stop`, and its text, as it arrives or at its end."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from wyoming.audio import AudioFormat

from whisper_npu import Committed, LiveTranscriber, TranscribeKwargs, WhisperModel
from whisper_npu.server.pcm import SAMPLE_RATE, Floats, RawAudio


class Utterance(ABC):
    """Audio up to `audio-stop`, and its text.

    Attributes:
        text: the text so far.
        language: code of its language, once it is known.
        seconds: seconds of audio.
        is_started: whether a part of the text was sent.
    """

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        self._model = model
        self._options = options
        self._raw = RawAudio(format.rate, width=format.width, channels=format.channels)
        self.text = ""
        self.language: str | None = options.get("language")
        self.seconds = 0.0
        self.is_started = False

    def seconds_of(self, data: bytes) -> float:
        """Seconds of audio in raw samples."""
        return self._raw.seconds_of(data)

    def hear(self, data: bytes) -> list[str]:
        """Take raw samples; returns the text that is final."""
        samples = self._raw.push(data)
        self.seconds += len(samples) / SAMPLE_RATE
        return self._take(samples)

    def finish(self) -> list[str]:
        """Returns the rest of the text."""
        return [*self._take(self._raw.end()), *self._end()]

    @abstractmethod
    def close(self) -> None:
        """Stop working."""

    @abstractmethod
    def _take(self, samples: Floats) -> list[str]:
        """Take samples; returns the text that is final."""

    @abstractmethod
    def _end(self) -> list[str]:
        """Returns the rest of the text."""

    def _add(self, text: str, language: str) -> list[str]:
        """Add final text; returns what is to be sent: the parts, joined, are the text."""
        text = text if self.text else text.lstrip()
        self.text += text
        self.language = language
        return [text] if text else []


class WholeUtterance(Utterance):
    """Is decoded at its end, which gives the best text."""

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        super().__init__(model, format, options)
        self._pieces: list[Floats] = []

    def close(self) -> None:
        """Stop working: nothing is at work before the end."""

    def _take(self, samples: Floats) -> list[str]:
        self._pieces.append(samples)
        return []

    def _end(self) -> list[str]:
        samples = np.concatenate(self._pieces)
        if not len(samples):
            return []
        result = self._model.transcribe(samples, **self._options).result()
        return self._add(result.text, result.language)


class LiveUtterance(Utterance):
    """Is decoded while it arrives."""

    def __init__(self, model: WhisperModel, format: AudioFormat, options: TranscribeKwargs) -> None:
        super().__init__(model, format, options)
        self._live = LiveTranscriber(model, **options)

    def close(self) -> None:
        """Stop working."""
        self._live.close()

    def _take(self, samples: Floats) -> list[str]:
        return self._shown(self._live.feed(samples))

    def _end(self) -> list[str]:
        return self._shown(self._live.finish())

    def _shown(self, updates: list[Any]) -> list[str]:
        return [
            part
            for update in updates
            if isinstance(update, Committed)
            for part in self._add(update.text, update.language)
        ]
