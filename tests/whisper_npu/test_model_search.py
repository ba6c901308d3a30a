"""What a model's name means, to `load_model` and to the commands alike."""

import shutil
from pathlib import Path

import pytest

from whisper_npu import load_model, model_search
from whisper_npu.errors import CheckpointError, ModelError
from whisper_npu.export import onnx_export
from whisper_npu.scripts.common import cli


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


def test_load_model_takes_a_name(elsewhere, tiny_folder):
    shutil.copytree(tiny_folder, elsewhere / "models" / "mine")
    assert load_model("mine").folder.path == elsewhere / "models" / "mine"


@pytest.mark.parametrize(
    "name", ["tiny.en", "base", "small", "turbo", "large-v3", "distil-small.en"]
)
def test_a_known_model_is_exported_once(elsewhere, exported, name, capsys):
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
def test_an_unknown_name_lists_the_known(elsewhere, call):
    with pytest.raises(ModelError) as caught:
        call("bases")
    message = str(caught.value)
    assert "model folder bases does not exist (looked at bases, models/bases, " in message
    assert "); did you mean base? Or make it with" in message
    assert "`whisper-npu export CHECKPOINT --output bases`" in message
    assert "tiny.en, base, tiny, base.en, small" in message
    assert "\n" not in message


def test_a_file_of_that_name(elsewhere):
    (elsewhere / "mine").write_text("x")
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load_model("mine")


def test_a_failed_export_keeps_its_reason(elsewhere, monkeypatch):
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
