"""Models of the Hugging Face hub: from its cache, from the network, and listed. No network here."""

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoSibling

from whisper_npu import load_model, model_search
from whisper_npu.errors import CheckpointError, ModelError, UsageError
from whisper_npu.export import hub, onnx_export
from whisper_npu.model_search import find_model, local_models
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.main import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OF_TRANSFORMERS_JS = [
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "preprocessor_config.json",
    "onnx/encoder_model.onnx",
    "onnx/encoder_model_fp16.onnx",
    "onnx/encoder_model_q4.onnx",
    "onnx/encoder_model.onnx_data",
    "onnx/encoder_model_fp16.onnx_data_1",
    "onnx/decoder_model_merged.onnx",
    "onnx/decoder_model_merged_fp16.onnx",
    "onnx/decoder_model_merged_q4.onnx",
    "flax_model.msgpack",
    "a/b/c/encoder_model.onnx",
]


class Hub:
    """A hub with one repository, `owner/tiny`, and a cache.

    Attributes:
        content: the repository's files.
        asked: what was asked of the network.
    """

    def __init__(self, content: Path, cache: Path) -> None:
        self.content, self.cache, self.asked = content, cache, []

    @property
    def names(self):
        files = (path for path in self.content.rglob("*") if path.is_file())
        return [path.relative_to(self.content).as_posix() for path in files]

    def model_info(self, repository, *, revision, token, files_metadata):
        assert files_metadata
        self.asked.append(("list", repository, revision))
        files = [
            RepoSibling(rfilename=name, size=(self.content / name).stat().st_size)
            for name in self.names
        ]
        return SimpleNamespace(siblings=files, tags=["whisper", "license:mit"])

    def snapshot_download(self, repository, *, revision, token, allow_patterns):
        self.asked.append(("fetch", repository, revision))
        snapshot = self.cache / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
        for name in self.names:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.content / name, snapshot / name)
        return str(snapshot)


@pytest.fixture
def repository(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "own cache"))
    monkeypatch.setattr(model_search, "_below_checkout", lambda _name: [])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = Hub(shutil.copytree(tiny_folder, tmp_path / "content"), tmp_path / "cache")
    (made.content / "model.safetensors").touch()
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_model_of_the_hub_runs_and_is_fetched_once(repository):
    with load_model("owner/tiny") as model:
        assert model.folder.path.is_relative_to(repository.cache)
        assert not (model.folder.path / "model.safetensors").exists()
        assert (model.folder.path / "export_manifest.json").exists()
    n_asked = len(repository.asked)
    assert find_model("owner/tiny") == model.folder.path
    assert len(repository.asked) == n_asked


def test_without_a_network_the_cache_serves(repository, monkeypatch):
    first = find_model("owner/tiny")

    class Offline:
        def model_info(self, *_args, **_options):
            raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(hub, "HfApi", Offline)
    assert find_model("owner/tiny") == first
    with pytest.raises(CheckpointError, match="connect to the network"):
        find_model("owner/other")


def test_a_checkpoint_is_exported(repository, monkeypatch):
    exported = []

    def export_model(source, out, *, progress):
        exported.append((source, out))
        out.mkdir(parents=True)
        return out

    monkeypatch.setattr(onnx_export, "export_model", export_model)
    for path in repository.content.glob("*.onnx"):
        path.unlink()
    found = find_model("owner/tiny")
    assert exported == [("owner/tiny", found)]
    assert find_model("owner/tiny") == found
    assert len(exported) == 1


class TestWithoutTheExporter:
    """As after `pip install whisper-npu`: nothing can be exported here."""

    @pytest.fixture(autouse=True)
    def _core_only(self, monkeypatch):
        monkeypatch.setattr(model_search, "EXPORTERS", ("no_such_package",))

    def test_ready_made_graphs_are_taken_and_named(self, repository, capsys):
        found = cli.find_model("tiny.en")
        assert found.is_relative_to(repository.cache / "models--onnx-community--whisper-tiny.en")
        told = capsys.readouterr().err
        assert "tiny.en: without the extra [export] it cannot be exported and compared" in told
        assert "fetching onnx-community/whisper-tiny.en from the hub: " in told
        assert "licence mit" in told

    def test_later_starts_ask_nothing_and_name_them_again(self, repository, capsys):
        first = cli.find_model("small")
        n_asked = len(repository.asked)
        capsys.readouterr()
        assert cli.find_model("small") == first
        assert len(repository.asked) == n_asked
        assert "taking the graphs of onnx-community/whisper-small" in capsys.readouterr().err

    def test_a_program_is_told_by_its_log(self, repository, caplog):
        load_model("tiny.en").close()
        assert "taking the graphs of onnx-community/whisper-tiny.en" in caplog.text

    def test_without_a_network_both_ways_are_named(self, repository, monkeypatch):
        class Offline:
            def model_info(self, *_args, **_options):
                raise OfflineModeIsEnabled("offline")

        monkeypatch.setattr(hub, "HfApi", Offline)
        with pytest.raises(ModelError, match=r"connect to the network.*'whisper-npu\[export\]'"):
            find_model("tiny.en")

    @pytest.mark.parametrize("name", ["medium", "owner/tiny"])
    def test_others_need_the_extra(self, repository, name):
        for path in repository.content.glob("*.onnx"):
            path.unlink()
        with pytest.raises(ModelError, match=r"needs no_such_package: pip install 'whisper-npu\["):
            find_model(name)


