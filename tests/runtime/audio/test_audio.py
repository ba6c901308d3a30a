"""Reading good recordings: every container, rate and channel count gives the same 16 kHz audio."""

import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import RATE, voice, write_with_ffmpeg

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio.source import CHUNK_FRAMES
from whisper_npu.runtime.audio.stream import (
    BLOCK_SAMPLES,
    SAMPLE_RATE,
    list_audio_files,
    load_audio,
    open_audio,
)

SECONDS = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recordings")


def noise(n: int, channels: int | None = None) -> np.ndarray:
    shape = n if channels is None else (n, channels)
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


def assert_same_voice(samples: np.ndarray, *, decibels: float, longer: float = 0.0, lag: int = 0):
    """Compare with `voice` at 16 kHz: signal-to-difference ratio in dB, `lag` samples late."""
    expected = voice(SECONDS)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0 <= len(samples) - len(expected) <= round(longer * SAMPLE_RATE)
    # Codecs fade in and out at the ends.
    inner = slice(1600, len(expected) - 1600)
    difference = expected[inner] - samples[inner.start + lag : inner.stop + lag]
    ratio = 10 * np.log10(np.mean(expected[inner] ** 2) / np.mean(difference**2))
    assert ratio > decibels


@pytest.mark.parametrize(
    ("suffix", "decibels"),
    [("wav", 70), ("flac", 70), ("aiff", 70), ("au", 70), ("w64", 70), ("ogg", 25), ("mp3", 25)],
)
def test_containers_of_libsndfile_hold_the_same_audio(folder, suffix, decibels):
    path = folder / f"voice.{suffix}"
    soundfile.write(path, voice(SECONDS), RATE)
    with open_audio(path) as stream:
        assert stream.duration_estimate == pytest.approx(SECONDS, abs=0.01)
        samples = np.concatenate(list(stream))
        assert stream.warnings == []
    assert_same_voice(samples, decibels=decibels)


@pytest.mark.parametrize(
    ("suffix", "codec", "video", "decibels", "longer", "lag"),
    [
        ("m4a", "aac", False, 40, 0.03, 0),
        ("mp4", "aac", True, 40, 0.03, 0),
        ("mov", "aac", True, 40, 0.03, 0),
        ("webm", "libopus", False, 25, 0.03, 0),
        ("ogg", "libopus", False, 25, 0.03, 0),
        ("mka", "pcm_u8", False, 30, 0.0, 0),
        ("mka", "pcm_s32le", False, 100, 0.0, 0),
        ("mka", "pcm_s64le", False, 100, 0.0, 0),
        ("mka", "pcm_f64le", False, 100, 0.0, 0),
        # A bare AAC stream cannot say that its first frame is only the encoder's run-in (128
        # samples at 16 kHz), nor where it ends.
        ("aac", "aac", False, 15, 0.05, 128),
    ],
)
def test_containers_of_ffmpeg_hold_the_same_audio(
    folder, *, suffix, codec, video, decibels, longer, lag
):
    path = folder / f"voice-{codec}.{suffix}"
    write_with_ffmpeg(path, voice(SECONDS, 48_000), 48_000, codec, video=video)
    with open_audio(path) as stream:
        samples = np.concatenate(list(stream))
        assert stream.warnings == []
    assert_same_voice(samples, decibels=decibels, longer=longer, lag=lag)


def test_pcm_at_16_khz_is_exact(tmp_path):
    pcm = np.arange(-32_768, 32_768, dtype=np.int16)
    soundfile.write(tmp_path / "ramp.wav", pcm, RATE, subtype="PCM_16")
    expected = pcm.astype(np.float32) / 32_768
    np.testing.assert_array_equal(load_audio(tmp_path / "ramp.wav"), expected)
    np.testing.assert_array_equal(load_audio(pcm), expected)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_equals_one_pass_over_the_whole(tmp_path, rate):
    samples = noise(round(4.3 * rate))  # several chunks at the higher rates
    soundfile.write(tmp_path / "x.wav", samples, rate, subtype="FLOAT")
    expected = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    np.testing.assert_array_equal(load_audio(tmp_path / "x.wav"), expected)


