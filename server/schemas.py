"""The JSON of answers, as the official client reads it, with our own part on top."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class Usage(BaseModel):
    """What was transcribed."""

    type: Literal["duration"] = "duration"
    seconds: float = Field(description="Seconds of audio.")


class TokenUsage(BaseModel):
    """What was transcribed, in the form of a stream's last event."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int = Field(description="Positions of the encoder: 50 per second of audio.")
    output_tokens: int = Field(description="Tokens of the text, with timestamps.")
    total_tokens: int


class Language(BaseModel):
    """A language that is spoken in the recording."""

    code: str


class Logprob(BaseModel):
    """The probability of a word: of its tokens' mean probability, the logarithm."""

    token: str
    bytes: list[int]
    logprob: float


class Word(BaseModel):
    """A word with its time in seconds."""

    word: str
    start: float
    end: float


class Segment(BaseModel):
    """A segment with its time in seconds; the fields are openai/whisper's."""

    id: int
    seek: int = Field(description="First frame of 10 ms of its window.")
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Details(BaseModel):
    """What really ran, and what became of every second."""

    model: str
    device: str
    precision: str
    kv_cache: str
    coverage: dict[str, Any] | None = Field(
        None,
        description="Seconds by fate (transcribed, silent, skipped, dropped), and each stretch "
        "that was not transcribed, with the reason.",
    )
    warnings: list[str] = []
    seconds: dict[str, float] | None = Field(None, description="Seconds of work by stage.")


class Transcript(BaseModel):
    """The answer in the format json."""

    text: str
    languages: list[Language] | None = None
    logprobs: list[Logprob] | None = None
    usage: Usage | None = None
    whisper_npu: Details


class VerboseTranscript(BaseModel):
    """The answer in the format verbose_json."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name of the language, in lower case.")
    duration: float = Field(description="Seconds of audio.")
    text: str
    segments: list[Segment] | None = None
    words: list[Word] | None = None
    logprobs: list[Logprob] | None = None
    usage: Usage | None = None
    whisper_npu: Details


class SegmentDetails(BaseModel):
    """Our part of a delta of a stream with verbose_json."""

    segment: Segment
    words: list[Word] | None = None


class TextDelta(BaseModel):
    """Further text of a stream; it never changes."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    logprobs: list[Logprob] | None = None
    whisper_npu: SegmentDetails | None = None


class TextDone(BaseModel):
    """The last event of a stream; with verbose_json it has the fields of that format, too."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    languages: list[Language] | None = None
    logprobs: list[Logprob] | None = None
    usage: TokenUsage
    task: Literal["transcribe", "translate"] | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[Segment] | None = None
    words: list[Word] | None = None
    whisper_npu: Details


class ModelInfo(BaseModel):
    """A model of this server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "whisper-npu"
    whisper_npu: dict[str, Any]


class ModelList(BaseModel):
    """The models of this server."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """An error, as OpenAI's API tells it."""

    error: ErrorBody
