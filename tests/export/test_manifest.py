import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_npu.errors import ExportError
from whisper_npu.export import manifest
from whisper_npu.export.manifest import is_up_to_date, read_manifest, verify_files
from whisper_npu.export.source import Source, find_source, with_digest


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


@pytest.fixture
def source(tiny_checkpoint: Path) -> Source:
    return with_digest(find_source(str(tiny_checkpoint)))


def test_certificate_says_everything(tiny_folder: Path, source: Source) -> None:
    content = json.loads((tiny_folder / "export_manifest.json").read_text())
    assert content["format"] == 1
    assert content["source"] == source.as_dict()
    assert content["source"]["kind"] == "huggingface"
    assert set(content["versions"]) == {
        "torch",
        "transformers",
        "optimum",
        "onnx",
        "openvino",
        "python",
    }
    assert content["dimensions"]["n_audio_ctx"] == 1500
    assert content["dimensions"]["n_text_ctx"] == 448
    assert content["precision"] == "fp32"
    assert content["kv_contract"] == "accumulated"
    assert content["parity"]["status"] == "verified"
    files = (path.name for path in tiny_folder.iterdir() if path.is_file())  # not static graphs
    names = set(files) - {"export_manifest.json"}
    assert set(content["files"]) == names


def test_untouched_folder_verifies(folder: Path) -> None:
    verify_files(folder)


@pytest.mark.parametrize("name", ["model.onnx_data", "tokenizer.json", "decoder_model.onnx"])
def test_one_flipped_byte_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=name):
        verify_files(folder)


def test_missing_file_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"config\.json is missing"):
        verify_files(folder)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_folder_without_a_manifest_of_ours(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "export_manifest.json").write_text(content)
    assert read_manifest(tmp_path) is None
    with pytest.raises(ExportError, match="no export of this program"):
        verify_files(tmp_path)


def test_up_to_date(folder: Path, source: Source, monkeypatch) -> None:
    assert is_up_to_date(folder, source, verified=True)
    assert not is_up_to_date(folder, replace(source, sha256="0" * 64), verified=True)
    assert not is_up_to_date(folder.parent / "nothing", source, verified=True)
    monkeypatch.setattr(manifest, "REVISION", manifest.REVISION + 1)
    assert not is_up_to_date(folder, source, verified=True)


def test_other_library_versions_are_not_up_to_date(folder, source, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "library_versions", lambda: {"torch": "0"})
    assert not is_up_to_date(folder, source, verified=True)


def test_unverified_folder_is_not_up_to_date_where_a_certificate_is_due(folder, source) -> None:
    path = folder / "export_manifest.json"
    content = json.loads(path.read_text())
    content["parity"] = {"status": "not verified"}
    path.write_text(json.dumps(content))
    assert is_up_to_date(folder, source, verified=False)
    assert not is_up_to_date(folder, source, verified=True)


def test_damaged_folder_is_not_up_to_date(folder: Path, source: Source) -> None:
    (folder / "encoder_model.onnx").write_bytes(b"")
    assert not is_up_to_date(folder, source, verified=True)
