"""Finds what an NPU needs and this machine lacks, and says how to get it.

The checks go from the hardware up. The first failed check is the cause. Checks that depend on it
are marked as not applicable, so that one missing part is not reported six times.
"""

import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from whisper_npu.npu.host import LINUX, WINDOWS, Host, library_version, parse_version
from whisper_npu.runtime.engines.memory import available_bytes

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "n/a"

OLDEST_KERNEL = (6, 6)
"""OpenVINO's NPU configuration guide asks for it."""
OLDEST_LINUX_DRIVER = (1, 17)
"""The first whose library is called as today's Level Zero loader and OpenVINO expect."""
OLDEST_LOADER = (1, 17, 17)
"""Older Level Zero loaders look for the driver's library under its former name."""
OLDEST_WINDOWS_DRIVER = (32, 0, 100, 3104)
"""OpenVINO's guides for generative models on NPU ask for it."""
BAD_WINDOWS_DRIVERS = {
    (32, 0, 100, 4778): "fails to install on some machines without a word (openvino#36457)",
}
ENOUGH_MEMORY = 2 << 30
"""What compiling tiny and base takes; larger models take some four times their weights."""

_DRIVER_PAGE = "https://github.com/intel/linux-npu-driver/releases"
_WINDOWS_DRIVER_PAGE = "https://www.intel.com/content/www/us/en/download/794734"
_NO_NPU = "this machine shows no NPU"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: the subject of the check.
        status: `passed`, `failed` or `n/a`.
        detail: the result.
        fix: instructions to mend it; empty unless the check failed.
    """

    name: str
    status: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the conclusion.

    Attributes:
        findings: in the order of the checks.
        usable: whether `--device NPU` would run here.
        verdict: the result of `--device NPU` here, in a sentence.
    """

    findings: tuple[Finding, ...]
    usable: bool
    verdict: str


class Engine(Protocol):
    """OpenVINO's view of the NPU."""

    def version(self) -> str:
        """OpenVINO's version."""
        ...

    def has_plugin(self) -> bool:
        """Whether it has the NPU plugin."""
        ...

    def devices(self) -> list[str]:
        """The NPUs that the plugin finds."""
        ...

    def compiler(self) -> str:
        """The version of the compiler that the plugin loads; empty if it loads none."""
        ...

    def run(self, device: str) -> str:
        """Compile and run a small static graph; return an empty text, or the error."""
        ...


def diagnose(host: Host, engine: Engine, distributions: Callable[[], set[str]]) -> Diagnosis:
    """Check everything that an NPU needs.

    Args:
        host: the machine.
        engine: OpenVINO on it.
        distributions: names of the installed Python packages.
    """
    findings = [_operating_system(host)]
    if host.system == WINDOWS:
        findings += _windows(host)
    else:
        findings += _linux(host)
    cause = next((finding for finding in findings if finding.status == FAILED), None)
    findings += _openvino(host, engine, cause)
    findings.append(_memory(host))
    findings.append(_onnxruntime(distributions()))
    usable = all(finding.status != FAILED for finding in findings if finding.name in _NEEDED)
    usable = usable and bool(engine.devices())
    failed = next((item for item in findings if item.status == FAILED), None)
    if usable:
        verdict = f"--device NPU runs here, on NPU.{engine.devices()[0]}"
    else:
        reason = f"{failed.name}: {failed.detail}" if failed else "OpenVINO finds no NPU"
        verdict = f"--device NPU exits with code 3 here ({reason})"
    return Diagnosis(tuple(findings), usable, verdict)


_SYSTEM = "operating system"
_HARDWARE = "NPU hardware"
_MODULE = "kernel module intel_vpu"
_FIRMWARE = "NPU firmware"
_NODE = "device node"
_PERMISSION = "permission to use it"
_LOADER = "Level Zero loader"
_DRIVER = "NPU driver"
_PLUGIN = "OpenVINO's NPU plugin"
_COMPILER = "NPU compiler"
_LISTED = "NPU listed by OpenVINO"
_GRAPH = "small graph on the NPU"
_EMULATION = "small graph on NPU_EMULATED"
_MEMORY = "memory"
_ORT = "ONNX Runtime"
_NEEDED = {
    *(_SYSTEM, _HARDWARE, _MODULE, _FIRMWARE, _NODE, _PERMISSION, _LOADER, _DRIVER),
    *(_PLUGIN, _COMPILER, _LISTED, _GRAPH),
}