@pytest.mark.parametrize("channels", [2, 6, 8, 100])
def test_channels_are_averaged(tmp_path, channels):
    samples = noise(CHUNK_FRAMES + 17, channels)
    soundfile.write(tmp_path / "x.wav", samples, RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav"), samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("suffix", ["wav", "mp3"])
@pytest.mark.parametrize("block_samples", [160, 4_801, CHUNK_FRAMES, BLOCK_SAMPLES])
def test_samples_do_not_depend_on_the_block_size(folder, suffix, block_samples):
    path = folder / f"stereo.{suffix}"
    if not path.exists():
        soundfile.write(path, noise(5 * 44_100, 2), 44_100)
    whole = load_audio(path)
    with open_audio(path, block_samples=block_samples) as stream:
        blocks = list(stream)
        assert stream.samples_read == len(whole)
    assert {len(block) for block in blocks[:-1]} <= {block_samples}
    assert 0 < len(blocks[-1]) <= block_samples
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_blocks_are_30_seconds(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(65 * RATE), RATE)
    with open_audio(tmp_path / "x.wav") as stream:
        assert [len(block) / SAMPLE_RATE for block in stream] == [30, 30, 5]
    with pytest.raises(ValueError, match="block_samples must be at least 1, not 0"):
        open_audio(tmp_path / "x.wav", block_samples=0)


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path):
    """Memory is flat because a block is decoded when it is asked for, not before."""

    class CountingFile(io.FileIO):
        furthest = 0

        def read(self, size=-1):
            content = super().read(size)
            self.furthest = max(self.furthest, self.tell())
            return content

    soundfile.write(tmp_path / "x.wav", np.zeros(600 * RATE), RATE)
    with CountingFile(tmp_path / "x.wav") as file, open_audio(file) as stream:
        next(stream)
        assert 30 * RATE * 2 < file.furthest < 40 * RATE * 2


def test_the_readers_of_several_threads_do_not_disturb_each_other(tmp_path):
    for index in range(4):
        soundfile.write(tmp_path / f"{index}.flac", noise(44_100 * 2) * index / 4, 44_100)
    paths = sorted(tmp_path.iterdir())
    expected = [load_audio(path) for path in paths]
    results: dict[Path, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda path=path: results.update({path: load_audio(path)}))
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path, samples in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(results[path], samples)


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
    def test_floats_are_taken_as_they_are(self, dtype):
        samples = noise(CHUNK_FRAMES + 5).astype(dtype)
        np.testing.assert_array_equal(load_audio(samples), samples.astype(np.float32))

    def test_the_caller_keeps_its_own_arithmetic(self):
        """Also where the chunks of one array are taken in several threads."""
        chunks = open_audio(noise(20 * CHUNK_FRAMES).astype(np.float64))
        before = np.geterr()
        taken = iter(chunks)
        next(taken)
        assert np.geterr() == before
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(lambda: [len(each) for each in taken]).result()

    def test_any_stride(self):
        samples = noise(1000)
        np.testing.assert_array_equal(load_audio(samples[::-2]), samples[::-2])

    def test_duration_is_known(self):
        assert open_audio(np.zeros(8_000, np.float32)).duration_estimate == 0.5

    @pytest.mark.parametrize("shape", [(), (2, 16_000), (16_000, 1)])
    def test_more_or_less_than_one_dimension_is_refused(self, shape):
        with pytest.raises(AudioError, match=r"array of shape .*pass one channel"):
            load_audio(np.zeros(shape, np.float32))

    @pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, bool, complex, object])
    def test_other_dtypes_are_refused(self, dtype):
        with pytest.raises(AudioError, match=r"array of dtype .*pass floats in \[-1, 1\] or int16"):
            load_audio(np.zeros(16_000, dtype))

    def test_an_empty_array_holds_no_audio(self):
        with pytest.raises(AudioError, match="array: no audio samples in it"):
            load_audio(np.zeros(0, np.float32))

    def test_other_objects_are_refused(self):
        with pytest.raises(AudioError, match="audio of type list; pass a path"):
            load_audio([0.0, 0.1])


