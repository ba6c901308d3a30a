"""Keeps compiled graphs on disk, so that the second start of a program compiles nothing.

One file per compiled graph, named by a digest of everything the compiler's result depends on: the
graph, OpenVINO, the device with its driver and compiler, and the options. A file begins with a
header that repeats that digest and states the size and the sha256 of what follows: a file that is
truncated, damaged, or belongs to something else is deleted and compiled anew, never used. Files
appear whole or not at all, so that processes may share the cache without locks.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import platformdirs

from whisper_npu.errors import UsageError
from whisper_npu.runtime.memory import forget_mapped, map_file

logger = logging.getLogger("whisper_npu")

CACHE_VARIABLE = "WHISPER_NPU_CACHE"
LIMIT_VARIABLE = "WHISPER_NPU_CACHE_LIMIT"
DEFAULT_LIMIT = 8.0  # GiB

_MAGIC = "whisper-npu compiled graph 2"
_SUFFIX = ".blob"
_UNFINISHED = ".part"
_HEADER = 4096  # bytes at most
_ALIGNMENT = 64  # bytes: constants that lie at a multiple of them are used where they are
_ABANDONED_AFTER = 3600.0  # seconds: no compilation writes its result for longer
_GIB = 1 << 30


@dataclass(frozen=True)
class CacheKey:
    """What a compiled graph depends on; `digest` stands for all of it."""

    graph: str
    openvino: str
    device: str
    device_name: str
    driver: str
    compiler: str
    options: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """A sha256 in hexadecimal."""
        text = json.dumps([self.as_dict(), _MAGIC], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """For the header."""
        return {
            "graph": self.graph,
            "openvino": self.openvino,
            "device": self.device,
            "device_name": self.device_name,
            "driver": self.driver,
            "compiler": self.compiler,
            "options": dict(self.options),
        }


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache.

    Attributes:
        path: the file.
        size: in bytes.
        used: when it was last loaded or written, seconds since the epoch.
        label: what was compiled, for people; empty if the header cannot be read.
        key: what its header says it depends on; empty likewise.
    """

    path: Path
    size: int
    used: float
    label: str
    key: dict[str, Any]


def cache_key(
    core: ov.Core, graph: str, device: str, options: Mapping[str, Any], *, runs_on: str = ""
) -> CacheKey:
    """The key of a graph compiled for a device.

    Args:
        core: the OpenVINO core that compiles.
        graph: identifies the graph with its weights.
        device: the OpenVINO device.
        options: the options it is compiled with.
        runs_on: the device that does the work, where that is not `device`.
    """
    return CacheKey(
        graph=graph,
        openvino=ov.get_version(),
        device=device,
        device_name=_property(core, runs_on or device, "FULL_DEVICE_NAME"),
        driver=_property(core, device, "NPU_DRIVER_VERSION"),
        compiler=_property(core, device, "NPU_COMPILER_VERSION"),
        options=tuple(sorted((name, str(value)) for name, value in options.items())),
    )


def _property(core: ov.Core, device: str, name: str) -> str:
    """A property of a device, or an empty text where the device has none such."""
    if name.startswith("NPU_") and not device.startswith("NPU"):
        return ""
    try:
        return str(core.get_property(device, name))
    except RuntimeError:
        return ""


