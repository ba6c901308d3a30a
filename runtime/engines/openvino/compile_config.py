"""Chooses device, precision and options of compilation before a graph is loaded."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import openvino as ov

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.engines.cpu_capabilities import (
    computes_in,
    is_faster_whole,
    multiplies_bytes,
    require_precision,
)

# Shapes that each kind of operation keeps kernels for, in each graph. With the plugin's own number,
# 5000, a process forgets nothing: live speech grew to 1 GiB. With 8, it is a tenth slower.
_KERNELS_KEPT = 32

CacheKind = Literal["stateful", "concat", "static", "off"]
CACHE_KINDS: tuple[str, ...] = get_args(CacheKind)
Precision = Literal["auto", "f32", "bf16", "f16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class CompileRequest:
    """How graphs are to be run; see `OpenVINOBackend`."""

    device: str
    kv_cache: CacheKind
    precision: Precision
    threads: int
    streams: int


class Plan:
    """How graphs are run on a device.

    Attributes:
        request: how they are to be run.
        uses_int8: whether matrices are to be in 8 bits.
        compute_precision: what all else is computed in.
        config: what every graph is compiled with.
    """

    def __init__(self, core: ov.Core, request: CompileRequest) -> None:
        """Choose.

        Raises:
            DeviceError: the device is missing.
            UsageError: int8 is asked for on another device than a processor, or the device does
                not compute in the precision.
        """
        self._core = core
        self.request = request
        self._check_device()
        self.uses_int8, self.compute_precision = self._pick_precision()
        self.config = self._make_config()

    def _check_device(self) -> None:
        available = self._core.available_devices
        plugin, _, number = self.request.device.partition(".")
        is_there = plugin in {name.split(".")[0] for name in available}
        if is_there and number:  # the only one of its kind is called by its kind alone
            numbers = self._core.get_property(plugin, "AVAILABLE_DEVICES")
            is_there = number in numbers or self.request.device in available
        if not is_there:
            raise DeviceError(
                f"device {self.request.device} is not available here; "
                f"OpenVINO finds {', '.join(available) or 'none'}"
            )

    def _pick_precision(self) -> tuple[bool, Precision]:
        """Whether matrices are to be in 8 bits, and what all else is computed in.

        By itself, int8 for the fast path where the processor multiplies in it, else f32. The other
        kinds of cache are there to be compared with, so they are exact.
        """
        wanted = self.request.precision
        if wanted == "auto":
            wanted = "int8" if self.is_for_speed and multiplies_bytes() else "f32"
        require_precision(self._core, self.request.device, wanted)
        return wanted == "int8", self._pick_compute_precision() if wanted == "int8" else wanted

    def _pick_compute_precision(self) -> Precision:
        """What is computed in beside 8 bits."""
        if self.request.device.split(".")[0] != "CPU":
            raise UsageError(
                f"precision int8 rounds weights as they are loaded, for processors; for "
                f"{self.request.device} export with PRECISION=int8 and give --precision auto"
            )
        return "bf16" if computes_in(self._core, "CPU", "bf16") else "f32"

    def _make_config(self) -> dict[str, Any]:
        wanted, device, precision = self.request, self.request.device, self.compute_precision
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        if "KV_CACHE_PRECISION" in self._core.get_property(device, "SUPPORTED_PROPERTIES"):
            # Else it may be 8 bits, even where f32 is asked for. A GPU has 8 bits and f16.
            config["KV_CACHE_PRECISION"] = precision if device.startswith("CPU") else "f16"
        if device == "CPU":
            config["CPU_RUNTIME_CACHE_CAPACITY"] = _KERNELS_KEPT
        if wanted.threads:
            config["INFERENCE_NUM_THREADS"] = wanted.threads
        if wanted.streams > 1:
            config["NUM_STREAMS"] = wanted.streams
            if device == "CPU":
                # Else a stream of one graph and a stream of another may be bound to the same
                # processor core, while another core is idle.
                config["ENABLE_CPU_PINNING"] = False
        return config

    @property
    def is_for_speed(self) -> bool:
        """Whether the arithmetic was left to be what is fastest here."""
        return self.request.precision == "auto" and self.is_fast_path

    @property
    def is_fast_path(self) -> bool:
        """Whether graphs are made for speed, and can be kept: the stateful cache on a processor."""
        return self.request.kv_cache == "stateful" and self.request.device == "CPU"

    @property
    def is_whole(self) -> bool:
        """Whether the matrices that whole windows are multiplied by stay as they are."""
        return not self.uses_int8 or is_faster_whole(self.compute_precision)
