"""The journal of an output folder, and runs that go on after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from audio_files import RATE, voice
from repository import ROOT

from whisper_npu.errors import OutputError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.output.formats import FORMATS
from whisper_npu.runtime.output.writers import OutputFiles
from whisper_npu.scripts.common.journal import JOURNAL, Journal, Line
from whisper_npu.scripts.common.signals import Terminated
from whisper_npu.scripts.transcribe import main

# The tiny Whisper invents text: every window of sound becomes some.
INVENT = [
    *("--vad", "False", "--language", "en", "--without-timestamps"),
    *("--no-speech-threshold", "None", "--temperature-increment-on-fallback", "None"),
    *("--unheard-speech-threshold", "None"),
]
FORMAT = ("-f", "txt,srt")

# Runs the program, which kills itself as it is about to do something for the nth time.
SUICIDE = """
import os, signal, sys
from pathlib import Path
from whisper_npu.scripts.common import journal
from whisper_npu.scripts.transcribe import main

place, count = sys.argv[1], int(sys.argv[2])
replace, write = Path.replace, os.write

def die_at(name):
    global count
    if name == place:
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)

def dying_replace(self, target):
    die_at("rename")
    return replace(self, target)

def dying_write(descriptor, content):
    if content.lstrip().startswith(b'{"path"'):
        die_at("line")
        if place == "half a line" and count == 1:
            write(descriptor, content[: len(content) // 2])
        die_at("half a line")
    return write(descriptor, content)

Path.replace, os.write = dying_replace, dying_write
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def sounds(tmp_path):
    """A folder of four recordings, the second of which is none."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seconds in (("a", 2.0), ("c", 3.0), ("d", 2.5)):
        soundfile.write(folder / f"{name}.wav", voice(seconds), RATE)
    (folder / "b.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(tiny_folder, sounds, out, capsys):
    """A function that transcribes the folder; returns exit code, what was transcribed, stderr."""

    def transcribe(*options, formats=FORMAT, model=tiny_folder):
        code = main(
            [str(sounds), "-o", str(out), "--model", str(model), *INVENT, *formats, *options]
        )
        printed = capsys.readouterr()
        done = [line for line in printed.out.splitlines() if line.startswith("==>")]
        return code, [Path(line.split()[1]).stem for line in done], printed.err.splitlines()

    return transcribe


def lines(out):
    """The lines of the journal."""
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]


def contents(out):
    """The outputs by name."""
    return {path.name: path.read_text() for path in out.iterdir() if path.suffix[1:] in FORMATS}


def test_a_line_for_every_recording(run, sounds, out):
    assert run()[0] == 1
    found = lines(out)
    assert [(line["name"], line["status"]) for line in found] == [
        ("a", "complete"),
        ("b", "failed"),
        ("c", "complete"),
        ("d", "complete"),
    ]
    first, bad, *_ = found
    assert first["path"] == str(sounds / "a.wav")
    assert first["outputs"] == ["a.txt", "a.srt"]
    assert first["duration"] == 2.0
    assert first["work_seconds"] > 0
    assert sum(first["coverage"].values()) == pytest.approx(2.0)
    assert first["error"] is None
    assert first["size"] == (sounds / "a.wav").stat().st_size
    assert len(first["digest"]) == len(first["model_digest"]) == len(first["options_digest"]) == 64
    assert "b.wav" in bad["error"]
    assert bad["outputs"] == []


class TestSkipExisting:
    def test_the_complete_are_left_out(self, run, sounds, out, monkeypatch):
        run()
        before = contents(out)
        code, done, err = run("--skip-existing")
        assert (code, done) == (1, ["b"])
        assert err[0] == "3 of 4 files are complete, and are skipped"
        (sounds / "b.wav").unlink()
        monkeypatch.setattr("whisper_npu.api.load_model", None)  # there is nothing to load it for
        code, done, err = run("--skip-existing")
        assert (code, done) == (0, [])
        assert err == ["3 of 3 files are complete, and are skipped"]
        assert contents(out) == before

    def test_without_it_all_are_transcribed(self, run):
        run()
        assert run()[1] == ["a", "b", "c", "d"]

    @pytest.mark.parametrize(
        "change",
        [
            ("--language", "de"),
            ("--precision", "f32"),
            ("--initial-prompt", "Hello."),
            ("-f", "txt,srt,vtt"),
        ],
        ids=" ".join,
    )
    def test_other_options_are_other_texts(self, run, change):
        run()
        assert run(*change, "--skip-existing")[1] == ["a", "b", "c", "d"]
        assert run(*change, "--skip-existing")[1] == ["b"]

    @pytest.mark.parametrize("change", [("--batch-size", "2"), ("-f", "srt"), ("--threads", "1")])
    def test_options_that_no_text_depends_on(self, run, change):
        run()
        assert run(*change, "--skip-existing")[1] == ["b"]

    def test_another_model(self, run, tiny_folder, tmp_path):
        run()
        other = shutil.copytree(tiny_folder, tmp_path / "other")
        assert run("--skip-existing", model=other)[1] == ["b"]  # the content counts, not the name
        config = json.loads((other / "generation_config.json").read_text())
        config["suppress_tokens"] = [7]
        (other / "generation_config.json").write_text(json.dumps(config))
        (other / "export_manifest.json").unlink()  # it has the digest of the file
        assert run("--skip-existing", model=other)[1] == ["a", "b", "c", "d"]

    def test_a_changed_recording(self, run, sounds, out):
        run()
        soundfile.write(sounds / "c.wav", voice(4.0), RATE)
        assert run("--skip-existing")[1] == ["b", "c"]
        assert lines(out)[-1]["duration"] == 4.0

    def test_another_recording_with_old_times(self, run, sounds):
        """As `cp -p` and archives give them."""
        run()
        samples, _ = soundfile.read(sounds / "c.wav")
        soundfile.write(sounds / "c.wav", samples[::-1], RATE)
        os.utime(sounds / "c.wav", (0, 0))
        assert run("--skip-existing")[1] == ["b", "c"]

    def test_a_recording_that_was_moved_with_its_times_changed(self, run, sounds):
        run()
        os.utime(sounds / "c.wav", (0, 0))
        assert run("--skip-existing")[1] == ["b"]

    def test_another_recording_with_the_same_size_and_time(self, run, sounds):
        run()
        path, before = sounds / "c.wav", (sounds / "c.wav").stat()
        samples, _ = soundfile.read(path)
        soundfile.write(path, samples[::-1], RATE)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        assert run("--skip-existing")[1] == ["b", "c"]

    @pytest.mark.parametrize("moment", ["before the work", "after the work"])
    def test_a_recording_from_the_future(self, run, sounds, moment):
        """A camera's clock was wrong, or this machine's has been set back."""
        if moment == "after the work":
            run()
        os.utime(sounds / "c.wav", (4e9, 4e9))
        if moment == "before the work":
            run()
        assert run("--skip-existing")[1] == ["b"]

    def test_missing_outputs(self, run, out):
        run()
        (out / "a.srt").unlink()
        assert run("--skip-existing")[1] == ["a", "b"]

    def test_files_that_no_journal_knows(self, run, out):
        run()
        (out / JOURNAL).unlink()
        assert run("--skip-existing")[1] == ["a", "b", "c", "d"]

    def test_needs_the_folder(self, tiny_folder, sounds, capsys):
        assert main([str(sounds), "--model", str(tiny_folder), "--skip-existing"]) == 2
        assert "--skip-existing needs the --output-dir" in capsys.readouterr().err

    def test_a_dash_is_no_folder(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "talk.wav").touch()
        assert main(["talk.wav", "-o", "-"]) == 2
        assert "-o names a folder" in capsys.readouterr().err
        assert not (tmp_path / "-").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "count", "complete"),
    [
        ("rename", 1, ""),
        ("rename", 2, ""),  # between the two outputs of a
        ("rename", 4, "a"),  # between the two outputs of c
        ("line", 1, ""),
        ("half a line", 1, ""),
        ("half a line", 3, "a"),
        ("line", 4, "ac"),
    ],
)
def test_after_a_kill_only_the_rest_is_transcribed(
    run, sounds, out, tiny_folder, place, count, complete
):
    run()
    whole = contents(out)
    for path in out.iterdir():
        path.unlink()
    ended = subprocess.run(
        [
            *(sys.executable, "-c", SUICIDE, place, str(count)),
            *(str(sounds), "-o", str(out), "--model", str(tiny_folder), *INVENT, *FORMAT),
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL
    left = contents(out)
    assert left.items() <= whole.items()  # whole, or not there
    files = {name: (out / name).stat().st_ino for name in left if name[0] in complete}
    assert len(files) == 2 * len(complete)
    code, done, _ = run("--skip-existing")
    assert code == 1  # for b
    assert set(done) == {"a", "b", "c", "d"} - set(complete)
    assert contents(out) == whole
    assert {name: (out / name).stat().st_ino for name in files} == files
    assert run("--skip-existing")[1] == ["b"]


def test_a_kill_amid_outputs_that_replace_others(run, sounds, out, tiny_folder):
    """The old line must not stand for one old and one new file."""
    run()
    changed = [*INVENT, "--language", "de", *FORMAT]
    subprocess.run(
        [
            *(sys.executable, "-c", SUICIDE, "rename", "2"),
            *(str(sounds), "-o", str(out), "--model", str(tiny_folder), *changed),
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
    )
    assert lines(out)[-1]["status"] == "replacing"
    assert run("--skip-existing")[1] == ["a", "b"]


def test_a_stopped_run_says_how_to_go_on(run, sounds, out, monkeypatch):
    soundfile.write(sounds / "a.wav", voice(75.0), RATE)
    write = OutputFiles.segment

    def segment(self, text):
        write(self, text)
        monkeypatch.setattr(OutputFiles, "segment", write)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(OutputFiles, "segment", segment)
    code, _, err = run("--mode", "sequential")
    assert code == 130
    assert err[-2:] == ["to go on, give the same command with --skip-existing", "interrupted"]
    assert lines(out)[0]["status"] == "stopped"
    assert lines(out)[0]["outputs"] == ["a.partial.txt", "a.partial.srt"]
    assert run("--mode", "sequential", "--skip-existing")[0] == 1  # for b
    assert {"a.txt", "a.srt"} <= set(contents(out))
    assert not [name for name in contents(out) if "partial" in name]


def test_a_full_disk_keeps_no_program_from_ending(run, monkeypatch):
    """The error of the disk must not be taken for one of the recording, and the batch go on."""

    def ends(self, text):
        monkeypatch.undo()  # keeping the text writes it again
        monkeypatch.setattr(Journal, "append", fails)
        raise Terminated(signal.SIGTERM)

    def fails(*_, **__):
        raise OutputError("the disk is full")

    monkeypatch.setattr(OutputFiles, "segment", ends)
    code, done, err = run()
    assert (code, done) == (143, ["a"])
    assert "error: the disk is full" in err
    assert err[-1] == "terminated"


def test_a_journal_that_cannot_be_read(run, out):
    (out / JOURNAL).mkdir(parents=True)
    code, done, err = run()
    assert (code, done) == (2, [])
    assert err == [
        f"error: {out / JOURNAL}: cannot be read: Is a directory; choose another --output-dir"
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_journal_that_cannot_be_written(tmp_path):
    journal = Journal(tmp_path, ["txt"], "m", "o")
    (tmp_path / JOURNAL).symlink_to("/dev/full")
    line = Line(path="a", name="a", status="failed", model_digest="", options_digest="")
    with pytest.raises(OutputError, match=f"{JOURNAL}: cannot be written: No space left"):
        journal.append(line)


def test_lines_that_are_none_are_left_out(tmp_path):
    line = Line(path="a", name="a", status="complete", model_digest="m", options_digest="o")
    journal = Journal(tmp_path, [], "m", "o")
    journal.append(line)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('[]\n{"path": 3}\n\n{"path": "b", "na')
    again = Journal(tmp_path, [], "m", "o")
    again.append(line)
    found = (tmp_path / JOURNAL).read_text().splitlines()
    assert found[-2:] == ['{"path": "b", "na', found[0]]


def test_digests_of_options():
    digest = TranscribeOptions().digest()
    assert TranscribeOptions(batch_size=2).digest() == digest
    assert TranscribeOptions(temperature=0.0).digest() != digest
    assert TranscribeOptions(language="de").digest() != TranscribeOptions(language="fr").digest()
