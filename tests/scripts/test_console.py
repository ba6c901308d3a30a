"""What is printed cannot control the terminal, and each failure to print has a name."""

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from audio_files import RATE, voice
from repository import ROOT

from whisper_npu.scripts.common import cli, console

SCRIPTS = ROOT / "scripts"
# Red, bell, C1 control sequence introducer, delete.
EVIL = "a\x1b[31m\a\x9b2Jb\x7f"
SPELLED = r"a\u001b[31m\u0007\u009b2Jb\u007f"
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="streams are closed by a shell")


def shell(command):
    """A command line with `PROGRAM` for the console command, run by a shell."""
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(SCRIPTS / 'main.py'))}"
    return subprocess.run(
        ["bash", "-c", command.replace("PROGRAM", program)], capture_output=True, check=False
    )


class Failing(io.RawIOBase):
    """A device that fails."""

    def __init__(self, number):
        self.number = number

    def writable(self):
        return True

    def write(self, _content):
        raise OSError(self.number, "reason")


class TestEscaping:
    def test_control_characters_are_spelled_out(self):
        assert console.escape(f"{EVIL}\tc\n") == f"{SPELLED}\tc\n"
        assert console.one_line(f"{EVIL}\tc\n") == rf"{SPELLED}\u0009c\u000a"

    def test_a_message_does_not_turn_direction(self):
        assert console.one_line("talk\u202e3pm.exe") == r"talk\u202e3pm.exe"

    def test_other_text_stays(self):
        assert (
            console.escape("кот 世界 é \\x")
            == console.one_line("кот 世界 é \\x")
            == "кот 世界 é \\x"
        )

    def test_streams_escape_all_but_what_is_drawn(self):
        raw = io.BytesIO()
        stream = console.ConsoleStream(raw, encoding="utf-8", newline="\n")
        print(EVIL, file=stream)
        console.controls(stream)("\r\x1b[K")
        stream.flush()
        assert raw.getvalue().decode() == f"{SPELLED}\n\r\x1b[K"


class TestFailures:
    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            (errno.EPIPE, console.StandardOutputGoneError),
            (errno.ENOSPC, console.StandardOutputError),
            (errno.EIO, console.StandardOutputError),
        ],
    )
    def test_of_standard_output(self, number, kind):
        stream = console.ConsoleStream(io.BufferedWriter(Failing(number)), encoding="utf-8")
        stream.write("text")
        with pytest.raises(kind) as told:
            stream.flush()
        assert type(told.value) is kind

    # Since Python 3.13 closing the buffer, which still holds the text, is an error of its own.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_of_standard_error_stop_nothing(self):
        stream = console.ErrorStream(io.BufferedWriter(Failing(errno.ENOSPC)), encoding="utf-8")
        print("text", file=stream, flush=True)

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (
                OSError(errno.ENOSPC, "No space left on device"),
                "a file cannot be written: No space",
            ),
            (OSError(errno.ENOSPC, "No space left on device", "x.bin"), "x.bin: No space left"),
            (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied"),
            (MemoryError(), "not enough memory"),
            (console.StandardOutputError("standard output cannot be written: I/O"), "standard out"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_each_is_one_line_that_says_what_failed(self, error, line, capsys, monkeypatch):
        def fail(_arguments):
            raise error

        monkeypatch.setattr(console, "drop_output", lambda: None)
        assert cli.run(fail, cli.Parser("cache"), []) == 1
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith(f"error: {line}")
        assert ("standard output" in told) == isinstance(error, console.StandardOutputError)


@UNIX
class TestProcesses:
    @pytest.mark.slow
    def test_names_that_would_control_the_terminal(self, tmp_path, tiny_folder):
        named = tmp_path / f"{EVIL}.wav"
        soundfile.write(named, voice(1.0), RATE)
        missing = tmp_path / f"{EVIL}\n.wav"
        files = " ".join(shlex.quote(str(path)) for path in (named, missing, named.parent / "x"))
        done = shell(f"PROGRAM transcribe {files} --vad False --model {tiny_folder} --languages en")
        assert done.returncode == 1
        shown = (done.stdout + done.stderr).decode()
        assert f"==> {tmp_path / SPELLED}.wav <==" in shown
        meant = f"did you mean {tmp_path / SPELLED}.wav?"
        assert f"error: {tmp_path / SPELLED}\\u000a.wav: no such file; {meant}\n" in shown
        assert not {*shown} & {*EVIL} - {*"a[31m2Jb"}

    def test_options_and_commands_that_would(self):
        done = shell(f"PROGRAM transcribe --{shlex.quote(EVIL)}; PROGRAM {shlex.quote(EVIL)}")
        assert done.stdout == b""
        first, second = done.stderr.decode().splitlines()
        assert f"there is no option --{SPELLED}" in first
        assert f"there is no command {SPELLED}" in second

    @pytest.mark.parametrize("command", ["--help", "cache list", "transcribe --help"])
    def test_a_closed_standard_output_is_not_wanted(self, command):
        done = shell(f"PROGRAM {command} >&-")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    @pytest.mark.slow
    @pytest.mark.parametrize("program", ["transcribe", "stream"])
    def test_transcribing_with_a_closed_standard_output(self, program, tmp_path, tiny_folder):
        sound = tmp_path / "voice.wav"
        soundfile.write(sound, voice(2.0), RATE)
        given = f"{sound} -o {tmp_path / 'out'} -f txt" if program == "transcribe" else f"< {sound}"
        done = shell(f"PROGRAM {program} {given} --model {tiny_folder} --language en >&-")
        assert (done.returncode, done.stderr) == (0, b"")
        assert (tmp_path / "out" / "voice.txt").exists() == (program == "transcribe")

    def test_a_closed_standard_error_goes_nowhere_else(self, tmp_path):
        done = shell(f"PROGRAM transcribe {tmp_path / 'none.wav'} --model x 2>&-")
        assert (done.returncode, done.stdout) == (1, b"")

    @pytest.mark.parametrize("command", ["cache list", "--help", "export --help"])
    def test_a_reader_that_goes_away(self, command):
        """Every command ends alike, as `transcribe` and `stream` do."""
        reader, writer = os.pipe()
        os.close(reader)
        program = [sys.executable, SCRIPTS / "main.py", *command.split()]
        done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b"")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    @pytest.mark.parametrize("command", ["cache list", "--help", "export --help"])
    def test_a_full_standard_output(self, command):
        done = shell(f"PROGRAM {command} > /dev/full")
        assert done.returncode == 1
        assert done.stderr == b"error: standard output cannot be written: No space left on device\n"
