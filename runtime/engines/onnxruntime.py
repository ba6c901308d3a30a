"""Runs a model folder on ONNX Runtime through its OpenVINO provider (onnxruntime-openvino).

ONNX Runtime silently moves to its own CPU provider any graph that another provider refuses. That is
switched off here: a graph runs on the requested device, or loading it is an error.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.runtime.engines.compile_cache import cache_directory
from whisper_npu.runtime.engines.cpu_capabilities import UNROUNDED, require_precision
from whisper_npu.runtime.engines.device_calls import DeviceCalls, hold
from whisper_npu.runtime.engines.kv_cache import (
    ConcatCache,
    KVCache,
    StaticCache,
    is_cross_attention,
    is_self_attention,
    past_name,
)
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.openvino.graphs import contract_of, n_positions
from whisper_npu.runtime.engines.openvino.int8_weights import named_precision, stored_weights
from whisper_npu.runtime.engines.openvino.trio import read_trio
from whisper_npu.runtime.engines.protocol import (
    N_LOGITS,
    Float32Array,
    Int64Array,
    NoAttention,
    SingleStream,
    check_room,
)
from whisper_npu.runtime.model_folder.config import KVContract
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.layout import ALIGNMENT
from whisper_npu.runtime.model_folder.linked_weights import without_links

logger = logging.getLogger("whisper_npu")

PROVIDER = "OpenVINOExecutionProvider"
_CACHE_KINDS = ("auto", "concat", "static", "off")
_PRECISIONS = {"CPU": ("auto", "f32", "bf16", "f16"), "NPU": ("auto", "f16")}
_SILENT = 4  # errors come as exceptions; the log would print them again, in colour
_CONTEXT = "model.onnx"
_HALF = "tensor(float16)"

AUDIO = "encoder_hidden_states"

Array = npt.NDArray[Any]


class GraphSession:
    """One graph on one device."""

    def __init__(self, session: Any, device: str) -> None:
        self._session = hold(session)
        self._calls = DeviceCalls(f"{device} (ONNX Runtime)")
        self.inputs: dict[str, list[Any]] = {i.name: i.shape for i in session.get_inputs()}
        self._halves = {i.name for i in session.get_inputs() if i.type == _HALF}
        self.outputs: dict[str, list[Any]] = {o.name: o.shape for o in session.get_outputs()}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph and return all outputs by name; safe to call from several threads.

        Numbers in half precision are taken and returned as float32.

        Raises:
            DeviceError: the device fails, or the graph was loaded before a fork.
        """
        self._calls.check()
        try:
            taken = {
                name: values.astype(np.float16) if name in self._halves else values
                for name, values in feed.items()
            }
            results = self._session.run(None, taken)
        except Exception as error:  # see `_open`
            raise self._calls.error(error) from None
        return {
            name: values.astype(np.float32) if values.dtype == np.float16 else values
            for name, values in zip(self.outputs, results, strict=True)
        }


def resolve_precision(device: str, precision: str) -> str:
    """Return the precision that a device computes in.

    Raises:
        UsageError: the device does not compute in `precision`.
        DeviceError: ONNX Runtime has no such device.
    """
    if device not in _PRECISIONS:
        raise DeviceError(f"ONNX Runtime runs on {' and '.join(_PRECISIONS)} here, not on {device}")
    if precision not in _PRECISIONS[device]:
        known = ", ".join(_PRECISIONS[device])
        raise UsageError(f"precision is {precision!r}; on {device} give {known}")
    if precision == "auto":
        return "f32" if device == "CPU" else "f16"
    if device == "CPU":
        require_precision(openvino_core(), device, precision)
    return precision


def open_graph(
    path: Path, device: str, precision: str, *, threads: int = 0, identity: str | None = None
) -> GraphSession:
    """Load a graph on a device, and nowhere else.

    Args:
        path: the ONNX file.
        device: `CPU` or `NPU`.
        precision: from `resolve_precision`.
        threads: processor threads; 0 leaves it to OpenVINO.
        identity: identifies the graph with its weights. With it the compiled graph of an NPU is
            kept as an EPContext model and loaded from there next time; the provider cannot load
            models that it writes for the CPU.

    Raises:
        DeviceError: onnxruntime-openvino is not installed, or the device is missing or refuses the
            graph.
    """
    options: dict[str, str] = {"device_type": device}
    if device == "CPU":
        hint = {"CPU": {"INFERENCE_PRECISION_HINT": precision, **UNROUNDED}}
        options["load_config"] = json.dumps(hint)
        if threads:
            options["num_of_threads"] = str(threads)
    if identity is None or device == "CPU":
        return GraphSession(_open(path, options, {}), device)
    return GraphSession(_open_in_context(path, options, identity), device)


def _runtime() -> Any:
    """Import the onnxruntime module and check that it is onnxruntime-openvino."""
    try:
        import onnxruntime  # noqa: PLC0415 - an extra
    except ImportError:
        raise DeviceError(
            "--backend onnxruntime needs onnxruntime-openvino: pip install 'whisper-npu[ort]'"
        ) from None
    if PROVIDER not in onnxruntime.get_available_providers():
        raise DeviceError(
            "the onnxruntime installed here has no OpenVINO provider: pip uninstall onnxruntime "
            "onnxruntime-openvino && pip install onnxruntime-openvino"
        )
    return onnxruntime


