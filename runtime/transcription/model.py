"""A loaded model: opens recordings and resolves options."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath
from threading import Lock
from typing import Unpack
from weakref import WeakSet

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.stream import AudioSource, AudioStream, open_streams
from whisper_npu.runtime.closing import Closing
from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.engines.memory import release_memory_after
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import SpeechMap, VoiceActivity
from whisper_npu.runtime.features.windows import LONG_PAUSE, SHORT_PAUSE, WindowChooser
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.options import (
    MODEL_LIST,
    TranscribeKwargs,
    TranscribeOptions,
    unknown_option,
)
from whisper_npu.runtime.text.prompts import Prompts
from whisper_npu.runtime.text.tokenizer import Tokenizer, read_vocabulary, require_language
from whisper_npu.runtime.timestamps.alignment import attention_delay
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.group import Group
from whisper_npu.runtime.transcription.language import SpokenLanguage
from whisper_npu.runtime.transcription.merged import MergedStream, one_at_a_time
from whisper_npu.runtime.transcription.model_checks import check_model
from whisper_npu.runtime.transcription.partial import (
    PartialCallback,
)
from whisper_npu.runtime.transcription.recording_stream import RecordingStream, priority_of
from whisper_npu.runtime.transcription.scheduler import Decoded, Scheduler
from whisper_npu.runtime.transcription.session import TranscriptionSession
from whisper_npu.runtime.transcription.stream import TranscriptionStream
from whisper_npu.runtime.transcription.streams_in_order import StreamsInOrder

logger = logging.getLogger("whisper_npu")

_CLOSED = "this model is closed; load it again"


class WhisperModel(Closing):
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
            backend: runs the graphs.
            tokenizer: the model's tokenizer, if it was read already.
            voice_activity: the speech detector, if it was loaded already.

        Attributes:
            can_align: whether the engine aligns text with audio.

        Raises:
            ModelError: the folder's files belong to different models.
        """
        self._lock = Lock()
        self._streams: WeakSet[RecordingStream] = WeakSet()
        self.folder = folder
        self._scheduler: Scheduler | None = Scheduler(backend, after_batch=release_memory_after)
        self.tokenizer = tokenizer or Tokenizer(folder.tokenizer)
        self.voice_activity = voice_activity or VoiceActivity(folder.path)
        check_model(folder, self.tokenizer, backend)
        self.vocabulary = read_vocabulary(folder, self.tokenizer, backend.n_vocab)
        self.can_align = backend.can_align
        if not self.can_align:
            logger.info(
                "no graph aligns text with audio: timestamps are sampled, which is less exact; "
                "`whisper-npu export --add-alignment %s` adds it",
                folder.path,
            )

    def __repr__(self) -> str:
        """The model's name, and where it runs."""
        scheduler = self._scheduler
        if scheduler is None:
            return f"<WhisperModel {self.folder.name}, closed>"
        backend = scheduler.backend
        return f"<WhisperModel {self.folder.name} on {backend.device}, {backend.precision}>"

    @property
    def backend(self) -> Backend:
        """The engine that runs the graphs.

        Raises:
            UsageError: the model is closed.
        """
        return self.scheduler.backend

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

    @property
    def decoded(self) -> Decoded:
        """The batches and windows decoded so far, for all callers; see `Decoded`."""
        return self.scheduler.decoded

    def close(self) -> None:
        """Release the graphs, and close the transcriptions that have not ended.

        The memory of the graphs is freed once no stream and no live session refers to it. Complete
        results stay. A second call does nothing. Any later use raises a `UsageError`.
        """
        with self._lock:
            self._scheduler = None
            streams = list(self._streams)
        for stream in streams:
            stream.give_up(_CLOSED)

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
            sample_rate: sample rate of an array, in Hz; None is 16,000.
            on_partial: called with the text of a window after each decoding step, from the threads
                that decode, but never from two at once; in batched mode with each window in turn.
                If it raises an error, iterating over the segments raises that error.
            changes: options by name, over those in `options`.

        Returns:
            a stream: iterate it for segments as they are decoded, or take its `text`, `segments`
            or another property, which waits for the end.

        Raises:
            AudioError: the recording cannot be opened.
            UsageError: an option is unknown or does not fit the model.
        """
        wanted = self.resolve(options, **changes)
        stream = self._open(audio, wanted, sample_rate, on_partial)
        if isinstance(stream, MergedStream):
            priority = priority_of(stream.duration_estimate, self.backend.window_frames[-1])
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
        """Transcribe recordings, decoding windows of several together: by far the fastest way.

        Args:
            recordings: see `transcribe`. They are opened some way ahead. A list of one recording is
                transcribed as `transcribe` does it.
            options: how to transcribe all of them.
            sample_rate: see `transcribe`.
            on_open: called with each stream or error when its recording is opened, in order,
                before the stream is yielded. It can show the progress of all, or stop them.
            changes: options by name, over those in `options`.

        Yields:
            for each recording, in order, its stream, or the error that opening it raised. The
            stream of a damaged recording raises when its segments are taken; the others go on.
            Several threads may use the streams: one decodes for all, the others wait for it.

        Raises:
            UsageError: an option is unknown or does not fit the model, or `recordings` is one
                recording instead of several.
        """
        if isinstance(recordings, str | bytes | PurePath) or not isinstance(recordings, Iterable):
            raise UsageError(f"recordings is {recordings!r}; give a list of recordings")
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
    ) -> RecordingStream | MergedStream:
        """Open a recording, or each of its channels or tracks if the options say so."""
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
                self._new_stream(each, options, on_partial, is_alone=is_alone) for each in opened
            ]
            self._streams.update(streams)
            on_error.pop_all()
        return streams[0] if len(streams) == 1 else MergedStream(streams)

    def _new_stream(
        self,
        audio: AudioStream,
        options: TranscribeOptions,
        on_partial: PartialCallback | None,
        *,
        is_alone: bool,
    ) -> RecordingStream:
        """The stream of a recording or channel; `is_alone`: no other is transcribed with it."""
        # With several channels, very quiet speech leaks in from another channel.
        detector = self.voice_activity.detector()
        speech = SpeechMap(detector, options.vad_threshold, amplifies=audio.channel is None)
        times = StageTimes()
        features = FeatureStream(iter(audio), self.backend.n_mels, speech, times)
        session = new_session(self, options, features, speech, times)
        session.pad_to_class = not is_alone
        return RecordingStream(session, audio, self.scheduler, self.folder.name, on_partial)

    def resolve(
        self, options: TranscribeOptions | None = None, **changes: Unpack[TranscribeKwargs]
    ) -> TranscribeOptions:
        """The options for this model, with the language as a code, or None to detect it.

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
        if wanted.part is not None and language is None:
            raise UsageError("a part needs a language: others are detected from the beginning")
        return replace(wanted, language=language, languages=languages)

    def check_usable(self) -> None:
        """Make sure that the model can be used.

        Raises:
            UsageError: the model is closed.
            DeviceError: the model was loaded before this process was forked.
        """
        self.scheduler.check()

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


def new_session(
    model: WhisperModel,
    options: TranscribeOptions,
    features: FeatureStream,
    speech: SpeechMap | None,
    times: StageTimes,
) -> TranscriptionSession:
    """A session for a recording; `options` come from `WhisperModel.resolve`."""
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
