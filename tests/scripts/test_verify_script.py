"""whisper-npu verify: what is equal is certified, and what differs is found."""

import json
import shutil

import numpy as np
import onnx
import pytest
import soundfile
import tiny_whisper
from model_surgery import copy_folder, edit_manifest
from safetensors.numpy import load_file, save_file

from whisper_npu.export.manifest import read_manifest
from whisper_npu.runtime.model_folder.folder import MANIFEST
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
    assert after["checked"]["checkpoint"] == str(tiny_checkpoint)
    assert len(after["checked"]["checks"]) == 6
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
