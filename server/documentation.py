"""Parts of the OpenAPI document that the framework cannot find by itself."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from whisper_npu.server.fields import TranscriptionFields, TranslationFields
from whisper_npu.server.schemas import ErrorAnswer, Transcript, VerboseTranscript
from whisper_npu.server.upload import FILE

_FORM = "multipart/form-data"
_MEANINGS = {
    400: "A field is missing, unknown or out of range; `param` names it",
    401: "The API key is missing or wrong",
    404: "There is no such model",
    408: "The upload is too slow",
    413: "The request is too large",
    415: "The file is no audio",
    422: "The model writes nothing but repetitions for this recording",
    429: "Too many requests; `Retry-After` says when to try again",
    503: "The model is being loaded, or its device failed",
    504: "The transcription takes too long",
    507: "The recording cannot be stored",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers with these statuses, for a route's `responses`."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


def audio_answers() -> dict[int | str, dict[str, Any]]:
    """All answers to a request with a recording."""
    text = {"schema": {"type": "string"}}
    content = {
        "application/json": {
            "schema": {
                "anyOf": [
                    {"$ref": f"#/components/schemas/{model.__name__}"}
                    for model in (Transcript, VerboseTranscript)
                ]
            }
        },
        "text/plain": text,
        "application/x-subrip": text,
        "text/vtt": text,
        "text/event-stream": text,
    }
    ok = {
        "description": "The text, in the chosen format; json has `Transcript`, verbose_json has "
        "`VerboseTranscript`, a stream has events that end with `data: [DONE]`",
        "content": content,
    }
    return {200: ok, **errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504, 507)}


def form_of(fields: type[TranslationFields]) -> dict[str, Any]:
    """The body of a request with a recording, for a route's `openapi_extra`."""
    schema = fields.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    for about in schema["properties"].values():
        if "anyOf" in about:  # a form has no null: a field is there or not
            about["anyOf"] = [kind for kind in about["anyOf"] if kind != {"type": "null"}]
    recording = {
        "type": "string",
        "format": "binary",
        "description": "The recording: any format that libsndfile or FFmpeg reads.",
    }
    schema["properties"] = {FILE: recording, **schema["properties"]}
    schema["required"] = [FILE, *schema["required"]]
    return {
        "requestBody": {
            "required": True,
            "content": {_FORM: {"schema": schema}},
        }
    }


def complete(document: dict[str, Any], model_names: Sequence[str], *, has_key: bool) -> None:
    """Complete the OpenAPI document of a server.

    Args:
        document: as the framework makes it.
        model_names: names that requests may use.
        has_key: whether requests need a key.
    """
    components = document["components"]
    for name, schema in _further_schemas().items():
        components["schemas"].setdefault(name, schema)
    if not has_key:
        components.pop("securitySchemes", None)
    for routes in document["paths"].values():
        for route in routes.values():
            if not has_key:
                route.pop("security", None)
            form = route.get("requestBody", {}).get("content", {}).get(_FORM)
            if form is not None:
                form["schema"]["properties"]["model"]["examples"] = list(model_names)


def _further_schemas() -> dict[str, Any]:
    """Schemas that `form_of` and `audio_answers` refer to, by name."""
    schemas: dict[str, Any] = {}
    models: tuple[type[BaseModel], ...] = (Transcript, VerboseTranscript, TranscriptionFields)
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        if model is not TranscriptionFields:
            schemas[model.__name__] = schema
    return schemas
