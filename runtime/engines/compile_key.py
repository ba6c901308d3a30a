"""The dependencies of a compiled graph, which are its key in the cache of compiled graphs."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openvino as ov


@dataclass(frozen=True)
class CacheKey:
    """The dependencies of a compiled graph; `digest` stands for all of them."""

    graph: str
    openvino: str
    device: str
    device_name: str
    driver: str
    compiler: str
    options: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """A sha256 in hexadecimal."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the dependencies for the header."""
        return {
            "graph": self.graph,
            "openvino": self.openvino,
            "device": self.device,
            "device_name": self.device_name,
            "driver": self.driver,
            "compiler": self.compiler,
            "options": dict(self.options),
        }


def cache_key(
    core: ov.Core, graph: str, device: str, options: Mapping[str, Any], *, runs_on: str = ""
) -> CacheKey:
    """Return the key of a graph compiled for a device.

    Args:
        core: the OpenVINO core that compiles.
        graph: identifies the graph with its weights.
        device: the OpenVINO device.
        options: the options it is compiled with.
        runs_on: the device that does the work, if it is not `device`.
    """
    return CacheKey(
        graph=graph,
        openvino=ov.get_version(),
        device=device,
        device_name=_property(core, runs_on or device, "FULL_DEVICE_NAME"),
        driver=_property(core, device, "NPU_DRIVER_VERSION"),
        compiler=_property(core, device, "NPU_COMPILER_VERSION"),
        options=tuple(sorted((name, str(value)) for name, value in options.items())),
    )


def _property(core: ov.Core, device: str, name: str) -> str:
    """Return a property of a device, or an empty text if the device does not have it."""
    if name.startswith("NPU_") and not device.startswith("NPU"):
        return ""
    try:
        return str(core.get_property(device, name))
    except RuntimeError:
        return ""
