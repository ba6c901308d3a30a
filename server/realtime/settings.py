"""The settings of a realtime session: what a client may set, and what the server understands."""

from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whisper_npu import TranscribeKwargs, UsageError, WhisperModel
from whisper_npu.server.errors import ApiError, bad_request
from whisper_npu.server.pcm import G711_RATE, RawAudio

_MOST_TEXT = 4096  # characters of a prompt
_MOST_KEYWORDS = 256
_LEAST_PAUSE, _MOST_PAUSE = 0.2, 3.0  # seconds that a live transcription can wait for
_ENCODINGS: dict[str, Literal["pcm", "mu-law", "a-law"]] = {
    "audio/pcm": "pcm",
    "audio/pcmu": "mu-law",
    "audio/pcma": "a-law",
}
_OLD_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_NEW_FORMATS = {new: old for old, new in _OLD_FORMATS.items()}
_INPUT = "session.audio.input"
_SECONDS_OF_DELAY = {"minimal": 0.3, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": 4.0}

Kind = TypeVar("Kind", bound=BaseModel)

NO_NOISE_REDUCTION = "noise_reduction has no effect: this server does not filter noise"
NO_LOGPROBS = "include has no effect: live text has no log probabilities"
TENTATIVE = "whisper_npu.tentative"
"""Of `include`, and the type of the events: text that may still change."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Format(_Strict):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Literal[24_000, 16_000, 8_000] | None = None


class _Transcription(_Strict):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = Field(default=None, max_length=_MOST_TEXT)
    keywords: list[str] | None = Field(default=None, max_length=_MOST_KEYWORDS)
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class _ServerVad(_Strict):
    """`create_response`, `interrupt_response`: this session has no responses."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=100, le=10_000)
    create_response: bool | None = Field(default=None, exclude=True)
    interrupt_response: bool | None = Field(default=None, exclude=True)
    idle_timeout_ms: None = Field(default=None, exclude=True)


class _Input(_Strict):
    format: _Format | None = None
    noise_reduction: dict[str, Any] | None = None
    transcription: _Transcription = _Transcription()
    turn_detection: _ServerVad | None = None


class _Audio(_Strict):
    input: _Input = _Input()


class _Session(_Strict):
    """Also the fields of an answer of the server, which some clients send back."""

    type: Literal["transcription"] = "transcription"
    audio: _Audio = _Audio()
    include: list[str] | None = None
    id: str | None = None
    object: str | None = None
    expires_at: int | None = None


class _OldSession(_Strict):
    """The session of `transcription_session.update`, before the API was final."""

    input_audio_format: Literal["pcm16", "g711_ulaw", "g711_alaw"] = "pcm16"
    input_audio_transcription: _Transcription = _Transcription()
    input_audio_noise_reduction: dict[str, Any] | None = None
    turn_detection: _ServerVad | None = None
    include: list[str] | None = None
    modalities: list[str] | None = None
    client_secret: dict[str, Any] | None = None
    id: str | None = None
    object: str | None = None
    expires_at: int | None = None


class Settings:
    """The settings of a session. An update makes new ones.

    Attributes:
        format: format of the audio.
        transcription: how to transcribe; its model is always named.
        vad: how turns are found; None: the client commits.
        has_tentative: whether text that may still change is sent.
        warnings: settings that have no effect.
    """

    def __init__(
        self,
        format: _Format,
        transcription: _Transcription,
        vad: _ServerVad | None,
        *,
        has_tentative: bool = False,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.format = format
        self.transcription = transcription
        self.vad = vad
        self.has_tentative = has_tentative
        self.warnings = warnings

    @classmethod
    def initial(cls, model: str) -> "Settings":
        """The settings before any update: 24 kHz, and turns found by the server."""
        return cls(_Format(rate=24_000), _Transcription(model=model), _ServerVad())

    @property
    def model(self) -> str:
        """The model's name."""
        return self.transcription.model or ""

    @property
    def min_chunk(self) -> float:
        """Seconds of new audio between two decodings."""
        return _SECONDS_OF_DELAY[self.transcription.delay or "medium"]

    @property
    def pause(self) -> float:
        """Seconds of silence after which the words so far are sent."""
        wanted = 0.5 if self.vad is None else self.vad.silence_duration_ms / 1000
        return min(_MOST_PAUSE, max(_LEAST_PAUSE, wanted))

    def raw_audio(self) -> RawAudio:
        """A decoder of the session's audio."""
        encoding = _ENCODINGS[self.format.type]
        rate = self.format.rate or 24_000
        return RawAudio(G711_RATE if encoding != "pcm" else rate, encoding=encoding)

    def updated(self, session: Any) -> "Settings":
        """These settings with those of a `session.update`; what it leaves out stays.

        Raises:
            ApiError: a setting is unknown or out of range.
        """
        if isinstance(session, dict) and session.get("type") == "realtime":
            raise bad_request(
                "this server transcribes and does not answer: give the session the type "
                "transcription",
                "session.type",
            )
        given = _validated(_Session, session)
        return self._with(given.audio.input, given.include)

    def updated_by_old(self, session: Any) -> "Settings":
        """The same for a `transcription_session.update`.

        Raises:
            ApiError: a setting is unknown or out of range.
        """
        given = _validated(_OldSession, session)
        names = {
            "input_audio_transcription": "transcription",
            "input_audio_noise_reduction": "noise_reduction",
            "turn_detection": "turn_detection",
        }
        fields: dict[str, Any] = {
            new: getattr(given, old) for old, new in names.items() if old in given.model_fields_set
        }
        if "input_audio_format" in given.model_fields_set:
            fields["format"] = _Format.model_validate(
                {"type": _OLD_FORMATS[given.input_audio_format]}
            )
        return self._with(_Input(**fields), given.include)

    def _with(self, given: _Input, include: list[str] | None) -> "Settings":
        names = given.model_fields_set
        transcription = self.transcription.model_copy(
            update={
                name: getattr(given.transcription, name)
                for name in given.transcription.model_fields_set
                if name != "model" or given.transcription.model is not None
            }
        )
        warnings = [NO_NOISE_REDUCTION] if given.noise_reduction else []
        warnings += [NO_LOGPROBS] if set(include or ()) - {TENTATIVE} else []
        return Settings(
            _with_rate(given.format or self.format),
            transcription,
            given.turn_detection if "turn_detection" in names else self.vad,
            has_tentative=self.has_tentative if include is None else TENTATIVE in include,
            warnings=tuple(warnings),
        )

    def hears_like(self, other: "Settings") -> bool:
        """Whether both divide the same bytes into the same turns."""
        return self.format == other.format and self.vad == other.vad

    def options(self, model: WhisperModel) -> TranscribeKwargs:
        """The options of the transcription.

        Raises:
            ApiError: a setting does not fit the model.
        """
        given = self.transcription
        changes: dict[str, dict[str, Any]] = {
            "language": {"language": given.language or None},
            "languages": {"languages": given.languages or None},
            "prompt": {"initial_prompt": given.prompt or None},
            "keywords": {"hotwords": ", ".join(given.keywords or ()) or None},
        }
        options: dict[str, Any] = {}
        for name, change in changes.items():
            try:
                model.resolve(**change)  # one after the other, so that the error names its field
            except UsageError as error:
                raise bad_request(str(error), f"{_INPUT}.transcription.{name}") from None
            options |= change
        if given.language and given.languages:
            raise bad_request(
                "give language or languages, not both", f"{_INPUT}.transcription.languages"
            )
        if self.vad is not None:
            options["vad_threshold"] = self.vad.threshold
        return cast(TranscribeKwargs, options)

    @property
    def include(self) -> list[str] | None:
        """`include` of a session."""
        return [TENTATIVE] if self.has_tentative else None

    def as_input(self) -> dict[str, Any]:
        """`audio.input` of a session."""
        return {
            "format": self.format.model_dump(exclude_none=True),
            "noise_reduction": None,
            "transcription": self.transcription.model_dump(exclude_none=True),
            "turn_detection": None if self.vad is None else self.vad.model_dump(),
        }

    def as_old_session(self) -> dict[str, Any]:
        """The parts of a session as they were before the API was final."""
        shown = self.as_input()
        return {
            "input_audio_format": _NEW_FORMATS[self.format.type],
            "input_audio_noise_reduction": None,
            "input_audio_transcription": shown["transcription"],
            "turn_detection": shown["turn_detection"],
        }


def _with_rate(chosen: _Format) -> _Format:
    """The format with its rate.

    Raises:
        ApiError: the format does not have that rate.
    """
    if chosen.type == "audio/pcm":
        rate = chosen.rate or 24_000
        if rate == G711_RATE:
            raise bad_request("audio/pcm has a rate of 24000 or 16000", f"{_INPUT}.format.rate")
        return _Format(type=chosen.type, rate=rate)
    if chosen.rate not in (None, G711_RATE):
        raise bad_request(f"{chosen.type} has a rate of 8000", f"{_INPUT}.format.rate")
    return _Format(type=chosen.type)


def _validated(kind: type[Kind], session: Any) -> Kind:
    try:
        return kind.model_validate({} if session is None else session)
    except ValidationError as invalid:
        raise _described(invalid) from None


def _described(invalid: ValidationError) -> ApiError:
    first = invalid.errors(include_url=False)[0]
    param = ".".join(("session", *map(str, first["loc"])))[:200]
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown parameter: {param}", param, "unknown_parameter")
    shown = repr(first.get("input"))[:100]
    return bad_request(f"{param} is {shown}: {first['msg']}", param, "invalid_value")
