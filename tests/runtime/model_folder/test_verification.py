"""Damage is noticed when a model is loaded, by name; what is not certified still runs."""

import json

import numpy as np
import onnx
import pytest
from model_surgery import copy_folder, edit_manifest

from whisper_npu import load_model
from whisper_npu.errors import ModelError
from whisper_npu.loading import load_backend
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.runtime.engines.openvino.graphs import is_finite
from whisper_npu.runtime.model_folder import digests, verification
from whisper_npu.runtime.model_folder.folder import MANIFEST, read_model_folder
from whisper_npu.runtime.model_folder.layout import ENCODER
from whisper_npu.runtime.model_folder.verification import verify_folder
from whisper_npu.scripts import transcribe

DATA = "model.onnx_data"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return copy_folder(tiny_folder, tmp_path / "tiny")


def zeroed(path):
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 1000] = bytes(1000)
    path.write_bytes(content)


def longer(path):
    with path.open("ab") as file:
        file.write(b"\n")


@pytest.mark.parametrize("change", [zeroed, longer])
@pytest.mark.parametrize(
    "name", [DATA, "config.json", "tokenizer.json", "generation_config.json", "vad_model.onnx"]
)
def test_a_certified_file_that_changed_is_refused(folder, name, change):
    if not (folder / name).exists():
        pytest.skip(f"the tiny export has no {name}")
    files = [path for path in folder.iterdir() if path.is_file()]  # not `npu/` of other tests
    assert verify_folder(read_model_folder(folder)) == len(files) - 1
    model = read_model_folder(folder)
    change(folder / name)
    with pytest.raises(ModelError) as caught:
        verify_folder(model)
    message = str(caught.value)
    assert message.startswith(f"{folder / name} differs from what {MANIFEST} certifies")
    assert f"delete {MANIFEST} to use the folder without a certificate" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "options", [{}, {"kv_cache": "concat"}, {"backend": "onnxruntime"}, {"device": "NPU_EMULATED"}]
)
def test_whatever_runs_the_model(folder, options):
    zeroed(folder / DATA)
    with pytest.raises(ModelError, match=f"{DATA} differs"):
        load_model(folder, **options)


def test_the_command_line_says_so_in_one_line(folder, tiny_audio, capsys):
    zeroed(folder / DATA)
    assert transcribe.main([str(tiny_audio[0]), "--model", str(folder)]) == 3
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"error: {folder / DATA} differs from what {MANIFEST} certifies")


@pytest.mark.slow
def test_without_a_certificate_it_runs(folder, tiny_audio):
    longer(folder / DATA)
    (folder / MANIFEST).unlink()
    assert verify_folder(read_model_folder(folder)) == 0
    assert load_model(folder).transcribe(tiny_audio[0], language="en", vad=False).result()


def test_a_digest_that_is_not_the_file_s_is_found(folder):
    content = json.loads((folder / MANIFEST).read_text())
    content["files"][DATA]["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"{DATA} differs"):
        verify_folder(read_model_folder(folder))


@pytest.mark.parametrize("files", [[], "all", {DATA: None}, {DATA: {}}, {DATA: "0"}])
def test_a_certificate_that_cannot_be_understood(folder, files):
    edit_manifest(folder, files=files)
    with pytest.raises(ModelError, match=rf"{MANIFEST}: files"):
        verify_folder(read_model_folder(folder))


def test_files_are_read_once(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "cache"))
    later = digests.time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    verify_folder(read_model_folder(folder))
    monkeypatch.setattr(digests, "_sha256", lambda _: pytest.fail("a file was read again"))
    assert verify_folder(read_model_folder(folder)) > 5


def test_a_memory_that_is_wrong_condemns_no_file(folder, monkeypatch):
    monkeypatch.setattr(verification, "remembered_sha256", lambda _: "0" * 64)
    assert verify_folder(read_model_folder(folder)) > 5


def spoil(folder, value, name=ENCODER):
    """Put a value into the middle of a graph's largest weight, and have all of it certified."""
    model = onnx.load(folder / name, load_external_data=False)
    entries = [
        {entry.key: int(entry.value) for entry in tensor.external_data if entry.key != "location"}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    largest = max(entries, key=lambda entry: entry["length"])
    weights = np.memmap(folder / DATA, np.float32, "r+", offset=largest["offset"])
    weights[largest["length"] // 8] = value
    weights.flush()
    edit_manifest(folder)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("graph", [ENCODER, "decoder_with_past_model.onnx"])
def test_weights_that_are_no_numbers_are_refused(folder, value, graph):
    spoil(folder, value, graph)
    for options in ({}, {"kv_cache": "concat"}, {"backend": "onnxruntime"}):
        with pytest.raises(ModelError, match=r"_model\.onnx: the weight .* are not finite"):
            load_backend(read_model_folder(folder), **options)
    with pytest.raises(ModelError, match=r"_model\.onnx: the weight .* are not finite"):
        ensure_bundle(read_model_folder(folder))


def test_masks_are_no_damage():
    """openai/whisper's hides the future by minus infinity."""
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    assert is_finite(mask)
    assert is_finite(np.array(-np.inf, np.float32))
    mask[7, 0] = 0.5
    assert not is_finite(mask)
    assert not is_finite(np.array(np.inf, np.float32))
    assert not is_finite(np.array(np.nan, np.float32))


def test_large_weights_are_numbers():
    """Whose sum is none."""
    for dtype in (np.float16, np.float32):
        values = np.full((64, 64), np.finfo(dtype).max, dtype)
        assert is_finite(values)
        values[3, 3] = np.nan
        assert not is_finite(values)
        values[3, 3] = -np.inf
        assert not is_finite(values)


@pytest.mark.parametrize(
    "name", ["../elsewhere", "/elsewhere", "a/../../elsewhere", "C:\\elsewhere", "a\0b", ""]
)
def test_a_certificate_that_leads_out_of_the_folder(folder, name):
    (folder.parent / "elsewhere").write_text("private")
    edit_manifest(folder, files={name: {"bytes": 7, "sha256": "0"}})
    with pytest.raises(ModelError, match="outside the model folder"):
        verify_folder(read_model_folder(folder))


def test_a_certified_name_that_no_file_has(folder):
    edit_manifest(folder, files={"x" * 5000: {"bytes": 7, "sha256": "0"}})
    assert verify_folder(read_model_folder(folder)) == 0
