"""The bar over a batch, and the lines where there is no terminal."""

import io
from math import inf
from pathlib import Path
from threading import Event

import pytest

from whisper_npu.runtime.transcription.progress import Progress as RecordingProgress
from whisper_npu.scripts.common.progress import Progress, words


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Stream:
    """A recording under way."""

    def __init__(self, duration_estimate, *, done=0.0, read=0.0):
        self.duration_estimate = duration_estimate
        self.seconds_done = done
        self.seconds_read = read


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.fixture
def files(tmp_path):
    """Three files of 100, 100 and 200 bytes."""
    paths = []
    for name, size in (("a.wav", 100), ("b.wav", 100), ("c.wav", 200)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(bytes(size))
    return paths


def followed(files):
    """A progress that is asked to tell, the text it wrote, and its clock."""
    out, clock = io.StringIO(), Clock()
    return Progress(files, out, clock=clock), out, clock


def test_lengths_of_files_that_are_not_open_are_estimated(files):
    progress, out, clock = followed(files)
    progress.opened(Stream(60.0, done=30.0, read=30.0))
    clock.now += 10
    progress.draw()
    assert (
        out.getvalue() == " 12% 30 s of 4 min 0 s, 1 min 10 s left, 3 x real time, 0 of 3 files\n"
    )


def test_a_file_that_is_missing_has_no_length(files, tmp_path):
    progress, out, clock = followed([files[0], tmp_path / "none.wav"])
    progress.opened(Stream(60.0, done=30.0, read=30.0))
    clock.now += 10
    progress.draw()
    assert out.getvalue() == " 50% 30 s of 1 min 0 s, 10 s left, 3 x real time, 0 of 2 files\n"


def test_what_is_being_decoded_goes_on_at_the_speed_so_far(files):
    progress, _, clock = followed(files[:1])
    stream = Stream(100.0, done=20.0, read=50.0)
    progress.opened(stream)
    clock.now += 10
    progress.draw()
    clock.now += 10
    assert progress._seconds_done() == pytest.approx(40.0)
    clock.now += 1000
    assert progress._seconds_done() == 50.0  # but not beyond what has been read
    stream.seconds_done = 45.0
    assert progress._seconds_done() == 50.0  # nor back


def test_after_a_stop_only_what_was_read_is_left(files):
    """And nobody has to wait a minute to hear how long it takes."""
    has_told = Event()

    class Out(io.StringIO):
        def flush(self):
            has_told.set()

    out, clock = Out(), Clock()
    progress = Progress(files, out, clock=clock)
    progress.opened(Stream(3600.0, done=60.0, read=180.0))
    clock.now += 20
    with progress:
        progress.finish("finishing")
        assert has_told.wait(30)
    assert out.getvalue() == (" 33% finishing, 40 s left, 3 x real time, 0 of 3 files\n")


@pytest.mark.parametrize("length", [None, inf])
def test_a_length_that_nobody_knows(length):
    progress, out, clock = followed([Path("-")])
    progress.opened(Stream(length, done=30.0, read=30.0))
    clock.now += 10
    progress.draw()
    assert out.getvalue() == "  0% 30 s\n"


def test_files_that_ended_and_failed(files):
    progress, out, clock = followed(files)
    progress.opened(Stream(60.0, done=60.0, read=60.0))
    progress.ended(0, 60.0)
    progress.opened(OSError())
    progress.ended(1, 0.0, failed=True)
    clock.now += 60
    progress.draw()
    text = out.getvalue()
    assert "2 of 3 files, 1 failed" in text
    assert (
        progress.summary() == "2 files, 1 min 0 s of audio in 1 min 0 s (1 x real time), 1 failed"
    )


def test_a_short_run_that_nobody_watches_tells_nothing(files):
    progress, out, _ = followed(files)
    with progress:
        progress.opened(Stream(60.0, done=60.0, read=60.0))
        progress.ended(0, 60.0)
    assert progress.summary() is None
    assert out.getvalue() == ""


def test_text_and_the_bar_never_share_a_line(files):
    terminal = Terminal()
    with Progress(files, terminal) as progress:
        progress.status = "loading"
        progress.draw()
        assert "loading, 0 of 3 files" in terminal.getvalue()
        with progress.paused():
            before = terminal.getvalue()
            terminal.write("text\n")
    assert before.endswith("\r")
    assert before.rpartition("files")[2].strip("\r ") == ""
    assert terminal.getvalue().rpartition("\n")[2].strip("\r ") == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (3599.9, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_lengths_of_time(seconds, expected):
    assert words(seconds) == expected


def test_a_recording_s_progress_is_its_steps():
    progress = RecordingProgress()
    assert progress.seconds(read=100.0) == pytest.approx(10.0)
    progress.encoded_to(60.0)
    progress.encoded_to(30.0)  # again, or out of order
    assert progress.seconds(read=100.0) == pytest.approx(37.0)
    progress.encoded_to(120.0)  # a window with silence behind the audio
    progress.decoded_to(120.0)
    assert progress.seconds(read=100.0) == pytest.approx(100.0)
