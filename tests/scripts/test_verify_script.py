"""whisper-npu verify: what is equal is certified, and what differs is found."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import tiny_whisper
from model_surgery import copy_folder, edit_manifest
from safetensors.numpy import load_file, save_file

from whisper_npu.errors import ExportError
from whisper_npu.export import certificate
from whisper_npu.export.certificate import certify
from whisper_npu.export.manifest import read_manifest
from whisper_npu.export.source import find_source
from whisper_npu.export.target import prepare_target
from whisper_npu.npu.selftest import Check, Reference
from whisper_npu.runtime.model_folder.config import Manifest
from whisper_npu.runtime.model_folder.folder import MANIFEST, read_model_folder
from whisper_npu.runtime.model_folder.json_files import checked
from whisper_npu.runtime.model_folder.verification import is_verified
from whisper_npu.scripts import verify


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return copy_folder(tiny_folder, tmp_path / "tiny")


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, tiny_whisper.synthetic_speech(0, 4), 16000)
    return path


def run(capsys, *arguments):
    code = verify.main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def outcomes(content):
    return {check["name"]: check["passed"] for check in content["checks"]}


def test_everything_is_equal(folder, recording, tiny_checkpoint, capsys):
    before = read_manifest(folder)
    code, content = run(capsys, folder, recording, "--against", tiny_checkpoint)
    assert code == 0
    assert outcomes(content) == {
        **{"files": True, "cache stateful": True, "cache concat": True, "cache static": True},
        **{"ONNX Runtime": True, "PyTorch": True},
    }
    after = read_manifest(folder)
    assert (after["source"], after["parity"]) == (before["source"], before["parity"])
    assert after["checked"]["plain"]["checkpoint"] == str(tiny_checkpoint)
    assert len(after["checked"]["plain"]["checks"]) == 6
    assert run(capsys, folder, recording)[0] == 0, "the renewed certificate fits the files"


def test_a_folder_of_another_exporter_gets_a_certificate(folder, recording, capsys):
    (folder / MANIFEST).unlink()
    code, content = run(capsys, folder, recording, "--read-only")
    assert (code, content["certificate"]) == (0, None)
    assert outcomes(content)["files"] is None
    assert not (folder / MANIFEST).exists()
    code, content = run(capsys, folder, recording)
    assert (code, content["certificate"]) == (0, str(folder / MANIFEST))
    manifest = read_manifest(folder)
    assert manifest["parity"]["status"] == "not verified", "it was compared with no checkpoint"
    assert {"encoder_model.onnx", "model.onnx_data", "config.json"} <= manifest["files"].keys()
    assert outcomes(run(capsys, folder, recording)[1])["files"] is True


def test_a_changed_file_is_found(folder, recording, capsys):
    (folder / "tokenizer.json").write_text("{}")
    code, content = run(capsys, folder, recording)
    assert (code, content["certificate"]) == (1, None)
    assert "tokenizer.json" in content["checks"][0]["detail"]


def test_another_checkpoint_is_found(folder, recording, tiny_checkpoint, tmp_path, capsys):
    """Other weights give other tokens."""
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    generator = np.random.default_rng(0)
    for name, values in weights.items():
        weights[name] = values + generator.normal(0, 0.1, values.shape).astype(values.dtype)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    code, content = run(capsys, folder, recording, "--against", other)
    assert code == 1
    assert outcomes(content)["PyTorch"] is False


def test_a_wrong_cached_decoder_is_found(folder, recording, capsys):
    """The decoder with past gives other logits than the decoder without."""
    path = folder / "decoder_with_past_model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "logits":
                node.output[place] = "logits.right"
    size = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    bias = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 10
    model.graph.initializer.append(onnx.numpy_helper.from_array(bias, "wrong"))
    model.graph.node.append(onnx.helper.make_node("Add", ["logits.right", "wrong"], ["logits"]))
    onnx.save(model, path)
    edit_manifest(folder)
    code, content = run(capsys, folder, recording)
    assert code == 1
    assert outcomes(content)["cache concat"] is False


def is_verified_as(folder, variant):
    found = read_model_folder(folder, variant)
    manifest = checked(found.manifest, Manifest, folder)
    return is_verified(manifest.parity, found.layout.variant)


@pytest.fixture
def foreign(folder):
    """A folder of another exporter with two variants."""
    (folder / MANIFEST).unlink()
    for path in folder.glob("*_model.onnx"):
        if "alignment" not in path.name:
            shutil.copyfile(path, path.with_name(f"{path.stem}_fp16.onnx"))
    return folder


class TestCertificate:
    def test_each_variant_is_verified_for_itself(self, foreign):
        certify(read_model_folder(foreign, "fp16"), [{"name": "a"}], "a checkpoint")
        assert is_verified_as(foreign, "fp16")
        assert not is_verified_as(foreign, None)
        certify(read_model_folder(foreign), [{"name": "b"}], None)
        assert is_verified_as(foreign, "fp16")
        assert not is_verified_as(foreign, None)
        checks = read_manifest(foreign)["checked"]
        assert [checks[name]["checks"] for name in ("fp16", "plain")] == [
            [{"name": "a"}],
            [{"name": "b"}],
        ]

    def test_a_later_comparison_counts(self, foreign):
        certify(read_model_folder(foreign), [], None)
        assert not is_verified_as(foreign, None)
        certify(read_model_folder(foreign), [], "a checkpoint")
        assert is_verified_as(foreign, None)
        certify(read_model_folder(foreign), [], None)
        assert is_verified_as(foreign, None), "the files are those that were compared"

    def test_it_holds_what_texts_depend_on_and_no_more(self, foreign):
        (foreign / "vad_model.onnx").write_bytes(b"any")
        (foreign / "selftest_reference.json").write_text("{}")  # recorded anew at any time
        certify(read_model_folder(foreign), [], None)
        files = read_manifest(foreign)["files"]
        assert {"vad_model.onnx", "tokenizer.json", "encoder_model.onnx"} <= files.keys()
        assert "selftest_reference.json" not in files

    @pytest.mark.parametrize("at", ["write_text", "replace"])
    def test_a_full_disk_leaves_the_old_one(self, folder, monkeypatch, at):
        before = (folder / MANIFEST).read_bytes()

        def full(path, *_args, **_options):
            if at == "write_text":
                path.write_bytes(b'{"fo')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, at, full)
        with pytest.raises(ExportError, match="give --read-only"):
            certify(read_model_folder(folder), [], None)
        assert (folder / MANIFEST).read_bytes() == before
        assert [path.name for path in folder.iterdir() if "part" in path.name] == []

    def test_a_link_is_not_followed(self, folder, tmp_path):
        """The blobs of a hub's cache are named by their content."""
        blob = (folder / MANIFEST).rename(tmp_path / "blob")
        (folder / MANIFEST).symlink_to(blob)
        before = blob.read_bytes()
        certify(read_model_folder(folder), [], None)
        assert blob.read_bytes() == before
        assert "checked" in read_manifest(folder)

    def test_no_export_replaces_the_folder(self, foreign):
        """The certificate does not make it an export of the checkpoint."""
        certify(read_model_folder(foreign), [], "tiny.en")
        with pytest.raises(ExportError, match="something else than an export"):
            prepare_target(foreign, find_source("tiny.en"), force=True)


