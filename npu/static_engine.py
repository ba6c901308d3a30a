"""Runs the graphs of a bundle on OpenVINO, compiled or loaded from the cache.

Loading makes the graphs ready that every transcription needs. It also compiles the graphs for
longer prompts and for word times, so that no transcription waits for a compiler; they are loaded
when they are needed.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

from whisper_npu.errors import DeviceError
from whisper_npu.npu.bundle import DATA_FILE, Bundle, StaticGraph
from whisper_npu.npu.devices import Target
from whisper_npu.runtime.engines.device_calls import DeviceCalls, calling_device, hold
from whisper_npu.runtime.engines.memory import available_bytes
from whisper_npu.runtime.engines.openvino.compile_cache import (
    CompileCache,
    Contents,
    compile_cached,
)
from whisper_npu.runtime.engines.openvino.compile_key import CacheKey, cache_key
from whisper_npu.runtime.engines.openvino.sessions import RequestPool

logger = logging.getLogger("whisper_npu")

Progress = Callable[[str], None]
Array = npt.NDArray[Any]

# A compiler holds the graph, its own form of it, and the compiled result.
_MEMORY_PER_COMPILATION = 4  # times the bundle's weights


class Request(Protocol):
    """One run of a graph at a time; an input keeps its values until it is written again."""

    def buffer(self, name: str) -> Array:
        """The memory of an input; the next run reads the values written there."""
        ...

    def share(self, name: str, source: "Request", output: str) -> None:
        """Use another request's output as an input, without a copy."""
        ...

    def run(self) -> None:
        """Run the graph."""
        ...

    def output(self, name: str) -> Array:
        """A view of an output; valid until the next run."""
        ...


class Engine(Protocol):
    """Requests for the graphs of a bundle, by name."""

    @property
    def placements(self) -> dict[str, str]:
        """The device that executes each graph, by name."""
        ...

    @property
    def precision(self) -> str:
        """The precision of the computation."""
        ...

    def take(self, graph: str) -> Request:
        """A request for the caller alone."""
        ...

    def give(self, graph: str, request: Request) -> None:
        """Return a request for others to use."""
        ...


class OpenVINORequest:
    """A request of a compiled graph."""

    def __init__(self, request: ov.InferRequest, calls: DeviceCalls) -> None:
        self.raw = request
        self.calls = calls

    @calling_device
    def buffer(self, name: str) -> Array:
        """The memory of an input."""
        values: Array = self.raw.get_tensor(name).data
        return values

    @calling_device
    def share(self, name: str, source: Request, output: str) -> None:
        """Use another request's output as an input."""
        if not isinstance(source, OpenVINORequest):
            raise TypeError("requests of two engines cannot share memory")
        self.raw.set_tensor(name, source.raw.get_tensor(output))

    @calling_device
    def run(self) -> None:
        """Run the graph."""
        self.raw.infer()

    @calling_device
    def output(self, name: str) -> Array:
        """A view of an output."""
        values: Array = self.raw.get_tensor(name).data
        return values


