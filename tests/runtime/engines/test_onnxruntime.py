"""The same trio and the same static graphs through ONNX Runtime's OpenVINO provider."""

import sys

import numpy as np
import pytest
from decoding_checks import PLAIN, assert_repeatable
from model_surgery import copy_folder, make_delta

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.loading import load_backend
from whisper_npu.npu.load_static import load_static
from whisper_npu.runtime.engines import onnxruntime
from whisper_npu.runtime.engines.onnxruntime import OnnxRuntimeBackend, open_graph
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.transcription.model import WhisperModel

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return read_model_folder(copy_folder(tiny_folder, tmp_path_factory.mktemp("ort") / "tiny"))


@pytest.fixture(scope="module")
def oracle(folder):
    return load_backend(folder, "CPU", kv_cache="concat", precision="f32")


@pytest.fixture(scope="module")
def static(folder):
    return load_static(folder, "CPU", backend="onnxruntime")


@pytest.fixture(scope="module")
def audio(oracle):
    features = np.random.default_rng(0).standard_normal((2, 80, 3000)).astype(np.float32)
    return oracle.encode(features)


def loaded(folder, static, kind):
    if kind == "static graphs":
        return static
    return load_backend(folder, "CPU", backend="onnxruntime", kv_cache=kind)


KINDS = ["auto", "concat", "off", "static graphs"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_steps_give_what_openvino_gives(folder, static, oracle, audio, kind):
    backend = loaded(folder, static, kind)
    assert backend.device == "CPU (ONNX Runtime)"
    assert backend.precision == "f32"
    random = np.random.default_rng(1)
    calls = [random.integers(0, 300, (4, n)) for n in (6, 1, 1, 5)]
    found = []
    for item in (backend, oracle):
        session = item.start(audio, 2)
        rows = [session.step(tokens).copy() for tokens in calls[:2]]
        session.reorder([1, 0, 3, 3])
        rows += [session.step(tokens).copy() for tokens in calls[2:]]
        assert session.length == 13
        session.close()
        found.append(rows)
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transcribes_like_openvino(folder, static, oracle, tiny_audio, kind):
    results = [
        WhisperModel(folder, backend).transcribe(tiny_audio[1], **PLAIN, sample_len=40).result()
        for backend in (loaded(folder, static, kind), oracle)
    ]
    assert results[0].text == results[1].text
    assert results[0].device == "CPU (ONNX Runtime)"


@pytest.mark.slow
def test_encoder_sizes_and_word_times(folder, static, oracle, audio):
    features = np.random.default_rng(2).standard_normal((1, 80, 3000)).astype(np.float32)
    tokens = np.random.default_rng(3).integers(0, 300, (2, 9))
    for backend in (static, load_backend(folder, "CPU", backend="onnxruntime")):
        for size in ("n_mels", "n_audio_ctx", "n_text_ctx", "n_vocab"):
            assert getattr(backend, size) == getattr(oracle, size)
        np.testing.assert_allclose(backend.encode(features), oracle.encode(features), atol=1e-4)
        pairs = zip(backend.align(audio, tokens), oracle.align(audio, tokens), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_nothing_is_left_behind(folder, static, tiny_audio):
    assert_repeatable(WhisperModel(folder, static), tiny_audio, **PLAIN, sample_len=40)


def test_contracts_are_found(tiny_folder, oracle, audio, tmp_path):
    copy = make_delta(copy_folder(tiny_folder, tmp_path / "delta"))
    (copy / "export_manifest.json").unlink()
    backend = OnnxRuntimeBackend(read_model_folder(copy))
    tokens = np.random.default_rng(4).integers(0, 300, (1, 4))
    last = []
    for item in (backend, oracle):
        session = item.start(audio[:1])
        session.step(tokens)
        session.step(tokens[:, :1])
        last.append(session.step(tokens[:, 1:2]).copy())
        session.close()
    np.testing.assert_allclose(*last, atol=TOLERANCE)


def test_the_context_ends(folder, audio):
    session = load_backend(folder, "CPU", backend="onnxruntime").start(audio[:1])
    with pytest.raises(UsageError, match=r"0 \+ 449 tokens do not fit"):
        session.step(np.zeros((1, 449), np.int64))


def test_a_wrong_device_is_an_error_not_the_cpu(folder):
    """Straight at the provider, past our own check for an NPU."""
    with pytest.raises(DeviceError, match=r"NPU cannot run encoder_model\.onnx: .*doctor"):
        open_graph(folder.path / "encoder_model.onnx", "NPU", "f16")
    with pytest.raises(DeviceError, match="whisper-npu doctor"):
        load_backend(folder, "NPU", backend="onnxruntime")


@pytest.mark.parametrize(
    ("device", "options", "error", "message"),
    [
        ("GPU", {}, DeviceError, "not on GPU"),
        ("NPU_EMULATED", {}, UsageError, "cannot emulate"),
        ("NPU", {"precision": "f32"}, UsageError, "on NPU give auto, f16"),
        ("CPU", {"kv_cache": "stateful"}, UsageError, "with ONNX Runtime give auto"),
    ],
)
def test_what_it_cannot_do(folder, device, options, error, message):
    with pytest.raises(error, match=message):
        load_backend(folder, device, backend="onnxruntime", **options)


def test_a_missing_package_and_the_wrong_one(folder, monkeypatch):
    class Plain:
        def get_available_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setitem(sys.modules, "onnxruntime", Plain())
    with pytest.raises(DeviceError, match="pip uninstall onnxruntime"):
        load_backend(folder, "CPU", backend="onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"whisper-npu\[ort\]"):
        load_backend(folder, "CPU", backend="onnxruntime")


def test_no_word_times_without_their_graph(tiny_folder, tmp_path, audio):
    copy = copy_folder(tiny_folder, tmp_path / "plain")
    (copy / "decoder_alignment_model.onnx").unlink()
    backend = OnnxRuntimeBackend(read_model_folder(copy))
    with pytest.raises(ModelError, match="--add-alignment"):
        backend.align(audio, np.zeros((2, 4), np.int64))


class FakeOpen:
    """Writes an EPContext model as the provider does, or refuses to load one."""

    def __init__(self):
        self.opened = []
        self.refuse = ()

    def __call__(self, path, options, entries):
        self.opened.append(path.name)
        if path.name in self.refuse:
            raise DeviceError("a blob of another driver")
        if "ep.context_file_path" in entries:
            with open(entries["ep.context_file_path"], "w") as file:  # noqa: PTH123
                file.write("compiled")
        return path.name


def test_compiled_graphs_of_an_npu_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
    fake = FakeOpen()
    monkeypatch.setattr(onnxruntime, "_open", fake)
    monkeypatch.setattr(onnxruntime, "GraphSession", lambda session, device: session)

    def load(identity="graph"):
        fake.opened.clear()
        open_graph(tmp_path / "step.onnx", "NPU", "f16", identity=identity)
        return list(fake.opened)

    assert load() == ["step.onnx"]
    assert load() == ["model.onnx"], "from the EPContext model"
    assert load("another graph") == ["step.onnx"]
    fake.refuse = ("model.onnx",)
    assert load() == ["model.onnx", "step.onnx"], "compiled anew, never fatal"
    fake.refuse = ()
    assert load() == ["model.onnx"]
    assert not list((tmp_path / "compiled" / "onnxruntime").glob(".part-*"))


def test_a_cache_that_cannot_be_written_is_told_and_not_needed(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "file"))
    fake = FakeOpen()
    monkeypatch.setattr(onnxruntime, "_open", fake)
    monkeypatch.setattr(onnxruntime, "GraphSession", lambda session, device: session)
    open_graph(tmp_path / "step.onnx", "NPU", "f16", identity="graph")
    assert fake.opened == ["step.onnx"]
    assert "compiled graphs cannot be kept" in caplog.text
