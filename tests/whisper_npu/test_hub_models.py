"""Models of the Hugging Face hub: from its cache, from the network, and listed. No network here."""

import errno
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import onnx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoSibling

from whisper_npu import load_model, model_search
from whisper_npu.errors import CheckpointError, ModelError, UsageError
from whisper_npu.export import hub, hub_client, hub_records, onnx_export
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

    def model_info(self, repository, *, revision, token, timeout, files_metadata):
        assert files_metadata
        assert timeout
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


class Offline:
    """A hub that cannot be reached."""

    def model_info(self, *_args, **_options):
        raise OfflineModeIsEnabled("offline")


def files_of(names, variant=None):
    """The files that are fetched of a repository."""
    return hub._files_of(names, hub._layout_of(names, variant, "owner/tiny"))


@pytest.fixture
def repository(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "own cache"))
    monkeypatch.setattr(model_search, "_below_checkout", lambda _name: [])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    made = Hub(shutil.copytree(tiny_folder, tmp_path / "content"), tmp_path / "cache")
    (made.content / "model.safetensors").touch()
    monkeypatch.setattr(hub_client, "HfApi", lambda: made)
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
    monkeypatch.setattr(hub_client, "HfApi", Offline)
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
        monkeypatch.setattr(hub_client, "HfApi", Offline)
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
        ("model.safetensors", 50_000_000),
        ("model-00001-of-00002.safetensors", 40_000_000),
        ("model-00002-of-00002.safetensors", 30_000_000),
        ("model.safetensors.index.json", 10),
        ("pytorch_model.bin", 999_000_000),
    ):
        with (repository.content / name).open("wb") as file:
            file.truncate(size)
    lines = []
    monkeypatch.setattr(hub, "download_file", lambda _repo, name, *_others, **_options: Path(name))
    monkeypatch.setattr(hub, "check_architecture", lambda *_arguments: None)
    monkeypatch.setattr(hub, "read_index", lambda _path: [])
    hub.download("owner/tiny", None, None, lines.append)
    assert lines[0].startswith("fetching owner/tiny from the hub: 70 MB, licence mit; ")


def test_without_a_network_the_client_is_not_asked_to_try_again(repository, monkeypatch):
    """It tries each file five times, which takes 23 s."""
    asked = []

    def fetch(repository, name, *, revision, token, local_files_only):
        asked.append((name, local_files_only))
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(hub_client, "HfApi", Offline)
    monkeypatch.setattr(hub_client, "hf_hub_download", fetch)
    with pytest.raises(CheckpointError) as caught:
        hub.download("owner/tiny", None, None, None)
    assert asked == [("config.json", True)]
    assert str(caught.value) == (
        "cannot reach the hub for owner/tiny, and its config.json is not in the local cache; "
        "connect to the network, or use a model that `whisper-npu models` lists"
    )


@pytest.fixture
def failing(repository, monkeypatch, tmp_path):
    """The hub lists no files, for a given reason; the cache has `config.json` or not."""
    config = tmp_path / "config.json"

    def fail(trouble, *, is_cached=True):
        asked = []

        class Api:
            def model_info(self, *_arguments, **_options):
                raise trouble

        def fetch(_repository, name, *, local_files_only, **_options):
            asked.append((name, local_files_only))
            if name == "config.json" and is_cached:
                config.write_text("{}")
                return str(config)
            raise LocalEntryNotFoundError("not here")

        monkeypatch.setattr(hub_client, "HfApi", Api)
        monkeypatch.setattr(hub_client, "hf_hub_download", fetch)
        monkeypatch.setattr(hub, "check_architecture", lambda *_arguments: None)
        return asked

    return fail


def refusal(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} from the hub", response=response)


def failure(name):
    """An error of the client's HTTP library, whichever it is."""
    return type(name, (Exception,), {"__module__": "httpx"})(name)


@pytest.mark.parametrize(
    ("trouble", "is_local"),
    [
        (failure("ConnectError"), True),
        (refusal(503), True),
        (refusal(401), False),  # the client may have the file, or give another reason
        (failure("ReadTimeout"), False),
    ],
)
def test_a_cached_checkpoint_is_found_whatever_the_hub_says(failing, trouble, is_local):
    asked, lines = failing(trouble), []
    hub.look_for("owner/tiny", None, None)
    with pytest.raises(CheckpointError):  # there are no weights
        hub.download("owner/tiny", None, None, lines.append)
    assert set(asked[:2]) == {("config.json", is_local)}
    assert lines[0].startswith("taking the files of owner/tiny from the cache: ")


