"""Runs a model folder on OpenVINO, with the decoder's cache kept in one of four ways.

| kind     | past key/value states                                                    |
| -------- | ------------------------------------------------------------------------ |
| stateful | kept by the plugin; nothing is copied between steps                      |
| concat   | kept by the host, joined along the sequence axis step by step            |
| static   | kept by the host in a buffer for the whole context, written in place     |
| off      | none: the whole context is computed anew at each step (the oracle)       |
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.runtime import openvino_graphs as graphs
from whisper_npu.runtime.backend import DecoderSession, Float32Array, Int64Array
from whisper_npu.runtime.kv_cache import (
    ConcatCache,
    Contract,
    KVCache,
    State,
    StaticCache,
    is_cross_attention,
    is_self_attention,
    past_name,
)
from whisper_npu.runtime.model_dir import (
    ALIGNMENT,
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    ModelFolder,
)
from whisper_npu.runtime.openvino_alignment import align, read_alignment_graph

logger = logging.getLogger("whisper_npu")

CacheKind = Literal["stateful", "concat", "static", "off"]
CACHE_KINDS: tuple[str, ...] = get_args(CacheKind)
Precision = Literal["auto", "f32", "bf16", "f16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
_WINDOW_STEP = 200  # frames of 10 ms: as fine as is worth compiling kernels for
_ELEMENT_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}


class RequestPool:
    """Inference requests of one compiled graph, each used by one caller at a time."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self.compiled = compiled
        self._free: list[ov.InferRequest] = []
        self._lock = Lock()

    def take(self) -> ov.InferRequest:
        """A request nobody else uses."""
        with self._lock:
            if self._free:
                return self._free.pop()
        return self.compiled.create_infer_request()

    def give(self, request: ov.InferRequest) -> None:
        """Give a request back."""
        with self._lock:
            self._free.append(request)


