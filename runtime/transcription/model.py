"""A loaded model, and a transcription under way."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from math import isfinite
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar, Unpack
from weakref import WeakSet

from whisper_npu.errors import AudioError, GibberishError, UsageError, WhisperNpuError
from whisper_npu.runtime.audio.stream import AudioSource, AudioStream, open_streams
from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.engines.device_calls import DeviceCalls
from whisper_npu.runtime.engines.memory import release_memory_after
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import SpeechMap, VoiceActivity
from whisper_npu.runtime.features.windows import LONG_PAUSE, SHORT_PAUSE, WindowChooser
from whisper_npu.runtime.model_folder.folder import ALIGNMENT, ModelFolder
from whisper_npu.runtime.options import (
    MODEL_LIST,
    TranscribeKwargs,
    TranscribeOptions,
    unknown_option,
)
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.text.prompts import Prompts
from whisper_npu.runtime.text.tokenizer import Tokenizer, read_vocabulary, require_language
from whisper_npu.runtime.timestamps.alignment import attention_delay
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.batched import BatchedStrategy
from whisper_npu.runtime.transcription.gibberish import GibberishWatch
from whisper_npu.runtime.transcription.group import Group, Strategy
from whisper_npu.runtime.transcription.language import SpokenLanguage
from whisper_npu.runtime.transcription.merged import MergedStream, one_at_a_time
from whisper_npu.runtime.transcription.model_checks import check_model
from whisper_npu.runtime.transcription.partial import (
    AbandonedError,
    Emit,
    Partial,
    PartialCallback,
    Reports,
    in_background,
)
from whisper_npu.runtime.transcription.scheduler import GIVEN_UP, Priority, Scheduler
from whisper_npu.runtime.transcription.sequential import SequentialStrategy
from whisper_npu.runtime.transcription.session import TranscriptionSession
from whisper_npu.runtime.transcription.stream import TranscriptionStream
from whisper_npu.runtime.transcription.streams_in_order import StreamsInOrder
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult

logger = logging.getLogger("whisper_npu")

_T = TypeVar("_T")

_CLOSED = "this model is closed; load it again"


class WhisperModel:
    """A loaded model. Call `transcribe` as often as you like, from as many threads as you like.

    As a context manager it is closed at the end of the block.
    """

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

        Raises:
            ModelError: the folder's files are of different models.
        """
        self._calls = DeviceCalls("the model")
        self._lock = Lock()
        self._streams: WeakSet[RecordingStream] = WeakSet()
        self.folder = folder
        self._backend: Backend | None = backend
        self._scheduler: Scheduler | None = Scheduler(backend, after_batch=release_memory_after)
        self.tokenizer = tokenizer or Tokenizer(folder.tokenizer)
        self.voice_activity = voice_activity or VoiceActivity(folder.path)
        check_model(folder, self.tokenizer, backend)
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
    def backend(self) -> Backend:
        """What runs its graphs.

        Raises:
            UsageError: the model is closed.
        """
        backend = self._backend
        if backend is None:
            raise UsageError(_CLOSED)
        return backend

    @property
    def scheduler(self) -> Scheduler:
        """Decodes the windows of all transcriptions and live sessions.

        Raises:
            UsageError: the model is closed.
        """
        scheduler = self._scheduler
        if scheduler is None:
            raise UsageError(_CLOSED)
        return scheduler

    def close(self) -> None:
        """Let go of the graphs, and close the transcriptions that have not ended.

        Their memory is freed once no stream and no live session refers to it. Results that are
        complete stay. A second call does nothing. What is asked for afterwards raises a
        `UsageError`.
        """
        with self._lock:
            self._backend = self._scheduler = None
            streams = list(self._streams)
        for stream in streams:
            stream.give_up(_CLOSED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

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
        sample_rate: int | None = None,
        **changes: Unpack[TranscribeKwargs],
    ) -> TranscriptionStream:
        """Transcribe a recording.

        Args:
            audio: a path; an open binary file; the bytes of a file; or samples as an array,
                `(n_samples,)` or `(n_samples, n_channels)`, of floats in [-1, 1], int16, int32 or
                uint8. An array without samples has an empty text.
            options: how to transcribe.
            sample_rate: that of samples, in Hz; None is 16,000.
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
        wanted = self.resolve(options, **changes)
        stream = self._open(audio, wanted, sample_rate, on_partial)
        if isinstance(stream, MergedStream):
            priority = _priority(stream.duration_estimate, self.backend)
            stream.group = Group(self.scheduler, wanted.batch_size, iter([stream]), priority)
        return stream

    def transcribe_all(
        self,
        recordings: Iterable[AudioSource],
        options: TranscribeOptions | None = None,
        *,
        sample_rate: int | None = None,
        on_open: Callable[[TranscriptionStream | AudioError], None] | None = None,
        **changes: Unpack[TranscribeKwargs],
    ) -> Iterator[TranscriptionStream | AudioError]:
        """Transcribe recordings, windows of several of them decoded together: much the fastest way.

        Args:
            recordings: see `transcribe`. They are opened some way ahead. A list of one recording is
                transcribed as `transcribe` does it.
            options: how to transcribe, all of them.
            sample_rate: see `transcribe`.
            on_open: called with each stream, or error, as soon as its recording is opened, in
                order, which is before its turn comes: to show the progress of all, or to stop.
            changes: options by name, over those in `options`.

        Yields:
            for each recording, in order, its stream, or why it cannot be opened. A recording that
            turns out to be damaged raises when its segments are asked for; the others go on. The
            streams may be given to several threads: one decodes for all, the others wait for it.

        Raises:
            UsageError: an option is unknown or does not fit the model.
        """
        wanted = self.resolve(options, **changes)
        is_alone = isinstance(recordings, Sized) and len(recordings) == 1

        def open_stream(recording: AudioSource, group: Group) -> RecordingStream | MergedStream:
            try:
                stream = self._open(recording, wanted, sample_rate, is_alone=is_alone)
            except AudioError as error:
                if on_open is not None:
                    on_open(error)
                raise
            stream.group = group
            if on_open is not None:
                on_open(stream)
            return stream

        return StreamsInOrder(self.scheduler, wanted.batch_size, recordings, open_stream)

    def _open(
        self,
        audio: AudioSource,
        options: TranscribeOptions,
        sample_rate: int | None,
        on_partial: PartialCallback | None = None,
        *,
        is_alone: bool = True,
    ) -> "RecordingStream | MergedStream":
        """Open a recording, its channels or tracks each on its own if that is wanted."""
        opened = open_streams(
            audio,
            sample_rate=sample_rate,
            audio_track=options.audio_track,
            channels=options.channels,
        )
        if len(opened) > 1 and on_partial is not None:
            on_partial = one_at_a_time(on_partial)
        is_alone = is_alone and len(opened) == 1
        with self._lock, ExitStack() as on_error:
            for each in opened:
                on_error.callback(each.close)
            streams = [
                RecordingStream(self, each, options, on_partial, is_alone=is_alone)
                for each in opened
            ]
            self._streams.update(streams)
            on_error.pop_all()
        return streams[0] if len(streams) == 1 else MergedStream(streams)

    def resolve(
        self, options: TranscribeOptions | None = None, **changes: Unpack[TranscribeKwargs]
    ) -> TranscribeOptions:
        """Options as this model will follow them, the language as a code or None to detect it.

        Raises:
            UsageError: an option is unknown or does not fit the model.
            DeviceError: the model was loaded before this process was forked.
        """
        self.check_usable()
        for name in changes:
            if name not in TranscribeKwargs.__annotations__:
                raise unknown_option(name)
        options = TranscribeOptions() if options is None else options
        if not isinstance(options, TranscribeOptions):
            raise UsageError(
                f"options are a {type(options).__name__}; write them by name, such as "
                "language='en', or as TranscribeOptions(...)"
            )
        wanted = TranscribeOptions(**{**vars(options), **changes})
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
        self._check_tokens(wanted)
        return replace(wanted, language=language, languages=languages)

    def check_usable(self) -> None:
        """Make sure that the model can be used.

        Raises:
            UsageError: it is closed.
            DeviceError: it was loaded before this process was forked.
        """
        self._calls.check()
        if self._backend is None:
            raise UsageError(_CLOSED)

    def _check_tokens(self, options: TranscribeOptions) -> None:
        last = self.backend.n_vocab - 1
        for token in options.suppress_tokens or ():
            if not MODEL_LIST <= token <= last:
                raise UsageError(
                    f"suppress_tokens has {token}; the model's tokens are 0 to {last}, and "
                    f"{MODEL_LIST} means its own list"
                )
        last_of_text = self.tokenizer.special.eot - 1
        for name, tokens, end in (
            ("initial_prompt", options.initial_prompt, last),
            ("prefix", options.prefix, last_of_text),
        ):
            for token in () if tokens is None or isinstance(tokens, str) else tokens:
                if not 0 <= token <= end:
                    raise UsageError(f"{name} has {token}; the tokens it may have are 0 to {end}")


class RecordingStream(TranscriptionStream):
    """The transcription of a recording, or of one of its channels or tracks.

    What it holds changes only in a thread that has the turn in its group.
    """

    def __init__(
        self,
        model: WhisperModel,
        audio: AudioStream,
        options: TranscribeOptions,
        on_partial: PartialCallback | None = None,
        *,
        is_alone: bool = True,
    ) -> None:
        """Decode nothing yet.

        Args:
            model: decodes it.
            audio: the recording.
            options: as `resolve` gives them.
            on_partial: see `WhisperModel.transcribe`.
            is_alone: whether it is transcribed by itself, rather than beside other recordings.
        """
        self._model = model
        self._audio = audio
        self._segments: list[Segment] = []
        self._gibberish = GibberishWatch(refuses=audio.channel is None)
        self._ended = False
        self._error: BaseException | None = None
        self._broken: WhisperNpuError | None = None  # what is told once all before it is heard
        self._is_partial = False
        # Beside another channel, what is very quiet is that channel's speech, leaking in.
        speech = SpeechMap(
            model.voice_activity.detector(),
            options.vad_threshold,
            amplifies=audio.channel is None,
        )
        times = StageTimes()
        features = FeatureStream(iter(self._audio), model.backend.n_mels, speech, times)
        self._session = new_session(model, options, features, speech, times)
        self._session.pad_to_class = not is_alone
        self._on_partial = on_partial
        self._session.reports = None if on_partial is None else Reports(self._labelled(on_partial))
        self._is_watched = False  # whether a loop over its updates is under way
        self._strategy: Strategy | None = None
        priority = _priority(self.duration_estimate, model.backend)
        self._alone = Group(model.scheduler, options.batch_size, iter([self]), priority)
        self.group = self._alone

    @property
    def channel(self) -> str:
        """What it is called among the channels or tracks of a recording; empty if alone."""
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
        """Whether nothing more is to be planned, because of its end or of an error."""
        return self._ended

    @property
    def n_expected(self) -> int:
        """Windows it has at once if there is speech all through; for its group."""
        duration, options = self.duration_estimate, self._session.options
        if _is_sequential(options):
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
                self._strategy = _strategy(self._session)
            return question(self._strategy)
        except WhisperNpuError as error:  # of this recording; the others go on
            self._broken = error
            return nothing

    def accept(self, result: WindowResult | None) -> None:
        """Take up a window that has been decoded; called by its group."""
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
        except GibberishError as error:  # of this recording; the others go on
            self.fail(error)
            return
        self._session.progress.decoded_to(result.window.end_time)
        for segment in self._strategy.accept(result):
            numbered = replace(segment, id=len(self._segments), channel=self._audio.channel)
            self._segments.append(numbered)

    def end(self) -> None:
        """Complete the accounts, all having been decoded; called by its group."""
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
            if missing is not None:  # else all there is has been decoded
                self._leave_out(missing.offset)
        self._close()
        session.coverage.finish(session.features.duration)
        logger.debug("stages: %s", self.times)

    def stop(self) -> None:
        """Begin no further window: the stream ends behind those that are begun.

        May be called by a signal handler, or by another thread. See `is_partial`.
        """
        self._session.stopping = True

    def _leave_out(self, start: float) -> None:
        """Account for what is read behind `start` seconds, and is not going to be decoded."""
        self._is_partial = True
        end = self._session.features.duration
        self._session.coverage.add(start, end, "dropped", "stopped before it was transcribed")

    def fail(self, error: BaseException) -> None:
        """Give the transcription up; whoever asks for what is missing is told why."""
        self._error = error
        self._session.given_up.set()
        self._strategy = None  # windows that wait hold a good deal
        self._alone.close()
        self._close()

    def close(self) -> None:
        """See `TranscriptionStream`."""
        self.give_up(GIVEN_UP)

    def give_up(self, reason: str) -> None:
        """Close it; `reason` is what those are told who ask for what has not been decoded."""
        given_up = UsageError(reason)
        self._broken = self._broken or given_up
        self._session.given_up.set()
        self.group.scheduler.look_again()
        # Called back from decoding, it is closed by whoever waits for its windows.
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
        """Decode on until there is a segment at `position`; False where there will be none."""
        while position >= len(self._segments):
            with self.group.turn():
                if position < len(self._segments):
                    break  # another thread has decoded meanwhile
                if self._error is not None:
                    raise self._error  # again: what was decoded before it is not the whole result
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
            # All whose windows are decoded together would wait for one report.
            with self.reported_by(lambda partial: emit(partial, wait=False)):
                for segment in self:
                    emit(segment)

        return in_background(produce)

    @contextmanager
    def reported_by(self, callback: PartialCallback) -> Iterator[None]:
        """Have partial texts go to `callback`, too, for a block.

        The block may be left with `AbandonedError`, which gives the transcription up.

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
        """The callback, given the channel's name with each text."""
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
        """What has been transcribed so far, also of a recording that failed or was given up.

        Decodes nothing, and gives up what is not decoded.
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
            model=self._model.folder.name,
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


def new_session(
    model: WhisperModel,
    options: TranscribeOptions,
    features: FeatureStream,
    speech: SpeechMap | None,
    times: StageTimes,
) -> TranscriptionSession:
    """A recording about to be transcribed; `options` are those `resolve` gives."""
    backend = model.backend
    long_pause = SHORT_PAUSE if options.multilingual else LONG_PAUSE
    if options.vad_min_silence is not None:
        long_pause = options.vad_min_silence
    return TranscriptionSession(
        backend=backend,
        tokenizer=model.tokenizer,
        vocabulary=model.vocabulary,
        options=options,
        features=features,
        windows=WindowChooser(
            features, speech, 2 * backend.n_audio_ctx, long_pause, skips_silence=options.vad
        ),
        prompts=Prompts(model.tokenizer, options, backend.n_text_ctx),
        times=times,
        coverage=Coverage(),
        attention_delay=attention_delay(model.folder.alignment_heads),
        language=SpokenLanguage.of(options.language, may_change=options.multilingual),
        n_audio_state=model.folder.config.d_model,
        can_align=model.can_align,
    )


def _priority(seconds: float | None, backend: Backend) -> Priority:
    """That of a recording transcribed by itself, by its length as far as it is known."""
    window = backend.window_frames[-1] / FRAMES_PER_SECOND
    return Priority.SHORT if seconds is not None and seconds <= window else Priority.BULK


def _strategy(session: TranscriptionSession) -> Strategy:
    """A way through the recording in the mode that was asked for."""
    options = session.options
    if options.mode == "batched":
        return BatchedStrategy(session, pad_to_full=True)
    if _is_sequential(options):
        return SequentialStrategy(session)
    longer = session.features.available(0, session.window_frames + 1) > session.window_frames
    # Of one window, sequential decoding gives PyTorch's tokens.
    if not longer and (session.backend.is_exact or options.without_timestamps):
        return SequentialStrategy(session)
    return BatchedStrategy(session, pad_to_full=longer)


def _is_sequential(options: TranscribeOptions) -> bool:
    """Whether recordings of any length are gone through window after window."""
    return options.mode == "sequential" or not (options.vad or options.without_timestamps)
