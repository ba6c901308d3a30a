"""A loaded model, and a transcription under way."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import isfinite
from typing import Any, TypeVar

from whisper_npu.errors import AudioError, UsageError, WhisperNpuError
from whisper_npu.runtime.alignment import attention_delay
from whisper_npu.runtime.audio import AudioSource, open_audio
from whisper_npu.runtime.backend import Backend
from whisper_npu.runtime.batched import BatchedReading
from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.feature_stream import FeatureStream
from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.hearing import Heard, Task
from whisper_npu.runtime.job import Job
from whisper_npu.runtime.model_dir import ALIGNMENT, ModelFolder
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.partial import (
    AbandonedError,
    Partial,
    PartialCallback,
    Reports,
    in_background,
)
from whisper_npu.runtime.prompts import Prompts
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.rounds import Reading, Rounds
from whisper_npu.runtime.sequential import SequentialReading
from whisper_npu.runtime.speech_windows import LONG_PAUSE, SHORT_PAUSE, WindowChooser
from whisper_npu.runtime.spoken_language import SpokenLanguage
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.tokenizer import Tokenizer, read_vocabulary, require_language
from whisper_npu.runtime.vad import SpeechMap, VoiceActivity

logger = logging.getLogger("whisper_npu")

_T = TypeVar("_T")

_GIVEN_UP = "this transcription was given up; begin it anew"


class WhisperModel:
    """A loaded model. Call `transcribe` as often as you like, from as many threads as you like."""

    def __init__(
        self,
        folder: ModelFolder,
        backend: Backend,
        tokenizer: Tokenizer | None = None,
        voice_activity: VoiceActivity | None = None,
    ) -> None:
        """Put a model together.

        Args:
            folder: the model folder.
            backend: runs its graphs.
            tokenizer: its tokenizer, where it has been read already.
            voice_activity: its judge of where there is speech, where it has been loaded already.

        Attributes:
            can_align: whether its folder has the graph that tells when a text was spoken.
        """
        self.folder = folder
        self.backend = backend
        self.tokenizer = tokenizer or Tokenizer(folder.tokenizer)
        self.voice_activity = voice_activity or VoiceActivity(folder.path)
        self.vocabulary = read_vocabulary(folder, self.tokenizer)
        self.can_align = (folder.path / ALIGNMENT).is_file()
        if not self.can_align:
            logger.info(
                "no %s in the model folder: timestamps are sampled, which is less exact; "
                "`whisper-npu export --add-alignment %s` adds it",
                ALIGNMENT,
                folder.path,
            )

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self.vocabulary.is_multilingual

    def transcribe(
        self,
        audio: AudioSource,
        options: TranscribeOptions | None = None,
        *,
        on_partial: PartialCallback | None = None,
        **changes: Any,
    ) -> "TranscriptionStream":
        """Transcribe a recording.

        Args:
            audio: a path, an open binary file, or float samples `(n_samples,)` at 16 kHz mono.
            options: how to transcribe.
            on_partial: called with the text of a window after each decoding step, from the threads
                that decode, but never from two at once; in batched mode with each window in turn.
                What it raises comes out where the segments are taken.
            changes: options by name, over those in `options`.

        Returns:
            a stream: iterate it for segments as they are decoded, or take its `text`, `segments`
            and the rest, which waits for the end.

        Raises:
            AudioError: the recording cannot be opened.
            UsageError: an option is unknown or does not fit the model.
        """
        return TranscriptionStream(self, audio, self.resolve(options, **changes), on_partial)

    def transcribe_all(
        self,
        recordings: Iterable[AudioSource],
        options: TranscribeOptions | None = None,
        *,
        on_open: "Callable[[TranscriptionStream | AudioError], None] | None" = None,
        **changes: Any,
    ) -> "Iterator[TranscriptionStream | AudioError]":
        """Transcribe recordings, windows of several of them decoded together: much the fastest way.

        Args:
            recordings: see `transcribe`. They are opened some way ahead.
            options: how to transcribe, all of them.
            on_open: called with each stream, or error, as soon as its recording is opened, in
                order, which is before its turn comes: to show the progress of all, or to stop.
            changes: options by name, over those in `options`.

        Yields:
            for each recording, in order, its stream, or why it cannot be opened. A recording that
            turns out to be damaged raises when its segments are asked for; the others go on.

        Raises:
            UsageError: an option is unknown or does not fit the model.
        """
        wanted = self.resolve(options, **changes)
        opened: deque[TranscriptionStream | AudioError] = deque()

        def streams() -> Iterator[TranscriptionStream]:
            for recording in recordings:
                opened.append(self._open(recording, wanted))
                stream = opened[-1]
                if on_open is not None:
                    on_open(stream)
                if isinstance(stream, TranscriptionStream):
                    stream.rounds = rounds
                    yield stream

        rounds = Rounds(self.backend, wanted.batch_size, streams())
        return _in_order(rounds, opened)

    def _open(
        self, recording: AudioSource, options: TranscribeOptions
    ) -> "TranscriptionStream | AudioError":
        try:
            return TranscriptionStream(self, recording, options)
        except AudioError as error:
            return error

    def resolve(
        self, options: TranscribeOptions | None = None, **changes: Any
    ) -> TranscribeOptions:
        """Options as this model will follow them, the language as a code or None to detect it.

        Raises:
            UsageError: an option is unknown or does not fit the model.
        """
        try:
            wanted = replace(options or TranscribeOptions(), **changes)
        except TypeError as error:
            raise UsageError(f"unknown option: {error}") from None
        language, languages = wanted.language, wanted.languages
        if languages is not None:
            languages = tuple(
                require_language(self.tokenizer, self.vocabulary, each) for each in languages
            )
        if language is not None or not self.is_multilingual:
            language = require_language(self.tokenizer, self.vocabulary, language or "en")
            languages = None  # there is nothing to choose
        if languages is not None and len(set(languages)) == 1 and not wanted.multilingual:
            language, languages = languages[0], None
        if not self.is_multilingual and wanted.task != "transcribe":
            raise UsageError("this model is English-only and cannot translate; use base or larger")
        if not self.is_multilingual and wanted.multilingual:
            raise UsageError("this model is English-only: multilingual needs base or larger")
        for token in wanted.suppress_tokens or ():
            if not -1 <= token < self.backend.n_vocab:
                raise UsageError(
                    f"suppress_tokens has {token}; the model's tokens are 0 to "
                    f"{self.backend.n_vocab - 1}, and -1 means its own list"
                )
        return replace(wanted, language=language, languages=languages)


def _in_order(
    rounds: Rounds, opened: "deque[TranscriptionStream | AudioError]"
) -> "Iterator[TranscriptionStream | AudioError]":
    try:
        while True:
            while not opened and rounds.advance():
                pass
            if not opened:
                return
            yield opened.popleft()
    finally:
        for stream in opened:  # nobody will ask for them
            if isinstance(stream, TranscriptionStream):
                stream.close()
        rounds.close()


class TranscriptionStream:
    """A transcription under way: an iterator over segments that becomes the whole result."""

    def __init__(
        self,
        model: WhisperModel,
        source: AudioSource,
        options: TranscribeOptions,
        on_partial: PartialCallback | None = None,
    ) -> None:
        """Open the recording; decode nothing yet.

        Raises:
            AudioError: the recording cannot be opened.
        """
        self._model = model
        self._audio = open_audio(source)
        self._segments: list[Segment] = []
        self._ended = False
        self._error: BaseException | None = None
        self._broken: WhisperNpuError | None = None  # what is told once all before it is heard
        self._is_partial = False
        speech = SpeechMap(model.voice_activity.detector()) if options.vad else None
        times = StageTimes()
        features = FeatureStream(iter(self._audio), model.backend.n_mels, speech, times)
        self._job = new_job(model, options, features, speech, times)
        self._on_partial = on_partial
        self._job.reports = None if on_partial is None else Reports(on_partial)
        self._reading: Reading | None = None
        self._alone = Rounds(model.backend, options.batch_size, iter([self]))
        self.rounds = self._alone

    @property
    def duration_estimate(self) -> float | None:
        """Seconds of audio the recording's header announces; None if it does not."""
        return self._audio.duration_estimate

    @property
    def seconds_read(self) -> float:
        """Seconds of audio read so far; may be read by any thread."""
        return self._job.features.duration

    @property
    def seconds_done(self) -> float:
        """Seconds of audio that the work so far amounts to; may be read by any thread."""
        read = self.seconds_read
        return read if self._ended else self._job.progress.seconds(read)

    @property
    def is_partial(self) -> bool:
        """Whether the result is not of the whole recording: `stop` came before its end."""
        return self._is_partial

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be planned, because of its end or of an error."""
        return self._ended

    @property
    def n_expected(self) -> int:
        """Windows it has at once if there is speech all through; for its rounds."""
        duration, options = self.duration_estimate, self._job.options
        if options.mode == "sequential" or not options.vad:
            return 1
        if duration is None or not isfinite(duration):
            return 1
        return max(1, int(duration * FRAMES_PER_SECOND / self._job.window_frames))

    def plan(self) -> Task | None:
        """The next window to be decoded; called by the rounds it takes part in."""
        return self._ask(lambda reading: reading.plan(), None)

    def ahead(self, room: int) -> list[Task]:
        """Windows that wait for others; called by the rounds it takes part in."""
        return self._ask(lambda reading: reading.ahead(room), [])

    def _ask(self, question: Callable[[Reading], _T], nothing: _T) -> _T:
        if self._ended or self._broken is not None:
            return nothing
        try:
            if self._reading is None:
                self._reading = _reading(self._job)
            return question(self._reading)
        except WhisperNpuError as error:  # of this recording; the others go on
            self._broken = error
            return nothing

    def take(self, heard: Heard | None) -> None:
        """Take up a window that has been decoded; called by the rounds it takes part in."""
        reports = self._job.reports
        if reports is not None and reports.error is not None and not self._ended:
            self.fail(reports.error)
        if heard is None or self._error is not None or self._reading is None:
            return
        self._job.progress.decoded_to(heard.window.end_time)
        for segment in self._reading.take(heard):
            self._segments.append(replace(segment, id=len(self._segments)))

    def end(self) -> None:
        """Complete the accounts, all having been decoded; called by the rounds it takes part in."""
        if self._ended:
            return
        error = self._broken or self._job.features.error
        if error is not None:
            self.fail(error)
            return
        job = self._job
        if job.stopped_at is not None:
            job.stopping = False
            missing = job.next_window(job.stopped_at, cut_at_pause=True)
            if missing is not None:  # else all there is has been decoded
                self._leave_out(missing.offset)
        self._close()
        job.coverage.finish(job.features.duration)
        logger.debug("stages: %s", self.times)

    def stop(self) -> None:
        """Begin no further window: the stream ends behind those that are begun.

        May be called by a signal handler, or by another thread. See `is_partial`.
        """
        self._job.stopping = True

    def _leave_out(self, start: float) -> None:
        """Account for what is read behind `start` seconds, and is not going to be decoded."""
        self._is_partial = True
        end = self._job.features.duration
        self._job.coverage.add(start, end, "dropped", "stopped before it was transcribed")

    def fail(self, error: BaseException) -> None:
        """Give the transcription up; whoever asks for what is missing is told why."""
        self._error = error
        self._reading = None  # windows that wait hold a good deal
        self._alone.close()
        self._close()

    def close(self) -> None:
        """Give up what has not been decoded, and close the recording."""
        if not self._ended:
            self.fail(UsageError(_GIVEN_UP))

    def _close(self) -> None:
        self._ended = True
        self._audio.close()

    def __iter__(self) -> Iterator[Segment]:
        """Segments from the first on; what has been decoded already is not decoded again."""
        position = 0
        while True:
            if position == len(self._segments) and not self._advance():
                return
            yield self._segments[position]
            position += 1

    def _advance(self) -> bool:
        """Decode on until there is another segment; False at the end."""
        n_segments = len(self._segments)
        while len(self._segments) == n_segments:
            if self._error is not None:
                raise self._error  # again: what was decoded before it is not the whole result
            if self._ended:
                return False
            try:
                self.rounds.advance()
            except BaseException as error:
                self.fail(error)
                raise
        return True

    def updates(self) -> Iterator[Partial | Segment]:
        """The text as it comes: partial texts after each decoding step, and finished segments.

        Decoding runs in a thread of its own, a few steps ahead. A loop that is left early gives
        the transcription up: the thread ends with its decoding step, or with the windows of other
        recordings that are decoded beside it, which go on, and the recording is closed.
        One loop at a time; segments decoded before it come first.
        """

        def produce(emit: Callable[[Partial | Segment], None]) -> None:
            def report(partial: Partial) -> None:
                if self._on_partial is not None:
                    self._on_partial(partial)
                emit(partial)

            before, self._job.reports = self._job.reports, Reports(report)
            try:
                for segment in self:
                    emit(segment)
            except AbandonedError:
                self.fail(UsageError(_GIVEN_UP))
            finally:
                self._job.reports = before

        return in_background(produce)

    def result(self) -> Transcription:
        """The whole transcription; decodes what is left.

        Raises:
            AudioError: the recording turned out to be empty.
        """
        while self._advance():
            pass
        return self._result()

    def partial_result(self) -> Transcription:
        """What has been transcribed so far, also of a recording that failed or was given up.

        Decodes nothing, and gives up what is not decoded.
        """
        if not self._is_partial and (self._error is not None or not self._ended):
            self.close()
            end = self._segments[-1].end if self._segments else 0.0
            self._job.coverage.cut(end)
            self._leave_out(end)
            self._job.coverage.finish(self.seconds_read)
        return self._result()

    def _result(self) -> Transcription:
        backend, job = self._model.backend, self._job
        return Transcription(
            text="".join(segment.text for segment in self._segments).strip(),
            language=job.language.main or job.undetected,
            segments=tuple(self._segments),
            duration=job.features.duration,
            model=self._model.folder.name,
            device=backend.device,
            kv_cache=backend.kv_cache,
            precision=backend.precision,
            warnings=(
                *self._audio.warnings,
                *job.prompts.warnings,
                *job.language.warnings,
                *((self._stop_warning(),) if self._is_partial else ()),
            ),
            language_probabilities=job.language.probabilities,
            coverage=job.coverage,
        )

    def _stop_warning(self) -> str:
        end = self._segments[-1].end if self._segments else 0.0
        return f"stopped before its end: the text is that of the first {end:.2f} s"

    @property
    def times(self) -> StageTimes:
        """Where the time went, so far."""
        return self._job.times

    @property
    def text(self) -> str:
        """The whole text."""
        return self.result().text

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments."""
        return self.result().segments

    @property
    def language(self) -> str:
        """The language's code, as detected or as asked for."""
        return self.result().language

    @property
    def duration(self) -> float:
        """Seconds of audio, known at its end."""
        return self.result().duration