def _operating_system(host: Host) -> Finding:
    detail = f"{host.system} {host.release} on {host.machine}"
    if host.system not in (LINUX, WINDOWS) or host.machine not in ("x86_64", "AMD64"):
        fix = "Intel NPUs are in x86-64 machines with Linux or Windows"
        return Finding(_SYSTEM, FAILED, detail, fix)
    if host.system == LINUX and parse_version(host.release) < OLDEST_KERNEL:
        fix = f"install a kernel of {_dotted(OLDEST_KERNEL)} or newer"
        return Finding(_SYSTEM, FAILED, f"{detail} is too old for the NPU", fix)
    return Finding(_SYSTEM, PASSED, detail)


def _linux(host: Host) -> Iterator[Finding]:
    npus = host.pci_npus()
    if not npus:
        yield Finding(
            _HARDWARE,
            FAILED,
            "no Intel processing accelerator on the PCI bus",
            "NPUs come with Core Ultra processors; if this is one, enable the NPU in the firmware "
            "setup. Everything else works with --device CPU",
        )
        for name in (_MODULE, _FIRMWARE, _NODE, _PERMISSION, _LOADER, _DRIVER):
            yield Finding(name, NOT_APPLICABLE, _NO_NPU)
        return
    yield Finding(_HARDWARE, PASSED, f"at {', '.join(npus)}")
    if host.module_loaded("intel_vpu"):
        yield Finding(_MODULE, PASSED, "loaded")
    else:
        fix = "sudo modprobe intel_vpu; `dmesg | grep intel_vpu` says why if that fails"
        yield Finding(_MODULE, FAILED, "not loaded", fix)
    firmware = host.firmware()
    if firmware or host.in_container:
        yield Finding(_FIRMWARE, PASSED, f"{len(firmware)} files" if firmware else "the host's")
    else:
        fix = f"install linux-firmware, or intel-fw-npu from {_DRIVER_PAGE}, and restart"
        yield Finding(_FIRMWARE, FAILED, "none in /lib/firmware/**/intel/vpu", fix)
    yield from _linux_node(host)
    yield _linux_loader(host)
    yield _linux_driver(host)


def _linux_node(host: Host) -> Iterator[Finding]:
    nodes = host.device_nodes()
    if not nodes:
        fix = (
            "start the container with --device /dev/accel"
            if host.in_container
            else "restart after loading intel_vpu; `dmesg | grep intel_vpu` shows its errors"
        )
        yield Finding(_NODE, FAILED, "no /dev/accel/accel*", fix)
        yield Finding(_PERMISSION, NOT_APPLICABLE, "no device node")
        return
    yield Finding(_NODE, PASSED, ", ".join(f"/dev/accel/{node.name}" for node in nodes))
    denied = [node for node in nodes if not host.may_use(node)]
    if not denied:
        yield Finding(_PERMISSION, PASSED, "this user may read and write it")
        return
    group = host.group_name(denied[0].stat().st_gid)
    yield Finding(
        _PERMISSION,
        FAILED,
        f"/dev/accel/{denied[0].name} belongs to the group {group}, which this user is not in",
        f"sudo usermod -a -G {group} $USER, then log in again",
    )


def _linux_loader(host: Host) -> Finding:
    found = host.libraries("libze_loader.so.1")
    if not found:
        fix = "sudo apt install libze1 (level-zero on other distributions)"
        return Finding(_LOADER, FAILED, "libze_loader.so.1 is not installed", fix)
    version = library_version(found[0])
    if version and version < OLDEST_LOADER:
        fix = f"install Level Zero {_dotted(OLDEST_LOADER)} or newer"
        return Finding(_LOADER, FAILED, f"{_dotted(version)} does not find today's driver", fix)
    return Finding(_LOADER, PASSED, _dotted(version) or str(found[0]))


def _linux_driver(host: Host) -> Finding:
    found = host.libraries("libze_intel_npu.so.1")
    former = host.libraries("libze_intel_vpu.so.1")
    fix = f"install intel-level-zero-npu and intel-driver-compiler-npu from {_DRIVER_PAGE}"
    if not found and not former:
        return Finding(_DRIVER, FAILED, "libze_intel_npu.so.1 is not installed", fix)
    version = library_version((found or former)[0])
    if not found or (version and version < OLDEST_LINUX_DRIVER):
        oldest = _dotted(OLDEST_LINUX_DRIVER)
        detail = f"{_dotted(version) or 'before 1.17'} is older than {oldest}"
        return Finding(_DRIVER, FAILED, detail, fix)
    return Finding(_DRIVER, PASSED, _dotted(version) or str(found[0]))


