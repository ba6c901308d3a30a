"""What the programs call themselves, and what they say to mistakes."""

import sys

import pytest
from repository import ROOT

from whisper_npu.scripts import main as console_command
from whisper_npu.scripts import transcribe
from whisper_npu.scripts.common.command_line import Parser, program_name

SCRIPTS = ROOT / "scripts"


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ("/usr/bin/whisper-npu", "whisper-npu stream"),
        (str(SCRIPTS / "stream.py"), f"python {SCRIPTS / 'stream.py'}"),
        (str(SCRIPTS / "main.py"), f"python {SCRIPTS / 'main.py'} stream"),
        ("/site-packages/whisper_npu/__main__.py", "python -m whisper_npu stream"),
        ("/site-packages/pytest/__main__.py", "whisper-npu stream"),
        ("elsewhere/stream.py", "whisper-npu stream"),
    ],
)
def test_a_program_is_called_as_it_was(called, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [called, "stream"])
    assert program_name("stream") == expected


@pytest.mark.parametrize("command", console_command.COMMANDS)
def test_usage_names_the_command(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/whisper-npu"])
    with pytest.raises(SystemExit) as end:
        console_command.main([command, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: whisper-npu {command} ")


@pytest.mark.parametrize("command", console_command.COMMANDS)
def test_a_wrong_option_is_one_line(command, capsys):
    with pytest.raises(SystemExit) as end:
        console_command.main([command, "--no-such-option", "x"])
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: there is no option --no-such-option")


class TestSuggestions:
    def parser(self, **options):
        parser = Parser("transcribe", **options)
        parser.add_argument("--language")
        parser.add_argument("--languages")
        parser.add_argument("--vad")
        parser.add_argument("file", nargs="*")
        return parser

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--langauge", "de"], "--langauge: did you mean --language?"),
            (["--langauges=de,en"], "--langauges: did you mean --languages?"),
            (["--zzz"], "--zzz (see"),
            (["--no-vad"], "--no-vad: did you mean --vad False?"),
            (["--port"], "--port (see"),  # there is no --uri to name
            (["--vad-filter"], "--vad-filter: did you mean --vad?"),
            (["--lang=de"], "--lang: did you mean --language?"),  # not "ambiguous"
            (["-x"], "-x; for a file write ./-x (see"),
            (["a.wav", "-dash.wav"], "-d; for a file write ./-dash.wav (see"),
        ],
    )
    def test_of_options(self, arguments, told, capsys):
        with pytest.raises(SystemExit):
            self.parser().check(arguments)
        assert f"there is no option {told}" in capsys.readouterr().err

    def test_right_ones_and_values_pass(self):
        for arguments in (
            ["--language", "de"],
            ["--languag=de"],
            ["--", "--langauge"],
            ["a--b"],
            ["- a"],
        ):
            self.parser().check(arguments)

    def test_abbreviations_where_they_are_not_allowed(self, capsys):
        with pytest.raises(SystemExit):
            self.parser(allow_abbrev=False).check(["--lang", "de"])
        assert "did you mean --language?" in capsys.readouterr().err

    def test_of_commands(self, capsys):
        assert console_command.main(["transcibe", "x.wav"]) == 2
        assert capsys.readouterr().err == (
            "error: there is no command transcibe: did you mean transcribe? "
            "(see `whisper-npu --help`)\n"
        )

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("talk.mp3", "no command talk.mp3: did you mean whisper-npu transcribe talk.mp3?"),
            ("other.mp3", "no command other.mp3 (see"),
            ("check", "no command check: did you mean doctor?"),
            ("--verison", "no option --verison: did you mean --version?"),
            ("--model", "no option --model: options follow the name of a command"),
        ],
    )
    def test_of_what_is_no_command(self, name, told, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["/usr/bin/whisper-npu"])
        (tmp_path / "talk.mp3").touch()
        assert console_command.main([name]) == 2
        assert f"error: there is {told}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("transcribe a.wav --vad maybe", "'maybe' is neither True nor False"),
            ("transcribe --vad flase a.wav", "'flase' is neither True nor False: did you mean Fal"),
            ("transcribe a.wav --task translat", "is none of transcribe, translate: did you mean"),
            ("transcribe a.wav --device CPUU", "there is no device CPUU; did you mean CPU?"),
            ("serve --device NPU,CPU", "or two as encoder=NPU,decoder=CPU"),
            ("compile --device NPUU", "there is no device NPUU; did you mean NPU?"),
            ("wer a.tsv --precision f33", "'f33' is none of auto, f32, bf16, f16, int8: did you"),
            ("export --precision f31", "'f31' is none of f32, f16, int8: did you mean f32?"),
            ("cache lst", "'lst' is none of list, clear: did you mean list?"),
            ("cache list a b", "one argument too many: b"),
            ("corpus verfy texts", "there is no manifest verfy: did you mean corpus verify?"),
            ("corpus a -o b --format nmo", "did you mean nemo?"),
            ("corpus a -o b --subtitles srt,vt", "'vt' is none of srt, vtt, txt: did you mean vtt"),
            ("stream talk.wav", "takes no file: for a recording use `whisper-npu transcribe talk"),
            ("serve talk.wav", "takes no file: for a recording use `whisper-npu transcribe talk"),
            ("serve tiny.en", "did you mean --model tiny.en?"),
            ("models tiny.en", "this command takes no names and no files: tiny.en"),
            ("wyoming --port 80", "no option --port: did you mean --uri tcp://HOST:PORT?"),
            ("serve --uri x", "no option --uri: did you mean --host and --port?"),
            ("fetch-assets becket", "did you mean beckett?"),
            ("transcribe a.wav -f sr", "one of txt, vtt, srt, tsv, json, all; did you mean srt?"),
            ("benchmark-peers a.tsv --peers whisperr", "--peers takes some of"),
        ],
    )
    def test_of_values_and_arguments(self, line, told, capsys):
        try:
            code = console_command.main(line.split())
        except SystemExit as end:  # argparse
            code = end.code
        assert code in (2, 3)
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("error: ")
        assert told in message

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (["transcribe", ""], "FILE"),
            (["transcribe", "a.wav", "-o", ""], "-o/--output-dir"),
            (["transcribe", "a.wav", "--model="], "--model"),
            (["export", ""], "MODEL"),
            (["doctor", "--root", ""], "--root"),
        ],
    )
    def test_a_variable_that_is_not_set_is_no_value(self, arguments, name, capsys):
        with pytest.raises(SystemExit) as end:
            console_command.main(arguments)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: argument {name}: the value is empty; give one, or leave")

    def test_texts_may_be_empty(self):
        arguments = transcribe.build_parser().parse_args(["a.wav", "--initial-prompt", ""])
        assert arguments.initial_prompt == ""

    @pytest.mark.parametrize("kind", ["missing", "file"])
    def test_of_a_root_that_is_no_folder(self, kind, tmp_path, capsys):
        root = tmp_path / "root"
        if kind == "file":
            root.touch()
        assert console_command.main(["doctor", "--root", str(root)]) == 2
        assert capsys.readouterr().err == (
            f"error: --root {root}: no such folder; name where a system is mounted\n"
        )

    @pytest.mark.parametrize(
        "line", ["a.wav --language de b.wav", "--language de a.wav b.wav", "a.wav b.wav"]
    )
    def test_options_may_stand_between_files(self, line):
        assert self.parser().parse_args(line.split()).file == ["a.wav", "b.wav"]

    def test_names_after_two_hyphens_are_files(self):
        assert self.parser().parse_args(["--", "-a.wav"]).file == ["-a.wav"]

    @pytest.mark.parametrize(
        ("called", "expected"),
        [
            ("/usr/bin/whisper-npu", "whisper-npu COMMAND"),
            ("/site-packages/whisper_npu/__main__.py", "python -m whisper_npu COMMAND"),
        ],
    )
    def test_usage_names_the_program_as_it_was_called(self, called, expected, monkeypatch):
        monkeypatch.setattr(sys, "argv", [called])
        assert console_command.usage().startswith(f"usage: {expected} [OPTIONS]\n")
