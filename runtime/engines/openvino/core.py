"""Holds the one `ov.Core` of a process.

OpenVINO's plugin for processors gives the thread that loads it a stack for signals. It frees this
stack when the plugin is released, in whatever thread that happens
(`src/plugins/intel_cpu/src/plugin.cpp`, `SigAltStackSetup`, 2026.4). In another thread, the next
signal, such as Ctrl-C, then ends the process with SIGSEGV. So the plugin is never released.
"""

import os
from functools import cache

import openvino as ov

# oneDNN's own store of kernels, shared by all graphs; oneDNN reads this when it makes the first
# kernel. The default of 1024 keeps kernels that the plugin has released.
_KERNELS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_KERNELS_KEPT = 128


@cache
def openvino_core() -> ov.Core:
    """Return OpenVINO's entry point, for every use in this process; safe for many threads."""
    os.environ.setdefault(_KERNELS_VARIABLE, str(_KERNELS_KEPT))
    return ov.Core()


@cache
def emulation_core() -> ov.Core:
    """Return a core for the emulated NPU, which must change the core's view of the processor."""
    return ov.Core()
