"""Runs a model folder on OpenVINO, with the decoder's cache kept in one of four ways.

| kind     | past key/value states                                                    |
| -------- | ------------------------------------------------------------------------ |
| stateful | kept by the plugin; nothing is copied between steps                      |
| concat   | kept by the host, joined along the sequence axis step by step            |
| static   | kept by the host in a buffer for the whole context, written in place     |
| off      | none: the whole context is computed anew at each step (the oracle)       |
"""

import logging
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.runtime import openvino_graphs as graphs
from whisper_npu.runtime.backend import DecoderSession, Float32Array, Int64Array, SingleStream
from whisper_npu.runtime.eight_bits import GROUP, has_matrices, round_products
from whisper_npu.runtime.kv_cache import (
    ConcatCache,
    Contract,
    KVCache,
    StaticCache,
    is_self_attention,
)
from whisper_npu.runtime.memory import forget_files
from whisper_npu.runtime.model_dir import (
    ALIGNMENT,
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    ModelFolder,
)
from whisper_npu.runtime.openvino_alignment import align, read_alignment_graph
from whisper_npu.runtime.openvino_sessions import (
    CachedSession,
    RequestPool,
    StatefulSession,
    UncachedSession,
)
from whisper_npu.runtime.openvino_stateful import make_stateful
from whisper_npu.runtime.screening import Screen, make_screen, screen_logits, table_of

logger = logging.getLogger("whisper_npu")

CacheKind = Literal["stateful", "concat", "static", "off"]
CACHE_KINDS: tuple[str, ...] = get_args(CacheKind)
Precision = Literal["auto", "f32", "bf16", "f16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
_MOST_STREAMS = 4
_WINDOW_STEP = 200  # frames of 10 ms: as fine as is worth compiling kernels for
_ELEMENT_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}


