"""What the programs share: finding the model, and the console command with its subcommands."""

import argparse

import pytest

from whisper_npu.scripts import main as console
from whisper_npu.scripts.common import cli


class TestFindingTheModel:
    def test_a_path(self, tmp_path):
        assert cli.find_model(str(tmp_path)) == tmp_path

    def test_below_the_checkout_from_anywhere(self, tiny_en_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert cli.find_model("tiny.en") == tiny_en_folder
        assert cli.find_model("models/tiny.en") == tiny_en_folder

    def test_the_working_directory_comes_first(self, tmp_path, monkeypatch):
        (tmp_path / "tiny.en").mkdir()
        monkeypatch.chdir(tmp_path)
        assert cli.find_model("tiny.en").resolve() == tmp_path / "tiny.en"

    def test_models_exported_on_first_use(self, tmp_path, monkeypatch):
        (tmp_path / "models" / "mine").mkdir(parents=True)
        monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
        assert cli.find_model("mine") == tmp_path / "models" / "mine"


class TestConsoleCommand:
    @pytest.mark.parametrize(
        ("arguments", "code"),
        [([], 2), (["--help"], 0), (["--version"], 0), (["-V"], 0), (["fly"], 2)],
    )
    def test_others(self, arguments, code, capsys):
        assert console.main(arguments) == code
        output = capsys.readouterr()
        assert bool(output.err) == (arguments == ["fly"])


def test_values_keep_their_underscores():
    assert cli.spell(["--initial_prompt=a_b", "x_y.wav", "--", "--z_z"]) == [
        "--initial-prompt=a_b",
        "x_y.wav",
        "--",
        "--z_z",
    ]


@pytest.mark.parametrize(
    ("arguments", "flag", "files"),
    [
        (["--a_flag", "x.wav", "y.wav"], True, ["x.wav", "y.wav"]),
        (["x.wav", "--a-flag"], True, ["x.wav"]),
        (["--a-flag", "False", "x.wav"], False, ["x.wav"]),
        (["--a_flag=no", "x.wav"], False, ["x.wav"]),
        (["--a-flag", "--", "yes"], True, ["yes"]),
        (["--", "--a-flag"], None, ["--a-flag"]),
        (["yes"], None, ["yes"]),
        (["--a-flag", "off", "x.wav"], False, ["x.wav"]),
        (["--a-f", "x.wav"], True, ["x.wav"]),
        (["--a-f", "on", "x.wav"], True, ["x.wav"]),
        (["--a-flag", "x/y"], True, ["x/y"]),
    ],
)
def test_flags_may_stand_alone(arguments, flag, files):
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    cli.add_flag(parser.add_argument_group("others"), "--a-flag", help="on or off")
    read = parser.parse_args(cli.spell(arguments))
    assert (read.a_flag, read.files) == (flag, files)


def test_a_word_that_names_a_file_is_no_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk").touch()
    cli.add_flag(argparse.ArgumentParser().add_argument_group("others"), "--a-flag", help="on")
    assert cli.spell(["--a-flag", "talk"]) == ["--a-flag=True", "talk"]


def test_a_flag_that_is_neither_is_refused(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*")
    cli.add_flag(parser.add_argument_group("others"), "--a-flag", help="on or off")
    with pytest.raises(SystemExit):
        parser.parse_args(cli.spell(["--a-flag", "None", "x.wav"]))
    assert "'None' is neither True nor False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", "CPU"),
        ("gpu.1", "GPU.1"),
        ("decoder=cpu,encoder=npu", "encoder=NPU,decoder=CPU"),
        ("npu_emulated", "NPU_EMULATED"),
    ],
)
def test_devices_in_any_case(text, device):
    assert cli.device(text) == device
