"""How much memory is free, and giving back what this process has no more use for."""

import ctypes
import mmap
import os
import sys
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGE = 2 << 20  # bytes: few blocks are as large, and those are worth a call to the system
_UNKNOWN = 4 << 30  # bytes free: where the system does not say, assume a small machine
_GIVE_BACK_AFTER = 8  # windows
_KEPT = 64 << 20  # bytes free at the heap's end that wait for `give_back`; fetching them costs time

_mapped: dict[str, mmap.mmap] = {}  # by the digest of the content
_mapping = Lock()


@cache
def _c_library() -> Any:
    """The C library on Linux, None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def map_file(file: BinaryIO, digest: str) -> mmap.mmap:
    """A file's content in memory, mapped once and for as long as the process lives.

    A compiled graph may go on reading its constants there, and does not say for how long. So the
    file has to be on a disk of this machine, and must not be written to, only replaced.

    Args:
        file: open to be read.
        digest: stands for its content: the same content is mapped once.

    Raises:
        OSError: it cannot be mapped.
    """
    with _mapping:
        if digest not in _mapped:
            # OpenVINO wants memory it could write to. It writes nothing.
            _mapped[digest] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _mapped[digest]


def forget_mapped() -> None:
    """Drop what this process holds of files from `map_file`; it comes back as it is read."""
    if hasattr(mmap, "MADV_DONTNEED"):
        with _mapping:
            for mapped in _mapped.values():
                mapped.madvise(mmap.MADV_DONTNEED)


def give_back() -> None:
    """Return to the system what is free in the C library (glibc), and what can be read again."""
    forget_mapped()
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class _Windows:
    """Counts windows that have been decoded since memory was given back."""

    def __init__(self) -> None:
        self._n = 0
        self._lock = Lock()

    def add(self, n: int) -> bool:
        """Whether it is time to give back again; then they are counted anew."""
        with self._lock:
            self._n += n
            is_time = self._n >= _GIVE_BACK_AFTER
            if is_time:
                self._n = 0
        return is_time


_decoded = _Windows()


def give_back_after(n_windows: int) -> None:
    """Give back what decoding leaves, every few windows: behind each it would cost a fiftieth.

    Args:
        n_windows: how many more have been decoded, by whomever in this process.
    """
    if _decoded.add(n_windows):
        give_back()


def map_large_blocks() -> None:
    """Have large blocks of memory taken from the system, and go back to it once free (glibc).

    By itself glibc soon stops doing so: blocks of up to 32 MB then share a heap with small ones,
    which lie between them and keep them from going back, more and more of them. It holds for the
    whole process, so it is for programs to decide.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        return  # whoever sets them knows better
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that can be used without swapping, in bytes.

    Args:
        root: where `proc` lies, for tests.
    """
    if sys.platform == "win32":
        return _windows_available()
    try:
        for line in (root / "proc" / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except OSError:
        pass
    return _UNKNOWN


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


def _windows_available() -> int:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - absent from the types elsewhere
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return _UNKNOWN
    return int(status.available_physical)
