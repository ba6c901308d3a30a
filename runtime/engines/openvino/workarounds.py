"""Runs a graph's first time in a single thread: OpenVINO's graphs are not safe for two.

With dynamic shapes, OpenVINO's plugin for processors computes shapes in one thread and prepares
kernels in another. Both read a store of the graph that has no lock, while kernels of new kinds are
added to it (`MultiCache`, as of 2026.4). Once in thousands of graphs a shape is then stored as a
kernel, and destroyed as a kernel: a crash when the graph is freed. Once all kinds are stored the
fault cannot happen, so only a graph's first run needs care.
"""

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

logger = logging.getLogger("whisper_npu")

_LIBRARY = "libtbb.so.12"  # oneTBB, whose threads OpenVINO runs on
_CREATE = "_ZN3tbb6detail2r16createERNS0_2d114global_controlE"
_DESTROY = "_ZN3tbb6detail2r17destroyERNS0_2d114global_controlE"
_MAX_ALLOWED_PARALLELISM = 0


class _GlobalControl(ctypes.Structure):
    """oneTBB's `global_control`, with the layout of its ABI."""

    _fields_ = (
        ("value", ctypes.c_size_t),
        ("reserved", ctypes.c_ssize_t),
        ("parameter", ctypes.c_int),
    )


@cache
def _controls() -> tuple[Any, Any] | None:
    """Return the functions that begin and end such a control in the loaded oneTBB, None if none.

    The crash was seen, and the way to prevent it is known, on Linux only.
    """
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        return library[_CREATE], library[_DESTROY]
    except (OSError, AttributeError) as error:
        logger.debug("first runs are not kept to one thread: %s", error)
        return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run work that begins in this block, anywhere in this process, in its calling thread only.

    Threads that are already at work finish it.
    """
    controls = _controls()
    if controls is None:
        yield
        return
    create, destroy = controls
    control = ctypes.byref(_GlobalControl(1, 0, _MAX_ALLOWED_PARALLELISM))
    create(control)
    try:
        yield
    finally:
        destroy(control)
