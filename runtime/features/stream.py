"""Cuts encoder windows from a stream of audio, in memory that does not grow with the recording."""

from collections.abc import Iterator, Sequence

import numpy as np

from whisper_npu.errors import WhisperNpuError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.features import vad
from whisper_npu.runtime.features.constant_offset import ConstantOffset
from whisper_npu.runtime.features.history import History
from whisper_npu.runtime.features.log_mel import (
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    LOG_FLOOR,
    N_FFT,
    SILENCE,
    Float32Array,
    log_mel_frames,
    normalize,
)
from whisper_npu.runtime.timing import StageTimes

_CONTEXT = N_FFT // 2  # samples on each side of a frame's centre
_AT_ONCE = vad.AT_ONCE * vad.CHUNK  # samples: two seconds, which the detector judges at once
_PIECE = FRAMES_PER_SECOND  # fewest frames in a piece: frames of live audio arrive one by one

# Log10 mel power. The loudest value in a window of speech is mostly between 0 and 1.7. Far below,
# the model makes more errors: half as many again if speech peaks at -60 dB of full scale, a tenth
# more at -40 (docs/accuracy.md). Speech that peaks at -25 dB has about -1.
_QUIET, _USUAL = -1.0, 1.0
_MOST = 5.0  # amplification: 50 dB


class FeatureStream:
    """Log-mel frames of a recording, computed on demand.

    The frames equal those of the reference: the recording is mirrored at its start and padded with
    silence at its end. `forget` releases earlier frames, block by block. A recording that cannot be
    read further ends there, so that all earlier audio is kept; `error` holds the reason.
    """

    def __init__(
        self,
        blocks: Iterator[Float32Array] | None,
        n_mels: int,
        speech: vad.SpeechMap | None = None,
        times: StageTimes | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            blocks: successive float32 samples, mono 16 kHz; None if they are pushed.
            n_mels: mel bands.
            speech: receives the same samples, if given.
            times: receives the times of reading, of the speech detector and of the features, if
                given.
        """
        self._times = StageTimes() if times is None else times
        self._blocks = blocks
        self._n_mels = n_mels
        self._speech = speech
        self._offset = ConstantOffset()
        self._samples = np.empty(0, np.float32)  # not yet covered by whole frames
        self._frames = History(float(np.log10(LOG_FLOOR)), _PIECE)  # (n_mels, n_frames)
        self._n_samples = 0
        self._started = False
        self._ended = False
        self.error: WhisperNpuError | None = None  # the error that ended the recording early

    @property
    def n_frames(self) -> int | None:
        """Frames of 10 ms in the whole recording; None until its end has been read."""
        return self._n_samples // HOP_LENGTH if self._ended else None

    @property
    def duration(self) -> float:
        """Seconds of audio read so far."""
        return self._n_samples / SAMPLE_RATE

    def available(self, seek: int, n_frames: int) -> int:
        """Return the frames that the recording has from `seek` on, at most `n_frames`."""
        self._read_to(seek + n_frames)
        return max(0, min(n_frames, self.n_ready - seek))

    def window(
        self, seek: int, n_frames: int, content: int | None = None, *, amplified: bool = False
    ) -> Float32Array:
        """Return the features of a window of one piece; see `joined`.

        Args:
            seek: number of the first frame.
            n_frames: frames in the window.
            content: frames to take from the recording; by default all available frames.
            amplified: amplify a quiet window to the usual level of speech.
        """
        take = n_frames if content is None else min(content, n_frames)
        return self.joined([(seek, seek + take)], n_frames, amplified=amplified)

    def joined(
        self, pieces: Sequence[tuple[int, int]], n_frames: int, *, amplified: bool = False
    ) -> Float32Array:
        """Return the features of a window, padded with silence after its content.

        Args:
            pieces: frames `[start, end)` of the recording, one or more, in order.
            n_frames: frames in the window; content beyond them is left out.
            amplified: amplify a quiet window to the usual level of speech. The reference does not.

        Returns:
            float32 `(n_mels, n_frames)`, scaled by the window's own peak.
        """
        log_mel = np.full((self._n_mels, n_frames), np.log10(LOG_FLOOR), np.float32)
        done = 0
        for start, end in pieces:
            stop = min(end, start + n_frames - done)
            self._read_to(stop)
            if self.n_frames is not None and stop >= self.n_frames:
                stop = start + n_frames - done  # frames across the recording's end belong to it
            for held in self._frames.between(start, stop):
                log_mel[:, done : done + held.shape[1]] = held
                done += held.shape[1]
        return normalize(_amplified(log_mel) if amplified else log_mel)

    def peak(self, seek: int, n_frames: int) -> float:
        """Return the loudest log10 mel power of the frames `[seek, seek + n_frames)`."""
        self._read_to(seek + n_frames)
        held = self._frames.between(seek, seek + n_frames)
        return max((float(part.max()) for part in held), default=float(np.log10(LOG_FLOOR)))

    def forget(self, before: int) -> None:
        """Release the frames before number `before`."""
        if self._speech is not None:
            self._speech.forget(before / FRAMES_PER_SECOND)
        self._frames.forget(before)

    def pass_over(self, start: int, end: int) -> None:
        """Release the frames `[start, end)`, which hold no speech; they read as silence.

        Earlier frames stay.
        """
        if self._speech is not None:
            self._speech.pass_over(start / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND)
        self._frames.pass_over(start, end)

    def push(self, block: Float32Array) -> None:
        """Add the next samples of a live recording."""
        for start in range(0, len(block), _AT_ONCE):
            piece = self._offset.remove(block[start : start + _AT_ONCE])
            if self._speech is not None:
                with self._times.measure("speech detection"):
                    self._speech.hear(piece)
            self._n_samples += len(piece)
            self._add(piece)  # while the detector works
        self._settle()

    def end(self) -> None:
        """End the recording here."""
        if self._speech is not None:
            with self._times.measure("speech detection"):
                self._speech.finish()
        self._ended = True
        self._add(np.zeros(2 * N_FFT, np.float32))  # the frames across the end
        self._settle()

    def _settle(self) -> None:
        if self._speech is not None:
            with self._times.measure("speech detection"):
                self._speech.settle()

    @property
    def n_ready(self) -> int:
        """Frames of the recording that are available without further reading."""
        end = self._frames.end
        return end if self.n_frames is None else min(end, self.n_frames)

    def _read_to(self, frame: int) -> None:
        while self._blocks is not None and not self._ended and self._frames.end < frame:
            with self._times.measure("audio decoding"):
                try:
                    block = next(self._blocks, None)
                except WhisperNpuError as error:
                    self.error = error
                    block = None
            if block is None:
                self.end()
            else:
                self.push(block)

    def _add(self, block: Float32Array) -> None:
        with self._times.measure("features"):
            self._compute(np.concatenate((self._samples, block)))

    def _compute(self, samples: Float32Array) -> None:
        self._samples = samples
        if not self._started:
            if len(self._samples) <= _CONTEXT:
                return
            mirrored = self._samples[_CONTEXT:0:-1]
            self._samples = np.concatenate((mirrored, self._samples))
            self._started = True
        new = log_mel_frames(self._samples, self._n_mels)
        self._samples = self._samples[new.shape[1] * HOP_LENGTH :]
        self._frames.append(new)


def _amplified(log_mel: Float32Array) -> Float32Array:
    """Amplify a much quieter window to the usual level of speech."""
    peak = float(log_mel.max())
    if not SILENCE < peak < _QUIET:
        return log_mel
    louder: Float32Array = log_mel + np.float32(min(_MOST, _USUAL - peak))
    return louder
