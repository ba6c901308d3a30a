"""Chooses the windows to decode: they hold speech and fit the encoder.

Without a speech detector a window takes the next audio, whatever it holds. With a detector,
stretches without speech are skipped, because Whisper invents text for silence. A window ends at a
long pause; if the speech after the pause fits into it, it takes that speech, too, and leaves the
pause out: the model makes fewer errors with more context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf

import numpy as np

from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND, SILENCE
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import CHUNKS_PER_SECOND, SpeechMap

Stretch = tuple[float, float]
"""Start and end, in seconds from the start of a window."""

PAD = 0.4  # seconds kept before and after speech: it begins and ends softly
LONG_PAUSE = 3.0  # seconds without speech that end a window
SHORT_PAUSE = 0.5  # the same if the language may change at any pause
LOOK_AHEAD = 0.5  # seconds at the end of the judged audio in which speech may just begin
_LONGEST_JOINED = 30.0  # seconds of a pause that a window leaves out; beyond it, speech begins anew
_LONGEST_SPAN = 120.0  # seconds from start to end of a window with pauses: its audio is in memory
_MOST_APART = 1.2  # log10 of power, 12 dB: speakers of other levels do not share a window
_BESIDE = 2.0  # seconds from the edge of left-out speech, within which a window is split
_PART = 2.0  # shortest part of a split window, in seconds
_EARLIEST_CUT = 0.5  # share of a window before which it is not cut at a pause
_SHORTEST_PAUSE = 0.1  # seconds: a shorter pause comes from the end of the window
# Filled share of the encoder's window if it is cut at a pause: without silence after the last
# word, the model takes it for a word cut in two.
_FILL = 14 / 15


@dataclass(frozen=True)
class Window:
    """Frames `[start, end)` of 10 ms to be decoded together, without the pauses in them.

    Attributes:
        start: the first frame.
        end: the frame after the last one.
        pauses: frames `[start, end)` that are left out; in order, apart, and within the window.
    """

    start: int
    end: int
    pauses: tuple[tuple[int, int], ...] = ()

    @property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """The frames `[start, end)` of each piece between the pauses."""
        edges = [self.start, *(edge for pause in self.pauses for edge in pause), self.end]
        return tuple(zip(edges[::2], edges[1::2], strict=True))

    @property
    def n_frames(self) -> int:
        """Frames of audio in the window."""
        return sum(end - start for start, end in self.pieces)

    @property
    def offset(self) -> float:
        """Start in seconds from the start of the recording."""
        return self.start / FRAMES_PER_SECOND

    @property
    def end_time(self) -> float:
        """End in seconds from the start of the recording."""
        return self.end / FRAMES_PER_SECOND

    @property
    def joins(self) -> tuple[float, ...]:
        """Where the pauses are left out, in seconds from the start of the window."""
        edges = accumulate(end - start for start, end in self.pieces[:-1])
        return tuple(edge / FRAMES_PER_SECOND for edge in edges)

    def frame_at(self, number: int) -> int:
        """The recording's frame that is the window's frame `number`; after a pause, not before."""
        for start, end in self.pieces:
            if number < end - start:
                return start + number
            number -= end - start
        return self.end + number

    def in_recording(self, start: float, end: float) -> Stretch:
        """Where a stretch of the window is in the recording, both in seconds.

        A stretch that only touches the padding beside a left-out pause does not reach over it.
        """
        edges = (0.0, *self.joins, self.n_frames / FRAMES_PER_SECOND)
        begin = None
        for index, (piece_start, _) in enumerate(self.pieces):
            first, last = edges[index : index + 2]
            shift = piece_start / FRAMES_PER_SECOND - first
            is_final = index == len(self.pauses)
            if begin is None and (is_final or start < last - PAD or end <= last):
                begin = max(start, first) + shift if index else start + shift
            if begin is not None and (is_final or end <= last + PAD):
                return begin, (end if is_final else min(end, last)) + shift
        raise AssertionError("a window has at least one piece")

    def word_in_recording(self, start: float, end: float) -> Stretch:
        """The same for a word: no word lasts over a pause, so it is where its middle is."""
        edges = (-inf, *self.joins, inf)
        middle = (start + end) / 2
        number = sum(join <= middle for join in self.joins)
        first, last = edges[number : number + 2]
        shift = self.pieces[number][0] / FRAMES_PER_SECOND - max(0.0, first)
        return max(start, first) + shift, min(end, last) + shift

    def in_window(self, start: float, end: float) -> Stretch:
        """Where a stretch of one piece is in the window, both in seconds."""
        left_out = sum(last - first for first, last in self.pauses if last <= _frame(start))
        before = self.offset + left_out / FRAMES_PER_SECOND
        return start - before, end - before

    def part(self, start: int, end: int) -> "Window":
        """The window's frames from `[start, end)` of the recording."""
        pieces = [
            (max(first, start), min(last, end))
            for first, last in self.pieces
            if max(first, start) < min(last, end)
        ]
        if not pieces:
            return Window(start, start)
        pauses = tuple((before[1], after[0]) for before, after in pairwise(pieces))
        return Window(pieces[0][0], pieces[-1][1], pauses)


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
            speech: the speech in it; None takes all audio.
            window_frames: most frames in a window.
            long_pause: seconds without speech that end a window.
            skips_silence: skip audio without speech, and end windows at long pauses.
        """
        self._skips_silence = skips_silence and speech is not None
        self._long_pause = long_pause
        self._features = features
        self._speech = speech
        self._window_frames = window_frames

    def next(self, seek: int, *, cut_at_pause: bool, joins: bool = False) -> Window | None:
        """Return the next window with speech from frame `seek` on; None at the recording's end.

        Skipped frames without speech are released.

        Args:
            seek: first frame that has not been decoded.
            cut_at_pause: end a full window at a pause, so that no word is cut in two. Otherwise the
                window is as long as possible, and the caller goes on from the last timestamp.
            joins: add the speech after long pauses, as far as it fits, and leave the pauses out.
        """
        limit = self._window_frames
        if cut_at_pause and self._speech is not None:
            limit = round(_FILL * limit)
        window = self._next(seek, limit, cut_at_pause=cut_at_pause)
        if joins and window is not None and self._skips_silence:
            window = self._joined(window, limit)
        return window

    def _next(self, seek: int, limit: int, *, cut_at_pause: bool) -> Window | None:
        """The next window, of one piece."""
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
                start = seek  # as in the reference: a short silence does no harm
            if start > seek:
                n_frames = self._features.available(start, limit)
                spans = self._spans(start, n_frames)
            return self._end(start, n_frames, spans, cut_at_pause=cut_at_pause)

    def _joined(self, window: Window, limit: int) -> Window:
        """Add the speech after the window, as long as all of it up to a long pause fits.

        The model hears less of a quiet speaker beside a loud one (docs/accuracy.md).
        """
        level = self._features.peak(window.start, window.n_frames)
        while (piece := self._piece_after(window.end, limit - window.n_frames)) is not None:
            apart = abs(self._features.peak(piece[0], piece[1] - piece[0]) - level)
            is_long = piece[1] - window.start > _LONGEST_SPAN * FRAMES_PER_SECOND
            if is_long or apart > _MOST_APART:
                break
            self._features.pass_over(window.end, piece[0])
            pauses = (*window.pauses, (window.end, piece[0]))
            window = Window(window.start, piece[1], pauses)
        return window

    def _piece_after(self, end: int, room: int) -> tuple[int, int] | None:
        """The frames of the next speech up to a long pause; None if it is far away or too long."""
        wanted = round(_LONGEST_JOINED * FRAMES_PER_SECOND) + room
        n_frames = self._features.available(end, wanted)
        spans = self._spans(end, n_frames) if n_frames else []
        start = _frame(spans[0][0] - PAD) if spans else end
        if start <= end or start - end > wanted - room:
            return None
        pause = round(self._long_pause * FRAMES_PER_SECOND)
        follows = [*(begin for begin, _ in spans[1:]), (end + n_frames) / FRAMES_PER_SECOND]
        for (_, speech_end), following in zip(spans, follows, strict=True):
            if _frame(following) - _frame(speech_end) >= pause:
                stop = _frame(speech_end + min(PAD, (following - speech_end) / 2))
                break
        else:
            if n_frames == wanted:  # it goes on
                return None
            stop = min(_frame(spans[-1][1] + PAD), end + n_frames)
        if stop - start > room or self._features.peak(start, stop - start) < SILENCE:
            return None
        return start, stop

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
        """Return the best frame at which to cut the frames `[start, end)`, which hold speech."""
        if self._speech is None:
            return end
        return self._pause(start, end, self._spans(start, end - start))

    def cut_beside(self, window: Window, unheard: Sequence[Stretch]) -> int:
        """Return the frame at which to split a window, so that one part is the left-out speech.

        The split is near one end of the longest left-out stretch: the end farther from the edges of
        the window, or the middle of the window if nearly all speech was left out. It is the nearest
        pause there, else the frame where speech is least probable.

        Args:
            window: a window with left-out speech, at least twice as long as a part.
            unheard: the left-out stretches, in seconds from its start; at least one.
        """
        longest = max(unheard, key=lambda stretch: stretch[1] - stretch[0])
        seconds = window.n_frames / FRAMES_PER_SECOND
        edge = max(longest, key=lambda at: min(at, seconds - at))
        if min(edge, seconds - edge) < _PART:  # nearly all speech was left out
            edge = seconds / 2
        near = max(_PART, edge - _BESIDE), min(seconds - _PART, edge + _BESIDE)
        spans = self.speech(window)
        pauses = [(before[1] + after[0]) / 2 for before, after in pairwise(spans)]
        pauses = [pause for pause in pauses if near[0] <= pause <= near[1]]
        if pauses:
            return window.frame_at(_frame(min(pauses, key=lambda pause: abs(pause - edge))))
        return self._quietest(*window.in_recording(*near))

    def _pause(self, start: int, end: int, spans: list[tuple[float, float]]) -> int:
        """Return the frame at which to cut a full window: the middle of its latest pause.

        A longer window gives the model more context. Without any pause, the cut is where speech is
        least probable.
        """
        earliest = (start + _EARLIEST_CUT * (end - start)) / FRAMES_PER_SECOND
        limit = end / FRAMES_PER_SECOND
        ends = [speech_end for _, speech_end in spans]
        edges = [*(begin for begin, _ in spans[1:]), limit]
        pauses = [
            (next_speech - speech_end >= _SHORTEST_PAUSE, (speech_end + next_speech) / 2)
            for speech_end, next_speech in zip(ends, edges, strict=False)  # no end without speech
            if speech_end >= earliest and next_speech > speech_end
        ]
        if pauses:
            return _frame(max(pauses)[1])
        return self._quietest(earliest, limit)

    def _quietest(self, start: float, end: float) -> int:
        """Return the frame between two times, in seconds, at which speech is least probable."""
        probabilities, first = self._judged(start, end)
        quietest = int(np.argmin(probabilities))
        return _frame(first + (quietest + 0.5) / CHUNKS_PER_SECOND)

    def _spans(self, seek: int, n_frames: int) -> list[tuple[float, float]]:
        start = seek / FRAMES_PER_SECOND
        if self._speech is None:
            raise ValueError("pauses are only known with a speech detector")
        return self._speech.spans(start, (seek + n_frames) / FRAMES_PER_SECOND)

    def speech(self, window: Window) -> tuple[Stretch, ...]:
        """Return the speech in a window, in seconds from its start; nothing without a detector."""
        if self._speech is None:
            return ()
        return tuple(
            window.in_window(*span)
            for start, end in window.pieces
            for span in self._spans(start, end - start)
        )

    def speech_seconds(self, start: float, end: float) -> float:
        """Return the seconds of speech between two times; all of them if silence is not skipped."""
        if self._speech is None or not self._skips_silence:
            return end - start
        return sum(stop - begin for begin, stop in self._speech.spans(start, end))

    def _judged(self, start: float, end: float) -> tuple[Float32Array, float]:
        if self._speech is None:
            raise ValueError("pauses are only known with a speech detector")
        return self._speech.between(start, end)


def _frame(seconds: float) -> int:
    return max(0, round(seconds * FRAMES_PER_SECOND))
