"""`whisper-npu corpus` on Ray, in processes of their own that are really killed."""

import contextlib
import json
import re
import signal
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import RATE, voice
from repository import ROOT

from whisper_npu.corpus import run
from whisper_npu.errors import DeviceError, OutputError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.scripts.corpus import main
from whisper_npu.scripts.evaluation import corpus_errors

KEPT = f"out/{run.RESULTS} keeps what is done"

# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--without-timestamps"),
    *("--no-speech-threshold", "None", "--temperature-increment-on-fallback", "None"),
    *("--unheard-speech-threshold", "None"),
]

# Runs the command with short blocks. It kills its actor after the first, itself after the third.
KILLED = """
import os, signal, sys
import psutil
from whisper_npu.corpus import run
from whisper_npu.scripts import corpus
from whisper_npu.scripts.common import corpus_progress

run._LONGEST_BLOCK = run._SHORTEST_BLOCK = 1.0
show = corpus_progress.Meter.show

def actors():
    children = psutil.Process().children(recursive=True)
    return [each for each in children if each.name().startswith("ray::MapWorker")]

def show_and_kill(self, progress):
    show(self, progress)
    if progress.done == 1:
        for actor in actors():
            actor.kill()
            print("killed an actor", flush=True)
    if progress.done == 3:
        print("left", *(actor.pid for actor in actors()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

corpus_progress.Meter.show = show_and_kill
sys.exit(corpus.main(sys.argv[1:]))
"""


@pytest.fixture
def manifest(tmp_path):
    """A manifest of NeMo: six recordings, the twin of one, a broken one and a missing one."""
    rows = []
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, voice(2.0 + number / 4), RATE)
        rows.append({"audio_filepath": path.name, "duration": 2.0 + number / 4, "text": "a b"})
    (tmp_path / "twin.wav").write_bytes((tmp_path / "1.wav").read_bytes())
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows += [{"audio_filepath": f"{name}.wav"} for name in ("twin", "broken", "gone")]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def results_of(out):
    """The stored files by name, and which files they are."""
    return {path.name: path.stat().st_ino for path in (out / "results").glob("*.parquet")}


def await_end(pids):
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signals")
def test_a_corpus_that_is_killed_and_resumed(manifest, tiny_folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = [str(manifest), "-o", str(out), "--model", str(tiny_folder), *INVENT]

    def run(*program):
        return subprocess.run(
            [sys.executable, *program, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )

    killed = run("-c", KILLED)
    assert killed.returncode == -signal.SIGKILL
    assert "killed an actor" in killed.stdout
    assert not (out / "corpus.parquet").exists()
    (left,) = re.findall(r"^left (.*)$", killed.stdout, re.MULTILINE)
    await_end([int(pid) for pid in left.split()])  # an actor goes on for a while
    stored = results_of(out)  # each of one recording
    assert 3 <= len(stored) < 7

    resumed = run(ROOT / "scripts" / "corpus.py", "--subtitles", "vtt", "--price-per-hour", "2")
    assert resumed.returncode == 1, resumed.stderr  # for the broken and the missing recording
    assert "Traceback" not in resumed.stderr
    (n_left,) = re.findall(r"^9 rows in the manifest; (\d) recording", resumed.stderr, re.MULTILINE)
    assert int(n_left) == 7 - len(stored)
    assert f"{n_left} of {n_left} recording" in resumed.stderr
    assert ", cost " in resumed.stderr
    assert re.findall(r"^(.*) \.\.\.$", resumed.stderr, re.MULTILINE) == [
        *("loading Ray", "reading the model's files", "reading the manifest", "starting Ray"),
        *("looking at the recordings of 9 rows", "writing the outputs"),
    ]
    last = resumed.stderr.splitlines()[-1]
    assert last == f"{out} has the outputs: corpus.parquet, corpus.jsonl, subtitles"
    assert "WER: " in resumed.stdout
    assert results_of(out).items() >= stored.items()
    rows = pq.read_table(out / "corpus.parquet").to_pylist()
    assert [row["id"] for row in rows][-3:] == ["twin.wav", "broken.wav", "gone.wav"]
    assert all(row["text"] for row in rows[:7])
    assert rows[6]["text"] == rows[1]["text"]
    assert "no such file" in rows[8]["error"]
    assert f"error: {rows[8]['error']}\n" in resumed.stderr  # names the recording once
    assert len(list((out / "subtitles").glob("*.vtt"))) == 7
    keys = [
        row["key"]
        for path in (out / "results").glob("*.parquet")
        for row in pq.read_table(path, columns=["key"]).to_pylist()
    ]
    assert len(keys) == len(set(keys)) == 7

    assert main(["verify", str(out)]) == 0
    assert "9 rows in the manifest: 7 with a text, 2 with an error" in capsys.readouterr().out
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "new.wav"}\n')
    assert main(["verify", str(out)]) == 1
    assert "new.wav: is missing in corpus.parquet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.jsonl"], "required: -o/--output"),
        (["missing.jsonl", "-o", "out"], "missing.jsonl: no such file or folder"),
        (["m.jsonl", "-o", "out", "--actors", "-1"], "--actors and --threads take 0 or more"),
        (["m.jsonl", "-o", "out", "--price-per-hour", "-1"], "--price-per-hour: -1 is not 0 or"),
        (["m.jsonl", "-o", "out", "--max-wer", "nan"], "--max-wer: nan is not 0 or more"),
        (["m.jsonl", "-o", "out", "--subtitles", "doc"], "'doc' is none of srt, vtt, txt"),
        (["m.jsonl", "-o", "out", "--format", "xml"], "'xml' is none of nemo, lhotse"),
        (["verify", "out"], "out: no run of `whisper-npu corpus` has used it as --out"),
    ],
)
def test_wrong_command_lines(arguments, message, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    model = [] if arguments[0] == "verify" else ["--model", str(tiny_folder)]
    try:
        code = main([*arguments, *model])
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("done", "stop", "code", "kept"),
    [
        (3, KeyboardInterrupt(), 130, f"at least 3 of 7 recordings of this run done; {KEPT}"),
        (
            3,
            OutputError("out/results: disk full"),
            1,
            f"at least 3 of 7 recordings of this run done; {KEPT}",
        ),
        (0, KeyboardInterrupt(), 130, f"the work had begun; {KEPT}"),
        (7, KeyboardInterrupt(), 130, f"7 of 7 recordings of this run done; {KEPT}"),
        (None, KeyboardInterrupt(), 130, "the work had not begun"),
    ],
)
def test_how_to_go_on_after_a_stop(done, stop, code, kept, tiny_folder, monkeypatch, capsys):
    def stopped(job, on_progress, on_status):
        if done is not None:
            on_progress(run.Progress(rows=9, items=7, done=done))
        raise stop

    monkeypatch.setattr(run, "run_corpus", stopped)
    assert main(["m.jsonl", "-o", "out", "--model", str(tiny_folder)]) == code
    *_, told, last = capsys.readouterr().err.splitlines()
    assert told == f"{kept}; to go on, give the same command again"
    assert last in ("interrupted", "error: out/results: disk full")


