"""Reading good recordings: every container, rate and channel count gives the same 16 kHz audio."""

import io
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import RATE, voice, write_with_ffmpeg

from whisper_npu.errors import AudioError, AudioInputError, UsageError
from whisper_npu.runtime.audio.source import CHUNK_FRAMES
from whisper_npu.runtime.audio.stream import (
    BLOCK_SAMPLES,
    SAMPLE_RATE,
    list_audio_files,
    load_audio,
    open_audio,
    open_streams,
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

    @pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int32, ">i4", np.uint8])
    def test_integers_are_divided_by_their_scale(self, dtype):
        kind = np.dtype(dtype)
        limits, half = np.iinfo(kind), 2.0 ** (8 * kind.itemsize - 1)
        zero = 128 if kind.kind == "u" else 0
        samples = np.array([limits.min, zero, zero + limits.max // 4, limits.max], kind)
        expected = (samples.astype(np.float64) - zero) / half
        np.testing.assert_array_equal(load_audio(samples), expected.astype(np.float32))

    @pytest.mark.parametrize(
        ("subtype", "dtype"),
        [("PCM_16", "int16"), ("PCM_32", "int32"), ("FLOAT", "float32"), ("DOUBLE", "float64")],
    )
    def test_an_array_is_what_its_file_is(self, tmp_path, subtype, dtype):
        path = tmp_path / "x.wav"
        stereo = np.stack((voice(1.0), noise(RATE)), axis=1)
        soundfile.write(path, stereo, 44_100, subtype)
        samples, rate = soundfile.read(path, dtype=dtype)
        np.testing.assert_array_equal(load_audio(samples, sample_rate=rate), load_audio(path))

    def test_channels_are_mixed_or_chosen(self):
        stereo = np.stack((voice(1.0), noise(RATE)), axis=1)
        np.testing.assert_array_equal(load_audio(stereo), stereo.mean(axis=1, dtype=np.float32))
        np.testing.assert_array_equal(load_audio(stereo, channels="right"), stereo[:, 1])
        np.testing.assert_array_equal(load_audio(stereo[:, :1]), stereo[:, 0])
        names = [stream.channel for stream in open_streams(stereo, channels="split")]
        assert names == ["left", "right"]

    def test_many_channels(self):
        wide = np.tile(noise(3_000)[:, np.newaxis], 500)
        np.testing.assert_allclose(load_audio(wide), wide[:, 0], atol=1e-6)

    @pytest.mark.parametrize("shape", [(), (2, 3, 4)])
    def test_other_numbers_of_dimensions_are_refused(self, shape):
        with pytest.raises(AudioInputError, match=r"shape .*; pass \(n_samples,\) or \("):
            load_audio(np.zeros(shape, np.float32))

    @pytest.mark.parametrize("shape", [(2, 16_000), (1, 16_000), (16_000, 2_000)])
    def test_channels_first_are_refused(self, shape):
        with pytest.raises(AudioInputError, match=r"is \(n_channels, n_samples\), pass array\.T"):
            load_audio(np.zeros(shape, np.float32))

    @pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, bool, complex, object, str])
    def test_other_dtypes_are_refused(self, dtype):
        expected = r"array of dtype .*pass floats in \[-1, 1\], int16, int32 or uint8"
        with pytest.raises(AudioInputError, match=expected):
            load_audio(np.zeros(16_000, dtype))

    @pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0)])
    def test_an_empty_array_is_empty_audio(self, shape):
        samples = load_audio(np.zeros(shape, np.int16), sample_rate=44_100)
        assert (samples.shape, samples.dtype) == ((0,), np.float32)

    def test_arrays_of_other_libraries(self):
        class Tensor:
            def __init__(self, samples):
                self._samples = samples

            def __array__(self, dtype=None, copy=None):
                if self._samples is None:
                    raise TypeError("cannot convert a tensor on another device")
                return self._samples

        np.testing.assert_array_equal(load_audio(Tensor(voice(1.0))), voice(1.0))
        with pytest.raises(AudioInputError, match="type Tensor is no numpy array: cannot convert"):
            load_audio(Tensor(None))

    @pytest.mark.parametrize("rate", [0, -16_000, "16000", 16_000.5, float("nan")])
    def test_a_rate_is_a_whole_number_of_hertz(self, rate):
        with pytest.raises(UsageError, match=r"sample_rate is .*; give Hz, 1000 to"):
            load_audio(voice(1.0), sample_rate=rate)

    def test_a_wrong_rate_is_noticed_in_integers_and_channels(self):
        slow = np.repeat(voice(6.0), 3)
        scaled = (np.stack((slow, slow), axis=1) * 2**31).clip(-(2**31), 2**31 - 1)
        with open_audio(scaled.astype(np.int32)) as stream:
            list(stream)
        with open_audio(slow) as one:
            list(one)
        assert stream.warnings == one.warnings

    @pytest.mark.parametrize("given", [[0.0, 0.1], None, 5, object()])
    def test_other_objects_are_refused(self, given):
        expected = f"audio of type {type(given).__name__}; pass a path, a file opened"
        with pytest.raises(AudioInputError, match=expected):
            load_audio(given)

    def test_a_wrong_object_is_both_errors(self):
        assert issubclass(AudioInputError, AudioError)
        assert issubclass(AudioInputError, UsageError)


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

    @pytest.mark.parametrize("kind", [io.BytesIO, bytes, bytearray, memoryview])
    def test_bytes_in_memory(self, path, kind):
        np.testing.assert_array_equal(load_audio(kind(path.read_bytes())), load_audio(path))

    def test_bytes_that_were_just_written(self, path):
        """The position is at their end."""
        file = io.BytesIO()
        file.write(path.read_bytes())
        np.testing.assert_array_equal(load_audio(file), load_audio(path))

    @pytest.mark.parametrize("max_size", [0, 1, 2**24])
    def test_a_spooled_file(self, path, max_size):
        with tempfile.SpooledTemporaryFile(max_size=max_size) as file:
            file.write(path.read_bytes())
            np.testing.assert_array_equal(load_audio(file), load_audio(path))
            assert file.tell() is not None  # still open

    def test_a_temporary_file(self, path):
        with tempfile.NamedTemporaryFile() as file:
            file.write(path.read_bytes())
            np.testing.assert_array_equal(load_audio(file), load_audio(path))

    def test_an_object_with_a_path(self, path):
        class Entry(os.PathLike):
            def __init__(self, name):
                self._name = name

            def __fspath__(self):
                return self._name

        for name in (str(path), os.fsencode(path)):
            np.testing.assert_array_equal(load_audio(Entry(name)), load_audio(path))

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

    def test_text_by_another_name_is_refused(self):
        with tempfile.SpooledTemporaryFile(mode="w+") as text:
            text.write("RIFF")
            with pytest.raises(AudioInputError, match="stream: gives text, not bytes; open it in"):
                load_audio(text)

    @pytest.mark.parametrize("given", [b"", io.BytesIO()])
    def test_no_bytes_are_no_recording(self, given):
        with pytest.raises(AudioError, match="is empty"):
            load_audio(given)

    def test_a_closed_file_is_refused(self, path):
        with path.open("rb") as file:
            pass
        with pytest.raises(AudioInputError, match="closed file; pass a file that is open"):
            load_audio(file)

    def test_a_file_open_to_write_is_refused(self, tmp_path):
        with (tmp_path / "x.wav").open("wb") as file, pytest.raises(AudioError, match=r"x\.wav: "):
            load_audio(file)

    def test_files_say_their_rate(self, path):
        with pytest.raises(UsageError, match="sample_rate is for arrays"):
            load_audio(path.read_bytes(), sample_rate=16_000)


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
