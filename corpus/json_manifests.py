"""Reads manifests of JSON objects, of NeMo and lhotse: one object a line, or an array of them."""

import contextlib
import json
import math
import reprlib
from collections.abc import Iterator
from typing import Any, cast

from whisper_npu.corpus.manifest import Item, Manifest, text_of

_SAME_LENGTH = 1e-3  # seconds


def _seconds(manifest: Manifest, where: str, row: dict[str, Any], name: str) -> float | None:
    """The seconds in a field, which may be a number as text; None if it is absent or null.

    Raises:
        UsageError: it is no number, or is below 0.
    """
    value = row.get(name)
    if value is None:
        return None
    seconds = math.nan
    is_digits = not isinstance(value, str) or "_" not in value  # `float` takes "1_0", too
    if isinstance(value, int | float | str) and not isinstance(value, bool) and is_digits:
        with contextlib.suppress(ValueError, OverflowError):  # of an int of hundreds of digits
            seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        shown = reprlib.repr(value)
        raise manifest.unusable(f"{where}: {name} is {shown}; give seconds as a number, 0 or more")
    return seconds


def nemo(manifest: Manifest) -> Iterator[Item]:
    """NeMo: `audio_filepath`, `duration`, `text`; with `offset` the row is a cut."""
    for where, row in manifest.objects():
        named = row.get("audio_filepath")
        if not isinstance(named, str):
            raise manifest.unusable(f"{where} has no audio_filepath")
        offset = _seconds(manifest, where, row, "offset")
        duration = _seconds(manifest, where, row, "duration")
        given = row.get("id")
        # 15 digits tell all cuts apart, and show the numbers as they were written.
        cut = "" if offset is None else f"@{offset:.15g}+{duration or 0:.15g}"
        yield Item(
            id=named + cut if given is None else str(given),
            audio=manifest.locate(named),
            offset=offset,
            seconds=None if offset is None else duration,
            stated_seconds=duration,
            reference=text_of(row.get("text")),
            fields=json.dumps(row),
        )


def lhotse(manifest: Manifest) -> Iterator[Item]:
    """Recordings and cuts of lhotse."""
    for where, row in manifest.objects():
        is_cut = "sources" not in row
        recording = row.get("recording") if is_cut else row
        sources = recording.get("sources") if isinstance(recording, dict) else None
        if not isinstance(recording, dict) or not isinstance(sources, list) or not sources:
            raise manifest.unusable(
                f"{where} ({row.get('type', 'unknown')}) names no recording with sources; "
                "give recordings or MonoCuts that hold their recording"
            )
        source = sources[0] if isinstance(sources[0], dict) else {}
        if len(sources) > 1 or source.get("type") not in ("file", "url"):
            raise manifest.unusable(
                f"{where}: recording {recording.get('id')} is no single file or URL"
            )
        whole = _seconds(manifest, where, recording, "duration")
        length = _seconds(manifest, where, row, "duration")
        offset = _seconds(manifest, where, row, "start") if is_cut else None
        if offset == 0 and None not in (whole, length) and _same(cast(float, length), whole):
            offset = None
        said = row.get("supervisions") or []
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise manifest.unusable(f"{where}: supervisions are no list of objects")
        spoken = " ".join(text for each in said if (text := text_of(each.get("text"))))
        yield Item(
            id=str(row.get("id", recording.get("id"))),
            audio=manifest.locate(str(source.get("source", ""))),
            offset=offset,
            seconds=None if offset is None else length,
            stated_seconds=length,
            reference=spoken or None,
            fields=json.dumps(row),
        )


def _same(length: float, other: float | None) -> bool:
    return other is not None and abs(length - other) < _SAME_LENGTH


def json_objects(manifest: Manifest) -> Iterator[Item]:
    """NeMo or lhotse, by the first object."""
    for where, first in manifest.objects():
        if "audio_filepath" in first:
            return nemo(manifest)
        if first.keys() & {"type", "sources", "recording"}:
            return lhotse(manifest)
        raise manifest.unusable(
            f"{where} has neither audio_filepath (NeMo) nor a recording (lhotse); name the "
            "recording of each object as audio_filepath"
        )
    raise manifest.unusable("is empty")
