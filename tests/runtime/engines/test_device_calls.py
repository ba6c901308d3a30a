"""What a device says when it fails is told in one line; a forked child is told at once."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import tiny_whisper
from fake_backend import INVENT
from model_surgery import copy_folder

from whisper_npu import load_model
from whisper_npu.errors import DeviceError
from whisper_npu.npu.devices import EMULATED
from whisper_npu.npu.static_engine import OpenVINORequest
from whisper_npu.runtime.engines.device_calls import DeviceCalls
from whisper_npu.runtime.engines.onnxruntime import GraphSession
from whisper_npu.runtime.engines.openvino.compile_config import CompileRequest, Plan
from whisper_npu.runtime.engines.openvino.sessions import RequestPool
from whisper_npu.runtime.features.vad import VoiceActivity

LOST = "Exception from src/inference.cpp:223:\n\nCL_DEVICE_NOT_AVAILABLE: device lost\n"


def fail(*args, **kwargs):
    raise RuntimeError(LOST)


class Engine:
    """What an engine has made; it fails where a test says so."""

    def infer(self, **_):
        pass


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (RuntimeError(LOST), "GPU failed to run the model: CL_DEVICE_NOT_AVAILABLE: device"),
            (RuntimeError(""), "GPU failed to run the model: RuntimeError"),
            (MemoryError(), "GPU failed to run the model: it is out of memory"),
        ],
    )
    def test_in_the_devices_words(self, error, told):
        with pytest.raises(DeviceError, match=told) as raised, DeviceCalls("GPU"):
            raise error
        assert "\n" not in str(raised.value)

    def test_other_errors_are_as_they_are(self):
        with pytest.raises(KeyError), DeviceCalls("GPU"):
            raise KeyError

    @pytest.mark.parametrize("call", ["create_infer_request", "infer"])
    def test_pools(self, call):
        request = Engine()
        pool = RequestPool(SimpleNamespace(create_infer_request=lambda: request), device="GPU")
        setattr(pool.compiled if call == "create_infer_request" else request, call, fail)
        with pytest.raises(DeviceError, match="GPU failed to run the model: CL_DEVICE"):
            pool.run(pool.take())

    @pytest.mark.parametrize("call", ["infer", "get_tensor"])
    def test_requests_of_static_graphs(self, call):
        raw = SimpleNamespace(infer=lambda: None, get_tensor=lambda name: None)
        setattr(raw, call, fail)
        request = OpenVINORequest(raw, DeviceCalls("NPU"))
        ask = request.run if call == "infer" else lambda: request.output("logits")
        with pytest.raises(DeviceError, match="NPU failed to run the model: CL_DEVICE"):
            ask()

    def test_onnx_runtime(self):
        """Its exceptions are of kinds of their own."""

        class LostError(Exception):
            pass

        def run(names, feed):
            raise LostError("[ONNXRuntimeError] : 1 : FAIL : device lost")

        session = Engine()
        session.get_inputs = session.get_outputs = list
        session.run = run
        with pytest.raises(DeviceError, match=r"NPU \(ONNX Runtime\) failed .* device lost"):
            GraphSession(session, "NPU").run({})

    @pytest.mark.parametrize("call", ["start_async", "wait"])
    def test_the_speech_detector(self, real_asset, tmp_path, call):
        (tmp_path / "vad_model.onnx").write_bytes(real_asset("silero-vad").read_bytes())
        detector = VoiceActivity(tmp_path).detector()
        chunks = np.zeros((2, 512), np.float32)
        assert detector.judge(chunks)().shape == (2,)
        detector._request = SimpleNamespace(start_async=lambda: None, wait=lambda: None)
        setattr(detector._request, call, fail)
        with pytest.raises(DeviceError, match=r"the speech detector .* failed to run"):
            detector.judge(chunks)()

    @pytest.mark.slow
    @pytest.mark.parametrize("kv_cache", ["stateful", "concat", "off"])
    def test_what_is_set_wrongly_is_told(self, tiny_folder, kv_cache):
        backend = load_model(tiny_folder, precision="f32", kv_cache=kv_cache).backend
        with pytest.raises(DeviceError, match="CPU failed to run the model"):
            backend.encode(np.zeros((1, 7, 3000), np.float32))
        with pytest.raises(DeviceError, match="CPU failed to run the model"):
            backend.start(np.zeros((1, 1500, 65), np.float32)).step(np.zeros((1, 1), np.int64))

    def test_a_model_that_fails_on_the_way(self, tiny_folder, monkeypatch):
        model = load_model(tiny_folder, precision="f32")
        monkeypatch.setattr(ov.InferRequest, "infer", fail)
        stream = model.transcribe(tiny_whisper.synthetic_speech(0, 3), **INVENT)
        for _ in range(2):
            with pytest.raises(DeviceError, match="CPU failed to run the model: CL_DEVICE"):
                stream.result()


class ManyGpus:
    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device, name):
        if (device, name) == ("GPU", "AVAILABLE_DEVICES"):
            return ["0", "1"]
        if name in ("OPTIMIZATION_CAPABILITIES", "SUPPORTED_PROPERTIES"):
            return []
        raise RuntimeError(LOST)


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    for device in ("GPU", "GPU.1"):
        Plan(ManyGpus(), CompileRequest(device, "stateful", "f32", 0, 1))
    with pytest.raises(DeviceError, match=r"GPU.7 is not available here; .*CPU, GPU.0, GPU.1"):
        Plan(ManyGpus(), CompileRequest("GPU.7", "stateful", "f32", 0, 1))


FORKED = """
import os, sys
import numpy as np
from whisper_npu import load_model
from whisper_npu.errors import DeviceError
from whisper_npu.runtime.transcription.live import LiveTranscriber

def told(ask):
    try:
        ask()
    except DeviceError as error:
        assert "load it in the child" in str(error), error
        return True
    return False

how = dict(precision="f32", device=sys.argv[2], backend=sys.argv[3])
model = load_model(sys.argv[1], **how)
sound = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
options = dict(language="en", temperature=(0.0,), sample_len=5)
text = model.transcribe(sound, **options).text
begun, several = model.transcribe(sound, **options), model.transcribe_all([sound] * 3, **options)
next(several)
child = os.fork()
if child == 0:
    found = [
        told(lambda: model.transcribe(sound, **options).text),
        told(lambda: list(model.transcribe_all([sound], **options))),
        told(lambda: LiveTranscriber(model, language="en").feed(sound)),
        told(lambda: begun.text),
        told(lambda: next(several)),
        told(lambda: model.backend.encode(np.zeros((1, 80, 3000), np.float32))),
        told(model.voice_activity.detector) or "pysilero" in str(model.voice_activity.detector()),
    ]
    del begun, several, model
    if sys.argv[2] == "CPU":  # what is loaded in the child works
        found.append(load_model(sys.argv[1], **how).transcribe(sound, **options).text == text)
    print(found)
    sys.exit(0 if all(found) else 9)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
assert begun.text == text
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.parametrize(
    ("device", "backend"), [("CPU", "openvino"), (EMULATED, "openvino"), ("CPU", "onnxruntime")]
)
def test_a_forked_child_is_told_at_once_and_ends(tiny_folder, tmp_path, device, backend):
    folder = copy_folder(tiny_folder, tmp_path / "tiny")  # static graphs are put into it
    command = [sys.executable, "-c", FORKED, str(folder), device, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0", done.stdout + done.stderr