def _open(path: Path, options: Mapping[str, str], entries: Mapping[str, str]) -> Any:
    runtime = _runtime()
    settings = runtime.SessionOptions()
    settings.log_severity_level = _SILENT
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for name, value in entries.items():
        settings.add_session_config_entry(name, value)
    runtime.set_default_logger_severity(_SILENT)
    try:
        with without_links(path) as real:
            return runtime.InferenceSession(
                str(real), settings, providers=[PROVIDER], provider_options=[dict(options)]
            )
    except ModelError:
        raise
    # The exceptions of the module have no other common base, and are not exported by name.
    except Exception as error:
        device = options["device_type"]
        reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
        if "fallback to CPU EP has been explicitly disabled" in reason:
            reason = f"ONNX Runtime finds no {device} that takes all of it"
        hint = "; `whisper-npu doctor` says why" if device == "NPU" else ""
        raise DeviceError(f"{device} cannot run {path.name}: {reason}{hint}") from None


def _open_in_context(path: Path, options: Mapping[str, str], identity: str) -> Any:
    """Load a stored compiled graph, else compile it now and store it."""
    version = str(_runtime().__version__)
    key = hashlib.sha256(json.dumps([identity, version, dict(options)]).encode()).hexdigest()
    kept = cache_directory() / "onnxruntime" / key
    if (kept / _CONTEXT).is_file():
        try:
            return _open(kept / _CONTEXT, options, {})
        except DeviceError as error:
            logger.debug("%s is compiled anew: %s", path.name, error)
            shutil.rmtree(kept, ignore_errors=True)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".part-", dir=kept.parent))
    except OSError as error:
        logger.warning("compiled graphs cannot be kept in %s: %s", kept.parent, error.strerror)
        return _open(path, options, {})
    entries = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",  # a separate file: embedded, 2 GB would be the limit
        "ep.context_file_path": str(unfinished / _CONTEXT),
    }
    try:
        session = _open(path, options, entries)
        if (unfinished / _CONTEXT).is_file():
            unfinished.rename(kept)
    except OSError as error:  # another process was first
        logger.debug("%s is not kept: %s", path.name, error)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return session