def test_nor_is_the_cache_taken_silently(failing, caplog):
    failing(failure("ConnectError"))
    with pytest.raises(CheckpointError):
        hub.download("owner/tiny", None, None, None)
    assert "owner/tiny from the cache: the hub cannot be reached" in caplog.text


def test_what_is_nowhere_has_the_reason_of_the_hub(failing):
    failing(refusal(503), is_cached=False)
    for ask in (hub.look_for, lambda *each: hub.download(*each, None)):
        with pytest.raises(CheckpointError, match="503 from the hub; try again later"):
            ask("owner/tiny", None, None)


def test_what_is_looked_for_is_told_first(repository):
    lines = []
    find_model("owner/tiny", lines.append)
    assert lines[0] == f"looking for owner/tiny at {urlsplit(constants.ENDPOINT).hostname}"
    assert lines[1].startswith("fetching owner/tiny from the hub: ")


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
    found = files_of(OF_TRANSFORMERS_JS, variant)
    assert found == {f"onnx/{name}" for name in graphs} | companions | {"preprocessor_config.json"}


def test_openvino_files_come_with_their_weights():
    names = [
        f"openvino_{part}_model.{form}"
        for part in ("encoder", "decoder")
        for form in ("xml", "bin")
    ]
    found = files_of([*names, "tokenizer.json", "openvino_tokenizer.bin"])
    assert found == {*names, "tokenizer.json"}


def test_a_variant_that_is_not_there(repository):
    with pytest.raises(UsageError, match=r"^owner/tiny has no variant q4"):
        find_model("owner/tiny", variant="q4")


def add_variant(folder, suffix):
    """Add the same graphs under another suffix."""
    for path in folder.glob("*_model.onnx"):
        shutil.copyfile(path, path.with_name(f"{path.stem}_{suffix}.onnx"))


def test_a_second_variant_is_fetched_beside_the_first(repository):
    add_variant(repository.content, "fp16")
    folder = find_model("owner/tiny")
    assert not (folder / "encoder_model_fp16.onnx").exists()
    assert find_model("owner/tiny", variant="fp16") == folder
    assert (folder / "encoder_model_fp16.onnx").exists()


def test_the_best_variant_does_not_depend_on_what_was_fetched_before(repository):
    add_variant(repository.content, "fp16")
    folder = find_model("owner/tiny", variant="fp16")
    assert not (folder / "encoder_model.onnx").exists()
    assert find_model("owner/tiny") == folder
    assert (folder / "encoder_model.onnx").exists()


@pytest.mark.parametrize("lost", ["generation_config.json", "model.onnx_data"])
def test_an_interrupted_download_is_completed(repository, monkeypatch, lost):
    complete = repository.snapshot_download

    def interrupted(repository_id, *, allow_patterns, **options):
        complete(repository_id, allow_patterns=[n for n in allow_patterns if n != lost], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "snapshot_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_model("owner/tiny")
    monkeypatch.setattr(hub, "snapshot_download", complete)
    folder = find_model("owner/tiny")
    assert (folder / lost).exists()
    (folder / lost).unlink()
    assert (find_model("owner/tiny") / lost).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"variants": {"": 1}}'])
def test_a_damaged_record_is_made_again(repository, content):
    folder = find_model("owner/tiny")
    record = repository.cache.parent / "own cache" / "hub" / "owner--tiny.json"
    good = record.read_text()
    record.write_text(content)
    assert find_model("owner/tiny") == folder
    assert record.read_text() == good


def test_without_a_record_nothing_is_fetched_twice(repository, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_records.tempfile, "NamedTemporaryFile", full)
    folder = find_model("owner/tiny")
    assert find_model("owner/tiny") == folder


