"""Reading model folders: whole ones, those of other exporters, and those that cannot be used."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from decoding_checks import PLAIN, loaded
from model_surgery import as_other_exporters_write, copy_folder
from own_layout import own_layout

from whisper_npu import load_model
from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.config import GenerationConfig, ModelConfig
from whisper_npu.runtime.model_folder.folder import ModelFolder, read_model_folder
from whisper_npu.runtime.model_folder.layout import GRAPHS


@pytest.fixture
def folder(tmp_path):
    """A folder with every file that has to be there, none of them real."""
    path = tmp_path / "some model"
    path.mkdir()
    for name in (*GRAPHS, "tokenizer.json"):
        (path / name).write_text("{}")
    (path / "config.json").write_text(json.dumps({"max_target_positions": 448}))
    return path


class TestReading:
    def test_everything_optional_may_be_missing(self, folder):
        (folder / "config.json").unlink()
        read = read_model_folder(folder)
        assert (read.config, read.generation_config) == (ModelConfig(), GenerationConfig())
        assert read.manifest == {}
        assert read.kv_contract is None
        assert read.name == "some model"

    def test_a_relative_path_is_made_absolute(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        read = read_model_folder("some model")
        monkeypatch.chdir("/")
        assert read.path == folder.resolve()
        assert read.tokenizer.is_file()

    def test_home(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        monkeypatch.setenv("USERPROFILE", str(folder.parent))
        assert read_model_folder(Path("~/some model")).path == folder.resolve()

    @pytest.mark.parametrize("name", [*GRAPHS, "tokenizer.json"])
    def test_a_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=f"lacks .*{name}.*; found: .*whisper-npu export"):
            read_model_folder(folder)

    def test_all_missing_files_are_named(self, tmp_path):
        with pytest.raises(ModelError) as caught:
            read_model_folder(tmp_path)
        for name in (*GRAPHS, "tokenizer.json"):
            assert name in str(caught.value)

    def test_no_folder(self, tmp_path):
        with pytest.raises(ModelError, match=r"does not exist; make one with `whisper-npu export"):
            read_model_folder(tmp_path / "nothing")

    def test_a_file(self, folder):
        with pytest.raises(ModelError, match=r"is a file; give the folder"):
            read_model_folder(folder / "config.json")

    @pytest.mark.parametrize(
        "name", ["config.json", "generation_config.json", "export_manifest.json"]
    )
    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b""])
    def test_broken_json(self, folder, name, content):
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError) as caught:
            read_model_folder(folder)
        assert str(folder / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_json_that_is_no_object(self, folder):
        (folder / "config.json").write_text("[1]")
        with pytest.raises(ModelError, match="holds no JSON object"):
            read_model_folder(folder)

    def test_unreadable_json(self, folder):
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()  # what nobody can read, root included
        with pytest.raises(ModelError, match="cannot read"):
            read_model_folder(folder)

    @pytest.mark.parametrize(
        ("config", "generation", "n_text_ctx"),
        [
            ({"max_target_positions": 448}, {}, 448),
            ({"n_text_ctx": 224}, {}, 224),
            ({}, {"max_length": 100}, 100),
            ({"max_target_positions": 448}, {"max_length": 100}, 448),
        ],
    )
    def test_context(self, tmp_path, config, generation, n_text_ctx):
        folder = ModelFolder(
            tmp_path,
            ModelConfig(**config),
            GenerationConfig(**generation),
            {},
            own_layout(tmp_path),
        )
        assert folder.n_text_ctx == n_text_ctx

    def test_no_context(self, tmp_path):
        with pytest.raises(ModelError, match="says how long the decoder's context is"):
            _ = ModelFolder(
                tmp_path, ModelConfig(), GenerationConfig(), {}, own_layout(tmp_path)
            ).n_text_ctx

    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_contract_of_the_manifest(self, folder, contract):
        (folder / "export_manifest.json").write_text(json.dumps({"kv_contract": contract}))
        assert read_model_folder(folder).kv_contract == contract


@pytest.fixture(scope="module")
def texts(tiny_folder, tiny_audio):
    model = loaded(tiny_folder)
    return [model.transcribe(path, **PLAIN, sample_len=60).text for path in tiny_audio]


@pytest.mark.slow
class TestOtherExporters:
    """Trios without manifest and generation settings give the same text."""

    def check(self, folder, tiny_audio, texts, kind="concat"):
        assert not (folder / "export_manifest.json").exists()
        assert not (folder / "generation_config.json").exists()
        model = load_model(folder, kv_cache=kind, precision="f32")
        # A made-up vocabulary is too small for the rule that tells English-only models.
        model.vocabulary = replace(model.vocabulary, is_multilingual=True)
        got = [model.transcribe(path, **PLAIN, sample_len=60).text for path in tiny_audio]
        assert got == texts
        assert all(got)

    @pytest.mark.parametrize("one_file_per_graph", [True, False])
    def test_other_ways_to_store_weights(
        self, tiny_folder, tmp_path, tiny_audio, texts, one_file_per_graph
    ):
        folder = as_other_exporters_write(
            copy_folder(tiny_folder, tmp_path / "tiny"), one_file_per_graph=one_file_per_graph
        )
        data = sorted(path.name for path in folder.glob("*_data"))
        assert data == ([] if one_file_per_graph else sorted(f"{name}_data" for name in GRAPHS))
        self.check(folder, tiny_audio, texts)

    def test_optimums_own_export(self, tiny_checkpoint, tmp_path, tiny_audio, texts):
        from optimum.exporters.onnx import onnx_export_from_model
        from transformers import GenerationConfig

        from whisper_npu.export.checkpoint import load_checkpoint

        model = load_checkpoint(str(tiny_checkpoint)).model
        model.generation_config = GenerationConfig()
        out = tmp_path / "optimum"
        with warnings.catch_warnings(action="ignore"):
            onnx_export_from_model(
                model=model,
                output=out,
                task="automatic-speech-recognition-with-past",
                no_post_process=True,
                do_validation=False,
            )
        (out / "generation_config.json").unlink()
        (out / "tokenizer.json").write_bytes((tiny_checkpoint / "tokenizer.json").read_bytes())
        for kind in ("concat", "static", "stateful"):
            self.check(out, tiny_audio, texts, kind)


def test_parameters_are_counted(tiny_folder, tiny_checkpoint, tmp_path):
    """By the configuration's sizes; without them, by the bytes."""
    from safetensors import safe_open

    with safe_open(tiny_checkpoint / "model.safetensors", "np") as weights:
        n_parameters = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert read_model_folder(tiny_folder).n_parameters == pytest.approx(n_parameters, rel=0.02)
    copy = copy_folder(tiny_folder, tmp_path / "copy")
    (copy / "config.json").unlink()
    assert read_model_folder(copy).n_parameters == pytest.approx(n_parameters, rel=0.3)
