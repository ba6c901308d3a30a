"""Writes the outputs: one row for every row of the manifest, in its order."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whisper_npu import Coverage, Segment, Transcription, Word, format_transcript
from whisper_npu.corpus.names import JSON_LINES, PARQUET, SUBTITLES
from whisper_npu.corpus.plan import Plan, read_rows
from whisper_npu.corpus.schema import OUTPUT
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import Keys, work_key

NOT_DONE = "not transcribed; run the same command again"
_MOST_NAME_BYTES = 200  # of a part of a path: file systems have 255, drafts need some of them


def publish(
    output: Folder, state: Folder, plan: Plan, results: Keys, subtitles: Sequence[str]
) -> None:
    """Write `PARQUET` and `JSON_LINES`, and subtitles if wanted.

    Args:
        output: the folder of the outputs.
        state: the folder with the manifest.
        plan: the keys of the rows.
        results: the stored results.
        subtitles: some of `SUBTITLE_FORMATS`.

    Raises:
        OutputError: a file cannot be written.
    """
    names = _FileNames()
    with (
        output.create(PARQUET) as parquet,
        output.create(JSON_LINES) as lines,
        pq.ParquetWriter(parquet, OUTPUT, compression="zstd") as writer,
    ):
        for rows in _joined(state, plan, results):
            writer.write_table(pa.Table.from_pylist(rows, schema=OUTPUT))
            for row in rows:
                lines.write(_json_line(row))
                if subtitles:
                    _write_subtitles(output, row, names.of(row["id"]), subtitles)


def _joined(state: Folder, plan: Plan, results: Keys) -> Iterator[list[dict[str, Any]]]:
    """The rows of the manifest with their results, some at a time."""
    number = 0
    for batch in read_rows(state):
        items = batch.to_pylist()
        keys = plan.keys[number : number + len(items)]
        places, _ = results.find(keys)
        found = iter(results.results(place for place in places if place >= 0))
        rows = []
        for item, key, place in zip(items, keys, places, strict=True):
            facts = plan.index.slice(int(plan.sources[number]), 1).to_pylist()[0]
            result = next(found) if place >= 0 else {"error": facts["error"] or NOT_DONE}
            rows.append({**item, **result, "key": key.decode() or None, "digest": facts["digest"]})
            number += 1
        yield rows


def _json_line(row: dict[str, Any]) -> bytes:
    """A row as NeMo's tools read it: the fields that came in, and `pred_text`."""
    line = json.loads(row["fields"]) if row["fields"] else {}
    # The manifest may have no id, and its paths may be relative to its own folder.
    line = {"id": None, "audio_filepath": None, **line}
    line |= {"id": row["id"], "audio_filepath": row["audio"]}
    if row["reference"] is not None:
        line.setdefault("text", row["reference"])
    if row.get("duration") is not None:
        line.setdefault("duration", row["duration"])
    line["pred_text"] = row.get("text")
    line["pred_language"] = row.get("language")
    line["error"] = row["error"]
    try:
        return f"{json.dumps(line, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # half a character in a field that is only passed on
        return f"{json.dumps(line)}\n".encode()


class _FileNames:
    """Names of subtitles below their folder: each id has its own."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def of(self, row_id: str) -> str:
        """The name for an id: the id, without parts that lead elsewhere.

        A name that is empty, too long for a file, or taken gets a part of the id's digest.
        """
        parts = [part for part in row_id.split("/") if part not in ("", ".", "..")]
        short = [_shortened(part) for part in parts]
        name = "/".join(short)
        if not name or short != parts or not self._take(name):
            name = f"{name}~{work_key(row_id)[:16]}"
            self._take(name)
        return name

    def _take(self, name: str) -> bool:
        digest = int(work_key(name)[:16], 16)
        is_free = digest not in self._used
        self._used.add(digest)
        return is_free


def _shortened(part: str) -> str:
    """The part of a name as far as file systems allow it, with room for a suffix."""
    return part.encode()[:_MOST_NAME_BYTES].decode(errors="ignore")


def _write_subtitles(
    output: Folder, row: dict[str, Any], name: str, formats: Sequence[str]
) -> None:
    """Write the subtitles of a row; those of an earlier run go if it has an error now."""
    for each in formats:
        path = f"{SUBTITLES}/{name}.{each}"
        if row["error"] is not None:
            output.remove(path)
            continue
        with output.create(path) as file:
            file.write(format_transcript(to_transcription(row), each).encode())


def to_transcription(row: dict[str, Any]) -> Transcription:
    """The transcription that a row of the outputs holds, without its tokens."""
    return Transcription(
        text=row["text"],
        language=row["language"],
        segments=tuple(_segment(segment) for segment in row["segments"]),
        coverage=Coverage(),
        **{name: row[name] for name in ("duration", "model", "device", "kv_cache", "precision")},
        warnings=tuple(row["warnings"]),
    )


def _segment(fields: dict[str, Any]) -> Segment:
    words = fields["words"]
    values = {
        **fields,
        "words": None if words is None else tuple(Word(**word) for word in words),
        "seek": 0,
        "tokens": (),
    }
    return Segment(**values)
