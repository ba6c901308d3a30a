"""Reads the operating system's view of an NPU: bus, kernel module, device node, libraries.

All files are read below a root folder, which tests replace by a simulated tree. Nothing is
executed.
"""

import os
import platform
import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

LINUX, WINDOWS = "Linux", "Windows"

Version = tuple[int, ...]

_NPU_CLASS = "0x1200"  # PCI: processing accelerator
_INTEL = "0x8086"
_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "run/opengl-driver/lib",
)
_SYSTEM32 = "Windows/System32"
_DRIVER_STORE = f"{_SYSTEM32}/DriverStore/FileRepository"


def parse_version(text: str) -> Version:
    """The numbers of a version such as `1.17.0` or `6.8.0-57-generic`."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found.group().split("."))) if found else ()


@dataclass(frozen=True)
class User:
    """The user whose permissions are checked."""

    uid: int
    groups: frozenset[int]


def this_user() -> User:
    """The user of this process."""
    if sys.platform == "win32":
        return User(0, frozenset())
    return User(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


@dataclass(frozen=True)
class Host:
    """A machine, described by its files.

    Attributes:
        root: the root folder of its file system.
        system: `Linux`, `Windows`, or another name.
        release: the kernel's version.
        machine: the processor's type: `x86_64`, `AMD64`.
        user: the user whose permissions are checked.
    """

    root: Path = Path("/")
    system: str = field(default_factory=platform.system)
    release: str = field(default_factory=platform.release)
    machine: str = field(default_factory=platform.machine)
    user: User = field(default_factory=this_user)

    @property
    def in_container(self) -> bool:
        """Whether this is a container, which gets devices only if they are passed in."""
        return (self.root / ".dockerenv").exists() or (self.root / "run/.containerenv").exists()

    def pci_npus(self) -> list[str]:
        """PCI addresses of Intel processing accelerators."""
        found = []
        for device in sorted((self.root / "sys/bus/pci/devices").glob("*")):
            is_npu = _read(device / "class").startswith(_NPU_CLASS)
            if is_npu and _read(device / "vendor") == _INTEL:
                found.append(device.name)
        return found

    def module_loaded(self, name: str) -> bool:
        """Whether a kernel module is loaded or built in."""
        loaded = {line.split()[0] for line in _read(self.root / "proc/modules").splitlines()}
        return name in loaded or (self.root / "sys/module" / name).is_dir()

    def firmware(self) -> list[Path]:
        """NPU firmware files, compressed or not."""
        folders = (self.root / "lib/firmware", self.root / "usr/lib/firmware")
        found = {path for folder in folders for path in folder.glob("**/intel/vpu/*.bin*")}
        return sorted(found)

    def device_nodes(self) -> list[Path]:
        """Device nodes of accelerators."""
        return sorted((self.root / "dev/accel").glob("accel*"))

    def may_use(self, node: Path) -> bool:
        """Whether the user may read and write a device node."""
        status = node.stat()
        needed = {
            stat.S_IRUSR | stat.S_IWUSR: status.st_uid == self.user.uid,
            stat.S_IRGRP | stat.S_IWGRP: status.st_gid in self.user.groups,
            stat.S_IROTH | stat.S_IWOTH: True,
        }
        if self.user.uid == 0:
            return True
        return any(applies and status.st_mode & bits == bits for bits, applies in needed.items())

    def group_name(self, gid: int) -> str:
        """The name of a group, or its number if it has no name."""
        for line in _read(self.root / "etc/group").splitlines():
            fields = line.split(":")
            if len(fields) > 2 and fields[2] == str(gid):
                return fields[0]
        return str(gid)

    def libraries(self, pattern: str) -> list[Path]:
        """Shared libraries in the system's library folders."""
        folders = _LIBRARY_FOLDERS if self.system == LINUX else (_SYSTEM32,)
        return sorted(path for folder in folders for path in (self.root / folder).glob(pattern))

    def driver_store(self, pattern: str) -> list[Path]:
        """Files of Windows' installed NPU drivers."""
        return sorted((self.root / _DRIVER_STORE).glob(f"npu*/{pattern}"))

    def windows_driver_version(self) -> Version:
        """The version of the newest installed NPU driver; empty if there is none."""
        versions = []
        for file in self.driver_store("*.inf"):
            content = file.read_bytes()
            encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
            text = content.decode(encoding, errors="replace")
            found = re.search(r"DriverVer\s*=\s*[\d/]+\s*,\s*([\d.]+)", text)
            if found:
                versions.append(parse_version(found.group(1)))
        return max(versions, default=())


def library_version(path: Path) -> Version:
    """The version in the file name of a library's link target: `libze_intel_npu.so.1.17.0`."""
    _, _, suffix = path.resolve().name.partition(".so.")
    return parse_version(suffix)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
