"""Tells the precisions that devices compute in.

OpenVINO takes a precision as a hint. A device without that precision computes in f32 and does not
report it. OpenVINO also reports 8 bits for every processor, though it multiplies matrices in 8 bits
only on processors with the instructions for it (VNNI).
"""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import openvino as ov

from whisper_npu.errors import UsageError

UNROUNDED = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Compile options for the processor. Without them the plugin rounds activations to 8 bits where
matrices are stored in 8 or 4 bits, even in f32."""

_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_TILES = "amx_bf16"
_ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
_CPUINFO = Path("/proc/cpuinfo")


def computes_in(core: ov.Core, device: str, precision: str) -> bool:
    """Whether a device computes in a precision.

    Args:
        core: the core that knows the device.
        device: an OpenVINO device name.
        precision: `f32`, `bf16`, `f16`; other precisions are not checked.
    """
    name = _CAPABILITIES.get(precision)
    return name is None or name in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def require_precision(core: ov.Core, device: str, precision: str) -> None:
    """Refuse a precision that a device would silently replace by f32.

    Raises:
        UsageError: the device does not compute in it.
    """
    if not computes_in(core, device, precision):
        name = "this processor" if device == "CPU" else device
        raise UsageError(f"{name} does not compute in {precision}; give --precision auto or f32")


def multiplies_bytes() -> bool:
    """Whether the processor has instructions that multiply and add 8-bit integers."""
    return not _VNNI.isdisjoint(processor_flags())


def is_faster_whole(precision: str) -> bool:
    """Whether compute-bound graphs are faster unchanged than with matrices in 8 bits.

    They are on processors that multiply tiles of bf16 (AMX): a graph computed in bf16 would convert
    matrices in 8 bits to bf16, product by product.

    Args:
        precision: the precision such a graph is computed in.
    """
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    has_tiles = _TILES in processor_flags() and (limit in {"", "DEFAULT"} or "AMX" in limit)
    return precision == "bf16" and has_tiles


def processor() -> str:
    """Return a digest of the processor's facts that, with OpenVINO, decide a graph's kernels."""
    limit = os.environ.get(_ISA_LIMIT, "")
    facts = (platform.machine(), platform.processor(), *processor_flags(), limit)
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()


@cache
def processor_flags() -> tuple[str, ...]:
    """Return the processor's features as Linux names them; empty if the system lists none."""
    try:
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                return tuple(line.partition(":")[2].split())
    except OSError:
        pass
    if platform.system() != "Windows":
        return ()
    from archspec.cpu.detect import detected_info  # noqa: PLC0415 - for Windows alone

    return tuple(sorted(detected_info().features))