def test_what_a_checkpoint_costs_is_told(repository, monkeypatch):
    for path in repository.content.glob("*.onnx"):
        path.unlink()
    for name, size in (
        ("model.safetensors", 100),
        ("model-00001-of-00002.safetensors", 40_000_000),
        ("model-00002-of-00002.safetensors", 30_000_000),
        ("model.safetensors.index.json", 10),
        ("pytorch_model.bin", 999_000_000),
    ):
        with (repository.content / name).open("wb") as file:
            file.truncate(size)
    lines = []
    monkeypatch.setattr(hub, "_download_file", lambda _repository, name, *_others: Path(name))
    monkeypatch.setattr(hub, "check_architecture", lambda *_arguments: None)
    monkeypatch.setattr(hub, "read_index", lambda _path: [])
    hub.download("owner/tiny", None, None, lines.append)
    assert lines[1].startswith("fetching owner/tiny from the hub: 70 MB, licence mit; ")


@pytest.mark.parametrize("name", ["models/tiny", "here/tiny", "./owner/tiny", "owner/tiny/"])
def test_what_looks_like_a_path_is_not_asked_for(repository, name):
    Path("here").mkdir()
    with pytest.raises(ModelError, match="does not exist"):
        find_model(name)
    assert repository.asked == []


@pytest.mark.parametrize(
    ("variant", "graphs"),
    [
        (None, {"encoder_model.onnx", "encoder_model.onnx_data", "decoder_model_merged.onnx"}),
        (
            "fp16",
            {
                "encoder_model_fp16.onnx",
                "encoder_model_fp16.onnx_data_1",
                "decoder_model_merged_fp16.onnx",
            },
        ),
        (
            "encoder=fp16,decoder=q4",
            {
                "encoder_model_fp16.onnx",
                "encoder_model_fp16.onnx_data_1",
                "decoder_model_merged_q4.onnx",
            },
        ),
    ],
)
def test_one_variant_is_fetched(variant, graphs):
    companions = {"config.json", "generation_config.json", "tokenizer.json"}
    found = hub._files_of_variant(OF_TRANSFORMERS_JS, variant)
    assert found == {f"onnx/{name}" for name in graphs} | companions | {"preprocessor_config.json"}


def test_openvino_files_come_with_their_weights():
    names = [
        f"openvino_{part}_model.{form}"
        for part in ("encoder", "decoder")
        for form in ("xml", "bin")
    ]
    found = hub._files_of_variant([*names, "tokenizer.json", "openvino_tokenizer.bin"], None)
    assert found == {*names, "tokenizer.json"}


def test_a_variant_that_is_not_there(repository):
    with pytest.raises(UsageError, match="has no variant q4"):
        find_model("owner/tiny", variant="q4")


def test_pull_fetches_and_models_lists(repository, capsys):
    assert main(["models"]) == 0
    assert "whisper-npu pull" in capsys.readouterr().out
    assert main(["pull", "owner/tiny"]) == 0
    told = capsys.readouterr()
    assert Path(told.out.strip()).is_dir()
    size = sum(path.stat().st_size for path in Path(told.out.strip()).rglob("*"))
    expected = f"fetching owner/tiny from the hub: {size / 1e6:.1f} MB, licence mit; "
    assert told.err.startswith(expected)
    (model,) = local_models()
    assert (model.name, model.form, model.precision) == ("owner/tiny", "ONNX", "fp32")
    assert model.is_verified
    assert main(["models"]) == 0
    assert "owner/tiny  ONNX; " in capsys.readouterr().out


def test_pull_asks_for_a_revision(repository):
    assert main(["pull", "owner/tiny", "--revision", "v2"]) == 0
    assert repository.asked == [("list", "owner/tiny", "v2"), ("fetch", "owner/tiny", "v2")]
    assert main(["pull", "tiny.en", "--revision", "v2"]) == 2


def test_what_is_no_model_is_not_listed(repository, tiny_folder):
    models = Path("models")
    shutil.copytree(tiny_folder, models / "mine")
    (models / "empty").mkdir()
    (models / "notes.txt").touch()
    assert [model.name for model in local_models()] == ["mine"]
