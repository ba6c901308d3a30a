"""Samples from a pipe: raw, or behind a WAV header that was written before the length was known."""

import io
import struct

import numpy as np
import pytest

from whisper_npu.errors import AudioError
from whisper_npu.runtime.pcm import PcmDecoder, PcmFormat

RAMP = np.arange(-3000, 3000, dtype="<i2")


class Pipe:
    """Hands out at most `most` bytes at a time."""

    def __init__(self, content, most):
        self._file = io.BytesIO(content)
        self._most = most

    def read(self, size):
        return self._file.read(min(size, self._most))


def wav(samples, *, rate=16000, channels=1, length=None, before=b"", extensible=False):
    kind = 3 if samples.dtype.kind == "f" else 1
    width = samples.dtype.itemsize
    head = (channels, rate, rate * width * channels, width * channels, 8 * width)
    body = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, *head)
    if extensible:
        body += struct.pack("<HHIH14x", 22, 8 * width, 0, kind)
    data = samples.tobytes()
    size = len(data) if length is None else length
    chunks = b"fmt " + struct.pack("<I", len(body)) + body + before
    return b"RIFF\xff\xff\xff\xffWAVE" + chunks + b"data" + struct.pack("<I", size) + data


def read(content, most=10**9, **options):
    """Samples `(frames, channels)`, the rate, and the warnings."""
    warnings = []
    decoder = PcmDecoder(Pipe(content, most), "pipe", warnings.append, **options)
    chunks = list(decoder.chunks())
    samples = np.concatenate([samples for _, samples in chunks]) if chunks else None
    assert {rate for rate, _ in chunks} <= {decoder.format.rate}
    return samples, decoder.format, warnings


class TestRaw:
    @pytest.mark.parametrize("most", [1, 3, 1000, 10**9])
    def test_whatever_pieces_arrive(self, most):
        samples, found, warnings = read(RAMP.tobytes(), most)
        np.testing.assert_array_equal(samples[:, 0], RAMP / np.float32(32768))
        assert (found, warnings) == (PcmFormat("s16le", 16000, 1), [])

    @pytest.mark.parametrize(("name", "dtype"), [("s32le", "<i4"), ("f32le", "<f4")])
    def test_other_formats(self, name, dtype):
        values = np.array([-1.0, 0.0, 0.5])
        raw = (values * (2**31 if name == "s32le" else 1)).astype(dtype)
        samples, _, _ = read(raw.tobytes(), sample_format=name)
        np.testing.assert_array_equal(samples[:, 0], values)

    def test_channels(self):
        samples, found, _ = read(RAMP.tobytes(), 7, channels=3, rate=48000)
        assert samples.shape == (2000, 3)
        assert found.rate == 48000

    @pytest.mark.parametrize("extra", [b"x", b"xyz"])
    def test_half_a_sample_at_the_end(self, extra):
        samples, _, warnings = read(RAMP.tobytes() + extra, 5, channels=2)
        assert len(samples) == 3000
        assert warnings == [f"the last {len(extra)} bytes are no whole sample: left out"]

    @pytest.mark.parametrize("size", [0, 1, 11])
    def test_less_than_a_header(self, size):
        samples, _, warnings = read(bytes(size))
        assert (0 if samples is None else len(samples)) == size // 2
        assert len(warnings) == size % 2


class TestWav:
    @pytest.mark.parametrize("length", [None, 0, 0xFFFFFFFF, 0x80000000 - 36, 0x7FFFFFFF])
    def test_lengths_that_recorders_write(self, length):
        samples, found, _ = read(wav(RAMP, rate=44100, channels=2, length=length), 100)
        assert samples.shape == (3000, 2)
        assert (found.rate, found.channels) == (44100, 2)

    def test_what_follows_the_samples_is_none(self):
        samples, _, warnings = read(wav(RAMP) + b"LIST\x04\0\0\0abcd", 4096)
        assert len(samples) == 6000
        assert warnings == []

    def test_chunks_before_the_samples(self):
        odd = b"LIST" + struct.pack("<I", 5) + b"abcde\0"
        samples, _, _ = read(wav(RAMP.astype("<f4") / 32768, before=odd, extensible=True))
        np.testing.assert_array_equal(samples[:, 0], RAMP / np.float32(32768))

    def test_options_must_agree(self):
        read(wav(RAMP), rate=16000, channels=1, sample_format="s16le")
        for options in ({"rate": 8000}, {"channels": 2}, {"sample_format": "f32le"}):
            with pytest.raises(AudioError, match="leave it to its header"):
                read(wav(RAMP), **options)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (wav(RAMP)[:30], "damaged header"),
            (wav(RAMP)[:36], "ends before its samples"),
            (wav(RAMP.astype("u1")), "8 bits"),
            (wav(RAMP, channels=0), "0 channels"),
            (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "does not say how"),
            (b"RIFF\0\0\0\0WAVEjunk\xff\xff\xff\x7f", "damaged header"),
        ],
    )
    def test_broken(self, content, message):
        with pytest.raises(AudioError, match=message):
            read(content)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"ID3\x04", "MP3"),
        (b"\0\0\0\x18ftypmp42", "MP4"),
        (b"\x1aE\xdf\xa3", "Matroska"),
    ],
)
def test_files_are_not_taken_for_samples(start, kind):
    with pytest.raises(AudioError, match=f"this is {kind}.* ffmpeg"):
        read(start + bytes(1000))
