"""Keeps compiled graphs on disk, so that the second start of a program compiles nothing.

One file per compiled graph, named by a digest of everything the compiler's result depends on: the
graph, OpenVINO, the device with its driver and compiler, and the options. A file begins with a
header that repeats this digest and states the size and the sha256 of the content. A truncated,
damaged or misplaced file is deleted and compiled anew, never used. Files appear whole or not at
all, so that processes may share the cache without locks.
"""

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino as ov

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.compile_key import CacheKey
from whisper_npu.runtime.engines.memory import forget_mapped, map_file
from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.runtime.model_folder.regular_files import open_regular

logger = logging.getLogger("whisper_npu")

LIMIT_VARIABLE = "WHISPER_NPU_CACHE_LIMIT"
DEFAULT_LIMIT = 8.0  # GiB

_MAGIC = "whisper-npu compiled graph 4"
_SUFFIX = ".blob"
_UNFINISHED = ".part"
_HEADER = 1 << 14  # bytes; a path may take 4096
_FIELDS = {
    **{"digest": str, "bytes": int, "sha256": str},
    **{"key": dict, "facts": dict, "contents": dict},
}
_ABANDONED_AFTER = 3600.0  # seconds: no compilation takes longer to write its result
_GIB = 1 << 30


@dataclass(frozen=True)
class Contents:
    """A description of a compiled graph for people; a graph is found by its key alone.

    Attributes:
        model: the model folder it was first compiled from.
        graph: its name among the model's graphs.
        precision: its arithmetic, or the form of its weights.
    """

    model: str
    graph: str
    precision: str

    @property
    def name(self) -> str:
        """The model folder's name."""
        return Path(self.model).name

    def __str__(self) -> str:
        return f"{self.name} {self.graph} ({self.precision})"


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache.

    Attributes:
        path: the file.
        size: in bytes.
        used: when it was last loaded or written, seconds since the epoch.
        contents: the compiled graph; None if the header cannot be read.
        key: the dependencies in its header; empty if the header cannot be read.
    """

    path: Path
    size: int
    used: float
    contents: Contents | None
    key: dict[str, Any]

    def is_of(self, model: str) -> bool:
        """Whether it was compiled from a model folder, given by its path or its name."""
        if self.contents is None:
            return False
        path = str(Path(model).expanduser().resolve())
        return self.contents.model == path or self.contents.name == model


class CompileCache:
    """The cache folder."""

    def __init__(self, folder: Path, limit: int, *, is_soft: bool = False) -> None:
        """Use a folder, which is made at the first write.

        Args:
            folder: the folder.
            limit: bytes that it holds at most.
            is_soft: whether the limit gives way to the graphs of the model that was stored last: a
                model larger than the limit would otherwise be compiled at every start.
        """
        self.folder = folder
        self.limit = limit
        self.is_soft = is_soft

    def path(self, key: CacheKey) -> Path:
        """Return the file of a compiled graph."""
        return self.folder / f"{key.digest}{_SUFFIX}"

    def has(self, key: CacheKey) -> bool:
        """Whether there is a file that looks whole; only loading it proves that."""
        return self._header(key) is not None

    def load(
        self, core: ov.Core, key: CacheKey, options: Mapping[str, Any]
    ) -> ov.CompiledModel | None:
        """Return the compiled graph, or None if the cache has no usable one.

        A processor's graph continues to use the mapped content of the file.
        """
        path = self.path(key)
        try:
            compiled = _load(core, path, key, options)
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:  # of this process, at this moment
            logger.debug("%s cannot be read: %s", path.name, _last_line(error))
            return None
        except _UnusableError as error:
            logger.debug("%s is compiled anew: %s", path.name, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return compiled

    def facts(self, key: CacheKey) -> dict[str, Any] | None:
        """Return the facts stored with a compiled graph; None if there are none."""
        header = self._header(key)
        return None if header is None else dict(header["facts"])

    def _header(self, key: CacheKey) -> dict[str, Any] | None:
        with suppress(OSError), open_regular(self.path(key)) as file:
            header = _read_header(file)
            if header is not None and _matches(header, key, file):
                return header
        return None

    def is_writable(self) -> bool:
        """Whether files can be written to the folder; it is made if it is missing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return False
        return os.access(self.folder, os.W_OK)

    def store(
        self,
        key: CacheKey,
        compiled: ov.CompiledModel,
        contents: Contents,
        facts: Mapping[str, Any] | None = None,
    ) -> bool:
        """Store a compiled graph; return whether that worked (a full disk is no reason to stop).

        Args:
            key: the graph's dependencies.
            compiled: the graph.
            contents: its description in the cache's list.
            facts: facts needed before it is loaded, for JSON.
        """
        try:
            content = compiled.export_model().getvalue()
        except (RuntimeError, MemoryError) as error:
            logger.debug("%s cannot be kept: %s", contents, _last_line(error))
            return False
        facts = dict(facts or {})
        digest = _digest(facts)
        digest.update(content)
        if len(content) + _HEADER > self.limit and not self.is_soft:
            logger.debug("%s is larger than the cache's limit", contents)
            return False
        header = {
            "magic": _MAGIC,
            "contents": asdict(contents),
            "digest": key.digest,
            "bytes": len(content),
            "sha256": digest.hexdigest(),
            "key": key.as_dict(),
            "facts": facts,
        }
        first = json.dumps(header).encode().ljust(_HEADER - 1) + b"\n"
        if len(first) != _HEADER:
            logger.debug("%s is not kept: its description is too long", contents)
            return False
        unfinished: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.folder, suffix=_UNFINISHED, delete=False
            ) as file:
                unfinished = Path(file.name)
                file.write(first)
                file.write(content)
            unfinished.replace(self.path(key))
        except OSError as error:
            logger.warning("compiled graphs cannot be kept in %s: %s", self.folder, error.strerror)
            if unfinished is not None:
                with suppress(OSError):
                    unfinished.unlink()
            return False
        self._make_room(self.path(key), contents.model if self.is_soft else None)
        return True

    def entries(self) -> list[CacheEntry]:
        """Return the files of the cache, least recently used first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError), open_regular(path) as file:  # already gone, or no file
                status = os.fstat(file.fileno())
                header = _read_header(file)
                found.append(
                    CacheEntry(
                        path=path,
                        size=status.st_size,
                        used=status.st_mtime,
                        contents=None if header is None else _read_contents(header),
                        key={} if header is None else header["key"],
                    )
                )
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> int:
        """Delete every file; return their number."""
        return _delete(*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(f"*{_UNFINISHED}"))

    def delete(self, entries: Iterable[CacheEntry]) -> int:
        """Delete some of the files; return how many were deleted."""
        return _delete(*(entry.path for entry in entries))

    def _make_room(self, newest: Path, protected: str | None) -> None:
        """Delete files of killed processes, and least recently used files until the limit holds.

        Args:
            newest: a file to keep.
            protected: the model folder whose files are kept too, if any.
        """
        now = time.time()
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            with suppress(OSError):
                if now - path.stat().st_mtime > _ABANDONED_AFTER:
                    path.unlink()
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total <= self.limit:
                return
            model = None if entry.contents is None else entry.contents.model
            if entry.path != newest and (protected is None or model != protected):
                with suppress(OSError):
                    entry.path.unlink()
                    total -= entry.size


def cache_directory() -> Path:
    """Return the folder of compiled graphs: below `$WHISPER_NPU_CACHE`, else the user's cache."""
    return cache_folder() / "compiled"


