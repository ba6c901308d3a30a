"""What is left of a batch that is stopped: nothing half, and nothing under a false name."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import soundfile
from audio_files import RATE, voice

from whisper_npu import load_model
from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio.stream import AudioStream
from whisper_npu.runtime.output.writers import OutputFiles
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.journal import JOURNAL
from whisper_npu.scripts.common.signals import on_interrupt
from whisper_npu.scripts.transcribe import main

# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--without-timestamps", "--mode", "sequential"),
    *("--no-speech-threshold", "None", "--temperature-increment-on-fallback", "None"),
    *("--unheard-speech-threshold", "None"),
]
GO_ON = "to go on, give the same command with --skip-existing"
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows raises no such signals")


@pytest.fixture
def sounds(tmp_path):
    """Recordings of three windows and of one."""
    paths = [tmp_path / "long.wav", tmp_path / "next.wav"]
    for path, seconds in zip(paths, (75.0, 3.0), strict=True):
        soundfile.write(path, voice(seconds), RATE)
    return paths


@pytest.fixture
def run(tiny_folder, capsys, sounds, tmp_path, monkeypatch):
    """A function that transcribes until a signal arrives as the first segment is written."""

    def run_program(*numbers):
        write = OutputFiles.segment

        def segment(self, text):
            write(self, text)
            if numbers and not said:
                said.append(text)
                for number in numbers:
                    signal.raise_signal(number)

        said = []
        monkeypatch.setattr(OutputFiles, "segment", segment)
        outputs = ("-o", str(tmp_path / "out"), "-f", "txt,json")
        files = map(str, sounds)
        code = main([*files, "--model", str(tiny_folder), *INVENT, *outputs])
        names = sorted({path.name for path in (tmp_path / "out").iterdir()} - {JOURNAL})
        err = capsys.readouterr().err.splitlines()
        return code, names, [line for line in err if "% finishing" not in line]  # if it takes long

    return run_program


def coverage(path):
    """What became of the seconds, and the warnings, by the JSON."""
    document = json.loads(path.read_text())
    return document["coverage"], document["warnings"]


def test_undisturbed(run):
    code, names, err = run()
    assert (code, err) == (0, [])
    assert names == ["long.json", "long.txt", "next.json", "next.txt"]


def test_ctrl_c_finishes_the_windows_that_are_begun(run, tmp_path):
    code, names, err = run(signal.SIGINT)
    assert code == 130
    # The window of the other recording was decoded beside the first one of this.
    assert names == ["long.partial.json", "long.partial.txt", "next.json", "next.txt"]
    spans, warnings = coverage(tmp_path / "out" / "long.partial.json")
    # A window at a time: one was written, the next had not been begun.
    (warning,) = warnings
    window = float(warning.removesuffix(" s").split()[-1])
    assert 14 < window < 30
    assert spans["dropped"] > 0
    assert spans["spans"][-1]["reason"] == "stopped before it was transcribed"
    assert warning == f"stopped before its end: the text is that of the first {window:.2f} s"
    where = ", ".join(str(tmp_path / "out" / f"long.partial.{each}") for each in ("txt", "json"))
    assert err == [
        f"stopped: {tmp_path / 'long.wav'}: transcribed up to {window:.0f} s, which is in {where}",
        "1 of 2 files are done",
        GO_ON,
        "interrupted",
    ]


def test_ctrl_c_in_the_last_window_loses_nothing(run, sounds):
    soundfile.write(sounds[0], voice(20.0), RATE)
    code, names, err = run(signal.SIGINT)
    assert code == 130
    assert names == ["long.json", "long.txt", "next.json", "next.txt"]
    assert err == ["2 of 2 files are done", "interrupted"]


def test_a_second_ctrl_c_stops_at_once(run, tmp_path):
    code, names, err = run(signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert names == ["long.partial.json", "long.partial.txt"]
    spans, _ = coverage(tmp_path / "out" / "long.partial.json")
    assert 14 < spans["spans"][-1]["start"] < 30
    assert err[-2:] == [GO_ON, "interrupted"]


@pytest.mark.slow
@UNIX
def test_sigterm_stops_at_once_and_keeps_what_there_is(run, tmp_path):
    code, names, err = run(signal.SIGTERM)
    assert code == 143
    assert names == ["long.partial.json", "long.partial.txt"]
    assert err[-2:] == [GO_ON, "terminated"]
    text = (tmp_path / "out" / "long.partial.txt").read_text()
    document = json.loads((tmp_path / "out" / "long.partial.json").read_text())
    assert text == "".join(f"{each['text'].strip()}\n" for each in document["segments"]) != ""


def test_a_recording_that_cannot_be_read_on_keeps_what_was_read(run, tmp_path, monkeypatch):
    """As from a disk or network that fails; the others go on."""
    read_on = AudioStream.__next__

    def fails_later(self):
        block = read_on(self)
        if self.samples_read > 60 * RATE:
            raise AudioError(f"{self.name}: cannot be read to its end: Input/output error")
        return block

    monkeypatch.setattr(AudioStream, "__next__", fails_later)
    code, names, err = run()
    assert code == 1
    assert names == ["long.partial.json", "long.partial.txt", "next.json", "next.txt"]
    assert err[0].startswith(f"stopped: {tmp_path / 'long.wav'}: transcribed up to 1 min 0 s")
    reason = "cannot be read to its end: Input/output error"
    assert err[1:] == [f"error: {tmp_path / 'long.wav'}: {reason}"]


@UNIX
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_partial_files_are_removed_on_the_way_out(name, code, tmp_path, capsys):
    """As exports, assets and graphs are written: in temporary folders."""

    def export(_arguments):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            (Path(folder) / "half").write_text("half")
            signal.raise_signal(getattr(signal, name))
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert cli.run(export, cli.Parser("cache"), []) == code
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err in ("terminated\n", "interrupted\n")


STUCK = """
import ctypes, sys
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common import signals

