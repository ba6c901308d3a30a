"""The deployer's certificate: passes on a right device, fails on wrong ones, and says where."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import tiny_whisper
from model_surgery import copy_folder, edit_manifest

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.loading import load_backend
from whisper_npu.npu import selftest
from whisper_npu.runtime.model_folder.folder import MANIFEST, read_model_folder
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.scripts import selftest as script


@pytest.fixture(scope="module", autouse=True)
def short_texts():
    """A random model decodes to the end of its context; a few tokens tell as much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selftest._PLAIN, "sample_len", 24)
        yield


@pytest.fixture(scope="module")
def recordings():
    return {name: tiny_whisper.synthetic_speech(seed, 4) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def model(tiny_folder):
    folder = read_model_folder(tiny_folder)
    return WhisperModel(folder, load_backend(folder, "CPU", kv_cache="concat", precision="f32"))


@pytest.fixture(scope="module")
def reference(model, recordings):
    return selftest.make_reference(model, recordings)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return copy_folder(tiny_folder, tmp_path / "tiny")


def write(folder, name, samples):
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, 16000, "FLOAT")
    return path


def outcomes(model, recordings, reference):
    return {check.name: check for check in selftest.run(model, recordings, reference)}


@pytest.mark.slow
def test_a_right_device_passes(model, recordings, reference):
    assert reference.tokens["a"] != reference.tokens["b"]
    checks = outcomes(model, recordings, reference)
    assert [check for check in checks.values() if check.passed is False] == []
    assert list(checks) == [
        "weights",
        "tokens of a",
        "tokens of b",
        "A, B, A",
        "another language, then English",
        "long form, then a short recording",
        "prompt, then no prompt",
        "448-token limit",
        "full context, then a short text",
        "two streams at once",
    ]


class Broken:
    """A backend with a fault; everything else is the real one's."""

    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)


class Stale(Broken):
    """Decodes every window against the audio of the window before."""

    previous = None

    def start(self, audio, rows_per_window=1):
        audio, self.previous = (audio if self.previous is None else self.previous), audio
        return self.real.start(audio[:1], rows_per_window)


class Endless(Broken):
    """Wraps round at the end of the context instead of refusing."""

    def start(self, audio, rows_per_window=1):
        session = Broken(self.real.start(audio, rows_per_window))
        step = session.real.step

        def wrapped(tokens):
            try:
                return step(tokens)
            except UsageError:
                return np.zeros((1, 1, self.real.n_vocab), np.float32)

        session.step = wrapped
        return session


@pytest.mark.slow
def test_a_device_that_mixes_up_windows_fails(model, recordings, reference):
    checks = outcomes(WhisperModel(model.folder, Stale(model.backend)), recordings, reference)
    assert checks["A, B, A"].passed is False
    assert "differs at step" in checks["A, B, A"].detail


@pytest.mark.slow
def test_a_device_without_a_limit_fails(model, recordings, reference):
    checks = outcomes(WhisperModel(model.folder, Endless(model.backend)), recordings, reference)
    assert checks["448-token limit"].passed is False


@pytest.mark.slow
def test_other_tokens_fail_with_the_step(model, recordings, reference):
    wrong = dict(reference.tokens)
    wrong["a"] = (*wrong["a"][:2], 7)
    _, check, *_ = selftest.run(model, recordings, selftest.Reference(wrong, "elsewhere"))
    assert check.passed is False
    assert check.detail.startswith("differs at step 2: ")
    assert check.detail.endswith("instead of 7 (elsewhere)")


def test_the_certificate_is_compared(model, reference, folder):
    check = selftest.check_weights(model.folder, reference)
    assert check.passed
    parity = model.folder.manifest["parity"]
    tokens = f"{parity['tokens_compared']} of {parity['tokens_compared']}"
    assert (
        check.detail
        == f"{len(model.folder.manifest['files'])} files as certified: {tokens} "
        + ("tokens were PyTorch's")
    )
    edit_manifest(folder, parity={"status": "verified", "variants": {"plain": "a checkpoint"}})
    check = selftest.check_weights(read_model_folder(folder), reference)
    assert check.detail.endswith("files as certified: all tokens were PyTorch's")
    edit_manifest(folder, parity={"status": "verified", "variants": {"fp16": "a checkpoint"}})
    check = selftest.check_weights(read_model_folder(folder), reference)
    assert "without a comparison" in check.detail
    edit_manifest(folder, parity={"status": "not verified"})
    check = selftest.check_weights(read_model_folder(folder), reference)
    assert (check.passed, "without a comparison" in check.detail) == (True, True)


