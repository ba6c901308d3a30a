"""Runs the graphs of a bundle on ONNX Runtime, as `static_engine` does on OpenVINO."""

from threading import Lock

import numpy as np

from whisper_npu.npu.bundle import Bundle
from whisper_npu.npu.static_engine import Array, Request
from whisper_npu.runtime.engines.onnxruntime import GraphSession, open_graph, resolve_precision

_INTEGERS = ("input_ids", "cache_position", "logit_positions", "audio_length")


class OnnxRuntimeRequest:
    """One run of a graph at a time, with its inputs and outputs."""

    def __init__(self, session: GraphSession) -> None:
        self._session = session
        self._inputs = {
            name: np.zeros(shape, np.int64 if name in _INTEGERS else np.float32)
            for name, shape in session.inputs.items()
        }
        self._shared: dict[str, tuple[Request, str]] = {}
        self._outputs: dict[str, Array] = {}

    def buffer(self, name: str) -> Array:
        """The memory of an input."""
        return self._inputs[name]

    def share(self, name: str, source: Request, output: str) -> None:
        """Use another request's output as an input."""
        self._shared[name] = (source, output)

    def run(self) -> None:
        """Run the graph."""
        shared = {name: source.output(output) for name, (source, output) in self._shared.items()}
        self._outputs = self._session.run({**self._inputs, **shared})

    def output(self, name: str) -> Array:
        """An output."""
        return self._outputs[name]


class OnnxRuntimeEngine:
    """The graphs of a bundle on one device. Safe to use from several threads."""

    def __init__(
        self,
        bundle: Bundle,
        device: str,
        precision: str,
        *,
        threads: int,
        at_once: list[str],
        names: list[str],
    ) -> None:
        """Load the graphs that are needed at once; other graphs are loaded on first use."""
        self._bundle = bundle
        self._device = device
        self._precision = resolve_precision(device, precision)
        self._threads = threads
        self._sessions: dict[str, GraphSession] = {}
        self._free: dict[str, list[OnnxRuntimeRequest]] = {name: [] for name in names}
        self._lock = Lock()
        for name in at_once:
            self.give(name, self.take(name))

    @property
    def placements(self) -> dict[str, str]:
        """The device that executes each graph, by name."""
        return dict.fromkeys(self._free, f"{self._device} (ONNX Runtime)")

    @property
    def precision(self) -> str:
        """The precision of the device's computation."""
        return self._precision

    def take(self, graph: str) -> OnnxRuntimeRequest:
        """A request for the caller alone; loads the graph if needed."""
        with self._lock:
            if self._free[graph]:
                return self._free[graph].pop()
            if graph not in self._sessions:
                self._sessions[graph] = open_graph(
                    self._bundle.graphs[graph].path,
                    self._device,
                    self._precision,
                    threads=self._threads,
                    identity=self._bundle.identity(graph),
                )
            return OnnxRuntimeRequest(self._sessions[graph])

    def give(self, graph: str, request: Request) -> None:
        """Return a request for others to use."""
        if isinstance(request, OnnxRuntimeRequest):
            with self._lock:
                self._free[graph].append(request)