class OpenVINOBackend:
    """A model folder compiled for one device. Safe to use from several threads."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "CPU",
        kv_cache: CacheKind = "stateful",
        precision: Precision = "f32",
        threads: int = 0,
    ) -> None:
        """Read and compile the graphs that `kv_cache` needs.

        Args:
            folder: the model.
            device: an OpenVINO device name.
            kv_cache: where past states are kept.
            precision: arithmetic the device is asked for; `auto` is bf16 for the
                stateful cache on a processor that computes in it, else f32.
            threads: processor threads for inference; 0 leaves it to OpenVINO.

        Raises:
            ModelError: the folder's graphs cannot be used.
            DeviceError: the device is missing or refuses a graph.
        """
        self._core = ov.Core()
        self._folder = folder
        self._alignment: RequestPool | None = None
        self._alignment_lock = Lock()
        self._device = device
        self._kv_cache: CacheKind = kv_cache
        self._check_device()
        self._precision = self._pick_precision() if precision == "auto" else precision
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self._precision,
        }
        if threads:
            self._config["INFERENCE_NUM_THREADS"] = threads

        encoder, decoder, with_past = graphs.read_trio(self._core, folder)
        self._dimensions = graphs.read_dimensions(encoder, with_past)
        self._n_text_ctx = folder.n_text_ctx
        stated = folder.kv_contract
        contract = stated or graphs.detect_contract(with_past)
        if contract is not None:
            source = "manifest" if stated else "graph"
            logger.debug("KV contract: %s (from the %s)", contract, source)

        self._elastic = graphs.make_elastic(encoder, self._dimensions.n_audio_ctx)
        graphs.keep_last_logits(decoder)
        graphs.keep_last_logits(with_past)
        wanted: dict[str, tuple[str, ov.Model]] = {"encoder": (ENCODER, encoder)}
        if kv_cache == "stateful":
            if contract is None:
                contract = self._probe_contract(with_past)
            if contract == "delta":
                graphs.append_new_states(with_past)
            element_type = _ELEMENT_TYPES[self._precision]
            cross = graphs.cross_attention_projection(decoder, element_type)
            graphs.convert_cross_states(with_past, element_type)
            graphs.make_stateful(with_past)
            wanted["cross"] = (DECODER, cross)
            wanted["with_past"] = (DECODER_WITH_PAST, with_past)
        else:
            wanted["decoder"] = (DECODER, decoder)
            if kv_cache != "off":
                wanted["with_past"] = (DECODER_WITH_PAST, with_past)
        with ThreadPoolExecutor(max_workers=2) as compilers:
            jobs = {
                name: compilers.submit(self._compile, model, file)
                for name, (file, model) in wanted.items()
            }
            self._pools = {name: RequestPool(job.result()) for name, job in jobs.items()}
        if contract is None and kv_cache != "off":
            contract = self._contract_by_step(self._pools["with_past"].take())
        self._contract: Contract | None = contract

    def _check_device(self) -> None:
        available = self._core.available_devices
        if self._device.split(".")[0] not in {name.split(".")[0] for name in available}:
            raise DeviceError(
                f"device {self._device} is not available here; "
                f"OpenVINO finds {', '.join(available) or 'none'}"
            )

    def _pick_precision(self) -> Precision:
        """bf16 for the fast path where the processor computes in it, else f32.

        The other kinds of cache are there to be compared with, so they are exact.
        """
        if self._kv_cache != "stateful" or self._device != "CPU":
            return "f32"
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bf16" if "BF16" in capabilities else "f32"

    def _compile(self, model: ov.Model, file: str) -> ov.CompiledModel:
        try:
            return self._core.compile_model(model, self._device, self._config)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DeviceError(f"{self._device} cannot compile {file}: {reason}") from None

    def _probe_contract(self, with_past: ov.Model) -> Contract:
        return self._contract_by_step(self._compile(with_past, "the probe").create_infer_request())

    def _contract_by_step(self, request: ov.InferRequest) -> Contract:
        """Run one step on a past of two positions and look at what comes back."""
        n_past, n_new = 2, 1
        d = self._dimensions
        for tensor in request.model_inputs:
            name = graphs.state_name(tensor)
            if name is None:
                request.set_tensor(tensor, ov.Tensor(np.zeros((1, n_new), np.int64)))
                continue
            length = n_past if is_self_attention(name) else d.n_audio_ctx
            zeros = np.zeros((1, d.n_text_head, length, d.head_dim), np.float32)
            request.set_tensor(tensor, ov.Tensor(zeros))
        request.infer()
        present = request.get_tensor("present.0.decoder.key")
        contract = graphs.contract_of(present.shape[2], n_past, n_new)
        logger.debug("KV contract: %s (from a probing step)", contract)
        return contract

    @property
    def n_mels(self) -> int:
        """Mel bands the encoder takes."""
        return self._dimensions.n_mels

    @property
    def n_audio_ctx(self) -> int:
        """Positions the encoder gives for a window."""
        return self._dimensions.n_audio_ctx

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Frames a window may have: every 2 s, where the encoder could be made elastic."""
        whole = 2 * self.n_audio_ctx
        shorter = range(_WINDOW_STEP, whole, _WINDOW_STEP) if self._elastic else ()
        return (*shorter, whole)

    @property
    def n_text_ctx(self) -> int:
        """Positions the decoder has."""
        return self._n_text_ctx

    @property
    def n_vocab(self) -> int:
        """Tokens the decoder chooses from."""
        return self._dimensions.n_vocab

    @property
    def device(self) -> str:
        """The devices that execute the graphs, as the compiled graphs themselves report them."""
        found = {
            device: None
            for pool in self._pools.values()
            for device in pool.compiled.get_property("EXECUTION_DEVICES")
        }
        return ",".join(found)

    @property
    def kv_cache(self) -> str:
        """Where past states are kept."""
        return self._kv_cache

    @property
    def precision(self) -> str:
        """The arithmetic the device was asked for."""
        return self._precision

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows, one at a time: a batch is no faster and needs more memory.

        Args:
            features: float32 `(windows, n_mels, frames)`, `frames` one of `window_frames`.

        Returns:
            float32 `(windows, frames // 2, n_audio_state)`.
        """
        d = self._dimensions
        out = np.empty((len(features), features.shape[2] // 2, d.n_audio_state), np.float32)
        pool = self._pools["encoder"]
        request = pool.take()
        try:
            for i, window in enumerate(features):
                request.set_tensor("input_features", ov.Tensor(np.ascontiguousarray(window[None])))
                request.infer()
                out[i] = request.get_tensor("last_hidden_state").data[0]
        finally:
            pool.give(request)
        return out

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """What the tokens of finished texts attend to; see `Backend.align`.

        The graph for it is compiled at the first call.
        """
        with self._alignment_lock:
            if self._alignment is None:
                model = read_alignment_graph(self._core, self._folder)
                self._alignment = RequestPool(self._compile(model, ALIGNMENT))
        pool = self._alignment
        request = pool.take()
        try:
            return align(request, audio, tokens)
        finally:
            pool.give(request)

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        """Begin decoding encoded windows; see `Backend.start`."""
        if self._kv_cache == "stateful":
            return _StatefulSession(
                self._pools["cross"],
                self._pools["with_past"],
                audio,
                rows_per_window,
                self._dimensions,
                self._n_text_ctx,
            )
        if rows_per_window > 1:
            audio = np.repeat(audio, rows_per_window, axis=0)
        if self._kv_cache == "off":
            return _UncachedSession(self._pools["decoder"], audio, self._n_text_ctx)
        if self._contract is None:
            raise ModelError("the KV contract is not known")
        cache: KVCache
        if self._kv_cache == "static":
            cache = StaticCache(self._contract, self._n_text_ctx)
        else:
            cache = ConcatCache(self._contract)
        return _CachedSession(
            self._pools["decoder"], self._pools["with_past"], audio, cache, self._n_text_ctx
        )


def _check_room(length: int, n_new: int, n_text_ctx: int) -> None:
    if length + n_new > n_text_ctx:
        raise UsageError(
            f"{length} + {n_new} tokens do not fit the decoder's context of {n_text_ctx}"
        )


class _Session:
    """What the kinds of sessions share: requests to give back, steps to log."""

    def __init__(self, n_text_ctx: int) -> None:
        self._n_text_ctx = n_text_ctx
        self._steps = 0
        self._release: list[Callable[[], None]] = []

    def _take(self, pool: RequestPool) -> ov.InferRequest:
        request = pool.take()
        self._release.append(lambda: pool.give(request))
        return request

    def close(self) -> None:
        """Give the requests back."""
        while self._release:
            self._release.pop()()

    def _log_step(self, self_shape: Sequence[int], cross_shape: Sequence[int]) -> None:
        self._steps += 1
        logger.debug(
            "step %d: self %s, cross %s", self._steps, tuple(self_shape), tuple(cross_shape)
        )


class _UncachedSession(_Session):
    """Computes the whole context anew at each step."""

    def __init__(self, decoder: RequestPool, audio: Float32Array, n_text_ctx: int) -> None:
        super().__init__(n_text_ctx)
        self._request = self._take(decoder)
        self._request.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
        self._tokens = np.empty((len(audio), 0), np.int64)

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._tokens.shape[1]

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        _check_room(self.length, n_new, self._n_text_ctx)
        self._tokens = np.concatenate((self._tokens, tokens), axis=1)
        self._request.set_tensor("input_ids", ov.Tensor(self._tokens))
        self._request.infer()
        self._log_step(
            self._request.get_tensor("present.0.decoder.key").shape,
            self._request.get_tensor("present.0.encoder.key").shape,
        )
        logits: Float32Array = self._request.get_tensor("logits").data
        return logits[:, -n_new:]

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row `i` continue what was row `rows[i]`."""
        self._tokens = self._tokens[list(rows)]


