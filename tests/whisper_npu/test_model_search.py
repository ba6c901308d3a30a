"""What a model's name means, to `load_model` and to the commands alike."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

from whisper_npu import load_model, model_search
from whisper_npu.errors import CheckpointError, ModelError
from whisper_npu.export import hub, hub_client, onnx_export
from whisper_npu.export.source import KNOWN_NAMES
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.export_onnx import build_parser


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A program that runs in an empty folder, away from any checkout, with an empty cache."""
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_search, "_below_checkout", lambda _name: [])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def exported(monkeypatch):
    """What is exported, instead of exporting it."""
    asked = []

    def export_model(source, out, *, progress):
        asked.append((source, out))
        progress("a step")
        out.mkdir(parents=True)
        return out

    monkeypatch.setattr(onnx_export, "export_model", export_model)
    return asked


def test_what_export_wrote_is_found(elsewhere, exported):
    (elsewhere / "models" / "tiny.en").mkdir(parents=True)
    assert cli.find_model("tiny.en") == Path("models/tiny.en")
    assert exported == []


@pytest.mark.parametrize("name", ["mine", "tiny.en", "someone/whisper-x", "here.onnx"])
def test_nothing_is_made_for_a_name_that_is_known(elsewhere, exported, name, monkeypatch):
    monkeypatch.setattr(model_search, "_from_hub", None)
    (elsewhere / "models" / "mine").mkdir(parents=True)
    (elsewhere / "here.onnx").touch()
    model_search.require_known(name)
    assert exported == []


@pytest.mark.parametrize("name", ["nomodel", "/no/such/folder", "tiny.nn"])
def test_an_unknown_name_is_refused_before_it_is_loaded(elsewhere, name):
    with pytest.raises(ModelError, match=f"model {name} does not exist"):
        model_search.require_known(name)


def test_load_model_takes_a_name(elsewhere, tiny_folder):
    shutil.copytree(tiny_folder, elsewhere / "models" / "mine")
    assert load_model("mine").folder.path == elsewhere / "models" / "mine"


@pytest.mark.parametrize(
    "name", ["tiny.en", "base", "small", "turbo", "large-v3", "distil-small.en"]
)
def test_a_known_model_is_exported_once(elsewhere, exported, name, capsys, monkeypatch):
    monkeypatch.setattr(hub, "list_files", lambda *_arguments: None)
    first = cli.find_model(name)
    assert exported == [(name, elsewhere.parent / "cache" / "models" / name)]
    told = capsys.readouterr().err
    assert f"{name} is used for the first time: its checkpoint " in told
    assert ("licence MIT" if name in ("tiny.en", "base") else "is fetched from the hub") in told
    assert cli.find_model(name) == first
    assert len(exported) == 1


def test_a_program_is_told_by_its_log(elsewhere, exported, caplog):
    caplog.set_level("INFO", "whisper_npu")
    model_search.find_model("tiny.en")
    assert "tiny.en is used for the first time" in caplog.text
    assert "a step" in caplog.text


@pytest.mark.parametrize("call", [cli.find_model, load_model])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bases", "; did you mean base?"),
        ("mymodle", "; did you mean mymodel?"),
        ("models/mymodle", "; did you mean models/mymodel?"),
        ("zzz", ";"),
    ],
)
def test_an_unknown_name_is_one_short_line(elsewhere, call, name, hint):
    (elsewhere / "models" / "mymodel").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        call(name)
    assert str(caught.value) == (
        f"model {name} does not exist{hint} `whisper-npu models` lists the models that are here, "
        "`whisper-npu export --help` those that can be made"
    )


def test_what_the_help_of_export_lists_is_known():
    for name in KNOWN_NAMES:
        if name not in ("large", "large-v3-turbo"):  # other names of large-v3 and turbo
            assert f" {name}" in build_parser().epilog


def test_a_file_of_that_name(elsewhere):
    (elsewhere / "mine").write_text("x")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load_model("mine")


def test_a_hub_that_cannot_be_reached_is_told_before_torch_is_loaded(elsewhere, monkeypatch):
    def fail(*_arguments):
        raise hub_client.UnreachableError("cannot reach the hub")

    def is_not_called(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr(hub, "list_files", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere / "cache"))
    monkeypatch.setattr(onnx_export, "export_model", is_not_called)
    steps = []
    with pytest.raises(CheckpointError, match="cannot reach the hub"):
        model_search.find_model("small", steps.append)
    assert steps == [f"looking for openai/whisper-small at {urlsplit(constants.ENDPOINT).hostname}"]


def test_a_failed_export_keeps_its_reason(elsewhere, monkeypatch):
    monkeypatch.setattr(hub, "list_files", lambda *_arguments: None)

    def fail(*_args, **_options):
        raise CheckpointError("cannot reach the hub")

    monkeypatch.setattr(onnx_export, "export_model", fail)
    with pytest.raises(CheckpointError, match="cannot reach the hub"):
        load_model("small")


def test_a_model_that_a_killed_export_took_away_returns(elsewhere, exported):
    """Killed between its two renames: the old model lies in the hidden folder."""
    left = elsewhere / "models" / ".tiny.en.partial-abc"
    (left / "replaced").mkdir(parents=True)
    (left / "replaced" / "config.json").write_text("old")
    (left / "model").mkdir()
    assert cli.find_model("tiny.en") == Path("models/tiny.en")
    assert (elsewhere / "models" / "tiny.en" / "config.json").read_text() == "old"
    assert [path.name for path in (elsewhere / "models").iterdir()] == ["tiny.en"]
    assert exported == []
