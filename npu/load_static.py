"""Loads a model's static graphs on OpenVINO or ONNX Runtime; only users of an NPU need this."""

import logging
from collections.abc import Callable

from whisper_npu.errors import UsageError
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.npu.devices import EMULATED, NPU, core_for, require_npu, resolve
from whisper_npu.npu.placement import PARTS
from whisper_npu.npu.static_backend import StaticBackend, graph_names
from whisper_npu.npu.static_engine import Engine, OpenVINOEngine
from whisper_npu.runtime.engines.compile_cache import CompileCache, default_cache
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.model_folder.folder import ModelFolder

logger = logging.getLogger("whisper_npu")

OPENVINO, ONNXRUNTIME = "openvino", "onnxruntime"
STATIC_CACHES = ("auto", "static")


def load_static(
    folder: ModelFolder,
    device: str,
    *,
    backend: str = OPENVINO,
    kv_cache: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    weights: str = "lossless",
    cache: CompileCache | None = None,
    parts: tuple[str, ...] = PARTS,
    progress: Callable[[str], None] = logger.info,
) -> StaticBackend:
    """Load the static graphs of a model, and make them first if needed; see `load_backend`.

    Args:
        folder: the model.
        device: `NPU`, `NPU_EMULATED` or `CPU`.
        backend: `openvino` or `onnxruntime`.
        kv_cache: `auto` or `static`.
        precision: arithmetic.
        threads: processor threads, if the processor computes.
        weights: format of the stored weights: `lossless`, `f16` or `int8`.
        cache: the cache of compiled graphs; None for the user's.
        parts: the parts that will be used, of `encoder` and `decoder`.
        progress: called with one line per graph that is made or compiled.
    """
    if kv_cache not in STATIC_CACHES:
        raise UsageError(
            f"{device} keeps past states in buffers of fixed size; give --kv-cache auto or static, "
            f"not {kv_cache}"
        )
    if backend == ONNXRUNTIME:
        return _load_static_onnxruntime(
            folder, device, precision, threads, weights, parts, progress
        )
    core = core_for(device)
    target = resolve(core, device, precision, threads)  # fails before any work is done
    bundle = ensure_bundle(folder, weights=weights, progress=progress)
    at_once, names = graph_names(bundle, parts)
    engine: Engine = OpenVINOEngine(
        core,
        bundle,
        target,
        cache=default_cache() if cache is None else cache,
        at_once=at_once,
        names=names,
        progress=progress,
    )
    return StaticBackend(bundle, engine)


def _load_static_onnxruntime(
    folder: ModelFolder,
    device: str,
    precision: str,
    threads: int,
    weights: str,
    parts: tuple[str, ...],
    progress: Callable[[str], None],
) -> StaticBackend:
    from whisper_npu.npu.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415 - an extra
    from whisper_npu.runtime.engines.onnxruntime import resolve_precision  # noqa: PLC0415

    if device == EMULATED:
        raise UsageError("ONNX Runtime cannot emulate an NPU; give --backend openvino")
    resolve_precision(device, precision)  # fails before any work is done
    if device == NPU:
        require_npu(openvino_core())
    bundle = ensure_bundle(folder, weights=weights, progress=progress)
    at_once, names = graph_names(bundle, parts)
    engine = OnnxRuntimeEngine(
        bundle, device, precision, threads=threads, at_once=at_once, names=names
    )
    return StaticBackend(bundle, engine)
