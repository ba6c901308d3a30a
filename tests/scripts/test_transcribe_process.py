"""The command line in a process of its own: pipes, and consoles of all kinds."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from audio_files import RATE, voice
from repository import ROOT

LINE = re.compile(r"\[\d\d:\d\d\.\d{3} --> \d\d:\d\d\.\d{3}\]  ?\S.*")
# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--without-timestamps"),
    *("--no-speech-threshold", "None", "--temperature-increment-on-fallback", "None"),
]


@pytest.fixture
def sound(tmp_path):
    """Three seconds of a synthetic voice."""
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice(3.0), RATE)
    return path


def in_process(*arguments, cwd=None, given=b""):
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "transcribe.py", *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=cwd,
        input=given,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_standard_output(sound, tiny_folder):
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [
                *(sys.executable, ROOT / "scripts" / "transcribe.py", sound),
                *(*INVENT, "--model", tiny_folder),
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.returncode == 1
    assert b"standard output cannot be written: No space left" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_a_console_that_cannot_show_a_name(sound, tiny_folder, tmp_path, monkeypatch):
    """It is spelt out, and the text goes on."""
    named = shutil.copy(sound, tmp_path / "кот.wav")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = in_process(named, sound, *INVENT, "--model", tiny_folder)
    assert ended.returncode == 0
    assert b"\\u043a\\u043e\\u0442.wav <==" in ended.stdout
    assert b"voice.wav <==" in ended.stdout


def test_a_real_pipe(tiny_folder, sound):
    done = in_process("-", "--model", tiny_folder, *INVENT, given=sound.read_bytes())
    assert done.returncode == 0
    assert done.stderr == b""
    assert LINE.match(done.stdout.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="standard input is closed by a shell")
@pytest.mark.parametrize("command", ["transcribe.py -", "stream.py"])
def test_a_closed_standard_input(tiny_folder, command):
    """As services have it."""
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'scripts'))}/{command}"
    done = subprocess.run(
        f"{program} --model {shlex.quote(str(tiny_folder))} <&-",
        shell=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == b"error: standard input is closed: there is nothing to read audio from\n"


def test_an_empty_pipe(tiny_folder):
    done = in_process("-", "--model", tiny_folder)
    assert done.returncode == 1
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")


def test_the_program_from_another_directory(tiny_en_folder, beckett, tmp_path):
    assert tiny_en_folder.name == "tiny.en"
    done = in_process(beckett, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == b""
    assert "ever tried" in done.stdout.decode().lower()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away(tiny_folder, sound):
    """`transcribe ... | head -0`: no traceback, no complaint."""
    with subprocess.Popen(
        [
            *(sys.executable, ROOT / "scripts" / "transcribe.py", sound),
            *("--model", tiny_folder, *INVENT),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