def test_what_another_program_fetched_serves_only_offline(repository, monkeypatch, caplog):
    snapshot = repository.cache / "models--owner--tiny" / "snapshots" / COMMIT
    shutil.copytree(repository.content, snapshot)
    (snapshot / "generation_config.json").unlink()
    online = hub_client.HfApi
    monkeypatch.setattr(hub_client, "HfApi", Offline)
    assert find_model("owner/tiny") == snapshot
    assert "may lack files or better variants" in caplog.text
    with pytest.raises(CheckpointError, match="connect to the network"):
        find_model("owner/tiny", variant="q4")
    (snapshot / "model.onnx_data").unlink()
    with pytest.raises(CheckpointError, match="connect to the network"):
        find_model("owner/tiny")
    monkeypatch.setattr(hub_client, "HfApi", online)
    find_model("owner/tiny")
    assert (snapshot / "generation_config.json").exists()


@pytest.mark.parametrize("library", ["requests.exceptions", "httpx", "httpx2"])
def test_a_network_that_fails(repository, monkeypatch, library):
    """The hub's client passes on the errors of its HTTP library."""
    base = OSError if library.startswith("requests") else Exception
    failure = type("ConnectError", (base,), {"__module__": library})

    class Failing:
        def model_info(self, *_args, **_options):
            raise failure("[Errno 111] Connection refused")

    monkeypatch.setattr(hub_client, "HfApi", Failing)
    with pytest.raises(CheckpointError, match="connect to the network"):
        find_model("owner/tiny")


def test_a_revision_is_not_taken_for_the_main_branch(repository):
    assert main(["pull", "owner/tiny", "--revision", "v2"]) == 0
    find_model("owner/tiny")
    assert repository.asked[2:] == [("list", "owner/tiny", None), ("fetch", "owner/tiny", None)]


def test_data_files_of_any_name_are_fetched(repository):
    for path in repository.content.glob("*_model.onnx"):
        model = onnx.load(path)
        onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.weights")
    (repository.content / "model.onnx_data").unlink()
    (repository.content / "other.weights").touch()
    folder = find_model("owner/tiny")
    assert (folder / "encoder_model.weights").exists()
    assert not (folder / "other.weights").exists()


def test_a_repository_that_changes_meanwhile(repository, monkeypatch):
    def without_tokenizer(repository_id, *, allow_patterns, **options):
        kept = [name for name in allow_patterns if name != "tokenizer.json"]
        return repository.snapshot_download(repository_id, allow_patterns=kept, **options)

    monkeypatch.setattr(hub, "snapshot_download", without_tokenizer)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing; fetch it again"):
        find_model("owner/tiny")


@pytest.mark.parametrize("name", ["/{0}", "../{0}", "a/../{0}", "./{0}", "onnx//{0}"])
def test_names_that_lead_elsewhere(tmp_path, monkeypatch, name):
    """A hub could name such files; nothing may be written for them."""
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.setattr(hub.tempfile, "tempdir", str(place))
    target = str(tmp_path / "encoder_model.onnx").lstrip("/") if name[0] == "/" else "written.onnx"
    before = sorted(tmp_path.rglob("*"))
    names = [name.format(target), "decoder_model_merged.onnx", "tokenizer.json"]
    assert hub._layout_of(names, None, "owner/tiny") is None
    assert hub._NAME.fullmatch(names[0]) is None
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_has_no_variants(repository, capsys):
    for path in repository.content.glob("*.onnx"):
        path.unlink()
    with pytest.raises(UsageError, match="is a checkpoint"):
        find_model("owner/tiny", variant="fp16")
    assert main(["pull", "owner/tiny", "--variant", "fp16"]) == 2
    assert main(["pull", "owner/tiny", "--revision", "v2"]) == 2
    assert "--revision v2 --output DIR" in capsys.readouterr().err


def test_pull_fetches_and_models_lists(repository, capsys):
    assert main(["models"]) == 0
    assert "whisper-npu pull" in capsys.readouterr().out
    assert main(["pull", "owner/tiny"]) == 0
    told = capsys.readouterr()
    assert Path(told.out.strip()).is_dir()
    size = sum(path.stat().st_size for path in Path(told.out.strip()).rglob("*"))
    expected = f"fetching owner/tiny from the hub: {size / 1e6:.1f} MB, licence mit; "
    assert told.err.splitlines()[1].startswith(expected)
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