def test_no_advice_to_repeat_a_mistake(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["missing.jsonl", "-o", "out", "--model", str(tiny_folder)]) == 2
    assert "to go on" not in capsys.readouterr().err


def test_nor_to_ask_again_for_a_device_that_is_not_here(tiny_folder, monkeypatch, capsys):
    def stopped(job, on_progress, on_status):
        on_progress(run.Progress(rows=9, items=7))
        raise DeviceError("device GPU is not available here")

    monkeypatch.setattr(run, "run_corpus", stopped)
    assert main(["m.jsonl", "-o", "out", "--model", str(tiny_folder)]) == 3
    told = capsys.readouterr().err
    assert "error: device GPU is not available here" in told
    assert "to go on" not in told


def test_an_error_names_its_recording(tmp_path, capsys):
    """Once: by the path that it begins with, or else by the id."""
    rows = [
        {"id": "a.wav", "error": "/data/a.wav: no such file"},
        {"id": "1", "error": "/data/b101.wav: no such file"},
        {"id": "wav", "error": "/data/c.wav: the file is empty"},
    ]
    table = [{**dict.fromkeys(corpus_errors._COLUMNS), **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "corpus.parquet")
    corpus_errors.report(str(tmp_path), TranscribeOptions(), None)
    assert capsys.readouterr().err.splitlines()[:3] == [
        "error: /data/a.wav: no such file",
        "error: 1: /data/b101.wav: no such file",
        "error: wav: /data/c.wav: the file is empty",
    ]


def test_a_folder_in_use(tiny_folder, tmp_path, monkeypatch, capsys):
    from filelock import FileLock

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "state").mkdir(parents=True)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    with FileLock(tmp_path / "out" / "state" / "lock"):
        assert main(["m.jsonl", "-o", "out", "--model", str(tiny_folder)]) == 2
    assert "another run is using it" in capsys.readouterr().err


# Cuts what is longer than 20 s, and kills itself after the first of the parts.
CUT = """
import os, signal, sys
import psutil
from whisper_npu.corpus import parts, run
from whisper_npu.scripts import corpus
from whisper_npu.scripts.common import corpus_progress

parts._SHORTEST = 10.0
show = corpus_progress.Meter.show

def show_and_kill(self, progress):
    show(self, progress)
    if "kill" in os.environ and progress.seconds_done > 0:
        children = psutil.Process().children(recursive=True)
        actors = [each for each in children if each.name().startswith("ray::MapWorker")]
        print("left", *(actor.pid for actor in actors), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

corpus_progress.Meter.show = show_and_kill
sys.exit(corpus.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills processes by signals")
def test_a_long_recording_is_shared_and_resumed(tiny_en_folder, beckett, tmp_path, monkeypatch):
    from whisper_npu import load_audio, load_model

    path, out = tmp_path / "in" / "long.wav", tmp_path / "out"
    path.parent.mkdir()
    speech = load_audio(beckett)
    soundfile.write(path, np.concatenate([speech] * 6), 16_000)
    command = [str(path.parent), "-o", str(out), "--model", str(tiny_en_folder)]
    command = [sys.executable, "-c", CUT, *command, "--actors", "2", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setenv("kill", "1")
        killed = subprocess.run(command, capture_output=True, check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = re.findall(r"^left (.*)$", killed.stdout.decode(), re.MULTILINE)
    await_end([int(pid) for pid in left.split()])  # one may store its part
    stored = results_of(out)
    assert 1 <= len(stored) <= 2
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 recording," in done.stderr
    if len(stored) == 1:  # the other part is what is left
        assert "1 recording, 30 s, to transcribe" in done.stderr, done.stderr
    assert results_of(out).items() >= stored.items()
    assert len(results_of(out)) == 3  # two parts and the whole
    (row,) = pq.read_table(out / "corpus.parquet").to_pylist()
    with load_model(tiny_en_folder) as model:
        whole = model.transcribe(path).result()
    assert row["text"] == whole.text
    assert [(each["id"], each["start"], each["end"]) for each in row["segments"]] == [
        (each.id, each.start, each.end) for each in whole.segments
    ]
    assert row["duration"] == whole.duration
    assert sum(row["coverage"].values()) == pytest.approx(whole.duration, abs=0.02)
    assert main(["verify", str(out)]) == 0
