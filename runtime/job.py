"""What sequential and batched decoding share: one recording, one model, one set of options."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from whisper_npu.runtime.backend import Backend, Float32Array
from whisper_npu.runtime.coverage import Coverage
from whisper_npu.runtime.decoding import DecodingOptions, detect_language
from whisper_npu.runtime.fallback import Outcome, decode_with_fallback
from whisper_npu.runtime.feature_stream import FeatureStream
from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.hallucinations import first_hallucination
from whisper_npu.runtime.languages import LANGUAGES
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.partial import PartialCallback, partial_reporter
from whisper_npu.runtime.prompts import Prompts
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.segments import TokenSegment
from whisper_npu.runtime.speech_windows import Window, WindowChooser
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.tokenizer import Tokenizer, Vocabulary, sot_sequence
from whisper_npu.runtime.word_timing import add_word_timestamps

logger = logging.getLogger("whisper_npu")


# Frames of silence behind a window shorter than the encoder's: with fewer, the decoder loops.
_MARGIN = 6 * FRAMES_PER_SECOND


@dataclass(frozen=True)
class Heard:
    """A window that has been decoded.

    Attributes:
        window: where it is in the recording.
        outcome: what was decoded.
        audio: the window encoded, float32 `(1, n_audio_ctx, n_audio_state)`.
    """

    window: Window
    outcome: Outcome
    audio: Float32Array


@dataclass(frozen=True)
class Text:
    """What a window's tokens say: its segments, and those left out for being made up."""

    segments: list[Segment]
    made_up: list[Segment]


