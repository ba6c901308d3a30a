"""The one `ov.Core` of a process.

OpenVINO's plugin for processors gives the thread that loads it a stack for signals, and takes that
memory away when the plugin is let go of, in whichever thread that happens
(`src/plugins/intel_cpu/src/plugin.cpp`, `SigAltStackSetup`, 2026.4). If it is another thread, the
next signal, such as Ctrl-C, ends the process with SIGSEGV. So the plugin is never let go of.
"""

import os
from functools import cache

import openvino as ov

# oneDNN's own store of kernels, shared by all graphs; it reads this when the first one is made.
# Its default of 1024 keeps what the plugin has let go of.
_KERNELS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_KERNELS_KEPT = 128


@cache
def openvino_core() -> ov.Core:
    """OpenVINO's entry point, for every use in this process; safe for many threads."""
    os.environ.setdefault(_KERNELS_VARIABLE, str(_KERNELS_KEPT))
    return ov.Core()


@cache
def emulation_core() -> ov.Core:
    """The same for the emulated NPU, which has to change what the core knows of the processor."""
    return ov.Core()
