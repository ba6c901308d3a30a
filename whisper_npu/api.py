"""Where the layers meet: a model folder, a device and a kind of cache become a model."""

from pathlib import Path
from typing import cast

from whisper_npu.errors import UsageError
from whisper_npu.runtime.model_dir import read_model_folder
from whisper_npu.runtime.openvino_backend import (
    CACHE_KINDS,
    PRECISIONS,
    CacheKind,
    OpenVINOBackend,
    Precision,
)
from whisper_npu.runtime.transcribe import WhisperModel


def load_model(
    path: str | Path,
    *,
    device: str = "CPU",
    kv_cache: str = "auto",
    precision: str = "auto",
    threads: int = 0,
) -> WhisperModel:
    """Load an exported model.

    Args:
        path: the model folder.
        device: `CPU`, `GPU`, or another device OpenVINO lists.
        kv_cache: where the decoder's past states are kept: `stateful` (by the device), `concat` or
            `static` (by the host), `off` (recomputed at each step); `auto` takes the fastest.
        precision: arithmetic: `f32` reproduces PyTorch token by token; `bf16` and `f16` are faster
            where the device has them. `auto` is bf16 for the stateful cache on a processor that
            computes in it, f32 otherwise; results say which it was.
        threads: processor threads for inference; 0 for one per core.

    Raises:
        UsageError: an argument is not one of the above.
        ModelError: the folder cannot be used.
        DeviceError: the device is missing or refuses the model.
    """
    kind = "stateful" if kv_cache == "auto" else kv_cache
    if kind not in CACHE_KINDS:
        raise UsageError(f"kv_cache is {kv_cache!r}; give auto, {', '.join(CACHE_KINDS)}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; give {', '.join(PRECISIONS)}")
    if threads < 0:
        raise UsageError(f"threads is {threads}; give 0 for one per core, or more")
    folder = read_model_folder(path)
    backend = OpenVINOBackend(
        folder,
        device=device,
        kv_cache=cast("CacheKind", kind),
        precision=cast("Precision", precision),
        threads=threads,
    )
    return WhisperModel(folder, backend)