def test_a_folder_that_cannot_be_written_is_refused_at_once(folder, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(verify, "_checks", lambda *_: pytest.fail("minutes of work"))
    assert verify.main([str(folder)]) == 3
    assert "give --read-only" in capsys.readouterr().err


def test_the_outcome_is_told_if_the_disk_is_full(folder, recording, monkeypatch, capsys):
    def full(*_):
        raise ExportError("cannot write")

    monkeypatch.setattr(certificate, "certify", full)
    monkeypatch.setattr(verify, "_checks", lambda *_: iter([Check("files", True, "")]))
    assert verify.main([str(folder), str(recording), "--json"]) == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["passed"] is True
    assert "cannot write" in told.err


def test_silence_proves_nothing(folder, tmp_path, monkeypatch, capsys):
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16000), 16000)
    nothing = Reference({"silence.wav": ()}, "")
    monkeypatch.setattr(verify, "_tokens", lambda *_args, **_options: nothing)
    assert verify.main([str(folder), str(silence)]) == 2
    assert "no speech in silence.wav" in capsys.readouterr().err


def test_files_that_change_meanwhile(folder, recording, monkeypatch, capsys):
    def tokens(*_args, **_options):
        (folder / "tokenizer.json").write_text("{}")
        return Reference({"speech.wav": (1, 2)}, "")

    monkeypatch.setattr(verify, "_tokens", tokens)
    code, content = run(capsys, folder, recording)
    assert (code, content["certificate"]) == (1, None)
    assert "changed while" in content["checks"][-1]["detail"]


def test_recordings_of_one_name(folder, tmp_path, recording, capsys):
    (tmp_path / "b").mkdir()
    other = shutil.copy(recording, tmp_path / "b")
    assert verify.main([str(folder), str(recording), str(other)]) == 2
    assert "two recordings are called speech.wav" in capsys.readouterr().err
