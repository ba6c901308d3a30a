"""Asks the installed OpenVINO about the NPU, for the doctor."""

from functools import cached_property

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import DeviceError
from whisper_npu.npu.devices import NPU, npu_devices, resolve
from whisper_npu.runtime.engines.openvino.core import openvino_core

_TOLERANCE = 0.05  # for sums of 64 values in half precision


class OpenVINOEngine:
    """OpenVINO on this machine."""

    @cached_property
    def _core(self) -> ov.Core:
        return openvino_core()

    def version(self) -> str:
        """OpenVINO's version."""
        return str(ov.get_version()).split("-", maxsplit=1)[0]

    def has_plugin(self) -> bool:
        """Whether OpenVINO has the NPU plugin."""
        return bool(self._property("SUPPORTED_PROPERTIES"))

    def devices(self) -> list[str]:
        """The NPUs that the plugin finds."""
        return npu_devices(self._core)

    def compiler(self) -> str:
        """The version of the compiler that the plugin loads; empty if it loads none."""
        return self._property("NPU_COMPILER_VERSION")

    def run(self, device: str) -> str:
        """Compile and run a small static graph; return an empty text, or the error."""
        random = np.random.default_rng(0)
        weights = random.standard_normal((64, 64)).astype(np.float32)
        values = ops.parameter([1, 64], np.float32, name="values")
        product = ops.softmax(ops.matmul(values, weights, False, False), 1)
        model = ov.Model([product], [values], "small")
        feed = random.standard_normal((1, 64)).astype(np.float32)
        scores = feed @ weights
        expected = np.exp(scores - scores.max())
        expected /= expected.sum()
        core = ov.Core()  # a new one, because a device may change the core's settings
        try:
            target = resolve(core, device)
            compiled = core.compile_model(model, target.plugin, target.options)
            found = compiled(feed)[0]
        except (RuntimeError, DeviceError) as error:
            return (str(error).strip().splitlines() or ["no reason given"])[-1]
        largest = float(np.abs(found - expected).max())
        return "" if largest < _TOLERANCE else f"wrong by {largest:.3f}"

    def _property(self, name: str) -> str:
        try:
            return str(self._core.get_property(NPU, name))
        except RuntimeError:
            return ""