def default_cache() -> CompileCache:
    """Return the user's cache, at most `$WHISPER_NPU_CACHE_LIMIT` GiB.

    Without this variable the limit is 8 GiB, or the graphs of one model if these are larger.

    Raises:
        UsageError: the limit is no number.
    """
    is_default = LIMIT_VARIABLE not in os.environ
    stated = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
    try:
        limit = float(stated)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"{LIMIT_VARIABLE} is {stated!r}; give a number of GiB")
    return CompileCache(cache_directory(), int(limit * _GIB), is_soft=is_default)


def compile_cached(
    core: ov.Core,
    read: Callable[[], ov.Model],
    key: CacheKey,
    options: Mapping[str, Any],
    *,
    cache: CompileCache | None,
    contents: Contents,
) -> ov.CompiledModel:
    """Return a compiled graph from the cache, else compile it now and store it.

    Args:
        core: the OpenVINO core.
        read: reads (and edits) the graph; not called if the cache has its result.
        key: of the graph.
        options: to compile and to load with.
        cache: None to compile always.
        contents: the graph's description in the cache's list.

    Raises:
        RuntimeError: the device refuses the graph (OpenVINO's error).
    """
    if cache is not None:
        compiled = cache.load(core, key, options)
        if compiled is not None:
            return compiled
    compiled = core.compile_model(read(), key.device, dict(options))
    if cache is not None:
        cache.store(key, compiled, contents)
    return compiled


def _delete(*paths: Path) -> int:
    """Delete files; return how many were deleted."""
    n_deleted = 0
    for path in paths:
        with suppress(OSError):  # already gone, or in use on a system that refuses to delete it
            path.unlink()
            n_deleted += 1
    return n_deleted


class _UnusableError(Exception):
    """The content of a file does not match its name."""


def _load(core: ov.Core, path: Path, key: CacheKey, options: Mapping[str, Any]) -> ov.CompiledModel:
    with open_regular(path) as file:
        header = _read_header(file)
        if header is None:
            raise _UnusableError("it has no header")
        if not _matches(header, key, file):
            raise _UnusableError("it is truncated or belongs to another graph")
        digest = _digest(header["facts"])
        file.seek(_HEADER)
        if hashlib.file_digest(file, lambda: digest).hexdigest() != header["sha256"]:
            raise _UnusableError("its content is damaged")
        content = np.frombuffer(map_file(file, header["sha256"]), np.uint8)
    try:
        tensor = ov.Tensor(content[_HEADER:], shared_memory=key.device == "CPU")
        return core.import_model(tensor, key.device, dict(options))
    except (ValueError, RuntimeError) as error:
        raise _UnusableError(_last_line(error)) from None
    finally:
        forget_mapped()


def _read_header(file: BinaryIO) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read(_HEADER).partition(b"\n")[0])
    except (OSError, ValueError):
        return None
    is_ours = (
        isinstance(content, dict)
        and content.get("magic") == _MAGIC
        and all(isinstance(content.get(name), kind) for name, kind in _FIELDS.items())
    )
    return content if is_ours else None


def _read_contents(header: dict[str, Any]) -> Contents | None:
    try:
        return Contents(**{name: str(value) for name, value in header["contents"].items()})
    except TypeError:  # other fields than ours
        return None


def _matches(header: dict[str, Any], key: CacheKey, file: BinaryIO) -> bool:
    size: int = os.fstat(file.fileno()).st_size
    stated: int = _HEADER + header["bytes"]
    return bool(header["digest"] == key.digest) and size == stated


def _digest(facts: Mapping[str, Any]) -> Any:
    """Start a file's sha256 with its facts; the content is added later."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode())


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
