"""What output files are called."""

import errno
import tempfile
from pathlib import Path

import pytest

from whisper_npu.errors import UsageError
from whisper_npu.runtime.output.names import (
    check_names,
    check_output_dir,
    output_name,
    output_path,
)


@pytest.mark.parametrize(
    ("recording", "folder", "keep_suffix", "expected"),
    [
        ("a/talk.mp3", None, False, "talk"),
        ("a/talk.mp3", None, True, "talk.mp3"),
        ("a/two.v1.wav", None, False, "two.v1"),
        ("-", None, False, "stdin"),
        ("-", None, True, "stdin"),
        ("week/talk.mp3", "week", False, "talk"),
        ("week/monday/talk.mp3", "week", False, "monday/talk"),
        ("week/monday/talk.mp3", "week", True, "monday/talk.mp3"),
        ("week/monday/talk.mp3", "week/monday", False, "talk"),
        ("..wav", None, False, "."),
        ("...wav", None, False, ".."),
        (".wav", None, False, ".wav"),
        ("week/..wav", "week", False, "."),
    ],
)
def test_names(recording, folder, keep_suffix, expected):
    assert output_name(recording, folder, keep_suffix=keep_suffix) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("talk.en", "out/talk.en.vtt"),
        ("a/b", "out/a/b.vtt"),
        (".", "out/..vtt"),
        ("..", "out/...vtt"),
    ],
)
def test_paths(name, expected):
    assert output_path("out", name, "vtt") == Path(expected)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a/t.wav", "t"), ("b/t.wav", "t")),
        (("t.wav", "t"), ("t.mp3", "t")),
        (("Talk.mp3", "Talk"), ("talk.wav", "talk")),
    ],
)
def test_two_recordings_never_share_a_file(first, second):
    with pytest.raises(UsageError, match=f"{first[0]} and {second[0]} would both be written to"):
        check_names([first, second], "out", ["txt"])


def test_no_text_is_written_over_another_recording(tmp_path):
    recordings = [(tmp_path / "t.wav", "t.wav"), (tmp_path / "t.wav.srt", "t.wav.srt")]
    check_names(recordings, tmp_path / "out", ["srt"])
    check_names(recordings, tmp_path, ["txt"])
    with pytest.raises(UsageError, match=r"would be written over the recording .*t\.wav\.srt"):
        check_names(recordings, tmp_path, ["srt"])


def test_a_full_disk_is_noticed_before_any_work(tmp_path, monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        def write(self, _content):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_options: Full())
    with pytest.raises(UsageError, match="cannot be written to: No space left on device"):
        check_output_dir(tmp_path)


def test_the_folder_is_made_and_left_empty(tmp_path):
    check_output_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