class CompileCache:
    """The cache folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use `folder`, which is made when first written to; hold at most `limit` bytes."""
        self.folder = folder
        self.limit = limit

    def path(self, key: CacheKey) -> Path:
        """The file a compiled graph is kept in."""
        return self.folder / f"{key.digest}{_SUFFIX}"

    def has(self, key: CacheKey) -> bool:
        """Whether a file is there that looks whole; only loading it tells whether it is."""
        path = self.path(key)
        header = _read_header(path)
        return header is not None and _matches(header, key, path)

    def load(
        self, core: ov.Core, key: CacheKey, options: Mapping[str, Any]
    ) -> ov.CompiledModel | None:
        """The compiled graph, or None if the cache has none that can be used."""
        path = self.path(key)
        header = _read_header(path)
        if header is None:
            if path.exists():
                self._discard(path, "it has no header")
            return None
        if not _matches(header, key, path):
            self._discard(path, "it is truncated or belongs to another graph")
            return None
        try:
            with path.open("rb") as file:
                file.seek(header["begin"])
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != header["sha256"]:
                self._discard(path, "its content is damaged")
                return None
            blob = np.frombuffer(map_file(path), np.uint8, offset=header["begin"])
            tensor = ov.Tensor(blob, shared_memory=True)
            compiled = core.import_model(tensor, key.device, dict(options))
            forget_mapped()
        except (OSError, ValueError, RuntimeError) as error:
            self._discard(path, _last_line(error))
            return None
        with suppress(OSError):
            os.utime(path)
        return compiled

    def facts(self, key: CacheKey) -> dict[str, Any] | None:
        """What was stored with a compiled graph to be known of it; None if there is none."""
        facts = (_read_header(self.path(key)) or {}).get("facts")
        return facts if isinstance(facts, dict) else None

    def store(
        self,
        key: CacheKey,
        compiled: ov.CompiledModel,
        label: str,
        facts: Mapping[str, Any] | None = None,
        align: bytes = b"",
    ) -> bool:
        """Keep a compiled graph; whether that worked (a full disk is no reason to stop).

        Args:
            key: what it depends on.
            compiled: the graph.
            label: what the cache's list calls it.
            facts: what to know of it before it is loaded, for JSON.
            align: how the graph's largest constant begins. Where that lies at a multiple of
                64 bytes in memory, the plugin uses it in place.
        """
        try:
            content = compiled.export_model().getvalue()
        except RuntimeError as error:
            logger.debug("%s cannot be kept: %s", label, _last_line(error))
            return False
        begin = _HEADER - max(0, content.find(align)) % _ALIGNMENT
        if len(content) + _HEADER > self.limit:
            logger.debug("%s is larger than the cache's limit", label)
            return False
        header = {
            "magic": _MAGIC,
            "label": label,
            "digest": key.digest,
            "begin": begin,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "key": key.as_dict(),
            "facts": dict(facts or {}),
        }
        first = json.dumps(header).encode().ljust(begin - 1) + b"\n"
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
        self._make_room(self.path(key))
        return True

    def entries(self) -> list[CacheEntry]:
        """Files of the cache, least recently used first."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                header = _read_header(path) or {}
                found.append(
                    CacheEntry(
                        path=path,
                        size=status.st_size,
                        used=status.st_mtime,
                        label=str(header.get("label", "")),
                        key=dict(header.get("key", {})),
                    )
                )
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> int:
        """Delete every file; how many there were."""
        n_deleted = 0
        for path in (*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(f"*{_UNFINISHED}")):
            with suppress(OSError):  # gone meanwhile, or in use on a system that minds
                path.unlink()
                n_deleted += 1
        return n_deleted

    def _discard(self, path: Path, reason: str) -> None:
        logger.debug("%s is compiled anew: %s", path.name, reason)
        with suppress(OSError):
            path.unlink()

    def _make_room(self, newest: Path) -> None:
        """Delete what was used longest ago until the limit holds, and what a kill left behind."""
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
            if entry.path != newest:
                with suppress(OSError):
                    entry.path.unlink()
                    total -= entry.size


def cache_directory() -> Path:
    """Where compiled graphs are kept: below `$WHISPER_NPU_CACHE`, else the user's cache."""
    override = os.environ.get(CACHE_VARIABLE)
    base = Path(override).expanduser() if override else platformdirs.user_cache_path("whisper-npu")
    return base / "compiled"


def default_cache() -> CompileCache:
    """The user's cache, at most `$WHISPER_NPU_CACHE_LIMIT` GiB.

    Raises:
        UsageError: the limit is no number.
    """
    stated = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT))
    try:
        limit = float(stated)
    except ValueError:
        raise UsageError(f"{LIMIT_VARIABLE} is {stated!r}; give a number of GiB") from None
    return CompileCache(cache_directory(), int(limit * _GIB))


def compile_cached(
    core: ov.Core,
    read: Callable[[], ov.Model],
    key: CacheKey,
    options: Mapping[str, Any],
    *,
    cache: CompileCache | None,
    label: str,
) -> ov.CompiledModel:
    """A compiled graph from the cache, else compiled now and kept.

    Args:
        core: the OpenVINO core.
        read: reads (and edits) the graph; not called when the cache has its result.
        key: of the graph.
        options: to compile and to load with.
        cache: None to compile always.
        label: what the cache's list calls it.

    Raises:
        RuntimeError: the device refuses the graph (OpenVINO's error).
    """
    if cache is not None:
        compiled = cache.load(core, key, options)
        if compiled is not None:
            return compiled
    compiled = core.compile_model(read(), key.device, dict(options))
    if cache is not None:
        cache.store(key, compiled, label)
    return compiled


def _read_header(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_HEADER).partition(b"\n")[0])
    except (OSError, ValueError):
        return None
    is_ours = isinstance(content, dict) and content.get("magic") == _MAGIC
    return content if is_ours else None


def _matches(header: dict[str, Any], key: CacheKey, path: Path) -> bool:
    try:
        size = path.stat().st_size
    except OSError:
        return False
    return header.get("digest") == key.digest and size == int(header.get("begin", 0)) + int(
        header.get("bytes", -1)
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
