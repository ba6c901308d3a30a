"""Graphs run for the first time by one thread: OpenVINO's are not made for two.

Where shapes vary, OpenVINO's plugin for processors works shapes out in one thread and prepares
kernels in another. Both look things up in a store of the graph's that has no lock, while kernels of
kinds not met before are entered there (`MultiCache`, as of 2026.4). Once in thousands of graphs a
shape is filed as a kernel then, and destroyed as one: a crash when the graph goes. Once all kinds
are entered nothing can happen any more, so a graph's first run is the one to be careful with.
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
    """oneTBB's `global_control`, which its ABI lays down."""

    _fields_ = (
        ("value", ctypes.c_size_t),
        ("reserved", ctypes.c_ssize_t),
        ("parameter", ctypes.c_int),
    )


@cache
def _controls() -> tuple[Any, Any] | None:
    """What begins and ends such a control in the oneTBB that is loaded; None where there is none.

    It was seen, and is known how to be kept from happening, on Linux only.
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
    """Keep what begins in a block, anywhere in this process, to the thread that asks for it.

    Threads that are at work already finish what they do.
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
