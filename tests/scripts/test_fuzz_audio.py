"""A bounded run of the fuzzing, and whether it sees what it looks for."""

import subprocess
import sys

import numpy as np
import pytest
from audio_files import RATE, voice, write_with_ffmpeg

from whisper_npu.scripts.benchmarks import audio_fuzzing
from whisper_npu.scripts.benchmarks.audio_fuzzing import (
    CANNOT,
    CRASHED,
    FAULTS,
    HANG,
    READ,
    REFUSED,
    SIGNAL,
    TRACEBACK,
    Verdict,
    decode,
    transcribe,
    write_files,
)
from whisper_npu.scripts.benchmarks.audio_mutations import mutate
from whisper_npu.scripts.fuzz_audio import main

N_FILES = 600

# A worker that answers, or does what a file's name says.
ODD_WORKER = """
import json, os, sys, threading
for line in sys.stdin:
    name = os.path.basename(line).strip()
    if name.startswith("crash"):
        os.abort()
    if name.startswith("hang"):
        threading.Event().wait()
    print(json.dumps(["read", ""]), flush=True)
"""


@pytest.fixture
def odd_worker(monkeypatch):
    monkeypatch.setattr(
        audio_fuzzing, "_worker_command", lambda **_: [sys.executable, "-c", ODD_WORKER]
    )


@pytest.mark.slow
def test_no_damaged_file_crashes_or_hangs_or_raises(tmp_path, capsys):
    code = main(["--files", str(N_FILES), "--jobs", "2", "--keep", str(tmp_path / "kept")])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    counts = dict(line.rsplit(maxsplit=1) for line in output.out.splitlines()[1:])
    numbers = {name.strip(): int(count) for name, count in counts.items()}
    assert sum(numbers.values()) == N_FILES
    assert sum(numbers[each] for each in ("read", "read with warnings", "refused")) == N_FILES
    assert min(numbers[each] for each in ("read", "read with warnings", "refused")) > N_FILES / 10


@pytest.mark.slow
def test_the_same_with_ffmpeg_in_its_child(tmp_path):
    files = write_files(tmp_path, 40, seed=1)
    verdicts = list(decode(files, 60, isolated=True))
    assert [verdict.path for verdict in verdicts] == files
    assert {verdict.outcome for verdict in verdicts}.isdisjoint(FAULTS), verdicts


def test_the_damage_is_the_same_for_the_same_seed():
    content, other = bytes(range(256)) * 20, b"RIFF" * 300

    def damaged(seed):
        random = np.random.default_rng(seed)
        return [mutate(content, other, random) for _ in range(200)]

    assert damaged(3) == damaged(3)
    assert damaged(3) != damaged(4)
    assert len(set(damaged(3))) > 190
    for each in (b"", b"x", b"RIFF" * 3):  # what an earlier mutation may leave
        random = np.random.default_rng(0)
        assert len({mutate(each, other, random) for _ in range(300)}) > 3


@pytest.mark.skipif(sys.platform == "win32", reason="processes do not die of signals on Windows")
def test_a_signal_and_a_hang_are_the_fault_of_one_file(tmp_path, odd_worker):
    names = ["a", "crash", "b", "hang", "c", "crash", "crash", "d"]
    files = [tmp_path / name for name in names]
    verdicts = list(decode(files, 5.0, isolated=False))
    outcomes = {"crash": SIGNAL, "hang": HANG}
    assert [(each.path, each.outcome) for each in verdicts] == [
        (file, outcomes.get(file.name, READ)) for file in files
    ]


def test_failing_files_are_kept(tmp_path, odd_worker, monkeypatch, capsys):
    def write(folder, *_):
        (folder / "crash.wav").write_bytes(b"content")
        return [folder / "crash.wav"]

    monkeypatch.setattr(audio_fuzzing, "write_files", write)
    kept = tmp_path / "kept"
    assert main(["--files", "1", "--keep", str(kept)]) == 1
    assert (kept / "crash.wav").read_bytes() == b"content"
    assert f"signal: {kept / 'crash.wav'}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--files", "0"), ("--jobs", "0"), ("--limit", "0")])
def test_usage(arguments, capsys):
    assert main([*arguments]) == 2
    assert "must be above 0" in capsys.readouterr().err


class TestTranscribe:
    """The same files through the command line."""

    @pytest.mark.slow
    def test_a_batch(self, tmp_path, tiny_folder):
        good = write_with_ffmpeg(tmp_path / "good.m4a", voice(1.0), RATE, "aac")
        (tmp_path / "text.wav").write_text("words" * 100)
        files = [good, tmp_path / "text.wav", tmp_path / "missing.wav"]
        assert [each.outcome for each in transcribe(files, str(tiny_folder), 60)] == [
            READ,
            REFUSED,
            REFUSED,
        ]

    @pytest.mark.parametrize(
        ("code", "error", "outcome"),
        [
            (-11, "", SIGNAL),
            (1, "Traceback (most recent call last):\n  x\nKeyError: 1", TRACEBACK),
            (0, "error: bad: not a recording", TRACEBACK),
            (1, "warning: x", TRACEBACK),
            (1, "error: bad: FFmpeg crashed on it (SIGSEGV)", CRASHED),
            (1, "error: bad: FFmpeg cannot decode it (KeyError: 1)", CANNOT),
        ],
    )
    def test_faults_are_found(self, tmp_path, monkeypatch, code, error, outcome):
        """A batch is halved until the file is alone."""
        files = [tmp_path / name for name in ("a", "b", "bad", "c", "d")]

        def run(command, **_):
            named = [file for file in files if str(file) in command]
            is_bad = files[2] in named
            said = "".join(f"==> {file} <==\n" for file in named)
            return subprocess.CompletedProcess(
                command, code if is_bad else 0, said, error if is_bad else ""
            )

        monkeypatch.setattr(subprocess, "run", run)
        verdicts = transcribe(files, "model", 60)
        assert [each.outcome for each in verdicts] == [READ, READ, outcome, READ, READ]

    def test_a_batch_that_hangs(self, tmp_path, monkeypatch):
        def run(command, *, timeout, **_):
            raise subprocess.TimeoutExpired(command, timeout)

        monkeypatch.setattr(subprocess, "run", run)
        (verdict,) = transcribe([tmp_path / "x"], "model", 60)
        assert verdict == Verdict(tmp_path / "x", HANG, "took more than 60 s")
