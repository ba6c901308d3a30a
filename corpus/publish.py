"""Writes the outputs: one row for every row of the manifest, in its order."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whisper_npu import Coverage, Segment, Transcription, Word, format_transcript
from whisper_npu.corpus.plan import Plan, read_rows
from whisper_npu.corpus.schema import OUTPUT
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import Keys

PARQUET = "corpus.parquet"
RUN_FILE = "run.json"  # how the outputs were made
JSON_LINES = "corpus.jsonl"
SUBTITLES = "subtitles"
SUBTITLE_FORMATS = ("srt", "vtt", "txt")
_NOT_DONE = "not transcribed; run the same command again"


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
    with (
        output.create(PARQUET) as parquet,
        output.create(JSON_LINES) as lines,
        pq.ParquetWriter(parquet, OUTPUT, compression="zstd") as writer,
    ):
        for rows in _joined(state, plan, results):
            writer.write_table(pa.Table.from_pylist(rows, schema=OUTPUT))
            for row in rows:
                lines.write(_json_line(row).encode())
                for each in subtitles:
                    _write_subtitles(output, row, each)


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
            result = next(found) if place >= 0 else {"error": facts["error"] or _NOT_DONE}
            rows.append({**item, **result, "key": key.decode() or None, "digest": facts["digest"]})
            number += 1
        yield rows


def _json_line(row: dict[str, Any]) -> str:
    """A row as NeMo's tools read it: the fields that came in, and `pred_text`."""
    fields = json.loads(row["fields"]) if row["fields"] else {}
    line = {"id": row["id"], "audio_filepath": row["audio"], **fields}
    if row["reference"] is not None:
        line.setdefault("text", row["reference"])
    if row.get("duration") is not None:
        line.setdefault("duration", row["duration"])
    line["pred_text"] = row.get("text")
    line["pred_language"] = row.get("language")
    line["error"] = row["error"]
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write_subtitles(output: Folder, row: dict[str, Any], output_format: str) -> None:
    if row["error"] is not None:
        return
    name = "/".join(part for part in row["id"].split("/") if part not in ("", ".", ".."))
    with output.create(f"{SUBTITLES}/{name}.{output_format}") as file:
        file.write(format_transcript(to_transcription(row), output_format).encode())


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
