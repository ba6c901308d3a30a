"""The results of all runs: parquet files, each written whole by one actor.

A file is named by a digest of its keys. The files themselves say what is done, so nothing can
disagree with them. A key may be in several files: an error and a later success, or twice the same
result, if a worker outlived a killed run. Readers take one.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from whisper_npu import OutputError
from whisper_npu.corpus.schema import RESULT
from whisper_npu.corpus.storage import Folder

KEY_LENGTH = 32  # hexadecimal digits of a digest
_PARTS_IN_MEMORY = 16


def work_key(*facts: object) -> str:
    """The key of a result: a digest of all that it depends on."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:KEY_LENGTH]


class ResultStore:
    """A folder of results. Can be sent to other processes.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the results of a block of work as one file.

        Raises:
            OutputError: the file cannot be written.
        """
        name = f"{work_key(*(row['key'] for row in rows))}.parquet"
        table = pa.Table.from_pylist(list(rows), schema=RESULT)
        with self.folder.create(name) as file:
            pq.write_table(table, file, compression="zstd")

    def read_keys(self) -> "Keys":
        """The keys of all results.

        Raises:
            OutputError: a file cannot be read.
        """
        return Keys(self)


class Keys:
    """Finds results by their keys, with 48 bytes of memory for each.

    Attributes:
        parts: the names of the files.
    """

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self.parts = [name for name in store.folder.names() if name.endswith(".parquet")]
        nothing = (np.empty(0, f"S{KEY_LENGTH}"), np.empty(0, bool), np.empty(0, np.int64))
        columns = [nothing, *map(self._read_columns, range(len(self.parts)))]
        keys, failed, places = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        # Of several results for a key, a success comes first.
        order = np.lexsort((failed, keys))
        keys = keys[order]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = keys[1:] != keys[:-1]
        self._keys = keys[is_first]
        self._failed = failed[order][is_first]
        self._places = places[order][is_first]
        self._table = lru_cache(maxsize=_PARTS_IN_MEMORY)(self._read_part)

    def _read_columns(self, number: int) -> tuple[npt.NDArray[Any], ...]:
        table = self._read(self.parts[number], ["key", "error"])
        keys = np.array(table["key"].to_pylist(), f"S{KEY_LENGTH}")
        failed = np.asarray(table["error"].is_valid())
        return keys, failed, (np.int64(number) << 32) + np.arange(len(keys), dtype=np.int64)

    def _read_part(self, number: int) -> pa.Table:
        return self._read(self.parts[number], None)

    def _read(self, name: str, columns: list[str] | None) -> pa.Table:
        try:
            with self._store.folder.open(name) as file:
                table = pq.ParquetFile(file)
                if not table.schema_arrow.equals(RESULT):
                    raise self._unusable(name, "has not the columns of this version")
                return table.read(columns)
        except (OSError, pa.ArrowException) as error:
            raise self._unusable(name, f"cannot be read: {error}") from error

    def _unusable(self, name: str, reason: str) -> OutputError:
        path = self._store.folder.path(name)
        return OutputError(f"{path}: {reason}; delete it, and its recordings are transcribed again")

    def find(
        self, wanted: npt.NDArray[np.bytes_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The places of results, -1 where there is none, and whether they are errors."""
        if not len(self._keys):
            return np.full(len(wanted), -1, np.int64), np.zeros(len(wanted), bool)
        index = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        found = self._keys[index] == wanted
        return np.where(found, self._places[index], -1), found & self._failed[index]

    def results(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The results at some places."""
        for place in places:
            part, row = int(place) >> 32, int(place) & 0xFFFFFFFF
            yield self._table(part).slice(row, 1).to_pylist()[0]
