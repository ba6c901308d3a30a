"""`whisper-npu stream`: what it takes, what it prints, how it ends."""

import io
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny_whisper
from repository import ROOT

from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.runtime.output.formats import FORMATS
from whisper_npu.runtime.transcription.live import Committed
from whisper_npu.scripts import main as console
from whisper_npu.scripts.common.live_input import Arrivals
from whisper_npu.scripts.common.live_output import JsonLines
from whisper_npu.scripts.stream import main

SCRIPT = ROOT / "scripts" / "stream.py"
LINE = re.compile(r"\[(\d\d:)?\d\d:\d\d\.\d{3} --> (\d\d:)?\d\d:\d\d\.\d{3}\]  ?\S.*")
# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--no-speech-threshold", "None"),
    *("--temperature-increment-on-fallback", "None", "--compression-ratio-threshold", "None"),
]
VOICE = np.round(tiny_whisper.synthetic_speech(1, 4) * 32767).astype("<i2")


class Input(io.TextIOWrapper):
    """Standard input that holds some bytes."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run(tiny_folder, capsys, monkeypatch):
    """A function from input and arguments to exit code, standard output and standard error."""

    def run_program(content, *arguments, model=tiny_folder):
        monkeypatch.setattr(sys, "stdin", Input(content))
        try:
            code = main([*map(str, arguments), "--model", str(model)])
        except SystemExit as end:  # argparse
            code = end.code
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err.splitlines()

    return run_program


def committed(lines):
    """The text of `--json-lines`."""
    updates = [json.loads(line) for line in lines.splitlines()]
    return "".join(update["text"] for update in updates if update["type"] == "committed")


class TestInput:
    @pytest.mark.slow
    def test_raw_samples(self, run):
        code, out, err = run(VOICE.tobytes(), *INVENT)
        assert (code, err) == (0, [])
        assert LINE.match(out)

    @pytest.mark.slow
    def test_a_wav_is_the_same(self, run, tmp_path):
        path = tmp_path / "voice.wav"
        soundfile.write(path, VOICE, 16000)
        raw = run(VOICE.tobytes(), *INVENT, "--json-lines")
        assert run(path.read_bytes(), *INVENT, "--json-lines") == raw

    @pytest.mark.slow
    def test_other_rates_and_channels(self, run):
        wide = np.repeat(np.repeat(VOICE, 3), 2).astype("<f4") / 32768
        options = ("--rate", 48000, "--channels", 2, "--format", "f32le", "--json-lines")
        code, out, err = run(wide.tobytes(), *INVENT, *options)
        assert (code, err) == (0, [])
        assert json.loads(out.splitlines()[-1])["end"] == pytest.approx(4.0, abs=0.02)

    @pytest.mark.slow
    def test_half_a_sample_at_the_end(self, run):
        code, _, err = run(VOICE.tobytes() + b"x", *INVENT)
        assert code == 0
        assert err == ["warning: the last 1 bytes are no whole sample: left out"]

    @pytest.mark.slow
    @pytest.mark.parametrize("content", [b"", b"x", b"fLaC" + bytes(100)])
    def test_no_samples(self, run, content):
        code, out, err = run(content, *INVENT)
        assert (code, out) == (1, "")
        assert len(err) == 1
        assert err[0].startswith("error: standard input: ")

    def test_silence(self, run):
        assert run(bytes(64000), "--language", "en") == (0, "", [])

    def test_a_terminal(self, run, monkeypatch, capsys, tiny_folder):
        monkeypatch.setattr(sys, "stdin", Terminal())
        assert main(["--model", str(tiny_folder)]) == 2
        assert "is a terminal" in capsys.readouterr().err


class TestUsage:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "arguments",
        [
            ("--rate", "0"),
            ("--format", "mp3"),
            ("--mode", "batched"),
            ("--word-timestamps", "True"),
            ("--min-chunk", "0"),
            ("--max-initial-timestamp", "3"),
            ("--beam-size", "0"),
        ],
    )
    def test_wrong_options(self, run, arguments):
        code, out, err = run(VOICE.tobytes(), *arguments)
        assert (code, out) == (2, "")
        assert "error: " in err[-1]

    @pytest.mark.parametrize(("option", "value"), [("channels", 10**9), ("rate", 10**12)])
    def test_what_would_fill_the_memory(self, run, option, value):
        code, out, err = run(VOICE.tobytes(), f"--{option}", value)
        assert (code, out) == (2, "")
        assert len(err) == 1
        assert err[0].startswith(f"error: {option} is {value}; give ")

    def test_no_model(self, run, tmp_path):
        code, _, err = run(VOICE.tobytes(), model=tmp_path / "none")
        assert code == 3
        assert len(err) == 1

    def test_help_is_a_subcommand(self, capsys):
        with pytest.raises(SystemExit) as end:
            console.main(["stream", "--help"])
        assert end.value.code == 0
        assert "arecord" in capsys.readouterr().out


class TestOutput:
    @pytest.mark.slow
    def test_json_lines(self, run):
        _, out, _ = run(VOICE.tobytes(), *INVENT, "--json-lines")
        updates = [json.loads(line) for line in out.splitlines()]
        assert "committed" in {update["type"] for update in updates} <= {"committed", "tentative"}
        _, lines, _ = run(VOICE.tobytes(), *INVENT)
        text = "".join(line.partition("] ")[2] for line in lines.split("\n"))
        assert text.split() == committed(out).split()

    def test_json_is_json_on_every_console(self):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
        JsonLines(out).show([Committed(0.0, 1.0, " schön\x85", "de")], 1.0)
        assert json.loads(out.buffer.getvalue())["text"] == " schön\x85"

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", FORMATS)
    def test_saved_in_every_format(self, run, tmp_path, suffix):
        path = tmp_path / f"talk.{suffix}"
        path.write_text("old")
        code, out, err = run(VOICE.tobytes(), *INVENT, "--save", path)
        assert (code, err) == (0, [])
        assert [each.name for each in tmp_path.iterdir()] == [path.name]
        said = [line.partition("] ")[2].strip() for line in out.splitlines() if line[:1] == "["]
        assert said
        content = path.read_text("utf-8")
        assert said[0] in (json.loads(content)["text"] if suffix == "json" else content)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("talk.doc", f"the suffix is not one of {', '.join(FORMATS)}"),
            ("none/talk.srt", "cannot be written: No such file or directory"),
            ("folder.srt", "is a folder; name a file"),
        ],
    )
    def test_a_file_that_cannot_be_saved_is_told_first(self, run, tmp_path, name, message):
        (tmp_path / "folder.srt").mkdir()
        code, out, err = run(VOICE.tobytes(), "--save", tmp_path / name, model=tmp_path / "none")
        assert (code, out) == (2, "")
        assert err == [f"error: --save {tmp_path / name}: {message}"]

    def test_nothing_is_left_where_nothing_was_said(self, run, tmp_path):
        code, _, _ = run(VOICE.tobytes(), "--save", tmp_path / "x.srt", model=tmp_path / "none")
        assert code == 3
        assert list(tmp_path.iterdir()) == []


class TestArrivals:
    def test_everything_that_came_at_once(self):
        blocks = [np.full(3, i, np.float32) for i in range(5)]
        got = np.concatenate(list(Arrivals(iter(blocks))))
        np.testing.assert_array_equal(got, np.concatenate(blocks))

    def test_an_error_comes_after_the_audio_before_it(self):
        def blocks():
            yield np.ones(3, np.float32)
            raise ValueError("broken")

        got = []
        with pytest.raises(ValueError, match="broken"):
            got.extend(Arrivals(blocks()))
        assert sum(map(len, got)) == 3


class TestProcess:
    def start(self, model, *options):
        command = [sys.executable, str(SCRIPT), "--model", str(model), "--json-lines", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    @pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a child alone")
    def test_sigterm_keeps_what_was_said(self, tiny_en_folder, beckett, tmp_path):
        """Sentence by sentence, under a name that says it is not all."""
        audio = np.round(load_audio(beckett) * 32767).astype("<i2")
        with self.start(tiny_en_folder, "--save", tmp_path / "talk.srt") as process:
            process.stdin.write(audio[: 8 * 16000].tobytes() + bytes(4 * 32000))
            process.stdin.flush()
            while b"committed" not in process.stdout.readline():
                pass
            # A line is printed before it is saved: what follows the pause comes after both.
            process.stdin.write(audio[: 5 * 16000].tobytes())
            process.stdin.flush()
            while json.loads(process.stdout.readline())["start"] < 10:
                pass
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            told = process.stderr.read().decode().splitlines()
            assert process.wait() == 143
        partial = tmp_path / "talk.partial.srt"
        assert told == [f"stopped: the text so far is in {partial}", "terminated"]
        assert "Ever tried" in partial.read_text()
        assert not (tmp_path / "talk.srt").exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a child alone")
    def test_interrupted_it_transcribes_the_rest(self, tiny_en_folder, beckett):
        """The pipe stays open, as that of a microphone does."""
        audio = np.round(load_audio(beckett) * 32767).astype("<i2")
        first = audio[: 5 * 16000]
        with self.start(tiny_en_folder) as process:
            process.stdin.write(first.tobytes())
            process.stdin.flush()
            so_far = process.stdout.readline()  # it is listening
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.stderr.read() == b""
            assert process.wait() == 0
        assert committed((so_far + rest).decode()).startswith(" Ever tried")

    def test_a_reader_that_goes_away(self, tiny_en_folder, beckett):
        audio = np.round(load_audio(beckett) * 32767).astype("<i2")
        with self.start(tiny_en_folder) as process:
            process.stdout.close()
            process.stdin.write(audio.tobytes())
            process.stdin.close()
            assert process.stderr.read() == b""
        assert process.returncode == 1
