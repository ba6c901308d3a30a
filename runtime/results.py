"""The results of a transcription: words in segments in a transcription, all immutable.

Field names and the JSON shape are those of openai/whisper (`whisper/transcribe.py`), so that
programs written for its output can read ours.
"""

from dataclasses import dataclass, field
from typing import Any

from whisper_npu.runtime.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its time.

    Attributes:
        start: Seconds from the start of the recording.
        end: Seconds from the start of the recording.
        word: The text as decoded, with its leading space and attached punctuation.
        probability: Mean probability of its tokens, 0 to 1.
    """

    start: float
    end: float
    word: str
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return the word in the form of openai/whisper's JSON."""
        return {
            "word": self.word,
            "start": float(self.start),
            "end": float(self.end),
            "probability": float(self.probability),
        }


@dataclass(frozen=True, slots=True)
class Retry:
    """A rejected attempt at a window.

    Attributes:
        temperature: Temperature of the attempt.
        reason: What looked wrong with its text.
    """

    temperature: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the attempt in the form of our JSON."""
        return {"temperature": float(self.temperature), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech between two timestamps of the model.

    Attributes:
        id: Position in the transcription, from 0.
        seek: First frame (10 ms) of its window.
        start: Seconds from the start of the recording.
        end: Seconds from the start of the recording.
        text: The text as decoded, with its leading space.
        tokens: Token ids of the text, with timestamps.
        temperature: Temperature it was decoded at; above 0 after a fallback.
        avg_logprob: Mean log probability of the window's tokens.
        compression_ratio: Bytes of the window's text divided by its zlib-compressed bytes.
        no_speech_prob: Probability that the window holds no speech, 0 to 1.
        words: Words with times; None if no word times were requested.
        language: Code of the language of its window.
        retries: Rejected attempts at its window, in order.
        flaw: What still looks wrong with its window after the last temperature; None if nothing.
        channel: Its channel, if channels or tracks were transcribed separately: `left` or `right`,
            `channel 1` and so on unless there are two, `track 1` and so on.
    """

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None
    language: str | None = None
    retries: tuple[Retry, ...] = ()
    flaw: str | None = None
    channel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the segment in the form of openai/whisper's JSON; `words` only if it has any."""
        fields: dict[str, Any] = {
            "id": int(self.id),
            "seek": int(self.seek),
            "start": float(self.start),
            "end": float(self.end),
            "text": self.text,
            "tokens": [int(token) for token in self.tokens],
            "temperature": float(self.temperature),
            "avg_logprob": float(self.avg_logprob),
            "compression_ratio": float(self.compression_ratio),
            "no_speech_prob": float(self.no_speech_prob),
        }
        if self.words is not None:
            fields["words"] = [word.to_dict() for word in self.words]
        if self.language is not None:
            fields["language"] = self.language
        if self.retries:
            fields["retries"] = [retry.to_dict() for retry in self.retries]
        if self.flaw is not None:
            fields["flaw"] = self.flaw
        if self.channel is not None:
            fields["channel"] = self.channel
        return fields


@dataclass(frozen=True, slots=True)
class Transcription:
    """The transcription of one recording.

    Attributes:
        text: The whole text.
        language: Language code, such as `en`.
        segments: In order of time, also across channels or tracks.
        duration: Seconds of audio read; for several tracks, of the longest.
        model: Name of the model folder.
        device: The device that really ran it.
        kv_cache: Kind of the decoder's cache.
        precision: Its arithmetic: f32, bf16, f16, or `int8+` and the arithmetic beside 8 bits.
        language_probabilities: Of every possible language, likeliest first; empty if the language
            was given.
        coverage: The fate of every second.
        warnings: Facts the user should know, one line each: damaged audio, shortened prompts.
    """

    text: str
    language: str
    segments: tuple[Segment, ...]
    duration: float
    model: str
    device: str
    kv_cache: str
    precision: str = "f32"
    warnings: tuple[str, ...] = ()
    language_probabilities: dict[str, float] = field(default_factory=dict, hash=False)
    coverage: Coverage = field(default_factory=Coverage, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Return openai/whisper's `text`, `segments`, `language`, in its order, then our fields."""
        return {
            "text": self.text,
            "segments": [segment.to_dict() for segment in self.segments],
            "language": self.language,
            "duration": float(self.duration),
            "model": self.model,
            "device": self.device,
            "kv_cache": self.kv_cache,
            "precision": self.precision,
            "warnings": list(self.warnings),
            "language_probabilities": self.language_probabilities,
            "coverage": self.coverage.to_dict(),
        }
