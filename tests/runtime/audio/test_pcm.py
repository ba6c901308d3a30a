"""Samples from a pipe: raw, or behind a WAV header that was written before the length was known."""

import io
import struct

import numpy as np
import pytest
from audio_files import voice, write_with_ffmpeg

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.pcm import PcmDecoder, PcmFormat

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


class TestSizes:
    """What would take all memory is refused in a line."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 10**9}, "channels is 1000000000; give 1 to 1024"),
            ({"channels": 0}, "channels is 0; give 1 to 1024"),
            ({"rate": 10**12}, "rate is 1000000000000; give 1000 to 3072000"),
            ({"rate": 1}, "rate is 1; give 1000 to 3072000"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(UsageError) as caught:
            read(RAMP.tobytes(), **options)
        assert str(caught.value) == message

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ({"channels": 65535, "rate": 48000}, "in 65535 channels"),
            ({"rate": 2**32 - 1}, "a sample rate of 4294967295 Hz; the header is broken"),
        ],
    )
    def test_headers(self, header, message):
        content = bytearray(wav(RAMP))
        content[22:24] = struct.pack("<H", header.get("channels", 1))
        content[24:28] = struct.pack("<I", header["rate"])
        with pytest.raises(AudioError, match=message):
            read(bytes(content))

    def test_the_most_is_read_in_small_pieces(self):
        asked = []

        class Counting(Pipe):
            def read(self, size):
                asked.append(size)
                return super().read(size)

        decoder = PcmDecoder(
            Counting(bytes(4096), 10**9), "pipe", [].append, channels=1024, rate=3_072_000
        )
        assert sum(len(samples) for _, samples in decoder.chunks()) == 2
        assert max(asked) <= 2**20

    def test_an_end_before_the_announced_one(self):
        samples, _, warnings = read(wav(RAMP, length=3_000_000_000))
        assert len(samples) == 6000
        assert warnings == ["the input ends 2999988000 bytes before what its header announces"]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"ID3\x02", "MP3"),
        (b"ID3\x04", "MP3"),
        (b"\0\0\0\x18ftypmp42", "MP4"),
        (b"\x1aE\xdf\xa3", "Matroska"),
        (b"RIFF\0\0\0\0AVI ", "AVI"),
        (b"RIFX\0\0\0\0WAVE", "big-endian WAV"),
    ],
)
def test_files_are_not_taken_for_samples(start, kind):
    with pytest.raises(AudioError, match=f"this is {kind}.* ffmpeg"):
        read(start + bytes(1000))


@pytest.mark.parametrize(
    ("container", "codec", "rate", "options", "kind"),
    [
        ("adts", "aac", 16000, {}, "AAC"),
        ("adts", "aac", 48000, {}, "AAC"),
        *(
            ("mp3", "libmp3lame", rate, {"id3v2_version": "0", "write_xing": "0"}, "MP3")
            for rate in (8000, 16000, 44100)
        ),
        ("mp2", "mp2", 48000, {}, "MP3"),
        ("mpegts", "aac", 48000, {}, "MPEG-TS"),
        ("mpegts", "mp2", 48000, {"mpegts_m2ts_mode": "1"}, "MPEG-TS"),
        ("flv", "aac", 44100, {}, "FLV"),
        ("au", "pcm_s16be", 16000, {}, "AU"),
        ("amr", "libopencore_amrnb", 8000, {}, "AMR"),
        ("asf", "wmav2", 44100, {}, "WMA"),
        ("w64", "pcm_s16le", 16000, {}, "W64"),
        ("tta", "tta", 16000, {}, "TTA"),
        ("wv", "wavpack", 16000, {}, "WavPack"),
        ("caf", "pcm_s16le", 16000, {}, "CAF"),
        ("avi", "mp2", 44100, {}, "AVI"),
        ("mov", "aac", 44100, {}, "MP4"),
    ],
)
@pytest.mark.parametrize("most", [1, 10**9])
def test_recordings_are_not_taken_for_samples(
    tmp_path, *, container, codec, rate, options, kind, most
):
    path = tmp_path / "x"
    write_with_ffmpeg(path, voice(1.0, rate), rate, codec, muxer=container, options=options)
    with pytest.raises(AudioError, match=f"this is {kind}, not samples; .* ffmpeg"):
        read(path.read_bytes(), most)


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\xfb\x90\x64",  # -1025 in 16 bits, and one MP3 frame's header
        b"\xff\xf1\x50\x80\x43\xe0\0",  # an ADTS frame's
        b"\x47" * 12,
        b"\x47" + bytes(187) + b"\x47" + bytes(187),
    ],
)
@pytest.mark.parametrize("size", [0, 10_000])
def test_samples_that_begin_like_a_frame(start, size):
    """One frame's mark is chance: it takes three where they should be."""
    content = start + bytes(size)
    samples, _, warnings = read(content, 3)
    np.testing.assert_array_equal(
        samples[:, 0], np.frombuffer(content[: len(content) // 2 * 2], "<i2") / np.float32(32768)
    )
    assert len(warnings) == len(content) % 2
