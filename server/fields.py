"""The fields of a request: what they may hold, and the options they mean."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from whisper_npu import TranscribeKwargs, UsageError, WhisperModel
from whisper_npu.server.errors import ApiError, bad_request

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
STREAMED: tuple[Format, ...] = ("json", "text", "verbose_json")
_BRACKETED = re.compile(r"(\w+)\[(\w*)\]")
_KEPT_PAD_MS = 400  # the audio that is decoded before speech, in any case

# What the official client can send and this server does not have.
_REFUSED = {
    "known_speaker_names": "this server does not tell speakers apart",
    "known_speaker_references": "this server does not tell speakers apart",
}


def _parsed_json(value: object) -> object:
    """The object in a text such as `{"type": "server_vad"}`."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ServerVad(_Strict):
    """The parameters of the speech detector."""

    type: Literal["server_vad"]
    threshold: float | None = Field(
        None, gt=0, lt=1, description="Probability from which a stretch is speech; 0.5 by default."
    )
    silence_duration_ms: int | None = Field(
        None,
        ge=100,
        le=60_000,
        description="Silence that ends a window and is skipped, in milliseconds; 3000 by default.",
    )
    prefix_padding_ms: int | None = Field(
        None,
        ge=0,
        le=_KEPT_PAD_MS,
        description="Audio to decode before speech. At least 400 ms always are, so that this "
        "changes nothing; a larger value is refused.",
    )


class TranslationFields(_Strict):
    """The fields of a translation, without the recording."""

    model: str = Field(description="A model of `/v1/models`, or `whisper-1` for the first.")
    prompt: str | None = Field(None, description="Text before the recording: names, style.")
    response_format: Format = "json"
    temperature: float = Field(
        0.0, ge=0, le=1, description="0 raises the temperature only where a text looks wrong."
    )


class TranscriptionFields(TranslationFields):
    """The fields of a transcription, without the recording."""

    language: str | None = Field(
        None, description="Code or English name of the language; detected unless given."
    )
    languages: list[str] = Field([], description="The possible languages; only these are detected.")
    keywords: list[str] = Field([], description="Names and terms that are likely to be said.")
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        [], description="For verbose_json; `segment` unless given."
    )
    include: list[Literal["logprobs"]] = Field([], description="For json and verbose_json.")
    chunking_strategy: Annotated[
        Literal["auto"] | ServerVad | None, BeforeValidator(_parsed_json)
    ] = Field(None, description="How audio is cut; auto unless given.")
    stream: bool | None = Field(
        None, description="Send the text as server-sent events while it is decoded."
    )


