"""FFmpeg's child process: what it dies of is one file's error, and others are read as before."""

import io
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from audio_files import RATE, spoil, voice, write_many_channels, write_with_ffmpeg

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio import ffmpeg_process
from whisper_npu.runtime.audio.source import CHUNK_VALUES, SourceFile
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio, open_audio


@pytest.fixture(autouse=True)
def _no_idle_children():
    ffmpeg_process._end_idle()
    yield
    ffmpeg_process._end_idle()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_with_ffmpeg(tmp_path_factory.mktemp("good") / "voice.m4a", voice(3.0), RATE, "aac")


@pytest.fixture
def broken(monkeypatch):
    """A function that has every new child run some code once a file is open."""

    def use(code):
        lines = [
            "import sys; sys.path[:] = {path!r}",
            "from {module} import main",
            "from whisper_npu.runtime.audio.ffmpeg import FFmpegDecoder",
            "import os, signal, threading",
            f"def chunks(self): {code}",
            "FFmpegDecoder.chunks = chunks",
            "main()",
        ]
        monkeypatch.setattr(ffmpeg_process, "_PROGRAM", "\n".join(lines))

    yield use
    monkeypatch.undo()


@pytest.mark.skipif(os.name == "nt", reason="processes do not die of signals on Windows")
@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_crash_is_an_error_of_that_file_alone(good, broken, monkeypatch, signal):
    with monkeypatch.context():
        broken(f"os.kill(os.getpid(), signal.{signal})")
        with pytest.raises(AudioError) as caught:
            load_audio(good)
    assert str(caught.value) == (
        f"{good}: FFmpeg crashed on it ({signal}): damaged, or made to do so; "
        "convert it to WAV or FLAC"
    )
    monkeypatch.undo()
    assert len(load_audio(good)) >= 3 * SAMPLE_RATE


def test_a_child_that_ends_is_told(good, broken):
    broken("os._exit(7)")
    with pytest.raises(AudioError, match=r"FFmpeg's process ended on it with exit code 7"):
        load_audio(good)


def test_an_unforeseen_exception_is_told(good, broken):
    broken("raise KeyError('x')")
    with pytest.raises(AudioError, match=r"FFmpeg cannot decode it \(KeyError: 'x'\)"):
        load_audio(good)


def test_memory_without_end_is_refused(good, broken):
    broken("raise MemoryError")
    with pytest.raises(AudioError, match="more than 2 GB of memory"):
        load_audio(good)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds this limit")
def test_the_child_cannot_fill_the_memory(good, broken):
    broken("return [bytearray(1 << 30) for _ in range(3)]")
    with pytest.raises(AudioError, match="more than 2 GB of memory"):
        load_audio(good)


def test_a_hang_is_told(good, broken, monkeypatch):
    monkeypatch.setattr(ffmpeg_process, "_PATIENCE", 0.2)
    broken("threading.Event().wait()")
    with pytest.raises(AudioError, match="FFmpeg hung on it"):
        load_audio(good)


def test_a_parent_that_thinks_is_no_hang(good, monkeypatch):
    """The watchdog rests while the child waits for its parent, with its reads and its samples."""
    monkeypatch.setattr(ffmpeg_process, "_PATIENCE", 1.0)
    waits = iter([1.5])

    class SlowFile(io.FileIO):
        def read(self, size=-1):
            if ffmpeg_process._idle == []:
                threading.Event().wait(next(waits, 0))
            return super().read(size)

    with SlowFile(good) as file:
        np.testing.assert_array_equal(load_audio(file), load_audio(good))


def test_python_without_a_place_to_start_from_decodes_itself(good, monkeypatch):
    expected = load_audio(good)
    ffmpeg_process._end_idle()
    monkeypatch.setattr(sys, "executable", "")
    np.testing.assert_array_equal(load_audio(good), expected)
    assert not ffmpeg_process._idle


