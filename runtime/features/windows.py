"""Chooses the windows to decode: where speech is, at most as long as the encoder hears at once.

Without a speech detector a window is whatever comes next. With one, stretches without speech are
passed over, and a window ends where a long pause begins: given silence to transcribe, Whisper
invents text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND, SILENCE
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import CHUNKS_PER_SECOND, SpeechMap

Stretch = tuple[float, float]
"""From when to when, in seconds from the start of a window."""

PAD = 0.4  # seconds kept before and after speech: onsets are soft, and so are ends
LONG_PAUSE = 3.0  # seconds without speech that end a window
SHORT_PAUSE = 0.5  # the same where the language may change at any of them
LOOK_AHEAD = 0.5  # seconds at the end of what was judged in which speech may just begin
_BESIDE = 2.0  # seconds from the edge of speech left out, within which a window is cut in two
_PART = 2.0  # seconds that a part of a window has at least
_EARLIEST_CUT = 0.5  # share of a window before which it is not cut at a pause
_SHORTEST_PAUSE = 0.1  # seconds: what looks shorter is cut off by the end of the window
# Share of the encoder's window that is filled where it is cut at a pause: without silence behind
# the last word, the model takes it for one cut in two.
_FILL = 14 / 15


@dataclass(frozen=True)
class Window:
    """Frames `[start, end)` of 10 ms to be decoded together."""

    start: int
    end: int

    @property
    def n_frames(self) -> int:
        """Frames of audio in it."""
        return self.end - self.start

    @property
    def offset(self) -> float:
        """Seconds from the start of the recording."""
        return self.start / FRAMES_PER_SECOND

    @property
    def end_time(self) -> float:
        """Seconds from the start of the recording."""
        return self.end / FRAMES_PER_SECOND


class WindowChooser:
    """Finds the next window from a given frame on."""

    def __init__(
        self,
        features: FeatureStream,
        speech: SpeechMap | None,
        window_frames: int,
        long_pause: float = LONG_PAUSE,
        *,
        skips_silence: bool = True,
    ) -> None:
        """Prepare to choose.

        Args:
            features: the recording.
            speech: where speech is in it; None takes all audio.
            window_frames: frames in a window at most.
            long_pause: seconds without speech that end a window.
            skips_silence: pass over audio without speech, and end windows at long pauses.
        """
        self._skips_silence = skips_silence and speech is not None
        self._long_pause = long_pause
        self._features = features
        self._speech = speech
        self._window_frames = window_frames

    def next(self, seek: int, *, cut_at_pause: bool) -> Window | None:
        """The next window with speech at or behind frame `seek`; None at the recording's end.

        Frames without speech are let go of as they are passed over.

        Args:
            seek: first frame that has not been decoded.
            cut_at_pause: end a full window at a pause, so that no word is cut in two. Otherwise
                it takes all it can, and the caller goes on from the last timestamp.
        """
        limit = self._window_frames
        if cut_at_pause and self._speech is not None:
            limit = round(_FILL * limit)
        begin = seek
        while True:
            self._features.pass_over(begin, seek)
            n_frames = self._features.available(seek, limit)
            if n_frames == 0:
                return None
            if self._features.peak(seek, n_frames) < SILENCE:
                seek += n_frames
                continue
            spans = [] if self._speech is None else self._spans(seek, n_frames)
            if not self._skips_silence:
                return self._end(seek, n_frames, spans, cut_at_pause=cut_at_pause)
            if not spans:
                at_end = self._features.available(seek + n_frames, 1) == 0
                seek += n_frames if at_end else n_frames - round(LOOK_AHEAD * FRAMES_PER_SECOND)
                continue
            start = max(seek, _frame(spans[0][0] - PAD))
            if not cut_at_pause and (start - seek) / FRAMES_PER_SECOND < self._long_pause:
                start = seek  # as the reference has it: a short silence does no harm
            if start > seek:
                n_frames = self._features.available(start, limit)
                spans = self._spans(start, n_frames)
            return self._end(start, n_frames, spans, cut_at_pause=cut_at_pause)

    def _end(
        self, start: int, n_frames: int, spans: list[tuple[float, float]], *, cut_at_pause: bool
    ) -> Window:
        end = start + n_frames
        edges = [*(begin for begin, _ in spans[1:]), end / FRAMES_PER_SECOND]
        for (_, speech_end), next_speech in zip(spans, edges, strict=False):
            if not self._skips_silence:
                break
            if next_speech - speech_end >= self._long_pause:
                pad = min(PAD, (next_speech - speech_end) / 2)
                return Window(start, _frame(speech_end + pad))
        more = self._features.available(end, 1) > 0
        if cut_at_pause and more and self._speech is not None:
            end = self._pause(start, end, spans)
        return Window(start, end)

    def best_cut(self, start: int, end: int) -> int:
        """The frame at which to cut frames `[start, end)` with speech, if cut they must be."""
        if self._speech is None:
            return end
        return self._pause(start, end, self._spans(start, end - start))

    def cut_beside(self, window: Window, unheard: Sequence[Stretch]) -> int:
        """The frame at which to cut a window in two, so that one part is speech left out before.

        It is the pause nearest to that end of the longest stretch which is farther from the ends
        of the window; of speech all through, the middle. Without a pause there, it is where speech
        is least probable.

        Args:
            window: in which speech was left out, at least twice as long as a part.
            unheard: where, in seconds from its start; at least one stretch.
        """
        longest = max(unheard, key=lambda stretch: stretch[1] - stretch[0])
        seconds = window.end_time - window.offset
        edge = max(longest, key=lambda at: min(at, seconds - at))
        if min(edge, seconds - edge) < _PART:  # nearly all of it was left out
            edge = seconds / 2
        near = max(_PART, edge - _BESIDE), min(seconds - _PART, edge + _BESIDE)
        spans = self.speech(window)
        pauses = [(before[1] + after[0]) / 2 for before, after in pairwise(spans)]
        pauses = [pause for pause in pauses if near[0] <= pause <= near[1]]
        if pauses:
            return window.start + _frame(min(pauses, key=lambda pause: abs(pause - edge)))
        return self._quietest(window.offset + near[0], window.offset + near[1])

    def _pause(self, start: int, end: int, spans: list[tuple[float, float]]) -> int:
        """The frame at which to cut a full window: the middle of its latest pause.

        The longer a window, the more the model knows of what was said before. Without any pause,
        it is cut where speech is least probable.
        """
        earliest = (start + _EARLIEST_CUT * (end - start)) / FRAMES_PER_SECOND
        limit = end / FRAMES_PER_SECOND
        ends = [speech_end for _, speech_end in spans]
        edges = [*(begin for begin, _ in spans[1:]), limit]
        pauses = [
            (next_speech - speech_end >= _SHORTEST_PAUSE, (speech_end + next_speech) / 2)
            for speech_end, next_speech in zip(ends, edges, strict=False)  # without speech no end
            if speech_end >= earliest and next_speech > speech_end
        ]
        if pauses:
            return _frame(max(pauses)[1])
        return self._quietest(earliest, limit)

    def _quietest(self, start: float, end: float) -> int:
        """The frame between two times, in seconds, at which speech is least probable."""
        probabilities, first = self._judged(start, end)
        quietest = int(np.argmin(probabilities))
        return _frame(first + (quietest + 0.5) / CHUNKS_PER_SECOND)

    def _spans(self, seek: int, n_frames: int) -> list[tuple[float, float]]:
        start = seek / FRAMES_PER_SECOND
        if self._speech is None:
            raise ValueError("pauses are only known with a speech detector")
        return self._speech.spans(start, (seek + n_frames) / FRAMES_PER_SECOND)

    def speech(self, window: Window) -> tuple[Stretch, ...]:
        """Where there is speech in a window, in seconds from its start; none without a detector."""
        if self._speech is None:
            return ()
        spans = self._spans(window.start, window.n_frames)
        return tuple((start - window.offset, end - window.offset) for start, end in spans)

    def speech_seconds(self, start: float, end: float) -> float:
        """Seconds of speech between two times; all of them where silence is not passed over."""
        if self._speech is None or not self._skips_silence:
            return end - start
        return sum(stop - begin for begin, stop in self._speech.spans(start, end))

    def _judged(self, start: float, end: float) -> tuple[Float32Array, float]:
        if self._speech is None:
            raise ValueError("pauses are only known with a speech detector")
        return self._speech.between(start, end)


def _frame(seconds: float) -> int:
    return max(0, round(seconds * FRAMES_PER_SECOND))
