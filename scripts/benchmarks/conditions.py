"""Records the conditions of a measurement: date, machine, versions."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.version import __version__

_PACKAGES = ("openvino", "numpy")
_BUSY = 0.5  # load per core at which other programs disturb a measurement


def n_cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def conditions(threads: int, packages: Sequence[str] = _PACKAGES) -> dict[str, Any]:
    """The conditions, as values for JSON.

    Args:
        threads: The requested threads; 0 is one per core.
        packages: Packages whose versions matter.
    """
    core = openvino_core()
    versions = {"whisper-npu": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "cores": n_cores(),
        "threads": threads or n_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def conditions_line(found: dict[str, Any]) -> str:
    """The same in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, "
        f"{found['threads']} threads, {found['system']}; {versions}"
    )


def busy_warning(found: dict[str, Any]) -> str | None:
    """A warning if other programs used the machine at the start of the measurement, or None."""
    load = found["load_average"]
    if load is None or load <= _BUSY * found["cores"]:
        return None
    return f"the machine is busy (load {load:.1f}): times are not to be relied on"