signals._GRACE = 0.01

def compile(_arguments):
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    print("ready", flush=True)
    while True:  # the second time for ever, whatever the signals
        library.pthread_mutex_lock(mutex)

sys.exit(cli.run(compile, cli.Parser("compile"), []))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="made for the C library of Linux")
def test_native_code_does_not_keep_a_program_alive():
    """Python handles signals between two of its own steps alone."""
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143


@UNIX
def test_signals_that_are_ignored_stay_so(monkeypatch):
    """As `nohup` wants it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert (
            cli.run(lambda _: signal.raise_signal(signal.SIGHUP) or 0, cli.Parser("cache"), []) == 0
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_is_as_usual():
    calls = []
    with on_interrupt(lambda: calls.append(1)):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert calls == [1]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def stream(tiny_folder):
    """A function from seconds to a transcription under way."""
    model = load_model(tiny_folder)
    wanted = {"vad": False, "language": "en", "temperature": (0.0,), "no_speech_threshold": None}
    return lambda seconds: model.transcribe(voice(seconds), **wanted)


def test_a_stream_that_is_stopped_before_it_is_begun(stream):
    stopped = stream(5.0)
    stopped.stop()
    result = stopped.result()
    assert stopped.is_partial
    assert (result.segments, result.text) == ((), "")
    assert result.coverage.seconds()["dropped"] == result.duration > 0


def test_a_partial_result_of_a_stream_that_is_complete(stream):
    complete = stream(5.0)
    whole = complete.result()
    assert complete.partial_result() == whole
    assert not complete.is_partial


def test_a_partial_result_accounts_for_every_second(stream):
    begun = stream(75.0)
    first = next(iter(begun))
    result = begun.partial_result()
    assert begun.is_partial
    assert result.segments[0] == first
    assert sum(result.coverage.seconds().values()) == pytest.approx(result.duration)
    assert result.coverage.seconds()["dropped"] > 0