class TestOpenFiles:
    @pytest.fixture(params=["wav", "flac", "mp3", "m4a"])
    def path(self, request, folder):
        path = folder / f"open.{request.param}"
        if not path.exists():
            write = write_with_ffmpeg if request.param == "m4a" else None
            if write:
                write(path, voice(1.0, RATE), RATE, "aac")
            else:
                soundfile.write(path, voice(1.0), RATE)
        return path

    def test_a_file_object_is_read_from_its_start_and_stays_open(self, path):
        with path.open("rb") as file:
            file.read(100)
            np.testing.assert_array_equal(load_audio(file), load_audio(path))
            assert not file.closed

    def test_bytes_in_memory(self, path):
        np.testing.assert_array_equal(load_audio(io.BytesIO(path.read_bytes())), load_audio(path))

    def test_a_pipe(self, path):
        reader, writer = os.pipe()

        def feed():
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(path.read_bytes())

        thread = threading.Thread(target=feed)
        thread.start()
        with os.fdopen(reader, "rb") as pipe:
            samples = load_audio(pipe)
        thread.join()
        np.testing.assert_array_equal(samples, load_audio(path))

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
    def test_a_named_pipe(self, path, tmp_path):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        thread = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
        thread.start()
        samples = load_audio(fifo)
        thread.join()
        np.testing.assert_array_equal(samples, load_audio(path))

    def test_a_text_stream_is_refused(self, path):
        with path.open("r", encoding="latin-1") as text, pytest.raises(AudioError, match="binary"):
            load_audio(text)


def test_standard_input_of_a_process(tmp_path):
    soundfile.write(tmp_path / "x.wav", voice(1.0), RATE)
    code = (
        "import sys; from whisper_npu.runtime.audio.stream import load_audio;"
        "print(len(load_audio(sys.stdin.buffer)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=(tmp_path / "x.wav").read_bytes(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"16000"]
    assert done.stderr == b""


def test_wav_needs_neither_ffmpeg_nor_a_resampler(tmp_path):
    """Start-up time is a goal: a 16 kHz WAV must not load what it does not use."""
    soundfile.write(tmp_path / "x.wav", voice(1.0), RATE)
    code = (
        "import sys; from whisper_npu.runtime.audio.stream import load_audio;"
        f"load_audio({str(tmp_path / 'x.wav')!r}); print({{'av', 'soxr'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "set()"


class TestListing:
    def test_folders_are_walked_in_sorted_order(self, tmp_path):
        for name in ("b.wav", "a/z.MP3", "a/b/c.webm", "notes.txt", ".hidden/x.wav", "a/.y.wav"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "folder.wav").mkdir()
        found = list_audio_files([tmp_path])
        assert [path.relative_to(tmp_path).as_posix() for path in found] == [
            "a/b/c.webm",
            "a/z.MP3",
            "b.wav",
        ]

    def test_named_files_are_kept_in_their_order(self, tmp_path):
        (tmp_path / "x.wav").touch()
        named = [tmp_path / "unknown.bin", tmp_path, "missing.wav"]
        assert list_audio_files(named) == [
            tmp_path / "unknown.bin",
            tmp_path / "x.wav",
            Path("missing.wav"),
        ]

    def test_a_folder_without_audio_is_an_error(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(AudioError, match="no audio or video file in this folder") as caught:
            list_audio_files([tmp_path])
        assert str(caught.value).startswith(str(tmp_path))