class OpenVINOEngine:
    """The graphs of a bundle on one target. Safe to use from several threads."""

    def __init__(
        self,
        core: ov.Core,
        bundle: Bundle,
        target: Target,
        *,
        cache: CompileCache | None,
        at_once: Sequence[str],
        names: Sequence[str],
        progress: Progress | None = None,
    ) -> None:
        """Compile the graphs that are not in the cache, and load those needed at once.

        Args:
            core: the core that `target` was resolved with.
            bundle: the graphs.
            target: the device.
            cache: the cache of compiled graphs; None compiles all graphs now.
            at_once: graphs to load now.
            names: all graphs that may be used.
            progress: called with a line per compiled graph.

        Raises:
            DeviceError: the device refuses a graph.
        """
        self._core = core
        self._bundle = bundle
        self._target = target
        self._calls = DeviceCalls(target.label)
        self._cache = cache
        self._progress = progress
        self._pools: dict[str, RequestPool] = {}
        self._locks = {name: Lock() for name in names}
        self._keys = {name: self._key(name) for name in names}
        later = [name for name in names if name not in at_once and not self.is_kept(name)]
        with ThreadPoolExecutor(max_workers=_workers(bundle)) as compilers:
            jobs = [compilers.submit(self._load, name) for name in at_once]
            jobs += [compilers.submit(self._prepare, name) for name in later]
        for job in jobs:
            job.result()

    @property
    def placements(self) -> dict[str, str]:
        """The device that executes each graph, by name."""
        return dict.fromkeys(self._locks, self._target.label)

    @property
    def precision(self) -> str:
        """The precision of the target's computation."""
        return self._target.precision

    def take(self, graph: str) -> OpenVINORequest:
        """A request for the caller alone; loads the graph if needed."""
        self._calls.check()  # a lock may have been held when the process was forked
        pool = self._pool(graph)
        return OpenVINORequest(pool.take(), pool.calls)

    def give(self, graph: str, request: Request) -> None:
        """Return a request for others to use."""
        if isinstance(request, OpenVINORequest):
            self._pool(graph).give(request.raw)

    def _key(self, name: str) -> CacheKey:
        target = self._target
        return cache_key(
            self._core,
            self._bundle.identity(name),
            target.plugin,
            target.options,
            runs_on=target.runs_on,
        )

    def is_kept(self, name: str) -> bool:
        """Whether the cache holds a compiled graph."""
        return self._cache is not None and self._cache.has(self._keys[name])

    def _pool(self, name: str) -> RequestPool:
        with self._locks[name]:
            if name not in self._pools:
                self._pools[name] = self._pool_of(self._compile(name))
            return self._pools[name]

    def _load(self, name: str) -> None:
        self._pool(name)

    def _prepare(self, name: str) -> None:
        """Compile a graph into the cache; load it only if there is no cache."""
        compiled = self._compile(name)
        if not self.is_kept(name):
            with self._locks[name]:
                self._pools.setdefault(name, self._pool_of(compiled))

    def _pool_of(self, compiled: ov.CompiledModel) -> RequestPool:
        return RequestPool(hold(compiled), device=self._target.label)

    def _compile(self, name: str) -> ov.CompiledModel:
        graph = self._bundle.graphs[name]
        target = self._target
        if self._progress is not None and not self.is_kept(name):
            self._progress(f"compiling {name} for {target.label}")
        try:
            compiled = compile_cached(
                self._core,
                lambda: _read(self._core, graph),
                self._keys[name],
                target.options,
                cache=self._cache,
                contents=Contents(
                    str(self._bundle.path.parent.parent),
                    name,
                    f"{target.precision}, weights {self._bundle.weights}",
                ),
            )
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise DeviceError(
                f"{target.label} cannot compile {graph.path.name}: {reason}; see "
                "`whisper-npu doctor`"
            ) from None
        check_static(name, compiled)
        return compiled


def check_static(name: str, compiled: ov.CompiledModel) -> None:
    """Refuse a compiled graph with a shape that is not fixed.

    Raises:
        DeviceError: there is one; the message names the tensor.
    """
    for tensor in (*compiled.inputs, *compiled.outputs):
        if tensor.partial_shape.is_dynamic:
            raise DeviceError(f"{name}: {tensor.get_any_name()} has no fixed shape")


def _read(core: ov.Core, graph: StaticGraph) -> ov.Model:
    return core.read_model(graph.path)


def _workers(bundle: Bundle) -> int:
    """Number of graphs to compile at once: one per processor core, if memory allows."""
    weights = (bundle.path / DATA_FILE).stat().st_size
    affordable = available_bytes() // max(1, _MEMORY_PER_COMPILATION * weights)
    return int(np.clip(affordable, 1, os.cpu_count() or 1))
