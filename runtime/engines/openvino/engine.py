"""Runs a model folder on OpenVINO, with one of four kinds of cache for the decoder.

| kind     | past key/value states                                                    |
| -------- | ------------------------------------------------------------------------ |
| stateful | kept by the plugin; nothing is copied between steps                      |
| concat   | kept by the host, joined along the sequence axis step by step            |
| static   | kept by the host in a buffer for the whole context, written in place     |
| off      | none: the whole context is computed anew at each step (the oracle)       |
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Thread

import numpy as np
import openvino as ov

from whisper_npu.errors import DeviceError, ModelError
from whisper_npu.runtime.engines.choices import CacheKind, Precision
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.device_calls import DeviceCalls, calling_device, hold
from whisper_npu.runtime.engines.kv_cache import ConcatCache, KVCache, StaticCache
from whisper_npu.runtime.engines.openvino.alignment import align, can_align, read_alignment_graph
from whisper_npu.runtime.engines.openvino.compile import GraphCompiler
from whisper_npu.runtime.engines.openvino.compile_config import (
    CompileRequest,
    Plan,
)
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.openvino.sessions import (
    CachedSession,
    RequestPool,
    UncachedSession,
)
from whisper_npu.runtime.engines.openvino.stateful_session import StatefulSession
from whisper_npu.runtime.engines.protocol import (
    DecoderSession,
    Float32Array,
    Int64Array,
    SingleStream,
)
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.layout import ALIGNMENT

logger = logging.getLogger("whisper_npu")

_MOST_STREAMS = 4
_WINDOW_STEP = 200  # frames of 10 ms: finer steps are not worth their kernels


class OpenVINOBackend(SingleStream):
    """A model folder compiled for one device. Safe to use from several threads."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "CPU",
        kv_cache: CacheKind = "stateful",
        precision: Precision = "f32",
        threads: int = 0,
        streams: int = 1,
        cache: CompileCache | None = None,
        progress: Callable[[str], None] = logger.info,
    ) -> None:
        """Load or compile the graphs that `kv_cache` needs.

        Args:
            folder: the model.
            device: an OpenVINO device name.
            kv_cache: the kind of cache for past states.
            precision: the arithmetic requested of the device. `int8` multiplies by matrices in 8
                bits (see `int8_weights`). The rest of the encoder, and products with
                cross-attention's states, are in bf16 if the processor computes in it, else in f32.
                The rest of the decoder is in f32. With AMX all of the encoder is in bf16.
                `auto` is int8 for the stateful cache on a processor that multiplies in it,
                else f32.
            threads: processor threads for inference; 0 leaves it to OpenVINO.
            streams: callers that share the threads.
            cache: of compiled graphs, used for the stateful cache on a processor; None compiles
                them now.
            progress: called with one line per graph that is compiled.

        Raises:
            ModelError: the folder's graphs cannot be used.
            DeviceError: the device is missing or refuses a graph.
            UsageError: int8 is requested on a device that is no processor, or the device does not
                compute in the precision.
        """
        self._core = openvino_core()
        self._folder = folder
        self._alignment: RequestPool | None = None
        self._alignment_lock = Lock()
        self._device = device
        self._kv_cache: CacheKind = kv_cache
        self._wanted_precision: Precision = precision
        self.calls = DeviceCalls(device)
        wanted = CompileRequest(device, kv_cache, precision, threads, streams)
        with self.calls:
            self._plan = Plan(self._core, wanted)
            self._compiler = GraphCompiler(self._core, folder, self._plan, progress)
            compiled = self._compiler.compile(cache)
        self._info = compiled.info
        self._n_text_ctx = folder.context_length(self._info.dimensions.n_text_ctx)
        self._n_threads_used = 1
        if device.startswith("CPU"):  # a compiled graph answers while no request of it is running
            found = compiled.graphs["encoder"].get_property("INFERENCE_NUM_THREADS")
            self._n_threads_used = int(found)
        self._n_alone = streams if self._n_threads_used > streams else 0
        self._pools = {
            name: RequestPool(
                hold(graph), device=device, n_alone=self._n_alone if self._may_race(name) else 0
            )
            for name, graph in compiled.graphs.items()
        }
        self._cache = cache
        self._n_threads = threads
        self._streams: OpenVINOBackend | None = self if streams > 1 else None
        self._streams_lock = Lock()
        self._preparing = Lock()
        if self._n_alone == 1:  # it is done before there is something to encode
            Thread(target=self._try_to_prepare, name="whisper-npu-preparing").start()

    def _may_race(self, name: str) -> bool:
        """Whether a graph's first run must be single-threaded; see `workarounds`.

        If the plugin keeps the states, the decoder's kernels compute their shapes alone.
        """
        return self._info.elastic if name == "encoder" else not self._plan.is_fast_path

    def _try_to_prepare(self) -> None:
        with suppress(DeviceError):  # the caller that encodes gets the error
            self._prepare()

    def _prepare(self) -> None:
        """Run the encoder's shortest window, if it has not run for this thread.

        The first run is single-threaded, so it uses the shortest window.
        """
        pool = self._pools["encoder"]
        with self._preparing:
            if pool.is_prepared:
                return
            request = pool.take()
            try:
                shortest = np.zeros((1, self.n_mels, self.window_frames[0]), np.float32)
                request.set_tensor("input_features", ov.Tensor(shortest))
                pool.run(request)
            finally:
                pool.give(request)

    @property
    def n_streams(self) -> int:
        """Number of streams that share the threads; one if the device is no processor.

        One for a large model: its matrices keep all threads busy, and streams would need a second
        copy of its weights.
        """
        is_large = self._info.dimensions.is_large
        if self._device != "CPU" or self._kv_cache != "stateful" or is_large:
            return 1
        return min(self._n_threads_used, _MOST_STREAMS)

    def parallel(self) -> "OpenVINOBackend":
        """Return the same model for `n_streams` callers at once; compiled at the first call."""
        if self.n_streams == 1:
            return self
        self.calls.check()  # the process may have been forked while the lock was held
        with self._streams_lock:
            if self._streams is None:
                self._streams = OpenVINOBackend(
                    self._folder,
                    device=self._device,
                    kv_cache=self._kv_cache,
                    precision=self._wanted_precision,
                    threads=self._n_threads,
                    streams=self.n_streams,
                    cache=self._cache,
                )
                self._streams._silence = self.silence()
        return self._streams

    @property
    def n_mels(self) -> int:
        """Mel bands of the encoder's input."""
        return self._info.dimensions.n_mels

    @property
    def n_audio_ctx(self) -> int:
        """Positions of an encoded window."""
        return self._info.dimensions.n_audio_ctx

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Lengths of a window in frames, every 2 s, if the encoder could be made elastic."""
        whole = 2 * self.n_audio_ctx
        shorter = range(_WINDOW_STEP, whole, _WINDOW_STEP) if self._info.elastic else ()
        return (*shorter, whole)

    @property
    def n_text_ctx(self) -> int:
        """Positions of the decoder."""
        return self._n_text_ctx

    @property
    def n_vocab(self) -> int:
        """Size of the decoder's vocabulary."""
        return self._info.dimensions.n_vocab

    @property
    def device(self) -> str:
        """The devices that execute the graphs, as reported by the compiled graphs themselves."""
        found = {
            device: None
            for pool in self._pools.values()
            for device in pool.compiled.get_property("EXECUTION_DEVICES")
        }
        return ",".join(found)

    @property
    def kv_cache(self) -> str:
        """The kind of cache for past states."""
        return self._kv_cache

    @property
    def precision(self) -> str:
        """The arithmetic requested of the device; `int8+` and the encoder's other arithmetic."""
        return self._info.precision(self._plan.compute_precision)

    @property
    def is_exact(self) -> bool:
        """Whether the arithmetic is f32, unless `auto` chose it as the fastest here."""
        is_f32 = self._plan.compute_precision == "f32" and not self._info.is_int8
        return is_f32 and not self._plan.is_for_speed

    @property
    def can_align(self) -> bool:
        """Whether the folder gives word times."""
        return can_align(self._folder, shows_attention=self._info.shows_attention)

    @property
    def window_bytes(self) -> int:
        """Memory for the attention's keys and values of one window, in bytes."""
        d = self._info.dimensions
        is_narrow = self._kv_cache == "stateful" and self._plan.compute_precision != "f32"
        of_cross_attention = self.n_audio_ctx * (2 if is_narrow else 4)
        of_text = self._n_text_ctx * 4
        width = d.n_text_head * d.head_dim
        return 2 * d.n_text_layer * width * (of_cross_attention + of_text)

    @calling_device
    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows, one at a time: a batch is no faster and needs more memory.

        Args:
            features: float32 `(windows, n_mels, frames)`, `frames` one of `window_frames`.

        Returns:
            float32 `(windows, frames // 2, n_audio_state)`.
        """
        d = self._info.dimensions
        out = np.empty((len(features), features.shape[2] // 2, d.n_audio_state), np.float32)
        pool = self._pools["encoder"]
        if not pool.is_prepared:
            self._prepare()
        request = pool.take()
        try:
            for i, window in enumerate(features):
                request.set_tensor("input_features", ov.Tensor(np.ascontiguousarray(window[None])))
                pool.run(request)
                out[i] = request.get_tensor("last_hidden_state").data[0]
        finally:
            pool.give(request)
        return out

    @calling_device
    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """Return the attention of finished texts; see `Backend.align`.

        The graph for it is compiled at the first call.
        """
        with self._alignment_lock:
            if self._alignment is None:
                model = read_alignment_graph(self._core, self._folder)
                self._alignment = RequestPool(
                    hold(self._compiler.compile_one(model, ALIGNMENT)),
                    device=self._device,
                    n_alone=self._n_alone,
                )
        pool = self._alignment
        request = pool.take()
        try:
            return align(pool, request, audio, tokens)
        finally:
            pool.give(request)

    @calling_device
    def start(self, audio: Float32Array, rows_per_window: int = 1) -> DecoderSession:
        """Start decoding encoded windows; see `Backend.start`."""
        if self._kv_cache == "stateful":
            return StatefulSession(
                self._pools["cross"],
                self._pools["with_past"],
                audio,
                rows_per_window,
                self._info.dimensions,
                self._n_text_ctx,
                on_processor=self._device.startswith("CPU"),
                heads=self._info.heads,
            )
        if rows_per_window > 1:
            audio = np.repeat(audio, rows_per_window, axis=0)
        if self._kv_cache == "off":
            return UncachedSession(self._pools["decoder"], audio, self._n_text_ctx)
        contract = self._info.contract
        if contract is None:
            raise ModelError("the KV contract is not known")
        cache: KVCache
        if self._kv_cache == "static":
            cache = StaticCache(contract, self._n_text_ctx)
        else:
            cache = ConcatCache(contract)
        return CachedSession(
            self._pools["decoder"], self._pools["with_past"], audio, cache, self._n_text_ctx
        )
