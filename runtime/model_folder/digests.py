"""Remembers facts computed from the content of files, so that a later start need not read them.

A fact, such as the sha256, is stored with the file's device, inode, size and times, as in git's
index. It is used only while all of them are unchanged. A file written shortly before it was read is
not remembered: a later change could leave it with the same times (git calls such an entry racy).
The memory is one file in the user's cache. If it is deleted, damaged or unwritable, facts are
computed again. Processes share it without locks: the last writer wins, and the facts of the other
writers are computed again.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.runtime.model_folder.regular_files import open_regular

logger = logging.getLogger("whisper_npu")

SHA256 = "sha256"
MEMORY_FILE = "content.json"

_FORMAT = 1
_GRAIN = 2_000_000_000  # nanoseconds: FAT has the coarsest times, 2 s
_MOST_FILES = 1000  # a model folder has about twelve

Value = TypeVar("Value")
Entry = dict[str, Any]


class ContentMemory:
    """Facts about files, kept in one file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Use the memory at `path`; it is read when first needed."""
        self.path = path
        self._entries: dict[str, Entry] | None = None
        self._lock = Lock()

    def recall(self, file: Path, fact: str, compute: Callable[[BufferedReader], Value]) -> Value:
        """Return a fact about a file's content; compute it if this content is not known.

        Args:
            file: a regular file; a symbolic link stands for its target.
            fact: the name of the fact.
            compute: returns the fact, as JSON can hold it, from the file opened at its beginning.

        Raises:
            OSError: the file cannot be read, or is no regular file.
        """
        with open_regular(file) as stream:
            key = str(file.resolve())
            signature = _signature(stream)
            known = self._find(key, signature)
            if fact in known:
                value: Value = known[fact]
                return value
            started = time.time_ns()
            value = compute(stream)
            is_settled = _last_change(stream) + _GRAIN < started
            if is_settled and _signature(stream) == signature:
                self._remember(key, {**known, "signature": signature, fact: value})
        return value

    def forget(self) -> None:
        """Delete the memory."""
        with self._lock:
            self._entries = None
            with suppress(OSError):
                self.path.unlink()

    def _find(self, key: str, signature: list[int]) -> Entry:
        with self._lock:
            if self._entries is None:
                self._entries = _read(self.path)
            entry = self._entries.get(key)
        is_current = isinstance(entry, dict) and entry.get("signature") == signature
        return dict(entry) if is_current and entry is not None else {}

    def _remember(self, key: str, entry: Entry) -> None:
        with self._lock:
            # Another process may have written since the last read. If no process can write, the
            # entries of this process still count.
            entries = {**(self._entries or {}), **_read(self.path)}
            entries.pop(key, None)
            entries[key] = entry
            for oldest in list(entries)[:-_MOST_FILES]:
                del entries[oldest]
            self._entries = entries
            try:
                _write(self.path, entries)
            except OSError as error:
                logger.debug("%s cannot be written: %s", self.path, error.strerror)


def default_memory() -> ContentMemory:
    """Return the user's memory, below `$WHISPER_NPU_CACHE` or in the user's cache directory."""
    path = cache_folder() / MEMORY_FILE
    with _memories_lock:
        return _memories.setdefault(path, ContentMemory(path))


def remembered_sha256(path: Path) -> str:
    """Return the sha256 of a file's content in hexadecimal, computed once per content.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    return default_memory().recall(path, SHA256, _sha256)


def sha256_file(path: Path) -> str:
    """Compute the sha256 of a file's content in hexadecimal.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    with open_regular(path) as stream:
        return _sha256(stream)


_memories: dict[Path, ContentMemory] = {}
_memories_lock = Lock()


def _sha256(stream: BufferedReader) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _signature(stream: BufferedReader) -> list[int]:
    status = os.fstat(stream.fileno())
    return [
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    ]


def _last_change(stream: BufferedReader) -> int:
    """Return the latest possible change of the content, in nanoseconds since the epoch."""
    status = os.fstat(stream.fileno())
    # No program can set the POSIX change time. On Windows the field holds the time of creation.
    return status.st_ctime_ns if os.name == "posix" else status.st_mtime_ns


def _read(path: Path) -> dict[str, Entry]:
    """Return the entries, least recently written first; none if the file is missing or damaged."""
    try:
        with open_regular(path) as stream:
            content = json.load(stream)
        is_ours = content["format"] == _FORMAT and isinstance(content["files"], dict)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return dict(content["files"]) if is_ours else {}


def _write(path: Path, entries: dict[str, Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"format": _FORMAT, "files": entries}, stream)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
