"""Chooses and loads the engine for a device name."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.npu.devices import EMULATED, NPU
from whisper_npu.npu.placement import (
    AUTO,
    ENCODER_PART,
    PARTS,
    Placement,
    candidates,
    choose,
    machine,
)
from whisper_npu.npu.split_backend import SplitBackend
from whisper_npu.runtime.engines.choices import (
    BACKENDS,
    KV_CACHES,
    PRECISIONS,
    BackendName,
    CacheKind,
    KVCache,
    Precision,
    parse_device,
)
from whisper_npu.runtime.engines.compile_cache import CompileCache, default_cache
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.trio import read_trio, require_finite
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.verification import verify_folder
from whisper_npu.spelling import parse_precision, require_choice

logger = logging.getLogger("whisper_npu")

STATIC_CACHES = ("auto", "static")


def uses_static_graphs(device: str) -> bool:
    """Whether a device only takes graphs with fixed shapes."""
    return device == EMULATED or device.split(".", maxsplit=1)[0] == NPU


def load_backend(
    folder: ModelFolder,
    device: str = "CPU",
    *,
    backend: BackendName = "openvino",
    kv_cache: KVCache = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    weights: str = "auto",
    cache: CompileCache | None = None,
    progress: Callable[[str], None] | None = None,
) -> Backend:
    """Load a model on a device, or on two.

    Args:
        folder: the model.
        device: `CPU`, `GPU`, `NPU`, `NPU_EMULATED`, `AUTO`, or `encoder=NPU,decoder=CPU`.
        backend: `openvino` or `onnxruntime`.
        kv_cache: see `OpenVINOBackend`; `auto` takes the device's fastest.
        precision: number format of the computation; `auto` takes the device's. `fp32` means `f32`.
        threads: processor threads; 0 leaves the choice to OpenVINO.
        weights: format of the weights of static graphs: `lossless`, `f16`, `int8`, or `auto`:
            `int8` for models above 200 million parameters.
        cache: the cache of compiled graphs; None for the user's.
        progress: called with one line per graph that is made or compiled; None logs them.

    Raises:
        DeviceError: the device is missing, or refuses a graph; it is never replaced by another.
        ModelError: the folder cannot be used, or differs from its certificate.
        UsageError: options that the device cannot follow.
    """
    require_choice("backend", backend, BACKENDS)
    require_choice("kv_cache", kv_cache, KV_CACHES)
    precision = cast(Precision, parse_precision(precision, PRECISIONS))
    require_choice("precision", precision, PRECISIONS)
    placement = Placement(*parse_device(device))

    verify_folder(folder)
    report = progress or logger.info

    def load(placement: Placement) -> Backend:
        if placement.encoder == placement.decoder:
            return on_one(placement.encoder, PARTS)
        encoder = on_one(placement.encoder, (ENCODER_PART,))
        return SplitBackend(encoder, on_one(placement.decoder, PARTS))

    def on_one(name: str, parts: tuple[str, ...]) -> Backend:
        if uses_static_graphs(name):
            # Imported here, because programs on a CPU start faster without it.
            from whisper_npu.npu.load_static import load_static  # noqa: PLC0415

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
                progress=report,
            )
        if backend == "onnxruntime":
            from whisper_npu.runtime.engines.onnxruntime import (  # noqa: PLC0415 - an extra
                OnnxRuntimeBackend,
            )

            with _for_onnxruntime(folder) as graphs:
                try:
                    return OnnxRuntimeBackend(
                        folder,
                        device=name,
                        kv_cache=kv_cache,
                        precision=precision,
                        threads=threads,
                        graphs=graphs,
                    )
                except DeviceError as error:
                    if not folder.layout.others:
                        raise
                    raise DeviceError(f"{error}; {folder.layout.way_on}") from None
        kind: CacheKind = "stateful" if kv_cache == "auto" else kv_cache
        return OpenVINOBackend(
            folder,
            device=name,
            kv_cache=kind,
            precision=precision,
            threads=threads,
            cache=cache or (default_cache() if kind == "stateful" and name == "CPU" else None),
            progress=report,
        )

    if placement.name != AUTO:
        return load(placement)
    core = openvino_core()
    options = [option for option in candidates(core) if _allows(option, kv_cache, precision)]
    chosen = [backend, kv_cache, precision, str(threads), weights]
    facts = [*machine(core), folder.graphs_digest(), *chosen]
    return choose(options, load, facts)[1]


@contextmanager
def _for_onnxruntime(folder: ModelFolder) -> Iterator[tuple[Path, ...]]:
    """Yield files of encoder, decoder and decoder with past that ONNX Runtime can run.

    Raises:
        ModelError: the graphs cannot be used; or some must be rewritten, and the `onnx` package is
            missing.
        UsageError: the graphs are not ONNX.
    """
    layout = folder.layout
    if layout.is_openvino:
        raise UsageError(
            f"ONNX Runtime cannot read {layout.encoder}: it is OpenVINO's own format; give "
            "--backend openvino"
        )
    trio = read_trio(openvino_core(), folder)
    for file, graph in zip(layout.graphs_in_order, trio, strict=True):
        require_finite(file, graph)
    is_guarded = any(node.get_type_name() == "IsNaN" for graph in trio for node in graph.get_ops())
    if layout.with_past is not None and not is_guarded:
        yield layout.graphs
        return
    try:
        from whisper_npu.npu.onnxruntime_files import rewritten  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ModelError(
            f"ONNX Runtime cannot run {layout.decoder} as it is, and rewriting it needs onnx: pip "
            "install 'whisper-npu[npu]', or give --backend openvino"
        ) from None
    with rewritten(layout) as files:
        yield files


def _allows(placement: Placement, kv_cache: str, precision: str) -> bool:
    """Whether a device supports the given options; `AUTO` leaves out devices that do not."""
    if precision == "int8" and {placement.encoder, placement.decoder} != {"CPU"}:
        return False
    if not any(map(uses_static_graphs, (placement.encoder, placement.decoder))):
        return True
    return precision in ("auto", "f16") and (
        kv_cache in STATIC_CACHES or not uses_static_graphs(placement.decoder)
    )