def _config(
    core: ov.Core, device: str, precision: str, threads: int, streams: int
) -> dict[str, Any]:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if "KV_CACHE_PRECISION" in core.get_property(device, "SUPPORTED_PROPERTIES"):
        # Else it may be 8 bits, even where f32 is asked for. A GPU has 8 bits and f16.
        config["KV_CACHE_PRECISION"] = precision if device.startswith("CPU") else "f16"
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    if streams > 1:
        config["NUM_STREAMS"] = streams
    return config


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
        screening: bool | None = None,
    ) -> None:
        """Read and compile the graphs that `kv_cache` needs.

        Args:
            folder: the model.
            device: an OpenVINO device name.
            kv_cache: where past states are kept.
            precision: arithmetic the device is asked for. `int8` multiplies by matrices in 8
                bits (see `eight_bits`) and does all else in bf16 where the processor computes
                in it, else in f32. `auto` is int8 for the stateful cache on a processor that
                computes in bf16, else f32.
            threads: processor threads for inference; 0 leaves it to OpenVINO.
            streams: callers the threads are divided among.
            screening: compute the projection to the vocabulary in 8 bits, and what decides exactly
                (see `screening`). None: where few rows are decoded at a time, which is in a single
                stream of several threads on a processor, in bf16: in f32 log probabilities would
                change in the third digit, and int8 rounds the projection as all else.

        Raises:
            ModelError: the folder's graphs cannot be used.
            DeviceError: the device is missing or refuses a graph.
            UsageError: screening is asked for where there is none, or int8 on another device.
        """
        self._core = ov.Core()
        self._folder = folder
        self._alignment: RequestPool | None = None
        self._alignment_lock = Lock()
        self._device = device
        self._kv_cache: CacheKind = kv_cache
        self._check_device()
        self._in_eight_bits, self._arithmetic = self._pick_precision(precision)
        self._config = _config(self._core, device, self._arithmetic, threads, streams)
        self._screen: Screen | None = None

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
            element_type = _ELEMENT_TYPES[self._arithmetic]
            cross = graphs.cross_attention_projection(decoder, element_type)
            graphs.convert_cross_states(with_past, element_type)
            make_stateful(with_past, contract, fuse=device.startswith("CPU"))
            wanted["with_past"] = (DECODER_WITH_PAST, with_past)
            wanted["cross"] = (DECODER, cross)
        else:
            wanted["decoder"] = (DECODER, decoder)
            if kv_cache != "off":
                wanted["with_past"] = (DECODER_WITH_PAST, with_past)
        # The decoder with past takes longest, so it goes first.
        wanted = dict(sorted(wanted.items(), key=lambda item: item[0] != "with_past"))
        if self._in_eight_bits:
            self._in_eight_bits = self._can_round(
                (model for _, model in wanted.values()), required=precision == "int8"
            )
        with ThreadPoolExecutor(max_workers=2) as compilers:
            screened = self._is_to_screen(screening, threads, streams)
            jobs = {
                name: self._begin(compilers, model, file, screened=screened and name == "with_past")
                for name, (file, model) in wanted.items()
            }
            self._pools = {name: RequestPool(job.result()) for name, job in jobs.items()}
        forget_files(folder.path)
        if contract is None and kv_cache != "off":
            contract = self._contract_by_step(self._pools["with_past"].take())
        self._contract: Contract | None = contract
        self._n_threads = threads
        self._streams: OpenVINOBackend | None = self if streams > 1 else None
        self._streams_lock = Lock()

    @property
    def n_streams(self) -> int:
        """Streams of one thread each; one where the device is no processor."""
        if self._device != "CPU" or self._kv_cache != "stateful":
            return 1
        threads = self._pools["encoder"].compiled.get_property("INFERENCE_NUM_THREADS")
        return min(int(threads), _MOST_STREAMS)

    def in_streams(self) -> "OpenVINOBackend":
        """The same model compiled for `n_streams` callers at once, the first time it is wanted."""
        if self.n_streams == 1:
            return self
        with self._streams_lock:
            if self._streams is None:
                self._streams = OpenVINOBackend(
                    self._folder,
                    device=self._device,
                    kv_cache=self._kv_cache,
                    precision="int8" if self._in_eight_bits else self._arithmetic,
                    threads=self._n_threads,
                    streams=self.n_streams,
                )
                self._streams._silence = self.silence()
        return self._streams

    def _check_device(self) -> None:
        available = self._core.available_devices
        if self._device.split(".")[0] not in {name.split(".")[0] for name in available}:
            raise DeviceError(
                f"device {self._device} is not available here; "
                f"OpenVINO finds {', '.join(available) or 'none'}"
            )

    def _pick_precision(self, wanted: Precision) -> tuple[bool, Precision]:
        """Whether matrices are to be in 8 bits, and what all else is computed in.

        By itself, int8 for the fast path where the processor computes in it and in bf16, else f32.
        The other kinds of cache are there to be compared with, so they are exact.
        """
        if wanted == "auto":
            fast = self._kv_cache == "stateful" and self._device == "CPU"
            wanted = "int8" if fast and self._pick_arithmetic() == "bf16" else "f32"
        return wanted == "int8", self._pick_arithmetic() if wanted == "int8" else wanted

    def _pick_arithmetic(self) -> Precision:
        """What is computed in beside 8 bits."""
        if self._device.split(".")[0] != "CPU":
            raise UsageError(
                f"precision int8 rounds weights as they are loaded, for processors; for "
                f"{self._device} export with PRECISION=int8 and give --precision auto"
            )
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "bf16" if "BF16" in capabilities else "f32"

    def _is_to_screen(self, wanted: bool | None, threads: int, streams: int) -> bool:
        able = self._kv_cache == "stateful" and self._device == "CPU" and not self._in_eight_bits
        if wanted and not able:
            raise UsageError(
                "screening needs the stateful cache on a processor, and another precision than int8"
            )
        if wanted is not None:
            return wanted
        # One thread decodes large batches itself, without streams.
        return able and self._arithmetic != "f32" and streams == 1 and threads != 1

    def _screen_and_compile(self, with_past: ov.Model, file: str) -> ov.CompiledModel:
        table, n_text = table_of(with_past), self._folder.end_of_text
        if table is None or n_text is None or not 0 < n_text < len(table):
            logger.debug("the projection to the vocabulary stays as it is in %s", file)
            return self._compile(with_past, file)
        exact_products = self._arithmetic == "f32"
        self._screen, rounded = make_screen(table, n_text, exact_products=exact_products)
        screen_logits(with_past, self._screen, rounded)
        # The hidden state is not to be rounded, too.
        return self._compile(with_past, file, DYNAMIC_QUANTIZATION_GROUP_SIZE=0)

    def _can_round(self, models: Iterable[ov.Model], *, required: bool) -> bool:
        """Whether the graphs have matrices that can be in 8 bits.

        Raises:
            ModelError: they have none, though that is required.
        """
        if any(map(has_matrices, models)):
            return True
        found = f"{self._folder.path} has no matrices that can be rounded to 8 bits"
        if required:
            raise ModelError(f"{found}; give --precision {self._arithmetic}")
        logger.warning("%s: computing in %s", found, self._arithmetic)
        return False

    def _begin(
        self, compilers: Executor, model: ov.Model, file: str, *, screened: bool
    ) -> "Future[ov.CompiledModel]":
        """Have a graph compiled; rounded before, while the one before it is compiled."""
        if screened:
            return compilers.submit(self._screen_and_compile, model, file)
        changes: dict[str, object] = {}
        if self._in_eight_bits and round_products(model, attention=file != ENCODER):
            forget_files(self._folder.path)  # before compiling takes memory, too
            changes["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP
        return compilers.submit(self._compile, model, file, **changes)

    def _compile(self, model: ov.Model, file: str, **changes: object) -> ov.CompiledModel:
        try:
            return self._core.compile_model(model, self._device, {**self._config, **changes})
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
        """The arithmetic the device was asked for; `int8+` what is not in 8 bits is computed in."""
        return f"int8+{self._arithmetic}" if self._in_eight_bits else self._arithmetic

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
                request.start_async()  # `infer` would copy the output
                request.wait()
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
            return StatefulSession(
                self._pools["cross"],
                self._pools["with_past"],
                audio,
                rows_per_window,
                self._dimensions,
                self._n_text_ctx,
                rows_may_leave=self._device.startswith("CPU"),  # not tried on others
                screen=self._screen,
            )
        if rows_per_window > 1:
            audio = np.repeat(audio, rows_per_window, axis=0)
        if self._kv_cache == "off":
            return UncachedSession(self._pools["decoder"], audio, self._n_text_ctx)
        if self._contract is None:
            raise ModelError("the KV contract is not known")
        cache: KVCache
        if self._kv_cache == "static":
            cache = StaticCache(self._contract, self._n_text_ctx)
        else:
            cache = ConcatCache(self._contract)
        return CachedSession(
            self._pools["decoder"], self._pools["with_past"], audio, cache, self._n_text_ctx
        )
