"""Counts the work and memory of decoding at the inference requests.

The counts come from the inputs of every request that runs, not from a formula. The self-attention
computes keys and values for the token positions that are fed to a decoder graph, the
cross-attention for the positions of encoded audio that are fed to it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openvino as ov

from whisper_npu.runtime.engines.kv_cache import (
    ConcatCache,
    State,
    StaticCache,
    is_cross_attention,
    is_self_attention,
)


@dataclass
class Counts:
    """Work and memory since counting began.

    Attributes:
        self_positions: Token positions whose self-attention keys and values were computed.
        cross_positions: Audio positions whose cross-attention keys and values were computed.
        self_bytes: Bytes of self-attention states after each run of a decoder graph.
        cross_bytes: Bytes of cross-attention states.
        resident: Memory of the whole process after each run of a decoder graph, in bytes; empty if
            the system does not tell.
    """

    self_positions: int = 0
    cross_positions: int = 0
    self_bytes: list[int] = field(default_factory=list)
    cross_bytes: int = 0
    resident: list[int] = field(default_factory=list)
    _host_bytes: int | None = None

    def started(self, request: ov.InferRequest) -> None:
        """Count a request that is about to run."""
        for name, tensor in _inputs(request):
            if name == "input_ids":
                self.self_positions += tensor.size
            elif name == "encoder_hidden_states":
                self.cross_positions += tensor.shape[0] * tensor.shape[1]

    def finished(self, request: ov.InferRequest) -> None:
        """Count a request that has run."""
        inputs = _inputs(request)
        if not any(name == "input_ids" for name, _ in inputs):
            return
        kept_by_plugin = sum(state.state.byte_size for state in request.query_state())
        fed = sum(tensor.byte_size for name, tensor in inputs if is_self_attention(name))
        self.self_bytes.append(kept_by_plugin or self._host_bytes or fed)
        cross = sum(tensor.byte_size for name, tensor in inputs if is_cross_attention(name))
        self.cross_bytes = max(self.cross_bytes, cross)
        memory = resident_memory()
        if memory is not None:
            self.resident.append(memory)

    def updated(self, cache: ConcatCache | StaticCache) -> None:
        """Count a cache on the host that has received new states."""
        self._host_bytes = cache.n_bytes
        if self.self_bytes:
            self.self_bytes[-1] = cache.n_bytes


def _inputs(request: ov.InferRequest) -> list[tuple[str, ov.Tensor]]:
    """Inputs of the decoder's graphs, by name."""
    found = []
    for port in request.model_inputs:
        for name in port.get_names():
            if name in {"input_ids", "encoder_hidden_states"} or name.startswith("past_key_values"):
                found.append((name, request.get_tensor(port)))
                break
    return found


def resident_memory() -> int | None:
    """Memory of this process in bytes; None if the system does not tell."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the work of every OpenVINO request in this process. Slow: not for timing."""
    counts = Counts()
    infer, start_async, wait = (
        getattr(ov.InferRequest, name) for name in ("infer", "start_async", "wait")
    )

    def counted_infer(request: ov.InferRequest, *args: Any, **kwargs: Any) -> Any:
        result = infer(request, *args, **kwargs)
        counts.started(request)  # its inputs may be arguments of the call
        counts.finished(request)
        return result

    def counted_start(request: ov.InferRequest, *args: Any, **kwargs: Any) -> Any:
        counts.started(request)  # its inputs must not be read while it runs
        return start_async(request, *args, **kwargs)

    def counted_wait(request: ov.InferRequest) -> Any:
        result = wait(request)
        counts.finished(request)
        return result

    with (
        patch.object(ov.InferRequest, "infer", counted_infer),
        patch.object(ov.InferRequest, "start_async", counted_start),
        patch.object(ov.InferRequest, "wait", counted_wait),
        patch.object(ConcatCache, "update", _counted_update(ConcatCache.update, counts)),
        patch.object(StaticCache, "update", _counted_update(StaticCache.update, counts)),
    ):
        yield counts


def _counted_update(update: Callable[..., None], counts: Counts) -> Callable[..., None]:
    def counted(cache: Any, present: Mapping[str, State], n_new: int) -> None:
        update(cache, present, n_new)
        counts.updated(cache)

    return counted
