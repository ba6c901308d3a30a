"""Proves that the outputs hold every row of the manifest once, and every second of its audio."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whisper_npu import OutputError, UsageError
from whisper_npu.corpus.manifest import Item
from whisper_npu.corpus.manifests import read_manifest
from whisper_npu.corpus.names import JSON_LINES, PARQUET, RUN_FILE, STATE
from whisper_npu.corpus.publish import NOT_DONE
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import work_key

_AGAIN = "give the command of the run again: it goes on, and writes the outputs"
_MOST_FINDINGS = 20
_TOLERANCE = 0.05  # seconds, of a coverage
_STATED_TOLERANCE, _STATED_SHARE = 0.5, 0.01  # of a length that the manifest states


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The account of a folder of outputs.

    Attributes:
        rows: rows of the manifest.
        transcribed: rows with a text.
        errors: rows with an error.
        seconds: seconds of audio in the rows with a text.
        findings: what is wrong, a line each; empty if the outputs are complete. The list ends
            after some lines.
    """

    rows: int
    transcribed: int
    errors: int
    seconds: float
    findings: tuple[str, ...]


def verify_corpus(output: str, manifest: str | None = None) -> Verification:
    """Compare the outputs with the manifest, which is read anew.

    Args:
        output: the folder of the outputs, a path or URL.
        manifest: the manifest; None for that of the last run.

    Raises:
        UsageError: there are no outputs, or the manifest cannot be read.
        OutputError: the outputs cannot be read, or one is missing.
    """
    folder = Folder(output)
    _require_outputs(folder, output)
    try:
        with folder.open(RUN_FILE) as file:
            record = json.load(file)
        account = _Account()
        wanted = read_manifest(manifest or record["manifest"], record["kind"])
        account.compare(wanted, _rows(folder), _lines(folder))
        return account.result()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise OutputError(f"{output}: cannot be read: {error}; {_AGAIN}") from error


def _require_outputs(folder: Folder, output: str) -> None:
    """Refuse a folder without outputs.

    Raises:
        UsageError: no run has written its outputs.
        OutputError: one of them was removed.
    """
    wanted = (PARQUET, JSON_LINES, RUN_FILE)
    missing = [name for name in wanted if not folder.exists(name)]
    if len(missing) == len(wanted):
        if not folder.exists(STATE):
            raise UsageError(f"{output}: no run of `whisper-npu corpus` has used it as --output")
        raise UsageError(f"{output}: its run has not come to its end; {_AGAIN}")
    if missing:
        raise OutputError(f"{output}: {' and '.join(missing)} missing; {_AGAIN}")


def _rows(folder: Folder) -> Iterator[dict[str, Any]]:
    columns = ["id", "audio", "duration", "coverage", "error", "text"]
    with folder.open(PARQUET) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=columns):
            yield from batch.to_pylist()


def _lines(folder: Folder) -> Iterator[dict[str, Any]]:
    with folder.open(JSON_LINES) as file:
        for line in file:
            yield json.loads(line)


class _Account:
    """What was found so far."""

    def __init__(self) -> None:
        self._findings: list[str] = []
        self._rows = 0
        self._errors = 0
        self._transcribed = 0
        self._seconds = 0.0

    def _find(self, what: str) -> None:
        if len(self._findings) == _MOST_FINDINGS:
            self._findings.append("and more")
        elif len(self._findings) < _MOST_FINDINGS:
            self._findings.append(what)

    def compare(
        self,
        wanted: Iterator[Item],
        rows: Iterator[dict[str, Any]],
        lines: Iterator[dict[str, Any]],
    ) -> None:
        """Go through manifest, parquet and JSONL in step; all have the same order."""
        seen: set[int] = set()
        for item in wanted:
            self._rows += 1
            row, line = next(rows, None), next(lines, None)
            if row is None or line is None:
                self._find(f"{item.id}: is missing in {PARQUET if row is None else JSON_LINES}")
                continue
            if row["id"] != item.id:
                self._find(f"{item.id}: {PARQUET} has {row['id']} in its place")
                continue
            short = int(work_key(item.id)[:16], 16)
            if short in seen:
                self._find(f"{item.id}: is there twice")
            seen.add(short)
            if (line["id"], line["pred_text"], line["error"]) != (
                item.id,
                row["text"],
                row["error"],
            ):
                self._find(f"{item.id}: {JSON_LINES} differs from {PARQUET}")
            self._check(item, row)
        for rest, name in ((rows, PARQUET), (lines, JSON_LINES)):
            for row in rest:
                self._find(f"{row['id']}: is in {name}, but not in the manifest")

    def _check(self, item: Item, row: dict[str, Any]) -> None:
        """Check that a row accounts for its audio."""
        if row["error"] is not None:
            self._errors += 1
            if row["error"] == NOT_DONE:
                self._find(f"{item.id}: {NOT_DONE}")
            return
        if None in (row["text"], row["duration"], row["coverage"]):
            self._find(f"{item.id}: has neither a text with its seconds nor an error")
            return
        self._transcribed += 1
        self._seconds += row["duration"]
        # Recordings whose channels were transcribed separately are covered several times.
        covered = sum(seconds or 0.0 for seconds in row["coverage"].values())
        if not covered >= row["duration"] - _TOLERANCE:
            lost = row["duration"] - covered
            self._find(f"{item.id}: {lost:.2f} of {row['duration']:.2f} s are not accounted for")
        stated = item.stated_seconds
        tolerance = _STATED_TOLERANCE + _STATED_SHARE * (stated or 0.0)
        if stated is not None and abs(stated - row["duration"]) > tolerance:
            self._find(
                f"{item.id}: {row['duration']:.2f} s were read, the manifest states {stated:.2f} s"
            )

    def result(self) -> Verification:
        """The account."""
        return Verification(
            rows=self._rows,
            transcribed=self._transcribed,
            errors=self._errors,
            seconds=self._seconds,
            findings=tuple(self._findings),
        )
