"""Reads JSON from model folders and checkpoints, and checks it against a schema.

Such a file comes from anywhere. Every fault becomes one line that names the file and the field.
Code after this module meets no value of another type than its annotation.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from whisper_npu.errors import ModelError, WhisperNpuError

MAX_BYTES = 64 << 20  # of a file: tokenizers have 2 to 4 MB, configurations some kB
_MAX_INT = 2**31 - 1

Size = Annotated[int, msgspec.Meta(ge=1, le=_MAX_INT)]
"""A number of layers, heads, positions or other parts that every model has."""
Index = Annotated[int, msgspec.Meta(ge=0, le=_MAX_INT)]
"""A token, or an index."""

Schema = TypeVar("Schema")

_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$\.?(?P<field>.*)`)?", re.DOTALL)
EXPORT_AGAIN = "export the model again"


def read_object(
    path: Path,
    *,
    error: type[WhisperNpuError] = ModelError,
    advice: str = EXPORT_AGAIN,
) -> dict[str, Any]:
    """Read the object in a JSON file without checking its values; empty if there is no such file.

    Args:
        path: the file.
        error: the error to raise.
        advice: advice to the user, for the message.

    Raises:
        WhisperNpuError: `error`; the file cannot be read, is too large, or holds no JSON object.
    """
    content = read_bytes(path, error=error, advice=advice)
    if content is None:
        return {}
    try:
        # Not msgspec's reader: it refuses NaN and Infinity, which Python's json writes.
        found = json.loads(content)
    except ValueError as reason:
        raise error(f"cannot read {path}: {reason}; {advice}") from None
    except RecursionError:
        raise error(f"cannot read {path}: it is nested too deeply; {advice}") from None
    if not isinstance(found, dict):
        raise error(f"{path} holds no JSON object; {advice}")
    return found


def read_bytes(
    path: Path,
    *,
    error: type[WhisperNpuError] = ModelError,
    advice: str = EXPORT_AGAIN,
) -> bytes | None:
    """Read the content of a small file; None if there is no such file.

    Raises:
        WhisperNpuError: `error`; the file cannot be read, is no regular file, or is too large.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():  # a pipe would never end
            raise error(f"cannot read {path}: it is no regular file; {advice}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise error(f"cannot read {path}: it has {size} bytes, more than {MAX_BYTES}; {advice}")
        return path.read_bytes()
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror or reason}; {advice}") from None


def checked(
    content: object,
    schema: type[Schema],
    name: Path | str,
    *,
    error: type[WhisperNpuError] = ModelError,
    advice: str = EXPORT_AGAIN,
) -> Schema:
    """Convert JSON values to a `schema`, a dataclass; other fields are ignored.

    Args:
        content: the result of `json.loads`.
        schema: the dataclass.
        name: the file, for the message.
        error: the error to raise.
        advice: advice to the user, for the message.

    Raises:
        WhisperNpuError: `error`; a field has another type, or a value out of range.
    """
    try:
        return msgspec.convert(content, schema)
    except msgspec.ValidationError as reason:
        raise error(f"{name}: {explain(reason)}; {advice}") from None


def explain(reason: msgspec.ValidationError) -> str:
    """Return the wrong field and the reason: `d_model: expected an integer, got str`."""
    found = _PLACE.fullmatch(str(reason))
    if found is None or not found["field"]:
        return _plain(str(reason))
    return f"{found['field']}: {_plain(found['what'])}"


def _plain(what: str) -> str:
    what = what.replace("`", "").replace(" | null", "")
    return what[:1].lower() + what[1:]