class OnnxRuntimeBackend(SingleStream):
    """Runs the three graphs of a model folder on the CPU. Safe to use from several threads."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str = "CPU",
        kv_cache: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        graphs: tuple[Path, ...] | None = None,
    ) -> None:
        """Load the graphs.

        Args:
            folder: the model.
            device: `CPU`; an NPU needs graphs with fixed shapes.
            kv_cache: `concat`, `static` or `off`; `auto` is `static`.
            precision: arithmetic; `auto` is f32.
            threads: processor threads; 0 leaves it to OpenVINO.
            graphs: files of encoder, decoder and decoder with past; None for the folder's.

        Raises:
            DeviceError: see `open_graph`.
            UsageError: there is no such cache or precision.
            ModelError: the graphs cannot be used.
        """
        if kv_cache not in _CACHE_KINDS:
            raise UsageError(
                f"kv_cache is {kv_cache!r}; with ONNX Runtime give {', '.join(_CACHE_KINDS)}"
            )
        self._folder = folder
        self._device = device
        self._precision = resolve_precision(device, precision)
        self._threads = threads
        self._kv_cache = "static" if kv_cache == "auto" else kv_cache
        # OpenVINO's reader explains faults of a graph; the sessions fail later, or never.
        trio = read_trio(openvino_core(), folder)
        self._stored = stored_weights(trio)
        self._n_text_ctx = folder.context_length(n_positions(trio[2]))
        encoder, decoder, with_past = graphs or folder.layout.graphs_in_order
        self._encoder = self._open(encoder)
        self._decoder = self._open(decoder)
        self._with_past = self._open(with_past)
        _require_known_inputs(self._with_past, with_past)
        self._alignment: GraphSession | None = None
        self._alignment_lock = Lock()
        self._contract: KVContract = folder.kv_contract or self._probe_contract()

    def _open(self, path: Path) -> GraphSession:
        return open_graph(path, self._device, self._precision, threads=self._threads)

    def _probe_contract(self) -> KVContract:
        """Run one step on a past of two positions and look at the length of its states."""
        n_past = 2
        feed: dict[str, Array] = {}
        for name, shape in self._with_past.inputs.items():
            if name == "input_ids":
                feed[name] = np.zeros((1, 1), np.int64)
            elif name == AUDIO:
                feed[name] = np.zeros((1, self.n_audio_ctx, shape[2]), np.float32)
            else:
                length = n_past if is_self_attention(name) else self.n_audio_ctx
                feed[name] = np.zeros((1, shape[1], length, shape[3]), np.float32)
        present = self._with_past.run(feed)["present.0.decoder.key"]
        return contract_of(present.shape[2], n_past, 1)

    @property
    def n_mels(self) -> int:
        """Mel bands of the encoder's input."""
        return _size(self._encoder.inputs, "input_features", 1)

    @property
    def n_audio_ctx(self) -> int:
        """Positions of an encoded window."""
        return _size(self._encoder.outputs, "last_hidden_state", 1)

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Frames of a window: whole windows only."""
        return (2 * self.n_audio_ctx,)

    @property
    def n_text_ctx(self) -> int:
        """Positions of the decoder."""
        return self._n_text_ctx

    @property
    def n_vocab(self) -> int:
        """Size of the decoder's vocabulary."""
        return _size(self._with_past.outputs, "logits", 2)

    @property
    def device(self) -> str:
        """The device that executes the graphs."""
        return f"{self._device} (ONNX Runtime)"

    @property
    def kv_cache(self) -> str:
        """The kind of cache for past states."""
        return self._kv_cache

    @property
    def precision(self) -> str:
        """The arithmetic requested of the device, and the form of stored 8-bit or 4-bit weights."""
        return named_precision(self._precision, self._stored)

    @property
    def can_align(self) -> bool:
        """Whether the folder has a graph for word times."""
        return self._folder.layout.alignment is not None

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows; see `Backend.encode`."""
        rows = [
            self._encoder.run({"input_features": np.ascontiguousarray(window[None])})
            for window in features
        ]
        return np.concatenate([row["last_hidden_state"] for row in rows])

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> "_Session":
        """Start decoding encoded windows; see `Backend.start`."""
        rows = np.repeat(audio, rows_per_window, axis=0)
        cache: KVCache | None = None
        if self._kv_cache == "static":
            cache = StaticCache(self._contract, self._n_text_ctx)
        elif self._kv_cache == "concat":
            cache = ConcatCache(self._contract)
        return _Session(self._decoder, self._with_past, rows, cache, self._n_text_ctx)

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """Return the attention of finished texts; see `Backend.align`."""
        with self._alignment_lock:
            if self._alignment is None:
                file = self._folder.layout.alignment
                if file is None:
                    raise ModelError(
                        f"model folder {self._folder.path} has no {ALIGNMENT}, which word times "
                        "need with ONNX Runtime; give --backend openvino, or add it with "
                        "`whisper-npu export --add-alignment`"
                    )
                self._alignment = self._open(file)
        found = self._alignment.run({AUDIO: audio, "input_ids": tokens})
        return found["token_probabilities"], found["cross_attentions"]


class _Session(NoAttention):
    """A batch of token rows; without a cache each step computes the whole context."""

    def __init__(
        self,
        decoder: GraphSession,
        with_past: GraphSession,
        audio: Float32Array,
        cache: KVCache | None,
        n_text_ctx: int,
    ) -> None:
        self._decoder = decoder
        self._with_past = with_past
        self._audio = np.ascontiguousarray(audio)
        self._cache = cache
        self._n_text_ctx = n_text_ctx
        self._tokens = np.empty((len(audio), 0), np.int64)
        self._cross: dict[str, Array] = {}

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._tokens.shape[1]

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        check_room(self.length, n_new, self._n_text_ctx)
        first = self.length == 0
        self._tokens = np.concatenate((self._tokens, tokens), axis=1)
        if first or self._cache is None:
            found = self._decoder.run({"input_ids": self._tokens, AUDIO: self._audio})
        else:
            past = {name: np.ascontiguousarray(s) for name, s in self._cache.past().items()}
            audio = {AUDIO: self._audio} if AUDIO in self._with_past.inputs else {}
            found = self._with_past.run({"input_ids": tokens, **audio, **self._cross, **past})
        if self._cache is not None:
            if first:
                self._cross = {
                    past_name(name): state
                    for name, state in found.items()
                    if is_cross_attention(name) and past_name(name) in self._with_past.inputs
                }
            states = {name: state for name, state in found.items() if is_self_attention(name)}
            self._cache.update(states, n_new)
        logits: Float32Array = found["logits"][:, -min(n_new, N_LOGITS) :]
        return logits

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._tokens = self._tokens[list(rows)]
        if self._cache is not None:
            self._cache.reorder(rows)

    def keep(self, rows: Sequence[int]) -> bool:
        """Keep all rows; see `DecoderSession.keep`."""
        return False

    def close(self) -> None:
        """Release the states."""
        self._cross = {}
        self._cache = None


def _require_known_inputs(graph: GraphSession, path: Path) -> None:
    unknown = [
        name
        for name in graph.inputs
        if name not in ("input_ids", AUDIO) and not name.startswith("past_key_values.")
    ]
    if unknown:
        raise ModelError(
            f"{path} takes {', '.join(unknown)}, which ONNX Runtime is not given here; give "
            "--backend openvino"
        )


def _size(shapes: Mapping[str, Sequence[Any]], name: str, axis: int) -> int:
    size = shapes[name][axis] if name in shapes else None
    if not isinstance(size, int):
        raise ModelError(f"{name} has no fixed size in the graphs; export the model again")
    return size