def _windows(host: Host) -> Iterator[Finding]:
    version = host.windows_driver_version()
    fix = f"install the newest NPU driver from Windows Update or {_WINDOWS_DRIVER_PAGE}"
    for name in (_MODULE, _FIRMWARE, _NODE, _PERMISSION):
        yield Finding(name, NOT_APPLICABLE, "part of the driver on Windows")
    if host.libraries("ze_loader.dll"):
        yield Finding(_LOADER, PASSED, "ze_loader.dll")
    else:
        yield Finding(_LOADER, FAILED, "ze_loader.dll is not in System32", fix)
    if not version:
        yield Finding(_DRIVER, FAILED, "no NPU driver in the driver store", fix)
    elif version in BAD_WINDOWS_DRIVERS:
        detail = f"{_dotted(version)} {BAD_WINDOWS_DRIVERS[version]}"
        yield Finding(_DRIVER, FAILED, detail, fix)
    elif version < OLDEST_WINDOWS_DRIVER:
        detail = f"{_dotted(version)} is older than {_dotted(OLDEST_WINDOWS_DRIVER)}"
        yield Finding(_DRIVER, FAILED, detail, fix)
    else:
        yield Finding(_DRIVER, PASSED, _dotted(version))


def _openvino(host: Host, engine: Engine, cause: Finding | None) -> Iterator[Finding]:
    version = engine.version()
    if not engine.has_plugin():
        fix = "pip install --force-reinstall openvino"
        yield Finding(_PLUGIN, FAILED, f"OpenVINO {version} came without it", fix)
        for name in (_COMPILER, _LISTED, _GRAPH, _EMULATION):
            yield Finding(name, NOT_APPLICABLE, "no plugin")
        return
    yield Finding(_PLUGIN, PASSED, f"OpenVINO {version}")
    has_npu = cause is None or cause.name not in (_SYSTEM, _HARDWARE)
    if not has_npu:
        for name in (_COMPILER, _LISTED, _GRAPH):
            yield Finding(name, NOT_APPLICABLE, _NO_NPU)
    else:
        yield _compiler(host, engine)
        found = engine.devices()
        if found:
            yield Finding(_LISTED, PASSED, ", ".join(f"NPU.{name}" for name in found))
        elif cause is not None:
            yield Finding(_LISTED, NOT_APPLICABLE, f"waits for: {cause.name}")
        else:
            fix = "restart; if that does not help, install the newest driver and OpenVINO"
            yield Finding(_LISTED, FAILED, "none, though everything it needs is here", fix)
        if found:
            yield _graph(_GRAPH, engine.run("NPU"))
        else:
            yield Finding(_GRAPH, NOT_APPLICABLE, "no NPU listed")
    yield _graph(_EMULATION, engine.run("NPU_EMULATED"))


def _compiler(host: Host, engine: Engine) -> Finding:
    version = engine.compiler()
    if version:
        return Finding(_COMPILER, PASSED, version)
    if host.system == WINDOWS:
        libraries = [*host.driver_store("*npu*compiler*.dll")]
        fix = f"install the newest NPU driver, which carries it: {_WINDOWS_DRIVER_PAGE}"
    else:
        libraries = host.libraries("libnpu_driver_compiler.so*")
        libraries += host.libraries("libopenvino_intel_npu_compiler*.so*")
        fix = f"install intel-driver-compiler-npu from {_DRIVER_PAGE}"
    if libraries:
        return Finding(_COMPILER, PASSED, libraries[0].name)
    return Finding(_COMPILER, FAILED, "no compiler library is installed", fix)


def _graph(name: str, problem: str) -> Finding:
    if not problem:
        return Finding(name, PASSED, "compiled, ran, and gave the right numbers")
    fix = "install the newest NPU driver and OpenVINO; if it stays, report this line"
    return Finding(name, FAILED, problem, fix)


def _memory(host: Host) -> Finding:
    free = available_bytes(host.root) if host.system == LINUX else available_bytes()
    detail = f"{free / (1 << 30):.1f} GiB free"
    if free < ENOUGH_MEMORY:
        fix = f"close programs; compiling takes {ENOUGH_MEMORY >> 30} GiB and more"
        return Finding(_MEMORY, FAILED, detail, fix)
    return Finding(_MEMORY, PASSED, detail)


def _onnxruntime(installed: set[str]) -> Finding:
    rivals = sorted(installed & {"onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"})
    if "onnxruntime-openvino" not in installed:
        detail = f"{rivals[0]} has no OpenVINO provider" if rivals else "not installed"
        return Finding(_ORT, NOT_APPLICABLE, f"{detail}; only --backend onnxruntime needs it")
    if rivals:
        names = " ".join(rivals)
        return Finding(
            _ORT,
            FAILED,
            f"{names} beside onnxruntime-openvino: both own the same module, and the plain one "
            "hides the OpenVINO provider",
            f"pip uninstall {names} onnxruntime-openvino && pip install onnxruntime-openvino",
        )
    return Finding(_ORT, PASSED, "onnxruntime-openvino")


def installed_distributions() -> set[str]:
    """Names of the Python packages installed here."""
    return {
        name.lower().replace("_", "-")
        for distribution in importlib.metadata.distributions()
        if (name := distribution.metadata["Name"])
    }


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
