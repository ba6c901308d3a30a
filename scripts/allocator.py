"""How a program gets memory from the system: one setting of the C library."""

import ctypes
import os
import sys

_M_MMAP_THRESHOLD = -3  # glibc's malloc.h
_THRESHOLD = 4 << 20  # bytes: above the logits of a step, below the audio of a batch
_OWN_SETTING = "MALLOC_MMAP_THRESHOLD_"


def give_back_large_blocks() -> bool:
    """Let large blocks of memory go back to the system as soon as they are freed.

    glibc begins that way, but moves its limit up to every large block that is freed; from then on
    such blocks come from heaps that cannot shrink while anything behind them is in use, and a long
    recording needs more memory than a short one.

    Returns:
        whether it could be set; False with another C library, and where the user's environment
        has a setting of its own.
    """
    if not sys.platform.startswith("linux") or _OWN_SETTING in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD))