class Wanted:
    """A request's fields, checked."""

    def __init__(self, given: Sequence[tuple[str, str]], task: Task) -> None:
        """Check fields.

        Args:
            given: names and values, in order.
            task: what is asked for.

        Raises:
            ApiError: a field is unknown, missing or out of range.
        """
        kind = TranscriptionFields if task == "transcribe" else TranslationFields
        fields = _validate(kind, _collect(given, kind))
        # A translation has the fields of a transcription, with their defaults.
        self._fields = TranscriptionFields(**fields.model_dump())
        self._task = task
        self._check()

    @property
    def model(self) -> str:
        """The model's name."""
        return self._fields.model

    @property
    def task(self) -> Task:
        """What is asked for."""
        return self._task

    @property
    def response_format(self) -> Format:
        """The format of the answer."""
        return self._fields.response_format

    @property
    def stream(self) -> bool:
        """Whether the text is sent while it is decoded."""
        return bool(self._fields.stream)

    @property
    def has_segments(self) -> bool:
        """Whether verbose_json has segments."""
        granularities = self._fields.timestamp_granularities
        return not granularities or "segment" in granularities

    @property
    def has_words(self) -> bool:
        """Whether verbose_json has words."""
        return "word" in self._fields.timestamp_granularities

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer has the probabilities of its text."""
        return bool(self._fields.include)

    def _check(self) -> None:
        """Refuse fields that contradict each other."""
        given, chosen = self._fields, self.response_format
        if given.timestamp_granularities and chosen != "verbose_json":
            raise bad_request(
                "timestamp_granularities needs response_format verbose_json",
                "timestamp_granularities",
            )
        if self.has_logprobs and chosen not in ("json", "verbose_json"):
            raise bad_request("logprobs needs response_format json or verbose_json", "include")
        if self.stream and chosen not in STREAMED:
            raise bad_request(
                f"a stream has no response_format {chosen}; give {', '.join(STREAMED)}",
                "response_format",
            )
        if given.language and given.languages:
            raise bad_request("give language or languages, not both", "languages")

    def options(self, model: WhisperModel) -> TranscribeKwargs:
        """The options of the transcription.

        Raises:
            ApiError: a field does not fit the model.
        """
        options: dict[str, Any] = {}
        for param, changes in self._changes().items():
            # One after the other, so that the error names its field.
            try:
                model.resolve(**changes)
            except UsageError as error:
                raise bad_request(str(error), param) from None
            options |= changes
        if options.get("word_timestamps") and not model.can_align:
            raise bad_request(
                f"the model {self.model} has no graph for word times; `whisper-npu export "
                "--add-alignment` adds it",
                "timestamp_granularities" if self.has_words else "include",
            )
        try:
            model.resolve(**options)
        except UsageError as error:
            raise bad_request(str(error)) from None
        return cast(TranscribeKwargs, options)

    def _changes(self) -> dict[str, dict[str, Any]]:
        """The options that each field changes."""
        given = self._fields
        changes: dict[str, dict[str, Any]] = {}
        if self._task == "translate":
            changes["model"] = {"task": "translate"}
        if given.language is not None:
            changes["language"] = {"language": given.language}
        if given.languages:
            changes["languages"] = {"languages": given.languages}
        if given.prompt is not None:
            changes["prompt"] = {"initial_prompt": given.prompt}
        if given.keywords:
            changes["keywords"] = {"hotwords": ", ".join(given.keywords)}
        if given.temperature > 0:
            changes["temperature"] = {"temperature": given.temperature}
        if self.has_words or self.has_logprobs:
            changes["timestamp_granularities"] = {"word_timestamps": True}
        if isinstance(given.chunking_strategy, ServerVad):
            changes["chunking_strategy"] = _vad_options(given.chunking_strategy)
        return changes


def _vad_options(vad: ServerVad) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if vad.threshold is not None:
        options["vad_threshold"] = vad.threshold
    if vad.silence_duration_ms is not None:
        options["vad_min_silence"] = vad.silence_duration_ms / 1000
    return options


def _collect(given: Sequence[tuple[str, str]], kind: type[BaseModel]) -> dict[str, Any]:
    """Fields by name: `a[]` repeated is a list, `a[b]` is an object.

    Raises:
        ApiError: a field is unknown, refused, or given twice.
    """
    lists = {
        name
        for name, about in kind.model_fields.items()
        if str(about.annotation).startswith("list[")
    }
    collected: dict[str, Any] = {}
    for full_name, value in given:
        match = _BRACKETED.fullmatch(full_name)
        name, key = (full_name, "") if match is None else match.groups()
        if name in _REFUSED:
            raise bad_request(f"{name}: {_REFUSED[name]}; leave it out", name)
        if name not in kind.model_fields:
            raise bad_request(
                f"unknown field {full_name[:100]}; the fields are file, "
                f"{', '.join(kind.model_fields)}",
                name[:100],
            )
        if value == "":  # as an HTML form sends a field that was not filled in
            continue
        if name in lists and key:
            raise bad_request(f"{name} is a list: repeat the field {name}[]", name)
        if key:
            inner = collected.setdefault(name, {})
            if not isinstance(inner, dict) or key in inner:
                raise bad_request(f"{name} is given twice", name)
            inner[key] = value
        elif name in lists:
            collected.setdefault(name, []).append(value)
        elif name in collected:
            raise bad_request(f"{name} is given twice", name)
        else:
            collected[name] = value
    return collected


def _validate(kind: type[TranslationFields], collected: Mapping[str, Any]) -> TranslationFields:
    if collected.get("response_format") == "diarized_json":
        raise bad_request(
            "diarized_json names speakers, which this server does not tell apart; "
            "give json or verbose_json",
            "response_format",
        )
    try:
        return kind.model_validate(collected)
    except ValidationError as invalid:
        raise _described(invalid, collected) from None


def _described(invalid: ValidationError, collected: Mapping[str, Any]) -> ApiError:
    first = invalid.errors(include_url=False)[0]
    param, *inner = first["loc"]
    param = str(param)
    # The other parts of the place name the kinds that a value may be of, and numbers in lists.
    place = [param, *(str(part) for part in inner if part in ServerVad.model_fields)]
    if first["type"] == "missing":
        return bad_request(f"the field {'.'.join(place)} is missing", param)
    shown = str(first.get("input", collected.get(param)))[:100]
    return bad_request(f"{'.'.join(place)} is {shown!r}: {first['msg']}", param)
