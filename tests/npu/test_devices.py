"""What device names mean, and that nothing runs anywhere else."""

import openvino as ov
import pytest

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.npu.devices import EMULATED, EMULATED_LABEL, npu_devices, resolve


class FakeCore:
    """An OpenVINO core on a machine with NPUs."""

    def __init__(self, npus=("4000",)):
        self.npus = list(npus)

    def get_property(self, device, name):
        return {("NPU", "AVAILABLE_DEVICES"): self.npus}[device, name]


def test_the_plugin_alone_is_no_npu():
    """It compiles and runs here, and says NPU; only its list of devices tells the truth."""
    core = ov.Core()
    target = resolve(core, EMULATED)
    assert npu_devices(core) == []
    model = ov.Model([ov.opset13.relu(p := ov.opset13.parameter([1]))], [p], "m")
    compiled = core.compile_model(model, target.plugin, target.options)
    assert compiled.get_property("EXECUTION_DEVICES") == "NPU"
    assert target.label == EMULATED_LABEL


def test_emulation_computes_as_exactly_as_asked():
    assert resolve(ov.Core(), EMULATED).precision == "f32"
    core = ov.Core()
    resolve(core, EMULATED, "f32", threads=1)
    assert core.get_property("CPU", "INFERENCE_PRECISION_HINT") == ov.Type.f32
    assert core.get_property("CPU", "INFERENCE_NUM_THREADS") == 1


def test_a_real_npu_is_used_as_named():
    core = FakeCore(["4000", "5000"])
    target = resolve(core, "NPU.5000")
    assert (target.plugin, target.label, target.precision) == ("NPU.5000", "NPU.5000", "f16")
    assert "NPU_USE_NPUW" not in target.options
    with pytest.raises(DeviceError, match=r"no NPU.3720 here; OpenVINO finds NPU.4000, NPU.5000"):
        resolve(core, "NPU.3720")


def test_without_an_npu_the_doctor_is_named():
    with pytest.raises(DeviceError, match="whisper-npu doctor"):
        resolve(ov.Core(), "NPU")


@pytest.mark.parametrize(
    ("device", "precision", "threads", "message"),
    [
        ("NPU", "f32", 0, "computes in f16, not f32"),
        ("NPU", "auto", 4, "the NPU has none"),
    ],
)
def test_what_an_npu_cannot_do(device, precision, threads, message):
    with pytest.raises(UsageError, match=message):
        resolve(FakeCore(), device, precision, threads)


def test_static_graphs_on_other_devices():
    assert resolve(ov.Core(), "CPU", threads=2).options["INFERENCE_NUM_THREADS"] == "2"
    with pytest.raises(DeviceError, match="not on FPGA"):
        resolve(ov.Core(), "FPGA")
