"""The transcription of one recording, from its first window to its result."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isfinite
from typing import TypeVar

from whisper_npu.errors import GibberishError, UsageError, WhisperNpuError
from whisper_npu.runtime.audio.stream import AudioStream
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.batches import Priority
from whisper_npu.runtime.transcription.gibberish import GibberishWatch
from whisper_npu.runtime.transcription.group import Group
from whisper_npu.runtime.transcription.partial import (
    AbandonedError,
    Emit,
    Partial,
    PartialCallback,
    Reports,
    in_background,
)
from whisper_npu.runtime.transcription.scheduler import GIVEN_UP, Scheduler
from whisper_npu.runtime.transcription.session import TranscriptionSession
from whisper_npu.runtime.transcription.strategy import Strategy, choose_strategy, is_sequential
from whisper_npu.runtime.transcription.stream import TranscriptionStream
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult

logger = logging.getLogger("whisper_npu")

_T = TypeVar("_T")


class RecordingStream(TranscriptionStream):
    """The transcription of a recording, or of one of its channels or tracks.

    Its state changes only in a thread that holds its group's `turn`.
    """

    def __init__(
        self,
        session: TranscriptionSession,
        audio: AudioStream,
        scheduler: Scheduler,
        model_name: str,
        on_partial: PartialCallback | None = None,
    ) -> None:
        """Decode nothing yet.

        Args:
            session: the session of the recording; its features read `audio`.
            audio: the recording.
            scheduler: decodes its windows.
            model_name: the model's name in results.
            on_partial: see `WhisperModel.transcribe`.
        """
        self._session = session
        self._audio = audio
        self._model_name = model_name
        self._segments: list[Segment] = []
        self._gibberish = GibberishWatch(refuses=audio.channel is None)
        self._ended = False
        self._error: BaseException | None = None
        self._broken: WhisperNpuError | None = None  # raised after all text before it
        self._is_partial = False
        self._on_partial = on_partial
        session.reports = None if on_partial is None else Reports(self._labelled(on_partial))
        self._is_watched = False  # whether a loop over its updates is under way
        self._strategy: Strategy | None = None
        priority = priority_of(self.duration_estimate, session.window_frames)
        self._alone = Group(scheduler, session.options.batch_size, iter([self]), priority)
        self.group = self._alone

    @property
    def _state(self) -> str:
        """See `TranscriptionStream`."""
        if self._error is not None:
            is_closed = isinstance(self._error, UsageError)
            state = "closed" if is_closed else f"failed ({type(self._error).__name__})"
        elif self._ended:
            state = "stopped" if self._is_partial else "complete"
        else:
            state = "not begun" if self._strategy is None else "under way"
        return f"{self._model_name}, {state}"

    @property
    def channel(self) -> str:
        """The name of the channel or track; empty for a whole recording."""
        return self._audio.channel or ""

    @property
    def duration_estimate(self) -> float | None:
        """See `TranscriptionStream`."""
        return self._audio.duration_estimate

    @property
    def seconds_read(self) -> float:
        """See `TranscriptionStream`."""
        return self._session.features.duration

    @property
    def seconds_done(self) -> float:
        """See `TranscriptionStream`."""
        read = self.seconds_read
        return read if self._ended else self._session.progress.seconds(read)

    @property
    def is_partial(self) -> bool:
        """See `TranscriptionStream`."""
        return self._is_partial

    @property
    def has_ended(self) -> bool:
        """Whether no window is planned any more, because of its end or of an error."""
        return self._ended

    @property
    def n_expected(self) -> int:
        """Windows that can be planned at once if all of it is speech; for its group."""
        duration, options = self.duration_estimate, self._session.options
        if is_sequential(options):
            return 1
        if duration is None or not isfinite(duration):
            return 1
        return max(1, int(duration * FRAMES_PER_SECOND / self._session.window_frames))

    def next_window(self) -> WindowRequest | None:
        """The next window to be decoded; called by its group."""
        return self._ask(lambda strategy: strategy.next_window(), None)

    def prefetch(self, room: int) -> list[WindowRequest]:
        """Windows that wait for others; called by its group."""
        return self._ask(lambda strategy: strategy.prefetch(room), [])

    def _ask(self, question: Callable[[Strategy], _T], nothing: _T) -> _T:
        if self._ended or self._broken is not None:
            return nothing
        try:
            if self._strategy is None:
                self._strategy = choose_strategy(self._session)
            return question(self._strategy)
        except WhisperNpuError as error:  # only this recording fails; the others go on
            self._broken = error
            return nothing

    def accept(self, result: WindowResult | None) -> None:
        """Take the result of a window; called by its group."""
        reports = self._session.reports
        if reports is not None and reports.error is not None and not self._ended:
            abandoned = isinstance(reports.error, AbandonedError)
            self.fail(UsageError(GIVEN_UP) if abandoned else reports.error)
        elif result is None and not self._ended:
            self.fail(self._broken or UsageError(GIVEN_UP))
        if result is None or self._error is not None or self._strategy is None:
            return
        try:
            self._gibberish.note(result)
        except GibberishError as error:  # only this recording fails; the others go on
            self.fail(error)
            return
        self._session.progress.decoded_to(result.window.end_time)
        for segment in self._strategy.accept(result):
            numbered = replace(segment, id=len(self._segments), channel=self._audio.channel)
            self._segments.append(numbered)

    def end(self) -> None:
        """Complete the coverage, after all windows are decoded; called by its group."""
        if self._ended:
            return
        error = self._broken or self._session.features.error
        if error is not None:
            self.fail(error)
            return
        session = self._session
        if session.stopped_at is not None:
            session.stopping = False
            missing = session.window_at(session.stopped_at, cut_at_pause=True)
            if missing is not None:  # else all speech has been decoded
                self._leave_out(missing.offset)
        self._close()
        read = session.features.duration
        session.coverage.finish(read if session.part_end is None else session.part_end)
        logger.debug("stages: %s", self.times)

    def stop(self) -> None:
        """Plan no further window: the stream ends after the planned windows.

        A signal handler or another thread may call it. See `is_partial`.
        """
        self._session.stopping = True

    def _leave_out(self, start: float) -> None:
        """Record the audio read after `start` seconds as dropped: it will not be decoded."""
        self._is_partial = True
        end = self._session.features.duration
        self._session.coverage.add(start, end, "dropped", "stopped before it was transcribed")

    def fail(self, error: BaseException) -> None:
        """Close the transcription; asking for missing segments raises `error`."""
        self._error = error
        self._session.given_up.set()
        self._strategy = None  # its waiting windows hold much memory
        self._alone.close()
        self._close()

    def close(self) -> None:
        """See `TranscriptionStream`."""
        self.give_up(GIVEN_UP)

    def give_up(self, reason: str) -> None:
        """Close the transcription; asking for missing segments raises `UsageError(reason)`."""
        given_up = UsageError(reason)
        self._broken = self._broken or given_up
        self._session.given_up.set()
        self.group.scheduler.look_again()
        # In a callback from decoding, the thread that waits for its windows closes it.
        with suppress(UsageError), self.group.turn():
            if not self._ended:
                self.fail(given_up)

    def _close(self) -> None:
        self._ended = True
        self._audio.close()

    def _iterate(self) -> Iterator[Segment]:
        """See `TranscriptionStream`."""
        position = 0
        while self._reaches(position):
            yield self._segments[position]
            position += 1

    def _reaches(self, position: int) -> bool:
        """Decode until there is a segment at `position`; False if the stream ends before it."""
        while position >= len(self._segments):
            with self.group.turn():
                if position < len(self._segments):
                    break  # another thread has decoded meanwhile
                if self._error is not None:
                    raise self._error  # once more: the segments before it are not the whole result
                if self._ended:
                    return False
                try:
                    self.group.advance()
                except BaseException as error:
                    self.fail(error)
                    raise
        return True

    def updates(self) -> Iterator[Partial | Segment]:
        """See `TranscriptionStream`."""

        def produce(emit: Emit[Partial | Segment]) -> None:
            # Waiting for one consumer would delay all recordings that are decoded together.
            with self.reported_by(lambda partial: emit(partial, wait=False)):
                for segment in self:
                    emit(segment)

        return in_background(produce)

    @contextmanager
    def reported_by(self, callback: PartialCallback) -> Iterator[None]:
        """Pass partial texts to `callback`, too, for a block.

        An `AbandonedError` that leaves the block closes the transcription.

        Raises:
            UsageError: another such block is under way.
        """

        def report(partial: Partial) -> None:
            if self._on_partial is not None:
                self._on_partial(partial)
            callback(partial)

        with self.group.turn():
            if self._is_watched:
                raise UsageError("another loop over these updates is under way; take one at a time")
            self._is_watched = True
            before, self._session.reports = self._session.reports, Reports(self._labelled(report))
        try:
            yield
        except AbandonedError:
            self.close()
        finally:
            with self.group.turn():
                self._is_watched = False
                if not self._session.is_wanted:
                    self._session.given_up.set()
                self._session.reports = before

    def _labelled(self, callback: PartialCallback) -> PartialCallback:
        """The callback, wrapped to add the channel's name to each text."""
        channel = self._audio.channel
        if channel is None:
            return callback
        return lambda partial: callback(replace(partial, channel=channel))

    def result(self) -> Transcription:
        """See `TranscriptionStream`."""
        while self._reaches(len(self._segments)):
            pass
        return self._result()

    def partial_result(self) -> Transcription:
        """The result so far, also of a recording that failed or was closed.

        It decodes nothing, and closes the transcription.
        """
        if not self._is_partial and (self._error is not None or not self._ended):
            self.close()
            end = self._segments[-1].end if self._segments else 0.0
            self._session.coverage.cut(end)
            self._leave_out(end)
            self._session.coverage.finish(self.seconds_read)
        return self._result()

    def _result(self) -> Transcription:
        session = self._session
        backend = session.backend
        return Transcription(
            text="".join(segment.text for segment in self._segments).strip(),
            language=session.language.main or session.undetected,
            segments=tuple(self._segments),
            duration=session.features.duration,
            model=self._model_name,
            device=backend.device,
            kv_cache=backend.kv_cache,
            precision=backend.precision,
            warnings=(
                *self._audio.warnings,
                *session.prompts.warnings,
                *session.language.warnings,
                *self._gibberish.warnings,
                *((self._stop_warning(),) if self._is_partial else ()),
            ),
            language_probabilities=session.language.probabilities,
            coverage=session.coverage,
        )

    def _stop_warning(self) -> str:
        end = self._segments[-1].end if self._segments else 0.0
        return f"stopped before its end: the text is that of the first {end:.2f} s"

    @property
    def times(self) -> StageTimes:
        """See `TranscriptionStream`."""
        return self._session.times


def priority_of(seconds: float | None, window_frames: int) -> Priority:
    """Return the priority of a recording transcribed by itself: short work is at most one window.

    Args:
        seconds: length of the recording; None if unknown.
        window_frames: frames of 10 ms in a whole window.
    """
    window = window_frames / FRAMES_PER_SECOND
    return Priority.SHORT if seconds is not None and seconds <= window else Priority.BULK