@dataclass
class Job:
    """A recording being transcribed.

    Attributes:
        attention_delay: seconds by which the model's attention is behind the sound.
        language: its language code; None until it has been detected.
        language_probabilities: of all languages, likeliest first; empty if none was detected.
        on_partial: takes the text of each window after each decoding step; None: nobody does.
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
    language: str | None
    language_probabilities: dict[str, float] = field(default_factory=dict)
    on_partial: PartialCallback | None = None

    @property
    def window_frames(self) -> int:
        """Frames of 10 ms in a whole window."""
        return self.backend.window_frames[-1]

    @property
    def elastic(self) -> bool:
        """Whether short windows are encoded short: unless asked for, not where f32 is exact."""
        if self.options.elastic is None:
            return self.backend.precision != "f32"
        return self.options.elastic

    def next_window(self, seek: int, *, cut_at_pause: bool) -> Window | None:
        """The next window; what is passed over on the way is accounted for as silent."""
        with self.times.measure("features"):
            window = self.windows.next(seek, cut_at_pause=cut_at_pause)
        silent_until = (self.features.n_frames or seek) if window is None else window.start
        start, end = seek / FRAMES_PER_SECOND, silent_until / FRAMES_PER_SECOND
        self.coverage.add(start, end, "silent", "no speech")
        return window

    def hear(
        self, windows: Sequence[Window], context: Sequence[int], begun: Sequence[int] = ()
    ) -> list[Heard]:
        """Encode and decode windows that share a context, the tokens of the text before them.

        The language is detected first where it is not known: from the first window that has
        speech, or for each window if the recording is multilingual.

        The transcript of each window begins with `begun`, tokens decoded from it before.

        Windows shorter than the encoder's are followed by no more silence than they need. What
        looks wrong then is heard again as a whole window, before any higher temperature is tried.
        """
        wanted = self._decoding_options(context, begun)
        frames = self._frames(windows)
        if frames == self.window_frames:
            return self._decode(windows, frames, wanted, self.options)
        first_try = replace(self.options, temperature=self.options.temperature[:1])
        heard = self._decode(windows, frames, wanted, first_try)
        flawed = [place for place, one in enumerate(heard) if one.outcome.flaw is not None]
        if flawed:
            whole = [windows[place] for place in flawed]
            again = self._decode(whole, self.window_frames, wanted, self.options)
            for place, one in zip(flawed, again, strict=True):
                retries = (*heard[place].outcome.retries, *one.outcome.retries)
                heard[place] = replace(one, outcome=replace(one.outcome, retries=retries))
        return heard

    def _frames(self, windows: Sequence[Window]) -> int:
        """Frames to encode for each of some windows."""
        if not self.elastic:
            return self.window_frames
        needed = max(window.n_frames for window in windows) + _MARGIN
        return next((n for n in self.backend.window_frames if n >= needed), self.window_frames)

    def _decode(
        self,
        windows: Sequence[Window],
        frames: int,
        wanted: DecodingOptions,
        options: TranscribeOptions,
    ) -> list[Heard]:
        with self.times.measure("features"):
            features = np.stack(
                [self.features.window(w.start, frames, w.n_frames) for w in windows]
            )
        with self.times.measure("encoder"):
            audio = self.backend.encode(features)
        languages = self._languages(audio)
        heard: dict[int, Heard] = {}
        for language in dict.fromkeys(languages):
            places = [place for place, found in enumerate(languages) if found == language]
            of_language = [windows[place] for place in places]
            outcomes = decode_with_fallback(
                self.backend,
                self.tokenizer,
                self.vocabulary,
                audio if len(places) == len(windows) else audio[places],
                [window.start for window in of_language],
                replace(wanted, language=language),
                options,
                self.times,
                on_tokens=None
                if self.on_partial is None
                else partial_reporter(self.tokenizer, of_language, self.on_partial),
            )
            for place, outcome in zip(places, outcomes, strict=True):
                heard[place] = Heard(windows[place], outcome, audio[place : place + 1])
        return [heard[place] for place in range(len(windows))]

    def _languages(self, audio: Float32Array) -> list[str]:
        """The language of each window."""
        if self.language is not None and not self.options.multilingual:
            return [self.language] * len(audio)
        to_judge = audio if self.options.multilingual else audio[:1]
        found = detect_language(self.backend, self.tokenizer, to_judge, self.times)
        if self.language is None:
            self.language_probabilities = found[0]
            self.language = next(iter(found[0]))
            logger.info("language: %s", LANGUAGES[self.language])
        if not self.options.multilingual:
            return [self.language] * len(audio)
        return [next(iter(probabilities)) for probabilities in found]

    def _decoding_options(self, context: Sequence[int], begun: Sequence[int]) -> DecodingOptions:
        """How windows behind `context` are decoded; the language is not settled yet."""
        options, vocabulary = self.options, self.vocabulary
        chosen = options.suppress_tokens
        return DecodingOptions(
            task=options.task,
            best_of=options.best_of,
            beam_size=options.beam_size,
            patience=options.patience,
            length_penalty=options.length_penalty,
            prompt=self.prompts.before(context),
            prefix=self.prompts.take_prefix(),
            begun=tuple(begun),
            without_timestamps=options.without_timestamps,
            max_initial_timestamp=options.max_initial_timestamp,
            suppress_tokens=vocabulary.suppress if chosen is None else tuple(chosen),
            suppress_first=vocabulary.begin_suppress if options.suppress_blank else (),
            sample_len=options.sample_len,
        )

    def skip(self, heard: Heard) -> None:
        """Account for a window that the model holds for silence."""
        probability = heard.outcome.decoded.no_speech_prob
        reason = f"the model hears no speech (probability {probability:.2f})"
        self.coverage.add(heard.window.offset, heard.window.end_time, "skipped", reason)

    def write(self, heard: Heard, parts: Sequence[TokenSegment], last_speech_end: float) -> Text:
        """The text of a window: its segments, with words if they were asked for.

        Args:
            heard: the window.
            parts: its tokens, cut at timestamps; those without text or length are left out.
            last_speech_end: when the last word before the window ends, in seconds.
        """
        segments = self._segments(heard, parts)
        if not self.options.word_timestamps:
            return Text(segments, [])
        with self.times.measure("word times"):
            segments = self._with_words(heard, segments, last_speech_end)
        made_up: list[Segment] = []
        threshold = self.options.hallucination_silence_threshold
        while threshold is not None:
            place = first_hallucination(
                segments,
                threshold=threshold,
                window_start=heard.window.offset,
                window_end=heard.window.end_time,
                last_speech_end=last_speech_end,
            )
            if place is None:
                break
            made_up.append(segments.pop(place))
        return Text(segments, made_up)

    def _with_words(
        self, heard: Heard, segments: Sequence[Segment], last_speech_end: float
    ) -> list[Segment]:
        language = heard.outcome.language
        return add_word_timestamps(
            segments,
            heard.audio,
            backend=self.backend,
            tokenizer=self.tokenizer,
            language=language,
            sot_sequence=sot_sequence(
                self.tokenizer.special,
                is_multilingual=self.vocabulary.is_multilingual,
                language=language,
                task=self.options.task,
            ),
            n_frames=heard.window.n_frames,
            offset=heard.window.offset,
            attention_delay=self.attention_delay,
            not_before=last_speech_end,
            prepend_punctuations=self.options.prepend_punctuations,
            append_punctuations=self.options.append_punctuations,
        )

    def account(self, start: float, end: float, made_up: Sequence[Segment]) -> None:
        """Account for the time of a window: transcribed, but for text that was left out."""
        for segment in made_up:
            self.coverage.add(start, segment.start, "transcribed")
            reason = f"made up, judging by its words' times: {segment.text.strip()!r}"
            self.coverage.add(segment.start, segment.end, "dropped", reason)
            start = segment.end
        self.coverage.add(start, end, "transcribed")

    def _segments(self, heard: Heard, parts: Sequence[TokenSegment]) -> list[Segment]:
        window, outcome = heard.window, heard.outcome
        decoded = outcome.decoded
        made = []
        for part in parts:
            with self.times.measure("text"):
                text = self.tokenizer.decode(part.tokens)
            start = min(window.offset + part.start, window.end_time)
            end = min(window.offset + part.end, window.end_time)
            if not text.strip() or start >= end:
                continue
            made.append(
                Segment(
                    id=0,  # numbered where they are handed out
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
                    flaw=outcome.flaw,
                )
            )
        return made
