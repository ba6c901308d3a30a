"""What devices compute in.

OpenVINO takes a precision as a hint: on a device without it, it computes in f32 and does not say
so. And it says of every processor that it computes in 8 bits, though it multiplies matrices in them
only where the instructions for it (VNNI) are there.
"""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

import openvino as ov

from whisper_npu.errors import UsageError

_CAPABILITIES = {"bf16": "BF16", "f16": "FP16"}
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_TILES = "amx_bf16"
_ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
_CPUINFO = Path("/proc/cpuinfo")


def computes_in(core: ov.Core, device: str, precision: str) -> bool:
    """Whether a device computes in a precision.

    Args:
        core: that knows the device.
        device: an OpenVINO device name.
        precision: `f32`, `bf16`, `f16`; of others, it is not asked.
    """
    name = _CAPABILITIES.get(precision)
    return name is None or name in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def require_precision(core: ov.Core, device: str, precision: str) -> None:
    """Refuse a precision that a device would replace by f32 without a word.

    Raises:
        UsageError: the device does not compute in it.
    """
    if not computes_in(core, device, precision):
        name = "this processor" if device == "CPU" else device
        raise UsageError(f"{name} does not compute in {precision}; give --precision auto or f32")


def multiplies_bytes() -> bool:
    """Whether the processor has instructions that multiply and add up 8-bit integers."""
    return not _VNNI.isdisjoint(processor_flags())


def is_faster_whole(precision: str) -> bool:
    """Whether graphs that wait for arithmetic are faster as they are than with matrices in 8 bits.

    So it is where the processor multiplies tiles of bf16 (AMX): in a graph computed in bf16,
    matrices in 8 bits would be turned into it, product by product.

    Args:
        precision: what such a graph is computed in.
    """
    limit = os.environ.get(_ISA_LIMIT, "").upper()
    has_tiles = _TILES in processor_flags() and (limit in {"", "DEFAULT"} or "AMX" in limit)
    return precision == "bf16" and has_tiles


def processor() -> str:
    """What decides, beside OpenVINO, which kernels a graph is made for."""
    limit = os.environ.get(_ISA_LIMIT, "")
    facts = (platform.machine(), platform.processor(), *processor_flags(), limit)
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()


@cache
def processor_flags() -> tuple[str, ...]:
    """What the processor can do, as Linux names it; empty where the system does not say."""
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
