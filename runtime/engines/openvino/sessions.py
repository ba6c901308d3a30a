"""Decoding sessions on OpenVINO requests, one class for each kind of cache.

See `engine` for the kinds.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, local
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov

from whisper_npu.runtime.engines.device_calls import DeviceCalls, calling_device, hold
from whisper_npu.runtime.engines.kv_cache import (
    KVCache,
    State,
    is_cross_attention,
    is_self_attention,
    past_name,
)
from whisper_npu.runtime.engines.memory import release_memory
from whisper_npu.runtime.engines.openvino import graphs
from whisper_npu.runtime.engines.openvino.workarounds import one_thread
from whisper_npu.runtime.engines.protocol import (
    Float32Array,
    Int64Array,
    NoAttention,
    check_room,
)

logger = logging.getLogger("whisper_npu")

_READS_WEIGHTS = 2  # runs of a graph: the decoder makes kernels for a prompt, then for a token


class RequestPool:
    """Inference requests of one compiled graph, each used by one caller at a time."""

    def __init__(
        self, compiled: ov.CompiledModel, *, device: str = "the device", n_alone: int = 0
    ) -> None:
        """Make no request yet.

        Args:
            compiled: the graph.
            device: the device's name in messages.
            n_alone: copies of the graph, one for each stream, whose first run must be
                single-threaded (`workarounds`); 0 if there is no need.
        """
        self.compiled = compiled
        self.calls = DeviceCalls(device)
        self._n_alone = n_alone
        # With several streams, each calling thread has its own stream.
        self._prepared: Any = local() if n_alone > 1 else SimpleNamespace()
        self._is_fresh = True
        self._n_runs = 0
        self._free: list[ov.InferRequest] = []
        self._lock = Lock()

    def take(self) -> ov.InferRequest:
        """Return a request that no other caller uses.

        Raises:
            DeviceError: the device fails, or the graph was loaded before a fork.
        """
        self.calls.check()  # the process may have been forked while a lock was held
        with self._lock:
            if self._free:
                return self._free.pop()
        with self.calls:
            return hold(self.compiled.create_infer_request())

    def give(self, request: ov.InferRequest) -> None:
        """Return a request to the pool."""
        with self._lock:
            self._free.append(request)
            was_fresh = self._is_fresh
            self._is_fresh = 0 < self._n_runs < _READS_WEIGHTS
        if was_fresh:  # the kernels have read and rearranged the weights
            release_memory()

    def run(self, request: ov.InferRequest) -> None:
        """Run a request of this pool; its outputs stay in place until it runs again.

        Raises:
            DeviceError: the device fails, or the graph was loaded before a fork.
        """
        with self.calls, self._preparing():
            request.infer(share_outputs=True)  # else it would copy the outputs
        self._prepared.once = True
        self._n_runs += 1

    @property
    def is_prepared(self) -> bool:
        """Whether this thread's next run needs no care; else it is single-threaded."""
        return self._n_alone == 0 or getattr(self._prepared, "once", False)

    def _preparing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.is_prepared else one_thread()


class OpenVINOSession(NoAttention):
    """Base of sessions: returns requests to their pools, and logs steps."""

    def __init__(self, n_text_ctx: int, calls: DeviceCalls) -> None:
        self._n_text_ctx = n_text_ctx
        self.calls = calls
        self._steps = 0
        self._release: list[Callable[[], None]] = []

    def _take(self, pool: RequestPool) -> ov.InferRequest:
        request = pool.take()
        self._release.append(lambda: pool.give(request))
        return request

    def close(self) -> None:
        """Return the requests to their pools."""
        while self._release:
            self._release.pop()()

    def keep(self, rows: Sequence[int]) -> bool:
        """Keep all rows; see `DecoderSession.keep`."""
        return False

    def _log_step(self, self_shape: Sequence[int], cross_shape: Sequence[int]) -> None:
        self._steps += 1
        logger.debug(
            "step %d: self %s, cross %s", self._steps, tuple(self_shape), tuple(cross_shape)
        )


class UncachedSession(OpenVINOSession):
    """Computes the whole context anew at each step."""

    def __init__(self, decoder: RequestPool, audio: Float32Array, n_text_ctx: int) -> None:
        super().__init__(n_text_ctx, decoder.calls)
        self._pool = decoder
        self._request = self._take(decoder)
        self._request.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
        self._tokens = np.empty((len(audio), 0), np.int64)

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._tokens.shape[1]

    @calling_device
    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        check_room(self.length, n_new, self._n_text_ctx)
        self._tokens = np.concatenate((self._tokens, tokens), axis=1)
        self._request.set_tensor("input_ids", ov.Tensor(self._tokens))
        self._pool.run(self._request)
        self._log_step(
            self._request.get_tensor("present.0.decoder.key").shape,
            self._request.get_tensor("present.0.encoder.key").shape,
        )
        logits: Float32Array = self._request.get_tensor("logits").data
        return logits[:, -n_new:]

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._tokens = self._tokens[list(rows)]


class CachedSession(OpenVINOSession):
    """Prefills with `decoder_model`, steps with `decoder_with_past_model` and a host cache."""

    def __init__(
        self,
        decoder: RequestPool,
        with_past: RequestPool,
        audio: Float32Array,
        cache: KVCache,
        n_text_ctx: int,
    ) -> None:
        super().__init__(n_text_ctx, decoder.calls)
        self._cache = cache
        self._decoder, self._with_past = decoder, with_past
        self._prefill = self._take(decoder)
        self._prefill.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
        self._step = self._take(with_past)
        self._inputs = {name for name in map(graphs.state_name, with_past.compiled.inputs) if name}

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._cache.length

    @calling_device
    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        check_room(self.length, tokens.shape[1], self._n_text_ctx)
        first = self._cache.length == 0
        pool = self._decoder if first else self._with_past
        request = self._prefill if first else self._step
        if not first:
            for name, state in self._cache.past().items():
                request.set_tensor(name, ov.Tensor(np.ascontiguousarray(state)))
        request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
        pool.run(request)
        present = _present_states(request)
        self._cache.update(
            {name: state for name, state in present.items() if is_self_attention(name)},
            tokens.shape[1],
        )
        if first:
            for name, state in present.items():
                if is_cross_attention(name) and past_name(name) in self._inputs:
                    self._step.set_tensor(past_name(name), ov.Tensor(state))
        key = next(state for name, state in self._cache.past().items() if name.endswith(".key"))
        cross = self._prefill.get_tensor("present.0.encoder.key")
        self._log_step(key.shape, cross.shape)
        logits: Float32Array = request.get_tensor("logits").data
        return logits

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._cache.reorder(rows)


def _present_states(request: ov.InferRequest) -> dict[str, State]:
    """Return views of the states that a request has just computed, by name."""
    return {
        name: request.get_tensor(tensor).data
        for tensor in request.model_outputs
        if (name := graphs.state_name(tensor))
    }
