"""From audio of any length to segments: window by window, each beginning where the last one ended.

The algorithm is section 4.5 of Radford et al. 2022 ("Strategies for Reliable Long-form
Transcription") as openai/whisper's `transcribe.py` carries it out.
"""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio import AudioSource, AudioStream, open_audio
from whisper_npu.runtime.backend import Backend, Float32Array
from whisper_npu.runtime.decoding import (
    DecodedWindow,
    DecodingOptions,
    decode_windows,
    detect_language,
)
from whisper_npu.runtime.feature_stream import FeatureStream
from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.languages import LANGUAGES
from whisper_npu.runtime.model_dir import ModelFolder
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.segments import split_at_timestamps
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.tokenizer import Tokenizer, read_vocabulary, require_language

logger = logging.getLogger("whisper_npu")

# Log10 mel power. Dither of 16-bit audio reaches -8; the quietest speech is far above.
_SILENCE = -7.0
# A window that needed a temperature above this is no good context for the next.
_CONTEXT_TEMPERATURE = 0.5


class WhisperModel:
    """A loaded model. Call `transcribe` as often as you like, from as many threads as you like."""

    def __init__(self, folder: ModelFolder, backend: Backend) -> None:
        """Read the tokenizer of `folder`; `backend` runs its graphs."""
        self.folder = folder
        self.backend = backend
        self.tokenizer = Tokenizer(folder.tokenizer)
        self.vocabulary = read_vocabulary(folder, self.tokenizer)

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English."""
        return self.vocabulary.is_multilingual

    def transcribe(
        self, audio: AudioSource, options: TranscribeOptions | None = None, **changes: Any
    ) -> "TranscriptionStream":
        """Transcribe a recording.

        Args:
            audio: a path, an open binary file, or float samples `(n_samples,)` at 16 kHz mono.
            options: how to transcribe.
            changes: options by name, over those in `options`.

        Returns:
            a stream: iterate it for segments as they are decoded, or take its `text`, `segments`
            and the rest, which waits for the end.

        Raises:
            AudioError: the recording cannot be opened.
            UsageError: an option is unknown or does not fit the model.
        """
        wanted = self.resolve(options, **changes)
        return TranscriptionStream(self, open_audio(audio), wanted)

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
        language = wanted.language
        if language is not None or not self.is_multilingual:
            language = require_language(self.tokenizer, self.vocabulary, language or "en")
        if not self.is_multilingual and wanted.task != "transcribe":
            raise UsageError("this model is English-only and cannot translate; use base or larger")
        return replace(wanted, language=language)


class TranscriptionStream:
    """A transcription under way: an iterator over segments that becomes the whole result."""

    def __init__(self, model: WhisperModel, audio: AudioStream, options: TranscribeOptions) -> None:
        self.times = StageTimes()
        self.language = options.language
        self.duration_estimate = audio.duration_estimate
        self._model = model
        self._audio = audio
        self._segments: list[Segment] = []
        self._features = FeatureStream(iter(audio), model.backend.n_mels)
        self._steps = _decode_sequentially(model, self._features, options, self)

    def __iter__(self) -> Iterator[Segment]:
        """Segments from the first on; what has been decoded already is not decoded again."""
        position = 0
        while True:
            if position == len(self._segments) and not self._advance():
                return
            yield self._segments[position]
            position += 1

    def _advance(self) -> bool:
        try:
            self._segments.append(next(self._steps))
        except StopIteration:
            self._audio.close()
            return False
        except BaseException:
            self._audio.close()
            raise
        return True

    def result(self) -> Transcription:
        """The whole transcription; decodes what is left.

        Raises:
            AudioError: the recording turned out to be empty.
        """
        while self._advance():
            pass
        logger.debug("stages: %s", self.times)
        backend = self._model.backend
        return Transcription(
            text="".join(segment.text for segment in self._segments).strip(),
            language=self.language or "en",
            segments=tuple(self._segments),
            duration=self._features.duration,
            model=self._model.folder.name,
            device=backend.device,
            kv_cache=backend.kv_cache,
            precision=backend.precision,
            warnings=tuple(self._audio.warnings),
        )

    @property
    def text(self) -> str:
        """The whole text."""
        return self.result().text

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments."""
        return self.result().segments

    @property
    def duration(self) -> float:
        """Seconds of audio, known at its end."""
        return self.result().duration


@dataclass
class _Context:
    """Text tokens of the windows so far, and from where on they are given to the next."""

    tokens: list[int]
    prompt_from: int = 0

    def prompt(self) -> tuple[int, ...]:
        return tuple(self.tokens[self.prompt_from :])


