"""Chooses device, precision and options of compilation before a graph is loaded."""

from dataclasses import dataclass
from typing import Any

import openvino as ov

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.engines.choices import CacheKind, Precision
from whisper_npu.runtime.engines.cpu_capabilities import (
    UNROUNDED,
    computes_in,
    is_faster_whole,
    multiplies_bytes,
    require_precision,
)

# Number of shapes whose kernels each kind of operation keeps, in each graph. With the plugin's own
# number, 5000, a process forgets nothing: live speech grew to 1 GiB (docs/streaming.md).
_KERNELS_KEPT = 32


@dataclass(frozen=True)
class CompileRequest:
    """The requested way to run graphs; see `OpenVINOBackend`."""

    device: str
    kv_cache: CacheKind
    precision: Precision
    threads: int
    streams: int


class Plan:
    """The chosen way to run graphs on a device.

    Attributes:
        request: the requested way.
        uses_int8: whether matrices will be in 8 bits.
        compute_precision: the precision of all other arithmetic.
        config: compile options of every graph.
    """

    def __init__(self, core: ov.Core, request: CompileRequest) -> None:
        """Choose.

        Raises:
            DeviceError: the device is missing.
            UsageError: int8 is requested on a device that is no processor, or the device does not
                compute in the precision.
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
        if is_there and number:  # a single device of its kind has no number in its name
            numbers = self._core.get_property(plugin, "AVAILABLE_DEVICES")
            is_there = number in numbers or self.request.device in available
        if not is_there:
            raise DeviceError(
                f"device {self.request.device} is not available here; "
                f"OpenVINO finds {', '.join(available) or 'none'}; give one of these, or install "
                "the device's driver" + ("; CUDA is not supported" if plugin == "CUDA" else "")
            )

    def _pick_precision(self) -> tuple[bool, Precision]:
        """Choose whether matrices are in 8 bits, and the precision of all other arithmetic.

        `auto` is int8 for the fast path on processors that multiply in it, else f32. The other
        kinds of cache serve as a comparison, so they are exact.
        """
        wanted = self.request.precision
        if wanted == "auto":
            wanted = "int8" if self.is_for_speed and multiplies_bytes() else "f32"
        require_precision(self._core, self.request.device, wanted)
        return wanted == "int8", self._pick_compute_precision() if wanted == "int8" else wanted

    def _pick_compute_precision(self) -> Precision:
        """Choose the precision of arithmetic that is not in 8 bits."""
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
            # Else it may be 8 bits, even for f32. A GPU has 8 bits and f16.
            config["KV_CACHE_PRECISION"] = precision if device.startswith("CPU") else "f16"
        if device == "CPU":
            config["CPU_RUNTIME_CACHE_CAPACITY"] = _KERNELS_KEPT
            if not self.uses_int8:
                config |= UNROUNDED
        if wanted.threads:
            config["INFERENCE_NUM_THREADS"] = wanted.threads
        if wanted.streams > 1:
            config["NUM_STREAMS"] = wanted.streams
            if device == "CPU":
                # Else streams of two graphs may be bound to the same processor core while another
                # core is idle.
                config["ENABLE_CPU_PINNING"] = False
        return config

    @property
    def is_for_speed(self) -> bool:
        """Whether the precision is `auto`, for the fastest arithmetic here."""
        return self.request.precision == "auto" and self.is_fast_path

    @property
    def is_fast_path(self) -> bool:
        """Whether graphs are made for speed and can be kept: the stateful cache on a processor."""
        return self.request.kv_cache == "stateful" and self.request.device == "CPU"

    @property
    def is_whole(self) -> bool:
        """Whether the matrices that multiply whole windows stay as they are."""
        return not self.uses_int8 or is_faster_whole(self.compute_precision)
