"""Makes the backend that a device name asks for: the one place that knows which needs what."""

import logging
from typing import cast

import openvino as ov

from whisper_npu.errors import UsageError
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.npu.devices import EMULATED, NPU, require_npu, resolve
from whisper_npu.npu.placement import AUTO, Placement, candidates, choose, machine, parse_device
from whisper_npu.npu.split_backend import SplitBackend
from whisper_npu.npu.static_backend import ENCODER_PART, PARTS, StaticBackend, graph_names
from whisper_npu.npu.static_engine import Engine, OpenVINOEngine
from whisper_npu.runtime.backend import Backend
from whisper_npu.runtime.compile_cache import CompileCache, default_cache
from whisper_npu.runtime.model_dir import ModelFolder
from whisper_npu.runtime.openvino_backend import (
    CACHE_KINDS,
    PRECISIONS,
    CacheKind,
    OpenVINOBackend,
    Precision,
)

logger = logging.getLogger("whisper_npu")

OPENVINO, ONNXRUNTIME = "openvino", "onnxruntime"
BACKENDS = (OPENVINO, ONNXRUNTIME)
STATIC_CACHES = ("auto", "static")


def uses_static_graphs(device: str) -> bool:
    """Whether a device takes graphs with fixed shapes only."""
    return device == EMULATED or device.split(".", maxsplit=1)[0] == NPU


def load_backend(
    folder: ModelFolder,
    device: str = "CPU",
    *,
    backend: str = "openvino",
    kv_cache: str = "auto",
    precision: str = "auto",
    threads: int = 0,
    weights: str = "lossless",
    cache: CompileCache | None = None,
) -> Backend:
    """Load a model on a device, or on two.

    Args:
        folder: the model.
        device: `CPU`, `GPU`, `NPU`, `NPU_EMULATED`, `AUTO`, or `encoder=NPU,decoder=CPU`.
        backend: `openvino` or `onnxruntime`.
        kv_cache: see `OpenVINOBackend`; `auto` takes the device's fastest.
        precision: arithmetic; `auto` takes the device's.
        threads: processor threads; 0 leaves it to OpenVINO.
        weights: how static graphs keep weights: `lossless`, `f16` or `int8`.
        cache: of compiled graphs; None for the user's.

    Raises:
        DeviceError: the device is not there, or refuses a graph; it is never replaced by another.
        ModelError: the folder cannot be used.
        UsageError: options that the device cannot follow.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}; give {', '.join(BACKENDS)}")
    if kv_cache not in ("auto", *CACHE_KINDS):
        raise UsageError(f"kv_cache is {kv_cache!r}; give auto, {', '.join(CACHE_KINDS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; give {', '.join(PRECISIONS)}")

    def load(placement: Placement) -> Backend:
        if placement.encoder == placement.decoder:
            return on_one(placement.encoder, PARTS)
        encoder = on_one(placement.encoder, (ENCODER_PART,))
        return SplitBackend(encoder, on_one(placement.decoder, PARTS))

    def on_one(name: str, parts: tuple[str, ...]) -> Backend:
        if uses_static_graphs(name):
            return load_static(
                folder,
                name,
                backend=backend,
                kv_cache=kv_cache,
                precision=precision,
                threads=threads,
                weights=weights,
                cache=cache,
                parts=parts,
            )
        if backend == ONNXRUNTIME:
            from whisper_npu.runtime.onnxruntime_backend import (  # noqa: PLC0415 - an extra
                OnnxRuntimeBackend,
            )

            return OnnxRuntimeBackend(
                folder, device=name, kv_cache=kv_cache, precision=precision, threads=threads
            )
        kind = "stateful" if kv_cache == "auto" else kv_cache
        return OpenVINOBackend(
            folder,
            device=name,
            kv_cache=cast("CacheKind", kind),
            precision=cast("Precision", precision),
            threads=threads,
        )

    if device != AUTO:
        return load(parse_device(device))
    core = ov.Core()
    options = [option for option in candidates(core) if _allows(option, kv_cache, precision)]
    facts = [*machine(core), str(folder.path), kv_cache, precision, str(threads), weights]
    return choose(options, load, facts)[1]


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
) -> StaticBackend:
    """Load the static graphs of a model, made now if need be; see `load_backend`.

    Args:
        folder: the model.
        device: `NPU`, `NPU_EMULATED` or `CPU`.
        backend: `openvino` or `onnxruntime`.
        kv_cache: `auto` or `static`.
        precision: arithmetic.
        threads: processor threads, where the processor computes.
        weights: how the graphs keep weights.
        cache: of compiled graphs; None for the user's.
        parts: which of `encoder` and `decoder` will be asked for.
    """
    if kv_cache not in STATIC_CACHES:
        raise UsageError(
            f"{device} keeps past states in buffers of fixed size; give --kv-cache auto or static, "
            f"not {kv_cache}"
        )
    if backend == ONNXRUNTIME:
        return _load_static_onnxruntime(folder, device, precision, threads, weights, parts)
    core = ov.Core()
    target = resolve(core, device, precision, threads)  # before any work is done
    bundle = ensure_bundle(folder, weights=weights, progress=logger.info)
    at_once, names = graph_names(bundle, parts)
    engine: Engine = OpenVINOEngine(
        core,
        bundle,
        target,
        cache=default_cache() if cache is None else cache,
        at_once=at_once,
        names=names,
        progress=logger.info,
    )
    return StaticBackend(bundle, engine)


def _load_static_onnxruntime(
    folder: ModelFolder,
    device: str,
    precision: str,
    threads: int,
    weights: str,
    parts: tuple[str, ...],
) -> StaticBackend:
    from whisper_npu.npu.onnxruntime_engine import OnnxRuntimeEngine  # noqa: PLC0415 - an extra
    from whisper_npu.runtime.onnxruntime_backend import arithmetic  # noqa: PLC0415

    if device == EMULATED:
        raise UsageError("ONNX Runtime cannot emulate an NPU; give --backend openvino")
    arithmetic(device, precision)  # before any work is done
    if device == NPU:
        require_npu(ov.Core())
    bundle = ensure_bundle(folder, weights=weights, progress=logger.info)
    at_once, names = graph_names(bundle, parts)
    engine = OnnxRuntimeEngine(
        bundle, device, precision, threads=threads, at_once=at_once, names=names
    )
    return StaticBackend(bundle, engine)


def _allows(placement: Placement, kv_cache: str, precision: str) -> bool:
    """Whether a device can follow the options given, so that `AUTO` does not choose it in vain."""
    if not any(map(uses_static_graphs, (placement.encoder, placement.decoder))):
        return True
    return precision in ("auto", "f16") and (
        kv_cache in STATIC_CACHES or not uses_static_graphs(placement.decoder)
    )