class _CachedSession(_Session):
    """Prefills with `decoder_model`, steps with `decoder_with_past_model` and a host's cache."""

    def __init__(
        self,
        decoder: RequestPool,
        with_past: RequestPool,
        audio: Float32Array,
        cache: KVCache,
        n_text_ctx: int,
    ) -> None:
        super().__init__(n_text_ctx)
        self._cache = cache
        self._prefill = self._take(decoder)
        self._prefill.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
        self._step = self._take(with_past)
        self._inputs = {name for name in map(graphs.state_name, with_past.compiled.inputs) if name}

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._cache.length

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        _check_room(self.length, tokens.shape[1], self._n_text_ctx)
        first = self._cache.length == 0
        request = self._prefill if first else self._step
        if not first:
            for name, state in self._cache.past().items():
                request.set_tensor(name, ov.Tensor(np.ascontiguousarray(state)))
        request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
        request.infer()
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
        """Make row `i` continue what was row `rows[i]`."""
        self._cache.reorder(rows)


def _repeat_rows(state: ov.Tensor, times: int) -> ov.Tensor:
    """Each row of `state` `times` times over, in the same element type."""
    rows = np.repeat(state.data, times, axis=0)
    repeated = ov.Tensor(state.element_type, ov.Shape(rows.shape))
    repeated.data[:] = rows
    return repeated


def _present_states(request: ov.InferRequest) -> dict[str, State]:
    """Views of the states a request has just returned, by name."""
    return {
        name: request.get_tensor(tensor).data
        for tensor in request.model_outputs
        if (name := graphs.state_name(tensor))
    }


class _StatefulSession(_Session):
    """Leaves the self-attention states with the plugin; one graph prefills and steps."""

    def __init__(
        self,
        cross: RequestPool,
        with_past: RequestPool,
        audio: Float32Array,
        rows_per_window: int,
        dimensions: graphs.GraphDimensions,
        n_text_ctx: int,
    ) -> None:
        super().__init__(n_text_ctx)
        self._batch = len(audio) * rows_per_window
        self._dimensions = dimensions
        self._n_audio_ctx = audio.shape[1]
        self._length = 0
        self._request = self._take(with_past)
        projection = self._take(cross)
        projection.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
        projection.infer()
        for tensor in projection.model_outputs:
            state = projection.get_tensor(tensor)
            if rows_per_window > 1:
                state = _repeat_rows(state, rows_per_window)
            self._request.set_tensor(next(iter(tensor.get_names())), state)
        empty = np.zeros((self._batch, dimensions.n_text_head, 0, dimensions.head_dim), np.float32)
        self._states = self._request.query_state()
        for variable in self._states:
            variable.state = ov.Tensor(empty)  # whatever the last session left is gone

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._length

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        _check_room(self._length, n_new, self._n_text_ctx)
        self._request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
        self._request.infer()
        self._length += n_new
        d = self._dimensions
        self._log_step(
            (self._batch, d.n_text_head, self._length, d.head_dim),
            (self._batch, d.n_text_head, self._n_audio_ctx, d.head_dim),
        )
        logits: Float32Array = self._request.get_tensor("logits").data
        return logits

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row `i` continue what was row `rows[i]`."""
        if list(rows) == list(range(self._batch)):
            return
        for variable in self._states:
            variable.state = ov.Tensor(variable.state.data[list(rows)])
