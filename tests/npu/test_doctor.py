"""The doctor on simulated machines: a healthy laptop, and one thing missing at a time."""

import json
from dataclasses import replace

import pytest

from whisper_npu.npu.doctor import FAILED, NOT_APPLICABLE, PASSED, diagnose, installed_distributions
from whisper_npu.npu.host import Host, User, library_version, parse_version
from whisper_npu.runtime.engines.memory import available_bytes
from whisper_npu.scripts import check_npu

LIBRARIES = "usr/lib/x86_64-linux-gnu"
COMPILER = "libopenvino_intel_npu_compiler_loader.so"


class FakeEngine:
    """OpenVINO as it would be on the simulated machine."""

    def __init__(self, devices=("4000",), compiler="8.2", plugin=True, problem=""):
        self.found = list(devices)
        self.loaded = compiler
        self.plugin = plugin
        self.problem = problem

    def version(self):
        return "2026.4.1"

    def has_plugin(self):
        return self.plugin

    def devices(self):
        return self.found

    def compiler(self):
        return self.loaded

    def run(self, device):
        return self.problem if device == "NPU" else ""


def write(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def link(folder, name, version):
    write(folder / f"{name}.{version}")
    (folder / f"{name}.1").symlink_to(f"{name}.{version}")


@pytest.fixture
def laptop(tmp_path):
    """A healthy Lunar Lake laptop with Ubuntu, asked by a user in the group render."""
    device = tmp_path / "sys/bus/pci/devices/0000:00:0b.0"
    write(device / "class", "0x120000\n")
    write(device / "vendor", "0x8086\n")
    other = tmp_path / "sys/bus/pci/devices/0000:00:02.0"
    write(other / "class", "0x030000\n")
    write(other / "vendor", "0x8086\n")
    write(tmp_path / "proc/modules", "intel_vpu 245760 0 - Live 0x0\nsnd 1 0 - Live 0x0\n")
    write(tmp_path / "proc/meminfo", "MemTotal: 32000000 kB\nMemAvailable: 24000000 kB\n")
    write(tmp_path / "lib/firmware/updates/intel/vpu/vpu_40xx_v0.0.bin")
    node = write(tmp_path / "dev/accel/accel0")
    node.chmod(0o660)
    group = node.stat().st_gid
    write(tmp_path / "etc/group", f"root:x:99999:\nrender:x:{group}:someone\n")
    folder = tmp_path / LIBRARIES
    link(folder, "libze_loader.so", "1.24.2")
    link(folder, "libze_intel_npu.so", "1.28.0")
    write(folder / COMPILER)
    return Host(tmp_path, "Linux", "6.11.0-21-generic", "x86_64", User(54321, frozenset({group})))


def run(host, engine=None, installed=("openvino", "onnxruntime-openvino")):
    diagnosis = diagnose(host, engine or FakeEngine(), lambda: set(installed))
    return diagnosis, {finding.name: finding for finding in diagnosis.findings}


def failures(diagnosis):
    return [finding.name for finding in diagnosis.findings if finding.status == FAILED]


def test_a_healthy_laptop(laptop):
    diagnosis, findings = run(laptop)
    assert {finding.status for finding in diagnosis.findings} == {PASSED}
    assert diagnosis.usable
    assert diagnosis.verdict == "--device NPU runs here, on NPU.4000"
    assert findings["NPU driver"].detail == "1.28.0"
    assert findings["NPU hardware"].detail == "at 0000:00:0b.0"


def test_not_in_the_render_group(laptop):
    stranger = replace(laptop, user=User(54321, frozenset({54321})))
    diagnosis, findings = run(stranger, FakeEngine(devices=()))
    assert failures(diagnosis) == ["permission to use it"]
    permission = findings["permission to use it"]
    assert "belongs to the group render" in permission.detail
    assert permission.fix == "sudo usermod -a -G render $USER, then log in again"
    assert findings["NPU listed by OpenVINO"].status == NOT_APPLICABLE
    assert not diagnosis.usable
    assert "exits with code 3 here (permission to use it" in diagnosis.verdict


def test_no_compiler_library(laptop):
    (laptop.root / LIBRARIES / COMPILER).unlink()
    diagnosis, findings = run(laptop, FakeEngine(compiler="", problem="no compiler"))
    assert failures(diagnosis) == ["NPU compiler", "small graph on the NPU"]
    assert "intel-driver-compiler-npu" in findings["NPU compiler"].fix
    assert not diagnosis.usable
    write(laptop.root / LIBRARIES / "libnpu_driver_compiler.so")  # its name until OpenVINO 2026.1
    assert run(laptop, FakeEngine(compiler=""))[0].usable


@pytest.mark.parametrize("name", ["libze_intel_npu.so", "libze_intel_vpu.so"])
def test_an_old_driver(laptop, name):
    folder = laptop.root / LIBRARIES
    for path in folder.glob("libze_intel*"):
        path.unlink()
    link(folder, name, "1.10.1")
    diagnosis, findings = run(laptop)
    assert failures(diagnosis) == ["NPU driver"]
    assert findings["NPU driver"].detail == "1.10.1 is older than 1.17"
    assert "linux-npu-driver/releases" in findings["NPU driver"].fix
    assert not diagnosis.usable


def remove(path):
    return lambda host: [item.unlink() for item in host.root.glob(path)]


@pytest.mark.parametrize(
    ("damage", "failed", "fix"),
    [
        (lambda host: write(host.root / "proc/modules"), "kernel module intel_vpu", "modprobe"),
        (remove("lib/firmware/**/*.bin"), "NPU firmware", "linux-firmware"),
        (remove("dev/accel/*"), "device node", "dmesg"),
        (remove(f"{LIBRARIES}/libze_loader*"), "Level Zero loader", "libze1"),
        (remove(f"{LIBRARIES}/libze_intel*"), "NPU driver", "intel-level-zero-npu"),
    ],
)
def test_one_thing_missing(laptop, damage, failed, fix):
    damage(laptop)
    diagnosis, findings = run(laptop, FakeEngine(devices=()))
    assert failures(diagnosis) == [failed]
    assert fix in findings[failed].fix
    assert failed in diagnosis.verdict


def test_an_old_loader_and_an_old_kernel(laptop):
    for path in (laptop.root / LIBRARIES).glob("libze_loader*"):
        path.unlink()
    link(laptop.root / LIBRARIES, "libze_loader.so", "1.16.0")
    diagnosis, findings = run(replace(laptop, release="5.15.0-1-generic"))
    assert failures(diagnosis) == ["operating system", "Level Zero loader"]
    assert "6.6 or newer" in findings["operating system"].fix


def test_in_a_container_without_the_device(laptop):
    remove("dev/accel/*")(laptop)
    write(laptop.root / ".dockerenv")
    _, findings = run(laptop, FakeEngine(devices=()))
    assert findings["device node"].fix == "start the container with --device /dev/accel"


def test_everything_there_but_the_graph_is_wrong(laptop):
    diagnosis, _ = run(laptop, FakeEngine(problem="wrong by 0.700"))
    assert failures(diagnosis) == ["small graph on the NPU"]
    assert not diagnosis.usable
    diagnosis, findings = run(laptop, FakeEngine(devices=()))
    assert failures(diagnosis) == ["NPU listed by OpenVINO"]
    assert "restart" in findings["NPU listed by OpenVINO"].fix


def test_a_machine_with_nothing(tmp_path):
    write(tmp_path / "proc/meminfo", "MemAvailable: 1000 kB\n")
    host = Host(tmp_path, "Linux", "6.8.0", "x86_64", User(1, frozenset()))
    diagnosis, findings = run(host, FakeEngine(devices=(), compiler="", plugin=False), ())
    assert failures(diagnosis) == ["NPU hardware", "OpenVINO's NPU plugin", "memory"]
    assert all(finding.fix for finding in diagnosis.findings if finding.status == FAILED)
    assert "only --backend onnxruntime needs it" in findings["ONNX Runtime"].detail
    mac = replace(host, system="Darwin", machine="arm64")
    assert failures(run(mac)[0])[0] == "operating system"


def test_two_onnx_runtimes(laptop):
    diagnosis, findings = run(laptop, installed=("onnxruntime", "onnxruntime-openvino"))
    assert failures(diagnosis) == ["ONNX Runtime"]
    assert findings["ONNX Runtime"].fix.startswith("pip uninstall onnxruntime onnxruntime-openvino")
    assert diagnosis.usable, "OpenVINO itself does not mind"
    assert (
        "no OpenVINO provider" in run(laptop, installed=("onnxruntime",))[1]["ONNX Runtime"].detail
    )


@pytest.fixture
def windows(tmp_path):
    def make(version):
        system = tmp_path / "Windows/System32"
        write(system / "ze_loader.dll")
        store = system / "DriverStore/FileRepository/npu.inf_amd64_0123456789abcdef"
        store.mkdir(parents=True)
        text = f"[Version]\r\nDriverVer = 05/08/2025,{version}\r\n"
        (store / "npu.inf").write_text(text, encoding="utf-16")
        return Host(tmp_path, "Windows", "11", "AMD64", User(0, frozenset()))

    return make


@pytest.mark.parametrize(
    ("version", "failed", "detail"),
    [
        ("32.0.100.4023", [], "32.0.100.4023"),
        ("31.0.100.1688", ["NPU driver"], "older than 32.0.100.3104"),
        ("32.0.100.4778", ["NPU driver"], "fails to install"),
    ],
)
def test_windows(windows, version, failed, detail, monkeypatch):
    monkeypatch.setattr("whisper_npu.npu.doctor.available_bytes", lambda *_: 8 << 30)
    diagnosis, findings = run(windows(version))
    assert failures(diagnosis) == failed
    assert detail in findings["NPU driver"].detail
    assert findings["device node"].status == NOT_APPLICABLE


def test_windows_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setattr("whisper_npu.npu.doctor.available_bytes", lambda *_: 8 << 30)
    host = Host(tmp_path, "Windows", "11", "AMD64", User(0, frozenset()))
    diagnosis, findings = run(host, FakeEngine(devices=(), compiler=""))
    assert failures(diagnosis) == ["Level Zero loader", "NPU driver", "NPU compiler"]
    assert "Windows Update" in findings["NPU driver"].fix


def test_permissions():
    assert parse_version("6.8.0-57-generic") == (6, 8, 0)
    assert parse_version("unknown") == ()


def test_versions_from_library_names(tmp_path):
    link(tmp_path, "libze_intel_npu.so", "1.17.0")
    assert library_version(tmp_path / "libze_intel_npu.so.1") == (1, 17, 0)


def test_memory(tmp_path):
    assert available_bytes() > 1 << 20
    assert available_bytes(tmp_path) == 4 << 30, "an unknown amount is taken to be small"


def test_the_command_on_this_machine(capsys):
    """Whatever it has, the exit code says whether --device NPU would run."""
    code = check_npu.main(["--json"])
    diagnosis = json.loads(capsys.readouterr().out)
    assert code == (0 if diagnosis["usable"] else 3)
    findings = {finding["name"]: finding for finding in diagnosis["findings"]}
    assert findings["small graph on NPU_EMULATED"]["status"] == PASSED
    assert findings["OpenVINO's NPU plugin"]["status"] == PASSED
    assert check_npu.main([]) == code
    *_, verdict, nothing, heading, first, second, third = capsys.readouterr().out.splitlines()
    assert (verdict, nothing) == (diagnosis["verdict"], "")
    assert heading == "to begin with on this machine:"
    for line, command in zip((first, second, third), diagnosis["commands"], strict=True):
        told, purpose = line.split("#")
        assert (told.strip(), purpose.strip()) == (command["line"], command["purpose"])


def test_the_command_on_another_root(laptop, capsys):
    check_npu.main(["--root", str(laptop.root), "--json"])
    findings = {item["name"]: item for item in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["NPU hardware"]["status"] == PASSED


def test_packages_are_listed():
    assert {"openvino", "numpy"} <= installed_distributions()
