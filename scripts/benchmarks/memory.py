"""Measures memory and time for recordings of any length, generated while they are read."""

import io
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_npu import load_model
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.engines.memory import map_large_blocks
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.live import LiveTranscriber
from whisper_npu.scripts.benchmarks.engine_runner import peak_memory

_PERIOD = 60 * SAMPLE_RATE  # samples after which generated audio repeats
_HEADER = 44  # bytes of a WAV file before its samples
_NOISE = 0.01  # share of full scale
_SPOKEN, _EVERY = 5 * SAMPLE_RATE, 20 * SAMPLE_RATE  # samples of speech, before silence

Pcm = npt.NDArray[np.int16]


class EndlessWav(io.RawIOBase):
    """A WAV file in no folder that repeats the same minute."""

    def __init__(self, minute: Pcm, n_samples: int) -> None:
        """Make a file of `n_samples` samples at 16 kHz that repeats `minute`."""
        self._minute = minute.tobytes()
        n_bytes = 2 * n_samples
        sizes = (_HEADER - 8 + n_bytes, 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16, n_bytes)
        self._header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", sizes[0], b"WAVE", b"fmt ",
                                   *sizes[1:8], b"data", sizes[8])  # fmt: skip
        self._end = _HEADER + n_bytes
        self._place = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; return it."""
        self._place = (0, self._place, self._end)[whence] + offset
        return self._place

    def tell(self) -> int:
        """The position."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes, at most up to the end of a minute."""
        into = memoryview(buffer)
        room = min(len(into), self._end - self._place)
        if self._place < _HEADER:
            part = self._header[self._place :][:room]
        else:
            begin = (self._place - _HEADER) % len(self._minute)
            part = self._minute[begin : begin + room]
        into[: len(part)] = part
        self._place += len(part)
        return len(part)


def minute_of(content: str, speech: Path | None) -> Pcm:
    """A minute of audio: silence, noise, or three times 5 s of speech before 15 s of silence.

    Such pauses are left out of windows, so a window spans more than a minute.
    """
    samples = np.zeros(_PERIOD, np.float32)
    if content == "noise":
        samples += _NOISE * np.random.default_rng(0).standard_normal(_PERIOD).astype(np.float32)
    elif content == "speech" and speech is not None:
        spoken = load_audio(speech)[:_SPOKEN]
        for start in range(0, _PERIOD, _EVERY):
            samples[start : start + len(spoken)] = spoken
    return (samples * np.iinfo(np.int16).max).astype(np.int16)


def measure(model: str, minute: Pcm, hours: float, options: TranscribeOptions, live: bool) -> str:
    """Transcribe a recording of `hours`; return a line of the table."""
    map_large_blocks()  # as the commands do
    loaded = load_model(model)
    n_samples = int(3600 * hours * SAMPLE_RATE)
    begin = time.perf_counter()
    if live:
        session = LiveTranscriber(loaded, language="en")
        block = SAMPLE_RATE // 2
        n_segments = 0
        for start in range(0, n_samples, block):
            n_segments += len(session.feed(minute[start % _PERIOD :][:block]))
        n_segments += len(session.finish())
    else:
        found = loaded.transcribe(io.BufferedReader(EndlessWav(minute, n_samples)), options)
        n_segments = sum(1 for _ in found)
    seconds = time.perf_counter() - begin
    peak = (peak_memory() or 0) / 2**20
    return f"| {hours:.2f} | {peak:.0f} | {seconds:.1f} | {seconds / hours:.1f} | {n_segments} |"
