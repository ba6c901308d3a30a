"""Calls an inference engine: turns failures into `DeviceError`, and detects forks.

A forked child lacks the engine's threads. An object loaded before the fork would wait for them for
ever, even to be freed. So the child does not use such objects and never frees them.
"""

import ctypes
import os
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

from whisper_npu.errors import DeviceError

_P = ParamSpec("_P")
_R = TypeVar("_R")

# The engine's objects that are alive in this process, by identity.
_held: "WeakValueDictionary[int, Any]" = WeakValueDictionary()


class DeviceCalls:
    """A context for calls into objects loaded on a device; for any number of threads.

    Within it, an engine's error becomes a `DeviceError` in the device's own words. In a child that
    was forked after loading, entering it raises a `DeviceError`.
    """

    def __init__(self, device: str) -> None:
        """Remember this process and `device`, the device's name in messages."""
        self._device = device
        self._process = os.getpid()

    def check(self) -> None:
        """Make sure that the model was loaded in this process.

        Raises:
            DeviceError: it was loaded in another process.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "the model was loaded before this process was forked, and its threads do not "
                "exist here; load it in the child, or start processes with multiprocessing's spawn"
            )

    def __enter__(self) -> None:
        """See `check`."""
        self.check()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise an engine's error as a `DeviceError`."""
        if isinstance(error, (RuntimeError, MemoryError)):
            raise self.error(error) from None

    def error(self, error: BaseException) -> DeviceError:
        """Return the `DeviceError` for an engine's error."""
        nothing = "it is out of memory" if isinstance(error, MemoryError) else type(error).__name__
        reason = (str(error).strip().splitlines() or [nothing])[-1]
        return DeviceError(f"{self._device} failed to run the model: {reason}")


class _CallsADevice(Protocol):
    @property
    def calls(self) -> DeviceCalls:
        """The context of this object's calls into the device."""
        ...


_T = TypeVar("_T", bound=_CallsADevice)


def calling_device(
    method: Callable[Concatenate[_T, _P], _R],
) -> Callable[Concatenate[_T, _P], _R]:
    """Decorate a method to run in its object's `calls`."""

    @wraps(method)
    def call(self: _T, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.calls:
            return method(self, *args, **kwargs)

    return call


def hold(native: _R) -> _R:
    """Note an engine's object that a forked child must not free, and return it."""
    _held[id(native)] = native
    return native


def _never_free() -> None:
    """Take a reference to every noted object that is never released."""
    take = ctypes.pythonapi.Py_IncRef
    take.argtypes, take.restype = [ctypes.py_object], None
    for native in list(_held.values()):
        take(native)
    _held.clear()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_never_free)
