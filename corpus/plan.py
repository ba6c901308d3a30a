"""Finds the work that no earlier run has done, and cuts it into blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whisper_npu import OutputError, UsageError
from whisper_npu.corpus.audio import Facts, Source, examine
from whisper_npu.corpus.manifest import Item
from whisper_npu.corpus.schema import MANIFEST
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import KEY_LENGTH, Keys, work_key
from whisper_npu.corpus.worker import WORK

MANIFEST_FILE = "manifest.parquet"
INDEX_FILE = "index.parquet"
_ROWS_AT_ONCE = 2000
_SOURCES_AT_ONCE = 256
_MOST_IN_BLOCK = 128
_BYTES_PER_SECOND = 16_000  # of a recording of unknown length: 128 kbit/s
_SEPARATOR = "\x00"

# A recording, with the facts of an earlier run or of this one.
INDEX = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("stamp", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
    ]
)


def write_manifest(folder: Folder, items: Iterable[Item]) -> int:
    """Write the rows of a manifest as `MANIFEST_FILE`; returns their number.

    Raises:
        UsageError: two rows have the same id, or there are none.
        OutputError: the file cannot be written.
    """
    seen: set[int] = set()
    with folder.create(MANIFEST_FILE) as file, pq.ParquetWriter(file, MANIFEST) as writer:
        for rows in _batches(items):
            for row in rows:
                # 16 hexadecimal digits of a digest need less memory than the id.
                short = int(work_key(row.id)[:16], 16)
                if short in seen:
                    raise UsageError(f"the id {row.id!r} is in the manifest twice; ids are unique")
                seen.add(short)
            writer.write_table(pa.Table.from_pylist([asdict(row) for row in rows], MANIFEST))
    if not seen:
        raise UsageError("the manifest names no recording")
    return len(seen)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == _ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def read_rows(folder: Folder) -> Iterator[pa.RecordBatch]:
    """The rows of `MANIFEST_FILE`, in order."""
    with folder.open(MANIFEST_FILE) as file:
        yield from pq.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE)


def list_sources(folder: Folder) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The different recordings of the manifest as texts, and the recording of every row."""
    texts = []
    for batch in read_rows(folder):
        parts = [
            pc.fill_null(pc.cast(batch[name], pa.string()), "")
            for name in ("audio", "start", "size", "row")
        ]
        texts.append(pc.binary_join_element_wise(*parts, _SEPARATOR))
    encoded = pa.chunked_array(texts).dictionary_encode().combine_chunks()
    return encoded.dictionary, encoded.indices.to_numpy()


def index_blocks(folder: Folder, sources: pa.Array) -> Iterator[pa.Table]:
    """Tables of `INDEX` with the facts of the earlier run, to be brought up to date.

    Raises:
        OutputError: the file with these facts cannot be read.
    """
    known = INDEX.empty_table()
    if folder.exists(INDEX_FILE):
        try:
            with folder.open(INDEX_FILE) as file:
                known = pq.read_table(file).select(INDEX.names).cast(INDEX)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise OutputError(
                f"{folder.path(INDEX_FILE)}: cannot be read: {error}; delete it, and the digests "
                "of all recordings are computed again"
            ) from error
    places = pc.index_in(sources, known["source"])
    for first in range(0, len(sources), _SOURCES_AT_ONCE):
        found = known.take(places.slice(first, _SOURCES_AT_ONCE))
        yield found.set_column(0, INDEX.field(0), sources.slice(first, _SOURCES_AT_ONCE))


def examine_block(block: pa.Table) -> pa.Table:
    """Bring a table of `INDEX` up to date; runs in a task of Ray."""
    rows = []
    for row in block.to_pylist():
        audio, *places = row["source"].split(_SEPARATOR)
        start, size, line = (int(place) if place else None for place in places)
        known = None
        if row["stamp"] is not None:
            known = Facts(row["stamp"], row["digest"], row["seconds"], row["error"])
        facts = examine(Source(audio, start, size, line), known)
        rows.append({"source": row["source"], **asdict(facts)})
    return pa.Table.from_pylist(rows, schema=INDEX)


def write_index(folder: Folder, sources: pa.Array, examined: Iterable[pa.Table]) -> pa.Table:
    """Put examined recordings in the order of `sources`, and keep them for the next run.

    Raises:
        OutputError: the file cannot be written.
    """
    table = pa.concat_tables([INDEX.empty_table(), *examined])
    table = table.take(pc.index_in(sources, table["source"]))
    with folder.create(INDEX_FILE) as file:
        pq.write_table(table, file, compression="zstd")
    return table


