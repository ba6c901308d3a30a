"""The state of one transcription: a recording, a model and options, for any strategy."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from math import inf
from threading import Event

from whisper_npu.runtime.coverage import Coverage, Fate
from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.decoding.language_detection import detect_language, try_languages
from whisper_npu.runtime.decoding.quality import (
    Action,
    find_cut,
    separate_hallucinations,
)
from whisper_npu.runtime.decoding.unheard import NEGLIGIBLE_SPEECH
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.windows import PAD, Window, WindowChooser
from whisper_npu.runtime.options import MODEL_LIST, TranscribeOptions
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.text.prompts import Prompts
from whisper_npu.runtime.text.segments import TokenSegment
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary, sot_sequence
from whisper_npu.runtime.timestamps.joins import reaches_over, split_at_joins
from whisper_npu.runtime.timestamps.words import WordTiming, add_word_timestamps, find_alignment
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.language import TELLING, SpokenLanguage, is_sure, tells
from whisper_npu.runtime.transcription.partial import Reports
from whisper_npu.runtime.transcription.progress import Progress
from whisper_npu.runtime.transcription.window_decoding import (
    WindowRequest,
    WindowResult,
    frames_to_encode,
    is_tiny,
)

logger = logging.getLogger("whisper_npu")


# Options that mean the same in `DecodingOptions`. There, `temperature` is that of one attempt, and
# `suppress_tokens` holds the model's list itself.
_SAME_NAME = (
    {each.name for each in fields(DecodingOptions)}
    & {each.name for each in fields(TranscribeOptions)}
) - {"temperature", "suppress_tokens"}

SPLITTABLE = 10 * FRAMES_PER_SECOND  # least frames of a window that can be decoded in parts


@dataclass(frozen=True)
class Text:
    """The text of a window: its segments, and the segments left out as hallucinated."""

    segments: list[Segment]
    hallucinated: list[Segment]


@dataclass
class TranscriptionSession:
    """A recording being transcribed.

    Attributes:
        attention_delay: seconds by which the model's attention lags behind the sound.
        language: the spoken language, as known so far.
        n_audio_state: elements of the encoder's states; None if the configuration does not say.
        can_align: whether the model can align text with audio.
        pad_to_class: whether its windows share batches with windows of other recordings.
        reports: takes the text of each window after each decoding step; None: no reports.
        progress: seconds of audio encoded and decoded so far.
        given_up: set once the transcription is closed; its windows are not decoded any further.
        stopping: no new window is planned; planned windows are decoded to their end.
        stopped_at: frame at which the next window would have begun.
        part_end: end of the last window of the wanted part, in seconds, if it was reached.
    """

    backend: Backend
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    options: TranscribeOptions
    features: FeatureStream
    windows: WindowChooser
    prompts: Prompts
    times: StageTimes
    coverage: Coverage
    attention_delay: float
    language: SpokenLanguage
    n_audio_state: int | None
    can_align: bool = False
    pad_to_class: bool = False
    reports: Reports | None = None
    progress: Progress = field(default_factory=Progress)
    given_up: Event = field(default_factory=Event)
    stopping: bool = False
    stopped_at: int | None = None
    part_end: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether a caller waits for its windows; False once closed or its callback failed."""
        return not self.given_up.is_set() and (self.reports is None or self.reports.error is None)

    @property
    def window_frames(self) -> int:
        """Frames of 10 ms in a whole window."""
        return self.backend.window_frames[-1]

    @property
    def elastic(self) -> bool:
        """Whether short windows are encoded short; by default, unless results must be exact."""
        if self.options.elastic is None:
            return not self.backend.is_exact
        return self.options.elastic

    @property
    def is_tiny(self) -> bool:
        """Whether the model is one of the tiny ones."""
        return is_tiny(self.n_audio_state)

    @property
    def may_align(self) -> bool:
        """Whether texts may be decoded without timestamps, and get them by alignment."""
        return self.can_align and self.options.task == "transcribe"

    def window_at(self, seek: int, *, cut_at_pause: bool, joins: bool = False) -> Window | None:
        """The next window of the wanted part; the time before it is recorded as silent."""
        first, last = self.options.part or (0.0, inf)
        window = None
        while not self.stopping:
            with self.times.measure("features"):
                window = self.windows.next(seek, cut_at_pause=cut_at_pause, joins=joins)
            if window is None or window.offset >= first:
                break
            seek = window.end
            self.features.forget(seek)
        if self.stopping:
            self.stopped_at = seek
            return None
        silent_until = (self.features.n_frames or seek) if window is None else window.start
        start, end = seek / FRAMES_PER_SECOND, silent_until / FRAMES_PER_SECOND
        if not first <= end < last:
            self.part_end = start
            return None
        self.coverage.add(start, end, "silent", "no speech")
        return window

    def request(
        self,
        window: Window,
        prefix_tokens: Sequence[int] = (),
        *,
        reaches_end: bool = False,
        pad_to_full: bool = False,
        language: str | None = None,
    ) -> WindowRequest:
        """Make the request for a window, without a prompt.

        The window's language is detected if it is not known. Detection needs windows in order: the
        speech before a short window says more of its language than the window itself.

        Args:
            window: the window.
            prefix_tokens: first tokens of its transcript, from an earlier decoding.
            reaches_end: whether its text must nearly reach the end of its speech.
            pad_to_full: whether it shares its batch with windows of other lengths.
            language: code of its language, if it is known already.
        """
        features = self._features_of(window)
        encoded: Future[Float32Array] | None = None
        if language is None and self.language.is_open:
            encoded = Future()
            encoded.set_result(self._find_language(window, features))
        wanted = self._decoding_options(
            prefix_tokens, language or self.language.code or self.undetected
        )
        speech = self.windows.speech(window)
        min_end_time = (
            max(0.0, speech[-1][1] - NEGLIGIBLE_SPEECH) if reaches_end and speech else 0.0
        )
        return WindowRequest(
            self,
            window,
            features,
            wanted,
            min_end_time=min_end_time,
            speech=speech,
            continued=reaches_end,
            pad_to_full=pad_to_full,
            pad_to_class=self.pad_to_class,
            encoded=encoded,
        )

    @property
    def undetected(self) -> str:
        """The language of a recording without speech."""
        return (self.options.languages or ("en",))[0]

    def _features_of(self, window: Window) -> Float32Array:
        choices = self.backend.window_frames if self.elastic else (self.window_frames,)
        frames = frames_to_encode(window.n_frames, choices, self.n_audio_state)
        with self.times.measure("features"):
            return self.features.joined(window.pieces, frames, amplified=not self.backend.is_exact)

    def _find_language(self, window: Window, features: Float32Array) -> Float32Array:
        """Detect the language of a window, and return the encoded window."""
        audio, found = self._detect(features)
        seconds = self.windows.speech_seconds(window.offset, window.end_time)
        if self.language.code is None and not tells(seconds, found):
            # There is no earlier speech, but the following speech says more.
            further = self._with_more_speech(window)
            if further is not None:
                audio_further, of_further = self._detect(self._features_of(further))
                more = self.windows.speech_seconds(further.offset, further.end_time)
                self.language.add_evidence(
                    more, self._try_languages(audio_further, more, of_further)
                )
        if self.language.is_open:
            self.language.add_evidence(seconds, self._try_languages(audio, seconds, found))
        return audio

    def _try_languages(
        self, audio: Float32Array, seconds: float, found: dict[str, float]
    ) -> dict[str, float]:
        """The probability of each language; unless it is sure, from decoding in the likeliest."""
        if self.language.is_known or is_sure(seconds, found):
            return found
        return try_languages(
            self.backend,
            self.tokenizer,
            self.vocabulary,
            audio,
            self._suppressed(),
            self.options,
            self.times,
            found,
        )

    def _detect(self, features: Float32Array) -> tuple[Float32Array, dict[str, float]]:
        """The encoded window, and the probability of each language in it."""
        with self.times.measure("encoder"):
            audio = self.backend.encode(features[None])
        (found,) = detect_language(
            self.backend, self.tokenizer, audio, self.times, self.options.languages
        )
        return audio, found

    def _with_more_speech(self, window: Window) -> Window | None:
        """The longest window from the same start in the audio read; None if it adds no speech."""
        end = min(window.start + self.window_frames, self.features.n_ready)
        further = Window(window.start, end)
        more = self.windows.speech_seconds(window.end_time, further.end_time)
        return further if more >= TELLING else None

    def _decoding_options(self, prefix_tokens: Sequence[int], language: str) -> DecodingOptions:
        """The decoding options of a window in this language."""
        same = {name: getattr(self.options, name) for name in _SAME_NAME}
        same |= {"language": language, "prefix_tokens": (*self._prefix(), *prefix_tokens)}
        return replace(self._suppressed(), **same)

    def _prefix(self) -> tuple[int, ...]:
        """The tokens that the user's `prefix` puts at the start of the first transcript."""
        prefix = self.prompts.take_prefix()
        if not prefix or self.options.without_timestamps:
            return prefix
        return (self.tokenizer.special.timestamp_begin, *prefix)

    def _suppressed(self) -> DecodingOptions:
        """Options for greedy decoding with the suppressed tokens."""
        chosen, vocabulary = self.options.suppress_tokens, self.vocabulary
        tokens = set((MODEL_LIST,) if chosen is None else chosen)
        if MODEL_LIST in tokens:
            tokens = tokens - {MODEL_LIST} | set(vocabulary.suppress)
        return DecodingOptions(
            suppress_tokens=tuple(sorted(tokens)),
            suppress_first=vocabulary.begin_suppress if self.options.suppress_blank else (),
        )

    def leave_out(self, result: WindowResult) -> bool:
        """Whether a window's text is left out; if so, its time is recorded as such."""
        window, verdict = result.window, result.outcome.verdict
        if not verdict.is_left_out:
            return False
        fate: Fate = "skipped" if verdict.action is Action.SILENCE else "dropped"
        self.cover(window, fate, verdict.reason)
        return True

    def cover(self, window: Window, fate: Fate, reason: str) -> None:
        """Record the fate of a window; the pauses that it leaves out are silent."""
        _cover(self.coverage, window, window.offset, window.end_time, fate, reason)

    def write(
        self, result: WindowResult, parts: Sequence[TokenSegment], last_speech_end: float
    ) -> Text:
        """The text of a window: its segments, with words if they were asked for.

        Args:
            result: the window.
            parts: its tokens, cut at timestamps; parts without text or length are left out.
            last_speech_end: end of the last word before the window, in seconds.
        """
        parts = self._split_at_joins(result, parts)
        segments = self._segments(result, parts)
        if result.audio is None or not self.options.word_timestamps:
            return Text(segments, [])
        with self.times.measure("word times"):
            segments = self._with_words(result, result.audio, segments, last_speech_end)
        believed, hallucinated = separate_hallucinations(
            segments,
            self.options.hallucination_silence_threshold,
            window_start=result.window.offset,
            window_end=result.window.end_time,
            last_speech_end=last_speech_end,
        )
        return Text(believed, hallucinated)

    def _split_at_joins(
        self, result: WindowResult, parts: Sequence[TokenSegment]
    ) -> Sequence[TokenSegment]:
        """The segments, none of them on both sides of a left-out pause if words can be timed."""
        joins, language = result.window.joins, result.outcome.language
        if not any(reaches_over(part, joins, PAD) for part in parts):
            return parts
        words = result.outcome.decoded.words
        if words is None and result.audio is not None and self.may_align:
            words = self._words(result, result.audio, parts)
        if not words:
            return parts
        return split_at_joins(parts, words, joins, PAD, tokenizer=self.tokenizer, language=language)

    def _words(
        self, result: WindowResult, audio: Float32Array, parts: Sequence[TokenSegment]
    ) -> tuple[WordTiming, ...]:
        eot, language = self.tokenizer.special.eot, result.outcome.language
        with self.times.measure("alignment"):
            (words,) = find_alignment(
                [[token for part in parts for token in part.tokens if token < eot]],
                audio,
                backend=self.backend,
                tokenizer=self.tokenizer,
                language=language,
                sot_sequence=self._sot_sequence(language),
                n_frames=result.window.n_frames,
                attention_delay=self.attention_delay,
            )
        return tuple(words)

    def _with_words(
        self,
        result: WindowResult,
        audio: Float32Array,
        segments: Sequence[Segment],
        last_speech_end: float,
    ) -> list[Segment]:
        return add_word_timestamps(
            segments,
            audio,
            backend=self.backend,
            tokenizer=self.tokenizer,
            language=result.outcome.language,
            sot_sequence=self._sot_sequence(result.outcome.language),
            n_frames=result.window.n_frames,
            in_recording=result.window.word_in_recording,
            attention_delay=self.attention_delay,
            not_before=last_speech_end,
            prepend_punctuations=self.options.prepend_punctuations,
            append_punctuations=self.options.append_punctuations,
        )

    def _sot_sequence(self, language: str) -> tuple[int, ...]:
        return sot_sequence(
            self.tokenizer.special,
            is_multilingual=self.vocabulary.is_multilingual,
            language=language,
            task=self.options.task,
        )

    def account(self, result: WindowResult, end: float, text: Text) -> None:
        """Record the coverage of a window up to `end`, in seconds from the recording's start.

        The time is transcribed, except text that was left out and speech without text.
        """
        window = result.window
        start = window.offset
        lost = [
            (
                segment.start,
                segment.end,
                f"hallucinated, by its words' times: {segment.text.strip()!r}",
            )
            for segment in text.hallucinated
        ]
        lost += [
            (*window.in_recording(*stretch), "speech without text, in every attempt")
            for stretch in result.outcome.decoded.unheard
        ]
        said = any(char.isalnum() for segment in text.segments for char in segment.text)
        if not said and not text.hallucinated:
            if self.windows.speech(window):
                _cover(
                    self.coverage, window, start, end, "dropped", "the model writes no text for it"
                )
            else:
                self.coverage.add(start, end, "silent", "no speech, and no text")
            return
        for first, last, reason in sorted(lost):
            dropped = min(max(start, first), end), min(max(start, last), end)
            _cover(self.coverage, window, start, dropped[0], "transcribed")
            _cover(self.coverage, window, *dropped, "dropped", reason)
            start = dropped[1]
        _cover(self.coverage, window, start, end, "transcribed")

    def _segments(self, result: WindowResult, parts: Sequence[TokenSegment]) -> list[Segment]:
        window, outcome = result.window, result.outcome
        decoded = outcome.decoded
        flaw = outcome.flaw or find_cut(decoded, self.tokenizer.special.timestamp_begin)
        made = []
        for part in parts:
            with self.times.measure("text"):
                text = self.tokenizer.decode(part.tokens)
            start, end = window.in_recording(part.start, part.end)
            start, end = min(start, window.end_time), min(end, window.end_time)
            if not text.strip() or start >= end:
                continue
            made.append(
                Segment(
                    id=0,  # the stream numbers the segments
                    seek=window.start,
                    start=round(start, 2),
                    end=round(end, 2),
                    text=text,
                    tokens=part.tokens,
                    temperature=decoded.temperature,
                    avg_logprob=decoded.avg_logprob,
                    compression_ratio=decoded.compression_ratio,
                    no_speech_prob=decoded.no_speech_prob,
                    language=outcome.language if self.options.multilingual else None,
                    retries=outcome.retries,
                    flaw=flaw,
                )
            )
        return made


def _cover(
    coverage: Coverage, window: Window, start: float, end: float, fate: Fate, reason: str = ""
) -> None:
    """Record the fate of a window from `start` to `end` seconds; its pauses are silent."""
    for pause in window.pauses:
        first, last = (frame / FRAMES_PER_SECOND for frame in pause)
        coverage.add(start, min(first, end), fate, reason)
        coverage.add(max(first, start), min(last, end), "silent", "no speech")
        start = max(start, min(last, end))
    coverage.add(start, end, fate, reason)