def test_damaged_weights_fail(model, recordings, reference, folder, tmp_path, capsys):
    """A reference that is computed from the damaged folder itself would agree with it."""
    (path,) = folder.glob("*.onnx_data")
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    path.write_bytes(content)
    files = [str(write(tmp_path, name, samples)) for name, samples in recordings.items()]
    for extra in ([], ["--record"]):
        assert script.main([str(folder), "--audio", *files, *extra]) == 3
        assert "model.onnx_data differs from what export_manifest.json certifies" in (
            capsys.readouterr().err
        )
    assert not (folder / selftest.REFERENCE).exists()
    (folder / MANIFEST).unlink()
    uncertified = read_model_folder(folder)
    check = selftest.check_weights(uncertified, reference)
    assert check.passed is False
    assert check.detail.startswith("not those that the reference was recorded with")
    check = selftest.check_weights(uncertified, replace(reference, graphs=None))
    assert check.passed is None
    assert check.detail.startswith("no certificate in the folder")


def test_first_difference():
    assert selftest.first_difference([1, 2], [1, 2]) is None
    assert selftest.first_difference([1, 2], [1, 3]) == "differs at step 1: 3 instead of 2"
    assert selftest.first_difference([1, 2], [1]) == "differs at step 1: 1 instead of 2 steps"


def test_a_recorded_reference_is_read_back(tmp_path, reference):
    assert selftest.read_reference(tmp_path) is None
    selftest.write_reference(tmp_path, reference)
    assert selftest.read_reference(tmp_path) == replace(
        reference, source=f"recorded: {reference.source}"
    )
    (tmp_path / selftest.REFERENCE).write_text("{}")
    with pytest.raises(ModelError, match="is damaged"):
        selftest.read_reference(tmp_path)


def test_one_recording_is_too_few(model, recordings, reference):
    with pytest.raises(UsageError, match="two recordings"):
        list(selftest.run(model, {"a": recordings["a"]}, reference))
    with pytest.raises(UsageError, match="c has none"):
        list(selftest.run(model, {**recordings, "c": recordings["a"]}, reference))


def test_another_runtime_s_transcript(model, reference, tmp_path):
    expected = reference.tokens["a"]
    right, wrong = tmp_path / "right.json", tmp_path / "wrong.json"
    right.write_text(json.dumps({"segments": [{"tokens": list(expected)}]}))
    wrong.write_text(json.dumps({"segments": [{"tokens": [5, *expected[1:]]}]}))
    assert selftest.compare_transcript(model, right, expected).passed
    assert not selftest.compare_transcript(model, wrong, expected).passed
    text = tmp_path / "right.txt"
    text.write_text(model.tokenizer.decode(expected))
    assert selftest.compare_transcript(model, text, expected).passed
    with pytest.raises(UsageError, match="cannot read the transcript"):
        selftest.compare_transcript(model, tmp_path / "none.json", expected)


@pytest.mark.slow
def test_the_command(tiny_folder, recordings, tmp_path, capsys):
    files = [str(write(tmp_path, name, samples)) for name, samples in recordings.items()]
    command = [str(tiny_folder), "--audio", *files]  # in f32, where nothing else is said
    assert script.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["device"] == "CPU"
    transcript = tmp_path / "theirs.txt"
    transcript.write_text("something else")
    assert script.main([*command, "--transcript", f"a.wav={transcript}"]) == 1
    assert "FAILED  transcript theirs.txt: differs at step 0" in capsys.readouterr().out
    assert script.main([*command, "--transcript", "c.wav=x"]) == 2
    assert script.main([str(tiny_folder), "--device", "NPU", "--audio", *files]) == 3
    assert "whisper-npu doctor" in capsys.readouterr().err
