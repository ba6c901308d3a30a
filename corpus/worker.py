"""The actor: holds a model, transcribes blocks of work, and stores their results."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from whisper_npu import (
    AudioError,
    TranscribeOptions,
    Transcription,
    TranscriptionStream,
    WhisperNpuError,
    load_model,
)
from whisper_npu.corpus.audio import Source, opened, stamp_of, unreadable
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import ResultStore, work_key

# A block of work.
WORK = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("audio", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("row", pa.int64()),
        pa.field("offset", pa.float64()),
        pa.field("seconds", pa.float64()),
        pa.field("stamp", pa.string()),  # of the file whose digest is in the key
        pa.field("part_start", pa.float64()),  # seconds; null if it is not cut
        pa.field("part_end", pa.float64()),
    ]
)
# What an actor tells of a block.
DONE = pa.schema(
    [
        pa.field("items", pa.int64()),  # parts do not count
        pa.field("failed", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("work_seconds", pa.float64()),
        pa.field("elapsed", pa.float64()),  # seconds from the block's arrival to its results
        pa.field("fatal", pa.string()),  # the class of an error that ends the run
        pa.field("message", pa.string()),
    ]
)
_MOST_ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a model is loaded and used; see `load_model`.

    Attributes:
        model: the model's folder, under the same path on every machine.
        load: keyword arguments of `load_model`; without `threads`, or with 0, an actor has as many
            as fit.
        options: of the transcription.
    """

    model: str
    load: dict[str, Any] = field(default_factory=dict)
    options: TranscribeOptions = field(default_factory=TranscribeOptions)


class Worker:
    """Transcribes blocks of work. Ray keeps one in each actor."""

    def __init__(self, settings: ModelSettings, store: ResultStore, attempts: Folder) -> None:
        """Load the model.

        Args:
            settings: the model and how to use it.
            store: for the results.
            attempts: a folder for notes on blocks under way, which outlive this process.
        """
        self._store = store
        self._attempts = attempts
        self._options = settings.options
        self._fatal: WhisperNpuError | None = None
        try:
            self._model = load_model(settings.model, **settings.load)
        except WhisperNpuError as error:
            self._fatal = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Transcribe a block and store its results.

        An error that ends the run is returned: of an error that an actor raises, Ray keeps a
        traceback only.

        Args:
            block: a table of `WORK`.

        Returns:
            a table of `DONE` with one row.
        """
        began = time.monotonic()
        try:
            if self._fatal is not None:
                raise self._fatal
            rows = self._transcribe_block(block.to_pylist())
        except WhisperNpuError as error:
            fatal = {"fatal": type(error).__name__, "message": str(error)}
            return pa.Table.from_pylist([fatal], schema=DONE)
        is_part = block["part_start"][0].is_valid
        done = {
            "items": 0 if is_part else len(rows),
            "failed": 0 if is_part else sum(row["error"] is not None for row in rows),
            "seconds": sum(_seconds(row, is_part=is_part) for row in rows),
            "work_seconds": sum(row["work_seconds"] for row in rows),
            "elapsed": time.monotonic() - began,
        }
        return pa.Table.from_pylist([done], schema=DONE)

    def _transcribe_block(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Transcribe, and find the recording that ends this process if one does.

        A block that ended its process twice is transcribed one recording at a time. A recording
        that did so alone becomes an error, and the others of its block are kept.
        """
        with self._attempt(items) as attempt:
            if attempt <= _MOST_ATTEMPTS:
                rows = self._transcribe(items)
            elif len(items) > 1:
                return [row for item in items for row in self._transcribe_block([item])]
            else:
                reason = f"its process ended {_MOST_ATTEMPTS} times while it was transcribed"
                rows = [_failed(items[0], f"{items[0]['audio']}: {reason}")]
            self._store.write(rows)
        return rows

    @contextlib.contextmanager
    def _attempt(self, items: Sequence[dict[str, Any]]) -> Iterator[int]:
        """Count the attempts at a block, also those of processes that ended in it."""
        name = work_key(*(item["key"] for item in items))
        count = 1
        with contextlib.suppress(FileNotFoundError, ValueError), self._attempts.open(name) as file:
            count = int(file.read()) + 1
        with self._attempts.create(name) as file:
            file.write(str(count).encode())
        yield count
        self._attempts.remove(name)

    def _transcribe(self, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of the results, in the order of the items. A part is alone in its block."""
        part = (items[0]["part_start"], items[0]["part_end"])
        options = self._options if None in part else replace(self._options, part=part)
        rows: dict[int, dict[str, Any]] = {}
        open_items: deque[tuple[int, ExitStack]] = deque()  # in the order of their streams

        def recordings() -> Iterator[Path | bytes]:
            for number, item in enumerate(items):
                held = ExitStack()
                source = Source(item["audio"], item["start"], item["size"], item["row"])
                try:
                    recording = held.enter_context(opened(source, item["offset"], item["seconds"]))
                except AudioError as error:
                    rows[number] = _failed(item, str(error))
                    continue
                open_items.append((number, held))
                yield recording

        for stream in self._model.transcribe_all(recordings(), options):
            number, held = open_items.popleft()
            with held:
                row = _row(items[number], stream)
                change = _change(items[number])
                rows[number] = row if change is None else _failed(items[number], change)
        return [rows[number] for number in range(len(items))]


def _row(item: dict[str, Any], stream: TranscriptionStream | AudioError) -> dict[str, Any]:
    if isinstance(stream, AudioError):
        return _failed(item, str(stream))
    with contextlib.closing(stream):
        try:
            result = stream.result()
        except AudioError as error:
            return _failed(item, str(error), sum(stream.times.seconds.values()))
    return {"key": item["key"], **_fields(result, sum(stream.times.seconds.values()))}


def _seconds(row: dict[str, Any], *, is_part: bool) -> float:
    """Seconds of audio that a result accounts for."""
    if is_part:
        return math.fsum((row.get("coverage") or {}).values())
    return row.get("duration") or 0.0


def _change(item: dict[str, Any]) -> str | None:
    """Why the text belongs to other bytes than the key; None if the file is unchanged."""
    try:
        if not item["stamp"] or stamp_of(item["audio"]) == item["stamp"]:
            return None
    except Exception as error:  # each kind of store has errors of its own
        return unreadable(item["audio"], error)
    return f"{item['audio']}: changed during the run; run the same command again"


def _failed(item: dict[str, Any], error: str, work_seconds: float = 0.0) -> dict[str, Any]:
    return {"key": item["key"], "error": error, "work_seconds": work_seconds}


def _fields(result: Transcription, work_seconds: float) -> dict[str, Any]:
    """The columns of a result."""
    return {
        "text": result.text,
        "language": result.language,
        "segments": [segment.to_dict() for segment in result.segments],
        "duration": result.duration,
        "coverage": result.coverage.seconds(),
        "warnings": list(result.warnings),
        "device": result.device,
        "precision": result.precision,
        "kv_cache": result.kv_cache,
        "model": result.model,
        "work_seconds": work_seconds,
        "error": None,
    }
