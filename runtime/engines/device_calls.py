"""Calls into an inference engine: a failure becomes a `DeviceError`, and a fork is noticed.

An engine's threads are not there in a forked child: what was loaded before waits for them for ever,
even to be freed. So in a child it is not used, and never freed.
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
    """A context for calls into what was loaded on a device; for any number of threads.

    Within it, an engine's error becomes a `DeviceError` in the device's own words. In a child that
    was forked after loading, entering it raises a `DeviceError`.
    """

    def __init__(self, device: str) -> None:
        """Something is loaded, in this process, on `device`, as messages call it."""
        self._device = device
        self._process = os.getpid()

    def check(self) -> None:
        """Make sure that it was loaded in this process.

        Raises:
            DeviceError: it was not.
        """
        if os.getpid() != self._process:
            raise DeviceError(
                "the model was loaded before this process was forked, and its threads stayed "
                "behind; load it in the child, or begin processes by multiprocessing's spawn"
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
        """Tell an engine's error as a `DeviceError`."""
        if isinstance(error, (RuntimeError, MemoryError)):
            raise self.error(error) from None

    def error(self, error: BaseException) -> DeviceError:
        """The `DeviceError` that stands for an engine's error."""
        nothing = "it is out of memory" if isinstance(error, MemoryError) else type(error).__name__
        reason = (str(error).strip().splitlines() or [nothing])[-1]
        return DeviceError(f"{self._device} failed to run the model: {reason}")


class _CallsADevice(Protocol):
    @property
    def calls(self) -> DeviceCalls:
        """What its calls into the device are made in."""
        ...


_T = TypeVar("_T", bound=_CallsADevice)


def calling_device(
    method: Callable[Concatenate[_T, _P], _R],
) -> Callable[Concatenate[_T, _P], _R]:
    """Have a method run in its object's `calls`."""

    @wraps(method)
    def call(self: _T, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.calls:
            return method(self, *args, **kwargs)

    return call


def hold(native: _R) -> _R:
    """Note an engine's object, which a forked child must not free, and return it."""
    _held[id(native)] = native
    return native


def _never_free() -> None:
    """Take a reference that is never given back to all that was noted."""
    take = ctypes.pythonapi.Py_IncRef
    take.argtypes, take.restype = [ctypes.py_object], None
    for native in list(_held.values()):
        take(native)
    _held.clear()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_never_free)
