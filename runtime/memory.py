"""Gives memory back that this process has no more use for, on systems where that is known."""

import contextlib
import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

_DONTNEED = 4  # Linux's MADV_DONTNEED
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGE = 2 << 20  # bytes: few blocks are as large, and those are worth a call to the system
_KEPT = 64 << 20  # bytes free at the heap's end that wait for `give_back`; fetching them costs time


@cache
def _c_library() -> Any:
    """The C library on Linux, None elsewhere."""
    return ctypes.CDLL(None) if sys.platform == "linux" else None


def forget_files(folder: Path) -> None:
    """Drop what this process holds of the files in a folder that it has mapped to read (Linux).

    Weights are mapped to be compiled, and then mostly not read again. Whatever is read all the same
    comes back from the file.
    """
    library = _c_library()
    if library is None:
        return
    with contextlib.suppress(OSError):
        files = {str(path.resolve()) for path in folder.iterdir()}
        for line in Path("/proc/self/maps").read_bytes().split(b"\n"):
            addresses, _, rest = line.partition(b" ")
            permissions, *_, name = rest.split(maxsplit=4) or [b"", b""]
            if os.fsdecode(name) in files and b"w" not in permissions:
                start, end = (int(address, 16) for address in addresses.split(b"-"))
                library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def give_back() -> None:
    """Have the C library return the memory that is free in it to the system (glibc)."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


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