@dataclass(frozen=True)
class Plan:
    """The keys of all rows, and the rows that have to be transcribed.

    Attributes:
        keys: the key of every row, `(n_rows,)`; empty where the recording cannot be read.
        sources: the recording of every row, an index into `index`, `(n_rows,)`.
        index: facts about the recordings, a table of `INDEX`.
        seconds: length of every row, estimated where the header does not say, `(n_rows,)`.
        todo: numbers of the rows to transcribe, ascending, each key once.
    """

    keys: npt.NDArray[np.bytes_]
    sources: npt.NDArray[np.int32]
    index: pa.Table
    seconds: npt.NDArray[np.float64]
    todo: npt.NDArray[np.int64]

    @property
    def seconds_to_do(self) -> float:
        """Seconds of audio to transcribe."""
        return float(self.seconds[self.todo].sum())


def make_plan(
    folder: Folder,
    sources: npt.NDArray[np.int32],
    index: pa.Table,
    done: Keys,
    *,
    digests: Sequence[str],
    retry_errors: bool,
) -> Plan:
    """Find the rows whose results no earlier run has stored.

    Args:
        folder: holds `MANIFEST_FILE`.
        sources: the recording of every row.
        index: facts about the recordings.
        done: the stored results.
        digests: of the model and the options.
        retry_errors: whether stored errors are tried again.
    """
    contents = index["digest"].to_pylist()
    lengths = _lengths(index)
    keys = np.zeros(len(sources), f"S{KEY_LENGTH}")
    seconds = np.zeros(len(sources))
    number = 0
    for batch in read_rows(folder):
        for offset, cut in zip(*(batch[c].to_pylist() for c in ("offset", "seconds")), strict=True):
            source = sources[number]
            if contents[source] is not None:
                keys[number] = work_key(contents[source], offset, cut, *digests)
            whole = lengths[source] - (offset or 0.0)
            seconds[number] = whole if cut is None else cut
            number += 1
    places, failed = done.find(keys)
    wanted = (keys != b"") & ((places < 0) | (failed & retry_errors))
    _, firsts = np.unique(keys, return_index=True)
    is_first = np.zeros(len(keys), bool)
    is_first[firsts] = True
    todo = np.flatnonzero(wanted & is_first)
    return Plan(keys, sources, index, np.maximum(seconds, 0.0), todo)


def _lengths(index: pa.Table) -> list[float]:
    """Seconds of the recordings, estimated from the size of the file where unknown."""
    lengths = []
    columns = (index[name].to_pylist() for name in ("stamp", "seconds"))
    for stamp, seconds in zip(*columns, strict=True):
        size = (stamp or "").partition(" ")[0]
        estimate = float(size) / _BYTES_PER_SECOND if size.isdigit() else 0.0
        lengths.append(estimate if seconds is None else seconds)
    return lengths


@dataclass(frozen=True)
class Part:
    """A part of a row of the manifest.

    Attributes:
        key: of its result.
        start: seconds from the start of the row's audio.
        end: likewise; infinite for the last part.
    """

    key: str
    start: float
    end: float


def work_blocks(
    folder: Folder, plan: Plan, block_seconds: float, parts: Mapping[int, Sequence[Part]]
) -> Iterator[pa.Table]:
    """Cut the work into tables of `WORK` of like length.

    A recording longer than a block is a block by itself, and so is a part. These blocks come first,
    so that no actor is left with a long recording at the end.

    Args:
        folder: holds `MANIFEST_FILE`.
        plan: the work.
        block_seconds: length of a block.
        parts: the parts to transcribe of the rows that are cut, by their numbers.
    """
    is_long = plan.seconds > block_seconds
    is_long[list(parts)] = True
    for number, item in _items(folder, plan, is_long):
        if number not in parts:
            yield pa.Table.from_pylist([item], schema=WORK)
        for part in parts.get(number, ()):
            cut = {"key": part.key, "part_start": part.start, "part_end": part.end}
            yield pa.Table.from_pylist([{**item, **cut}], schema=WORK)
    block: list[dict[str, Any]] = []
    length = 0.0
    for number, item in _items(folder, plan, ~is_long):
        seconds = float(plan.seconds[number])
        if block and (length + seconds > block_seconds or len(block) == _MOST_IN_BLOCK):
            yield pa.Table.from_pylist(block, schema=WORK)
            block, length = [], 0.0
        block.append(item)
        length += seconds
    if block:
        yield pa.Table.from_pylist(block, schema=WORK)


def _items(
    folder: Folder, plan: Plan, chosen: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the row of `WORK` of every planned row that is chosen."""
    is_wanted = np.zeros(len(plan.keys), bool)
    is_wanted[plan.todo] = True
    is_wanted &= chosen
    stamps = plan.index["stamp"]
    first = 0
    for batch in read_rows(folder):
        for place in np.flatnonzero(is_wanted[first : first + batch.num_rows]):
            row = batch.slice(place, 1).to_pylist()[0]
            number = first + int(place)
            item = {name: row[name] for name in WORK.names if name in row}
            item["stamp"] = stamps[int(plan.sources[number])].as_py()
            yield number, {"key": plan.keys[number].decode(), **item}
        first += batch.num_rows
