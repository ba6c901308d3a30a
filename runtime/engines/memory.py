"""Measures free memory, and returns memory that this process needs no longer."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGE = 2 << 20  # bytes: blocks of this size are few and worth a call to the system
_UNKNOWN = 4 << 30  # bytes free: assume a small machine if the system does not tell
_RELEASE_AFTER = 8  # windows
# Free bytes that stay at the heap's end until `release_memory`, because fetching costs time.
_KEPT = 64 << 20

_mapped: dict[str, mmap.mmap] = {}  # by the digest of the content
_mapping = Lock()


@cache
def _c_library() -> Any:
    """Return the C library on Linux, None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def map_file(file: BinaryIO, digest: str) -> mmap.mmap:
    """Map a file into memory, once and for the life of the process.

    A compiled graph may read its constants there at any time. So the file must be on a local disk,
    and must only be replaced, never written to.

    Args:
        file: open for reading.
        digest: identifies its content: the same content is mapped once.

    Raises:
        OSError: the file cannot be mapped.
    """
    with _mapping:
        if digest not in _mapped:
            # OpenVINO requires writable memory, but writes nothing to it.
            _mapped[digest] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _mapped[digest]


def forget_mapped() -> None:
    """Drop the memory of mapped files (see `map_file`); it is read again on demand."""
    if hasattr(mmap, "MADV_DONTNEED"):
        with _mapping:
            for mapped in _mapped.values():
                mapped.madvise(mmap.MADV_DONTNEED)


def release_memory() -> None:
    """Return free memory of the C library (glibc) and mapped files to the system."""
    forget_mapped()
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class _Windows:
    """Counts the windows decoded since memory was last returned."""

    def __init__(self) -> None:
        self._n = 0
        self._lock = Lock()

    def add(self, n: int) -> bool:
        """Count `n` windows; return whether memory is due to be returned, and then count from 0."""
        with self._lock:
            self._n += n
            is_time = self._n >= _RELEASE_AFTER
            if is_time:
                self._n = 0
        return is_time


_decoded = _Windows()


def release_memory_after(n_windows: int) -> None:
    """Return free memory after every few windows: after each window it would cost a fiftieth.

    Args:
        n_windows: newly decoded windows, of any caller in this process.
    """
    if _decoded.add(n_windows):
        release_memory()


def map_large_blocks() -> None:
    """Let glibc take large blocks from the system, and return them once they are free.

    glibc soon stops doing so by itself: blocks of up to 32 MB then share a heap with small blocks.
    More and more small blocks lie between large ones and keep them from being returned. The setting
    holds for the whole process, so only programs should call this.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        return  # the user's own settings take precedence
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def available_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process can use without swapping, in bytes.

    In a container, the container's limit (cgroup) counts too.

    Args:
        root: the folder that holds `proc` and `sys`, for tests.
    """
    if sys.platform == "win32":
        return _windows_available(ctypes.windll.kernel32)
    return min([_free_bytes(root), *_left_in_control_groups(root)])


def _free_bytes(root: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc" / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return max(0, int(value.split()[0]) * 1024)
    return _UNKNOWN


@dataclass(frozen=True)
class _ControlGroupFiles:
    """The names of a control group's files in one version of cgroup."""

    folder: str
    limit: str
    usage: str
    cache: str  # name in memory.stat of file pages that can be dropped


_CGROUP_2 = _ControlGroupFiles("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_CGROUP_1 = _ControlGroupFiles(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def _left_in_control_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of this process, and each group above it, has left in bytes.

    Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`.
    """
    try:
        memberships = os.fsdecode((root / "proc" / "self" / "cgroup").read_bytes()).splitlines()
    except OSError:
        return
    for membership in memberships:
        number, _, rest = membership.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            files = _CGROUP_2
        elif "memory" in controllers.split(","):
            files = _CGROUP_1
        else:
            continue
        top = root / files.folder
        group = top / path.lstrip("/")
        # In a container the path may be that of the host; the group is then mounted at the top.
        for folder in dict.fromkeys((group, *group.parents, top)):
            if folder.is_relative_to(top):
                with suppress(OSError, ValueError):  # no limit, or no such group
                    limit = int((folder / files.limit).read_text())
                    if limit >= 0:  # -1 stands for no limit
                        yield min(limit, max(0, limit - _used_in_group(folder, files)))


def _used_in_group(folder: Path, files: _ControlGroupFiles) -> int:
    """Return the bytes in use by a control group that cannot be dropped, as far as it tells."""
    used = cached = 0
    with suppress(OSError, ValueError):
        used = int((folder / files.usage).read_text())
    with suppress(OSError, ValueError):  # not every system has this file
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == files.cache:
                cached = int(value)
    return used - cached


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        ("total_physical", ctypes.c_ulonglong),
        ("available_physical", ctypes.c_ulonglong),
        ("total_page_file", ctypes.c_ulonglong),
        ("available_page_file", ctypes.c_ulonglong),
        ("total_virtual", ctypes.c_ulonglong),
        ("available_virtual", ctypes.c_ulonglong),
        ("available_extended_virtual", ctypes.c_ulonglong),
    )


def _windows_available(kernel: Any) -> int:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return _UNKNOWN
    return int(status.available_physical)