def test_no_process_can_be_started(good, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(AudioError, match=r"FFmpeg's process cannot be started: No such file"):
        load_audio(good)


class TestChildren:
    def test_one_after_the_other_shares_a_child(self, good):
        load_audio(good)
        (kept,) = ffmpeg_process._idle
        load_audio(good)
        assert ffmpeg_process._idle == [kept]

    def test_a_child_that_met_damage_is_not_used_again(self, tmp_path, good):
        with open_audio(spoil(good, tmp_path / "bad.m4a", 3000)) as stream:
            list(stream)
        assert stream.warnings
        assert ffmpeg_process._idle == []

    def test_a_child_that_died_while_idle_is_replaced(self, good):
        load_audio(good)
        (kept,) = ffmpeg_process._idle
        kept._process.kill()
        kept._process.wait()
        assert len(load_audio(good)) >= 3 * SAMPLE_RATE

    def test_one_that_is_left_early_is_ended(self, good):
        with open_audio(good, block_samples=160) as stream:
            next(stream)
            process = stream._decoder._child._process
        assert process.returncode is not None

    def test_several_at_once(self, good):
        expected = load_audio(good)
        streams = [open_audio(good) for _ in range(4)]
        for stream in streams:
            np.testing.assert_array_equal(np.concatenate(list(stream)), expected)
            stream.close()
        assert len(ffmpeg_process._idle) == ffmpeg_process._MOST_IDLE

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_process_starts_its_own(self, good):
        code = (
            "import os, sys; from whisper_npu.runtime.audio.stream import load_audio;"
            f"n = len(load_audio({str(good)!r})); pid = os.fork();"
            f"same = len(load_audio({str(good)!r})) == n;"
            "os._exit(not same) if pid == 0 else None;"
            "sys.exit(os.waitpid(pid, 0)[1] or not same)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        assert done.stderr == b""


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 12, 16, 24, 33, 64])
@pytest.mark.parametrize(("codec", "suffix"), [("wavpack", "wv"), ("pcm_s16le_planar", "nut")])
def test_planar_samples_of_many_channels(tmp_path, channels, codec, suffix):
    """PyAV 18 hands out more planes than frames of eight channels and more have: a crash."""
    wide = np.stack([voice(0.5) * (k + 1) / channels for k in range(channels)], axis=1)
    path = write_many_channels(tmp_path / f"wide.{suffix}", wide, RATE, codec)
    with open_audio(path) as stream:
        samples = np.concatenate(list(stream))
        assert stream.warnings == []
    np.testing.assert_allclose(samples, wide.mean(axis=1), atol=1e-4)


def test_a_packet_of_any_size_comes_in_pieces(tmp_path):
    wide = np.repeat(voice(20.0)[:, np.newaxis], 16, axis=1)
    path = write_many_channels(tmp_path / "x.nut", wide, RATE, "pcm_s16le_planar")
    with path.open("rb") as file:
        decoder = ffmpeg_process.open_ffmpeg(SourceFile(file), [].append)
        pieces = [samples for _, samples in decoder.chunks()]
    assert max(piece.size for piece in pieces) <= CHUNK_VALUES < wide.size
    np.testing.assert_allclose(np.concatenate(pieces), wide, atol=1e-4)


@pytest.mark.parametrize(("codec", "suffix"), [("aac", "m4a"), ("libopus", "ogg")])
def test_surround(tmp_path, codec, suffix):
    wide = np.repeat(voice(2.0, 48_000)[:, np.newaxis], 8, axis=1)
    path = write_many_channels(tmp_path / f"x.{suffix}", wide, 48_000, codec, layout="7.1")
    with open_audio(path) as stream:
        samples = np.concatenate(list(stream))
        assert stream.warnings == []
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=0.03 * SAMPLE_RATE)
    assert np.corrcoef(samples[1600:30_000], voice(2.0)[1600:30_000])[0, 1] > 0.8