def new_job(
    model: WhisperModel,
    options: TranscribeOptions,
    features: FeatureStream,
    speech: SpeechMap | None,
    times: StageTimes,
) -> Job:
    """A recording about to be transcribed; `options` are those `resolve` gives."""
    backend = model.backend
    long_pause = SHORT_PAUSE if options.multilingual else LONG_PAUSE
    return Job(
        backend=backend,
        tokenizer=model.tokenizer,
        vocabulary=model.vocabulary,
        options=options,
        features=features,
        windows=WindowChooser(features, speech, 2 * backend.n_audio_ctx, long_pause),
        prompts=Prompts(model.tokenizer, options, backend.n_text_ctx),
        times=times,
        coverage=Coverage(),
        attention_delay=attention_delay(model.folder.generation_config),
        language=SpokenLanguage.of(options.language, may_change=options.multilingual),
        n_audio_state=model.folder.config.get("d_model"),
        can_align=model.can_align,
    )


def _reading(job: Job) -> Reading:
    """A way through the recording in the mode that was asked for."""
    options = job.options
    if options.mode == "batched":
        return BatchedReading(job, shares=True)
    if options.mode == "sequential" or not options.vad:
        return SequentialReading(job)
    longer = job.features.available(0, job.window_frames + 1) > job.window_frames
    # Of one window, sequential decoding gives PyTorch's tokens.
    if not longer and (job.backend.is_exact or options.without_timestamps):
        return SequentialReading(job)
    return BatchedReading(job, shares=longer)
