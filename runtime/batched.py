"""Many windows at once: cut at pauses, encoded and decoded together.

Each window is judged on its own, as in sequential decoding, and its text has to reach the end of
its speech. Where it does not all the same, the window is continued from there, so that no word is
lost.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.hearing import Heard, Task
from whisper_npu.runtime.job import Job
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.segments import split_at_timestamps
from whisper_npu.runtime.speech_windows import Window
from whisper_npu.runtime.word_timing import last_word_end

_UNHEARD = 1.0  # seconds of speech behind the last timestamp that are worth another window


@dataclass
class _Place:
    """A window's place in the text: its segments so far, and what is still to be heard of it.

    Attributes:
        start: the first frame that is not accounted for.
        rest: the part that waits to be planned.
        planned: whether a part is being heard.
    """

    start: int
    rest: Window | None
    planned: bool = False
    segments: list[Segment] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.rest is None and not self.planned


class BatchedReading:
    """A recording gone through many windows at a time; see `rounds.Reading`."""

    def __init__(self, job: Job, *, shares: bool) -> None:
        """Nothing is planned yet; `shares`: see `hearing.Task`."""
        self._job = job
        self._shares = shares
        self._seek = 0
        self._places: deque[_Place] = deque()  # in order; complete ones leave at the front
        self._planned: deque[list[_Place]] = deque()

    def plan(self, room: int) -> list[Task]:
        """Rests of windows that were heard before, then new windows."""
        places = [place for place in self._places if place.rest is not None][:room]
        while len(places) < room:
            window = self._job.next_window(self._seek, cut_at_pause=True)
            if window is None:
                break
            self._seek = window.end
            places.append(_Place(window.start, window))
            self._places.append(places[-1])
        tasks = []
        for place in places:
            if place.rest is not None:
                tasks.append(self._task(place.rest))
            place.rest, place.planned = None, True
        if places:
            self._planned.append(places)
        return tasks

    def _task(self, window: Window) -> Task:
        job = self._job
        reach = max(0.0, job.windows.speech_end(window) - window.offset - _UNHEARD)
        return job.task(window, job.prompts.initial, reach=reach, shares=self._shares)

    def take(self, heard: Sequence[Heard]) -> list[Segment]:
        """Segments of all windows up to the first that is not complete."""
        for place, one in zip(self._planned.popleft(), heard, strict=True):
            self._take(place, one)
        segments = []
        while self._places and self._places[0].is_complete:
            segments += self._places.popleft().segments
        self._job.features.forget(min((p.start for p in self._places), default=self._seek))
        return segments

    def _take(self, place: _Place, heard: Heard) -> None:
        job, window = self._job, heard.window
        place.planned = False
        if job.leave_out(heard):
            return
        parts, _ = split_at_timestamps(
            heard.outcome.decoded.tokens,
            job.tokenizer.special.timestamp_begin,
            window.n_frames,
            keep_open_end=True,
        )
        text = job.write(heard, parts, last_word_end(place.segments) or 0.0)
        place.segments += text.segments
        place.rest = self._rest(window, parts[-1].end)
        place.start = window.end if place.rest is None else place.rest.start
        job.account(window.offset, place.start / FRAMES_PER_SECOND, text.made_up)

    def _rest(self, window: Window, text_end: float) -> Window | None:
        """What is left of a window behind the end of its text, if there is speech in it.

        Args:
            window: what was decoded.
            text_end: seconds into the window at which its last segment ends.
        """
        rest = Window(window.start + round(text_end * FRAMES_PER_SECOND), window.end)
        advanced = (rest.start - window.start) / FRAMES_PER_SECOND
        if advanced < _UNHEARD or rest.n_frames < _UNHEARD * FRAMES_PER_SECOND:
            return None
        unheard = self._job.windows.speech_seconds(rest.offset, rest.end_time)
        return rest if unheard >= _UNHEARD else None