def _decode_sequentially(
    model: WhisperModel,
    features: FeatureStream,
    options: TranscribeOptions,
    stream: TranscriptionStream,
) -> Generator[Segment, None, None]:
    backend, tokenizer = model.backend, model.tokenizer
    window_frames = 2 * backend.n_audio_ctx
    initial = (
        tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
    )
    context = _Context(tokens=list(initial))
    n_segments = 0
    seek = 0
    while True:
        with stream.times.measure("audio and features"):
            n_frames = features.available(seek, window_frames)
            if n_frames == 0:
                return
            silent = features.peak(seek, n_frames) < _SILENCE
            window = features.window(seek, window_frames)
            features.forget(seek)
        if silent:
            logger.debug("%.2f s: silence", seek / FRAMES_PER_SECOND)
            seek += n_frames
            continue
        with stream.times.measure("encoder"):
            audio = backend.encode(window[None])
        if stream.language is None:
            probabilities = detect_language(backend, tokenizer, audio, stream.times)[0]
            stream.language = next(iter(probabilities))
            logger.info("language: %s", LANGUAGES[stream.language])
        decoding = _decoding_options(model, options, stream.language)
        decoded = _decode_with_fallback(
            model, audio, replace(decoding, prompt=context.prompt()), options, stream.times, seek
        )
        if _is_silence(decoded, options):
            seek += n_frames
            continue
        parts, advance = split_at_timestamps(
            decoded.tokens, tokenizer.special.timestamp_begin, n_frames
        )
        offset = seek / FRAMES_PER_SECOND
        last_end = offset + n_frames / FRAMES_PER_SECOND
        for part in parts:
            text = tokenizer.decode(part.tokens)
            start, end = (min(offset + time, last_end) for time in (part.start, part.end))
            if not text.strip() or start >= end:
                continue
            context.tokens.extend(part.tokens)
            yield Segment(
                id=n_segments,
                seek=seek,
                start=round(start, 2),
                end=round(end, 2),
                text=text,
                tokens=part.tokens,
                temperature=decoded.temperature,
                avg_logprob=decoded.avg_logprob,
                compression_ratio=decoded.compression_ratio,
                no_speech_prob=decoded.no_speech_prob,
            )
            n_segments += 1
        if not options.condition_on_previous_text or decoded.temperature > _CONTEXT_TEMPERATURE:
            context.prompt_from = len(context.tokens)
        seek += advance


def _decoding_options(
    model: WhisperModel, options: TranscribeOptions, language: str
) -> DecodingOptions:
    vocabulary = model.vocabulary
    chosen = options.suppress_tokens
    return DecodingOptions(
        task=options.task,
        language=language,
        best_of=options.best_of,
        beam_size=options.beam_size,
        patience=options.patience,
        length_penalty=options.length_penalty,
        without_timestamps=options.without_timestamps,
        max_initial_timestamp=options.max_initial_timestamp,
        suppress_tokens=vocabulary.suppress if chosen is None else tuple(chosen),
        suppress_first=vocabulary.begin_suppress if options.suppress_blank else (),
        sample_len=options.sample_len,
    )


def _decode_with_fallback(
    model: WhisperModel,
    audio: Float32Array,
    decoding: DecodingOptions,
    options: TranscribeOptions,
    times: StageTimes,
    seek: int,
) -> DecodedWindow:
    """Decode one window at rising temperatures until its text looks right."""
    for temperature in options.temperature:
        decoded = decode_windows(
            model.backend,
            model.tokenizer,
            model.vocabulary,
            audio,
            replace(decoding, temperature=temperature, seed=seek),
            times,
        )[0]
        reason = _retry_reason(decoded, options)
        if reason is None:
            break
        logger.debug(
            "%.2f s: at temperature %.1f %s", seek / FRAMES_PER_SECOND, temperature, reason
        )
    return decoded


def _retry_reason(decoded: DecodedWindow, options: TranscribeOptions) -> str | None:
    """Why a window looks wrong; None if it does not."""
    if _is_silence(decoded, options):
        return None
    ratio_limit, logprob_limit = options.compression_ratio_threshold, options.logprob_threshold
    if ratio_limit is not None and decoded.compression_ratio > ratio_limit:
        return f"compression ratio {decoded.compression_ratio:.2f} is above {ratio_limit}"
    if logprob_limit is not None and decoded.avg_logprob < logprob_limit:
        return f"average log probability {decoded.avg_logprob:.2f} is below {logprob_limit}"
    return None


def _is_silence(decoded: DecodedWindow, options: TranscribeOptions) -> bool:
    """Whether the model itself holds the window for silence, and its text for improbable."""
    if options.no_speech_threshold is None:
        return False
    if decoded.no_speech_prob <= options.no_speech_threshold:
        return False
    return options.logprob_threshold is None or decoded.avg_logprob <= options.logprob_threshold
