"""Resolves a device name on this machine: the plugin, its options, and the label in results.

OpenVINO's NPU plugin runs without an NPU if its work is sent to the CPU, and even then reports
`EXECUTION_DEVICES: NPU`. Therefore only the plugin's list of devices proves a real NPU, and
emulation is a separate device, whose label says so everywhere.
"""

from dataclasses import dataclass
from typing import Any

import openvino as ov

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.engines.cpu_capabilities import UNROUNDED, require_precision
from whisper_npu.runtime.engines.openvino.core import emulation_core, openvino_core

CPU = "CPU"
NPU = "NPU"
EMULATED = "NPU_EMULATED"
EMULATED_LABEL = "NPU (emulated on CPU)"

# OpenVINO's NPU plugin with every subgraph on the CPU, not partitioned.
_EMULATION = {
    "NPU_USE_NPUW": "YES",
    "NPUW_DEVICES": "CPU",
    "NPUW_ONLINE_PIPELINE": "NONE",
}
_ELEMENT_TYPES = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Target:
    """A device that graphs are compiled for.

    Attributes:
        name: the user's name for it: `NPU`, `NPU_EMULATED`, `CPU`.
        plugin: the OpenVINO device.
        runs_on: the OpenVINO device that computes.
        label: its name in results and reports.
        precision: the precision of the computation.
        options: OpenVINO's, for compiling and loading.
    """

    name: str
    plugin: str
    runs_on: str
    label: str
    precision: str
    options: dict[str, Any]


def npu_devices(core: ov.Core) -> list[str]:
    """The real NPUs that OpenVINO finds; empty if there is none, even if the plugin can emulate."""
    try:
        return list(core.get_property(NPU, "AVAILABLE_DEVICES"))
    except RuntimeError:  # no NPU plugin
        return []


def require_static(device: str) -> None:
    """Refuse a device that static graphs are not for.

    Raises:
        DeviceError: it is none.
    """
    if device not in (EMULATED, CPU) and device.partition(".")[0] != NPU:
        raise DeviceError(f"static graphs run on NPU, NPU_EMULATED and CPU, not on {device}")


def resolve(core: ov.Core, device: str, precision: str = "auto", threads: int = 0) -> Target:
    """The target for static graphs of a device name and a precision.

    Args:
        core: receives the settings of the target, for emulation.
        device: `NPU`, `NPU.<n>`, `NPU_EMULATED` or `CPU`.
        precision: `auto`, `f32`, `bf16`, `f16`.
        threads: processor threads if the processor computes; 0 leaves the choice to OpenVINO.

    Raises:
        DeviceError: this machine has no such device.
        UsageError: the device does not compute in that precision, or has no threads to set.
    """
    require_static(device)
    if device == EMULATED:
        return _emulated(core, precision, threads)
    if device != CPU:
        return _npu(core, device, precision, threads)
    chosen = "f32" if precision == "auto" else _check_processor(core, precision)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": chosen, **UNROUNDED}
    if threads:
        options["INFERENCE_NUM_THREADS"] = str(threads)
    return Target(CPU, CPU, CPU, CPU, chosen, options)


def require_npu(core: ov.Core, device: str = NPU) -> None:
    """Refuse a device that is no real NPU of this machine.

    Raises:
        DeviceError: the device is none; the message names the command that finds the reason.
    """
    found = npu_devices(core)
    if not found:
        raise DeviceError(
            f"no NPU is usable here; `whisper-npu doctor` says why (--device {EMULATED} runs the "
            "same graphs on the CPU)"
        )
    if "." in device and device.split(".", 1)[1] not in found:
        raise DeviceError(f"there is no {device} here; OpenVINO finds NPU.{', NPU.'.join(found)}")


def resolve_platform(core: ov.Core, platform: str) -> Target:
    """The target for compiling ahead of time for the NPU of another machine.

    Args:
        core: the core that will compile.
        platform: the NPU's number, such as `4000`.

    Raises:
        DeviceError: the compiler is missing; the message says how to get it.
    """
    try:
        core.get_property(NPU, "NPU_COMPILER_VERSION")
    except RuntimeError:
        raise DeviceError(
            f"compiling for NPU {platform} needs OpenVINO's NPU compiler library, which is not "
            "here: install the NPU driver with its compiler (intel-driver-compiler-npu on Linux; "
            "part of the driver on Windows), see `whisper-npu doctor`. The static graphs are made, "
            "and the target machine can compile them itself"
        ) from None
    options = {"PERFORMANCE_HINT": "LATENCY", "NPU_PLATFORM": platform}
    return Target(f"NPU.{platform}", NPU, NPU, f"NPU {platform}", "f16", options)


def core_for(device: str) -> ov.Core:
    """The OpenVINO core for a device, before the device is resolved."""
    return emulation_core() if device == EMULATED else openvino_core()


def _npu(core: ov.Core, device: str, precision: str, threads: int) -> Target:
    require_npu(core, device)
    if precision not in ("auto", "f16"):
        raise UsageError(f"the NPU computes in f16, not {precision}; give --precision f16 or auto")
    if threads:
        raise UsageError("--threads sets processor threads; the NPU has none")
    options = {"PERFORMANCE_HINT": "LATENCY"}
    return Target(device, device, device, device, "f16", options)


def _emulated(core: ov.Core, precision: str, threads: int) -> Target:
    chosen = "f32" if precision == "auto" else _check_processor(core, precision)
    # The plugin passes these options to the CPU when it compiles, but not when it loads a compiled
    # graph, so the core gets them as well.
    processor: dict[str, Any] = {"INFERENCE_PRECISION_HINT": chosen, **UNROUNDED}
    if threads:
        processor["INFERENCE_NUM_THREADS"] = str(threads)
    try:
        core.set_property(CPU, processor)
        core.get_property(NPU, "AVAILABLE_DEVICES")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DeviceError(
            f"this OpenVINO has no NPU plugin to emulate with: {reason}; pip install openvino"
        ) from None
    options = {
        **_EMULATION,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": chosen,
        **UNROUNDED,
    }
    return Target(EMULATED, NPU, CPU, EMULATED_LABEL, chosen, options)


def _check_processor(core: ov.Core, precision: str) -> str:
    if precision not in _ELEMENT_TYPES:
        raise UsageError(f"precision is {precision!r}; give auto, {', '.join(_ELEMENT_TYPES)}")
    require_precision(core, CPU, precision)
    return precision
