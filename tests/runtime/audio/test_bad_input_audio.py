"""Broken and odd recordings: each has the outcome that docs/input.md promises.

Nothing may reach standard error from the decoders, and nothing but AudioError may be raised.
"""

import io
import os
import re
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import soundfile
from audio_files import (
    RATE,
    amr_frames,
    cut,
    spoil,
    voice,
    wav_with_length,
    write_silent_film,
    write_with_ffmpeg,
    write_with_hole,
    write_with_holes,
)

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio import paths
from whisper_npu.runtime.audio.source import CHUNK_FRAMES
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, list_audio_files, load_audio, open_audio

SECONDS = 6.0  # of the good recording


@pytest.fixture(autouse=True)
def silent_decoders(capfd):
    yield
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A 6 s recording in several formats, by suffix."""
    folder = tmp_path_factory.mktemp("good")
    paths = {}
    for suffix in ("wav", "flac", "ogg", "mp3"):
        paths[suffix] = folder / f"voice.{suffix}"
        soundfile.write(paths[suffix], voice(SECONDS), RATE)
    paths["m4a"] = write_with_ffmpeg(folder / "voice.m4a", voice(SECONDS), RATE, "aac")
    paths["webm"] = write_with_ffmpeg(folder / "voice.webm", voice(SECONDS, 48_000), 48_000, "opus")
    return paths


def read(source) -> tuple[np.ndarray, list[str]]:
    with open_audio(source) as stream:
        return np.concatenate(list(stream)), stream.warnings


def refusal(source, name=None) -> str:
    """The error of a recording that cannot be read: one line that starts with its name."""
    with pytest.raises(AudioError) as caught:
        load_audio(source)
    message = str(caught.value)
    assert "\n" not in message
    name = str(name or source)
    assert message.startswith(name)
    return message.removeprefix(name)


class TestNothingToRead:
    def test_missing_file(self, tmp_path):
        assert refusal(tmp_path / "missing.wav") == ": no such file"
        assert refusal(tmp_path / "no" / "folder" / "x.wav") == ": no such file"

    def test_a_mistyped_name(self, tmp_path):
        (tmp_path / "interview.mp3").touch()
        (tmp_path / "notes.txt").touch()
        meant = f": no such file; did you mean {tmp_path / 'interview.mp3'}?"
        assert refusal(tmp_path / "intervew.mp3") == meant
        assert refusal(tmp_path / "other.mp3") == ": no such file"

    def test_folder(self, tmp_path):
        assert refusal(tmp_path) == ": is a folder; name a recording in it"

    def test_folder_without_audio(self, tmp_path):
        with pytest.raises(AudioError, match="no audio or video file in this folder"):
            list_audio_files([tmp_path])

    @pytest.mark.parametrize("suffix", ["wav", "mp3", "m4a"])
    def test_empty_file(self, tmp_path, suffix):
        path = tmp_path / f"empty.{suffix}"
        path.touch()
        assert refusal(path) == ": the file is empty (0 bytes); record or copy it again"

    @pytest.mark.parametrize("suffix", ["wav", "aiff"])
    def test_header_without_samples(self, tmp_path, suffix):
        path = tmp_path / f"header.{suffix}"
        soundfile.write(path, np.zeros(0), RATE)
        assert refusal(path) == ": no audio samples in it; record or copy it again"

    @pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg", "raw", "mp4"])
    def test_text_named_as_audio(self, tmp_path, suffix):
        path = tmp_path / f"text.{suffix}"
        path.write_text("These are words, not sounds.\n" * 500)
        assert refusal(path) == (
            ": not a recording that libsndfile or FFmpeg can read; convert it to WAV or FLAC"
        )

    @pytest.mark.parametrize("suffix", ["wav", "mp3"])
    def test_random_bytes(self, tmp_path, suffix):
        path = tmp_path / f"random.{suffix}"
        path.write_bytes(b"\x00\x01" + np.random.default_rng(1).bytes(50_000))
        assert "not a recording" in refusal(path)

    def test_playlist_does_not_open_other_files(self, tmp_path, good):
        path = tmp_path / "list.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{good['mp3']}\n")
        assert refusal(path) == ": a list of recordings, not a recording; name those it lists"

    @pytest.mark.parametrize(
        ("name", "start"),
        [
            ("x.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{url}\n"),
            ("x.pls", "[playlist]\nFile1={url}\nNumberOfEntries=1\n"),
            ("x.ffconcat", "ffconcat version 1.0\nfile '{url}'\n"),
            ("x.txt", "file '{url}'\n"),
            ("x.mpd", "<MPD><BaseURL>{url}</BaseURL><Period><AdaptationSet/></Period></MPD>"),
            ("x.smil", '<smil><body><audio src="{url}"/></body></smil>'),
            (
                "x.sdp",
                "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n",
            ),
            ("x.asx", '<asx><entry><ref href="{url}"/></entry></asx>'),
            ("x.wpl", "[Reference]\nRef1={url}\n"),
        ],
    )
    def test_nothing_that_a_file_names_is_opened(self, tmp_path, good, name, start):
        """Neither other files nor addresses: a server waits for a connection that must not come."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            for url in (f"http://127.0.0.1:{port}/x.mp3", good["mp3"].as_uri(), str(good["mp3"])):
                (tmp_path / name).write_text(start.format(url=url, port=port))
                assert re.search("a list of recordings|not a recording", refusal(tmp_path / name))
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()

    @pytest.mark.parametrize("suffix", ["mp4", "mkv"])
    def test_video_without_audio_track(self, tmp_path, suffix):
        path = write_silent_film(tmp_path / f"film.{suffix}")
        assert refusal(path) == ": the file has no audio track; nothing can be transcribed"

    def test_mp4_without_its_end(self, tmp_path, good):
        """The index of an MP4 stands at the end; without it no sample can be located."""
        assert "not a recording" in refusal(cut(good["m4a"], tmp_path / "cut.m4a", 0.5))


class TestUnreadable:
    """Root may read everything, so the system's refusal is played back."""

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (PermissionError(13, "Permission denied"), ": no permission to read it"),
            (OSError(24, "Too many open files"), ": cannot be opened: Too many open files"),
        ],
    )
    def test_opening_fails(self, tmp_path, monkeypatch, error, outcome):
        def refuse(*_args, **_options):
            raise error

        path = tmp_path / "locked.wav"
        soundfile.write(path, voice(1.0), RATE)
        monkeypatch.setattr(Path, "open", refuse)
        assert refusal(path) == outcome

    def test_reading_fails(self):
        class BrokenDisk:
            name = "broken disk"

            def seekable(self):
                return True

            def seek(self, *_):
                return 0

            def read(self, _=-1):
                raise OSError(5, "Input/output error")

        assert refusal(BrokenDisk(), name="broken disk") == ": cannot be read: Input/output error"

    @pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
    def test_reading_fails_on_the_way(self, tmp_path, suffix):
        """Half a recording is no transcript when another try may give the whole."""

        class FailingDisk(io.FileIO):
            def read(self, size=-1):
                if self.tell() > 100_000:
                    raise OSError(5, "Input/output error")
                return super().read(size)

        path = tmp_path / f"x.{suffix}"
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * RATE).astype(np.float32)
        if suffix == "m4a":
            write_with_ffmpeg(path, noise, RATE, "aac")
        else:
            soundfile.write(path, noise, RATE)
        with FailingDisk(path) as file:
            assert refusal(file, name=path).endswith(": Input/output error")

    def test_name_that_no_file_can_have(self):
        with pytest.raises(AudioError, match=r"cannot be opened: .*null") as caught:
            load_audio("a\0b.wav")
        assert "\0" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
class TestNoFile:
    """What would hang for ever, or is read to no end."""

    @pytest.fixture
    def pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.wav")
        return tmp_path / "pipe.wav"

    def test_a_named_pipe_without_a_writer(self, pipe, monkeypatch, caplog):
        monkeypatch.setattr(paths, "WRITER_WAIT", 0.1)
        monkeypatch.setattr(paths, "_SAY_SO_AFTER", 0.0)
        assert refusal(pipe) == (
            ": a named pipe that no program writes to (waited 0 s); "
            "start the program that writes first"
        )
        assert caplog.messages == [f"{pipe}: a named pipe: waiting for a program to write to it"]

    @pytest.mark.parametrize("suffix", ["wav", "mp3"])
    def test_a_named_pipe_with_a_writer(self, pipe, good, suffix):
        content = good[suffix].read_bytes()
        with ThreadPoolExecutor(1) as thread:  # opening waits for the reader
            thread.submit(pipe.write_bytes, content)
            np.testing.assert_array_equal(load_audio(pipe), load_audio(good[suffix]))

    def test_a_named_pipe_whose_writer_thinks(self, pipe, good, monkeypatch, caplog):
        """It is waited for longer than for a writer, which is there."""
        monkeypatch.setattr(paths, "_SAY_SO_AFTER", 0.0)
        told = Event()
        monkeypatch.setattr(paths.logger, "warning", lambda *_: told.set())
        writer = os.open(pipe, os.O_RDWR)

        def write():
            assert told.wait(60)
            with os.fdopen(writer, "wb") as file:
                file.write(good["wav"].read_bytes())

        with ThreadPoolExecutor(1) as thread:
            thread.submit(write)
            np.testing.assert_array_equal(load_audio(pipe), load_audio(good["wav"]))

    def test_a_device(self):
        assert refusal("/dev/zero").startswith(": is a device; name a file")

    def test_a_socket(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.wav")
            assert refusal("x.wav").startswith(": is a socket; name a file")


class TestVeryShort:
    @pytest.mark.parametrize(("rate", "expected"), [(8_000, 2), (16_000, 1), (48_000, 1)])
    def test_one_sample(self, tmp_path, rate, expected):
        soundfile.write(tmp_path / "one.wav", np.full(1, 0.25), rate, subtype="FLOAT")
        samples, warnings = read(tmp_path / "one.wav")
        assert len(samples) == expected
        assert np.isfinite(samples).all()
        assert warnings == []

    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
    def test_50_milliseconds(self, tmp_path, suffix):
        soundfile.write(tmp_path / f"short.{suffix}", voice(0.05), RATE)
        samples, warnings = read(tmp_path / f"short.{suffix}")
        # A single page of Ogg may keep the silence that fills up its last packet.
        assert 800 <= len(samples) <= (1024 if suffix == "ogg" else 800)
        assert warnings == []


class TestNotFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_such_samples_are_silence_and_are_counted(self, tmp_path, value, rate):
        samples = voice(2.0, rate)
        expected = samples.copy()
        bad = slice(round(1.6 * rate), round(1.6 * rate) + 10)
        samples[bad], expected[bad] = value, 0
        soundfile.write(tmp_path / "bad.wav", samples, rate, subtype="FLOAT")
        soundfile.write(tmp_path / "expected.wav", expected, rate, subtype="FLOAT")
        got, warnings = read(tmp_path / "bad.wav")
        np.testing.assert_array_equal(got, load_audio(tmp_path / "expected.wav"))
        assert warnings == [
            "10 samples are not finite numbers (the first at 1.6 s): taken as silence"
        ]

    def test_in_an_array(self):
        samples = voice(1.0).astype(np.float64)
        samples[8_000] = np.nan
        samples[8_001] = 1e300  # infinite as float32
        got, warnings = read(samples)
        assert got[8_000] == got[8_001] == 0
        assert warnings[0].startswith("2 samples are not finite numbers (the first at 0.5 s)")
        assert np.isnan(samples[8_000])  # the caller's array is left alone

    def test_one_channel_of_two(self, tmp_path):
        samples = np.stack([voice(0.5), np.full(8_000, np.nan, np.float32)], axis=1)
        soundfile.write(tmp_path / "x.wav", samples, RATE, subtype="FLOAT")
        got, warnings = read(tmp_path / "x.wav")
        np.testing.assert_allclose(got, voice(0.5) / 2, atol=1e-7)
        assert warnings[0].startswith("8000 samples")


class TestOddButGood:
    def test_8_khz_mu_law(self, tmp_path):
        soundfile.write(tmp_path / "phone.wav", voice(2.0, 8_000), 8_000, subtype="ULAW")
        samples, warnings = read(tmp_path / "phone.wav")
        assert len(samples) == 2 * SAMPLE_RATE
        difference = samples[1600:-1600] - voice(2.0)[1600:-1600]
        assert np.sqrt(np.mean(difference**2)) < 0.01
        assert warnings == []

    def test_96_khz_24_bit_stereo(self, tmp_path):
        stereo = np.stack([voice(2.0, 96_000), np.zeros(192_000, np.float32)], axis=1)
        soundfile.write(tmp_path / "studio.wav", stereo, 96_000, subtype="PCM_24")
        samples, warnings = read(tmp_path / "studio.wav")
        np.testing.assert_allclose(samples[1600:-1600], voice(2.0)[1600:-1600] / 2, atol=1e-4)
        assert warnings == []

    def test_8_channels(self, tmp_path):
        wide = np.stack([voice(2.0) * k / 8 for k in range(8)], axis=1)
        soundfile.write(tmp_path / "wide.wav", wide, RATE, subtype="PCM_24")
        samples, warnings = read(tmp_path / "wide.wav")
        np.testing.assert_allclose(samples, wide.mean(axis=1), atol=1e-5)
        assert warnings == []

    @pytest.mark.parametrize(
        "name", ["two words.wav", 'it\'s "quoted".wav', "Žluťoučký кот 猫 🎙.wav", "-", "file:x.wav"]
    )
    @pytest.mark.parametrize("suffix", ["wav", "m4a"])
    def test_any_name(self, tmp_path, monkeypatch, good, name, suffix):
        (tmp_path / name).write_bytes(good[suffix].read_bytes())
        monkeypatch.chdir(tmp_path)
        np.testing.assert_array_equal(load_audio(Path(name)), load_audio(good[suffix]))

    @pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
    def test_name_that_is_not_utf8(self, tmp_path, good):
        path = tmp_path / os.fsdecode(b"caf\xe9.wav")
        path.write_bytes(good["wav"].read_bytes())
        assert len(load_audio(path)) == SECONDS * SAMPLE_RATE

    @pytest.mark.parametrize("name", ["voice.mp3", "voice.raw", "voice.mp4", "voice"])
    def test_wrong_suffix(self, tmp_path, good, name):
        (tmp_path / name).write_bytes(good["wav"].read_bytes())
        np.testing.assert_array_equal(load_audio(tmp_path / name), load_audio(good["wav"]))

    def test_full_scale_clipped(self, tmp_path):
        clipped = np.clip(voice(1.0) * 100, -1, 1)
        soundfile.write(tmp_path / "x.wav", clipped, RATE, subtype="FLOAT")
        samples, warnings = read(tmp_path / "x.wav")
        np.testing.assert_array_equal(samples, clipped)
        assert warnings == []

    def test_constant(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.full(RATE, 0.5), RATE, subtype="FLOAT")
        samples, warnings = read(tmp_path / "x.wav")
        np.testing.assert_array_equal(samples, np.full(RATE, 0.5, np.float32))
        assert warnings == []

    def test_sample_rate_beyond_reason(self, tmp_path):
        for rate in (1, 100_000_000):
            path = tmp_path / f"{rate}.wav"
            soundfile.write(path, voice(0.1), rate)
            assert f"a sample rate of {rate} Hz" in refusal(path)


def chunk(kind: bytes, content: bytes, length: int | None = None, order: str = "<") -> bytes:
    return kind + struct.pack(order + "I", len(content) if length is None else length) + content


def wav_of(*chunks: bytes) -> bytes:
    """A WAV whose `fmt ` chunk says mono, 16 bits, 16 kHz."""
    layout = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
    return chunk(b"RIFF", b"WAVE" + chunk(b"fmt ", layout) + b"".join(chunks))


class TestWavSizes:
    """What is there is read, whatever the header says; only a recorder's 0 or -1 is no surprise."""

    PCM = np.round(voice(2.0) * 32_767).astype("<i2")
    HALF = PCM[:RATE].tobytes(), PCM[RATE:].tobytes()
    NOTE = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 4) + b"abcd")

    def read_wav(self, tmp_path, content: bytes):
        (tmp_path / "x.wav").write_bytes(content)
        return read(tmp_path / "x.wav")

    def expect_all(self, samples):
        np.testing.assert_array_equal(samples, self.PCM / np.float32(32_768))

    @pytest.mark.parametrize(
        "announced", [0, 0x7FFF_F000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF - 36, 0xFFFF_FFFF]
    )
    def test_a_pipe_or_a_killed_recorder(self, tmp_path, announced):
        path = wav_with_length(tmp_path / "x.wav", voice(2.0), announced)
        samples, warnings = read(path)
        np.testing.assert_allclose(samples, voice(2.0), atol=1e-4)
        assert warnings == []

    @pytest.mark.parametrize("announced", [64_002, 2_000_000_000, 3_000_000_000, 4_000_000_000])
    def test_cut_off(self, tmp_path, announced):
        samples, warnings = read(wav_with_length(tmp_path / "x.wav", voice(2.0), announced))
        assert len(samples) == 2 * SAMPLE_RATE
        assert warnings == [
            f"the file is cut off: 64000 of the {announced} bytes of audio its header announces"
            " are there (2.0 s)"
        ]

    @pytest.mark.parametrize("announced", [2, 32_000, 32_001, 59_000])
    def test_smaller_than_the_file(self, tmp_path, announced):
        content = wav_of(chunk(b"data", b"".join(self.HALF), announced))
        samples, warnings = self.read_wav(tmp_path, content)
        self.expect_all(samples)
        assert warnings == [
            f"the header announces {announced} bytes of audio, 64000 are there: all are read"
        ]

    @pytest.mark.parametrize("between", [b"", NOTE])
    def test_two_data_chunks(self, tmp_path, between):
        data = (chunk(b"data", half) for half in self.HALF)
        samples, warnings = self.read_wav(tmp_path, wav_of(next(data), between, next(data)))
        self.expect_all(samples)
        assert warnings == ["the audio is in several data chunks: read one after the other"]

    def test_thousands_of_data_chunks(self, tmp_path):
        pieces = [self.PCM[start : start + 10].tobytes() for start in range(0, 2 * RATE, 10)]
        samples, _ = self.read_wav(tmp_path, wav_of(*(chunk(b"data", each) for each in pieces)))
        self.expect_all(samples)

    def test_a_wav_behind_a_wav(self, tmp_path):
        """As `cat` joins them."""
        wavs = (wav_of(chunk(b"data", half)) for half in self.HALF)
        samples, warnings = self.read_wav(tmp_path, b"".join(wavs))
        self.expect_all(samples)
        assert warnings == ["the audio is in several data chunks: read one after the other"]

    def test_a_wav_of_another_kind_behind_a_wav(self, tmp_path):
        soundfile.write(tmp_path / "other.wav", voice(1.0), 8_000)
        first = wav_of(chunk(b"data", self.HALF[0]))
        samples, warnings = self.read_wav(tmp_path, first + (tmp_path / "other.wav").read_bytes())
        assert len(samples) == RATE
        assert warnings == [
            "another recording, of another format, follows in the same file: left out"
        ]

    @pytest.mark.parametrize(
        "behind",
        [
            NOTE,
            chunk(b"bext", bytes(8_000)),
            chunk(b"zzzz", bytes(8_000)) + NOTE,
            chunk(b"id3 ", bytes(8_000), 80_000),
            b"ID3\x03" + bytes(8_000),
            b"TAG" + bytes(125),
            bytes(511),
        ],
    )
    def test_what_is_no_audio_is_not_read(self, tmp_path, behind):
        content = wav_of(chunk(b"data", b"".join(self.HALF))) + behind
        samples, warnings = self.read_wav(tmp_path, content)
        self.expect_all(samples)
        assert warnings == []

    def test_no_room_for_a_pad_byte(self, tmp_path):
        """Chunks begin at even places, but not every program knows."""
        for pad in (b"", b"\0"):
            content = chunk(b"data", b"".join(self.HALF) + b"x") + pad + self.NOTE
            samples, warnings = self.read_wav(tmp_path, wav_of(content))
            self.expect_all(samples)
            assert warnings == []

    def test_big_endian(self, tmp_path):
        """RIFX; the data chunk announces half of what is there."""
        layout = struct.pack(">HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)
        data = chunk(b"data", self.PCM.astype(">i2").tobytes(), 32_000, ">")
        content = chunk(b"RIFX", b"WAVE" + chunk(b"fmt ", layout, order=">") + data, order=">")
        samples, warnings = self.read_wav(tmp_path, content)
        self.expect_all(samples)
        assert len(warnings) == 1

    def test_mp3_in_a_wav_is_not_damaged(self, tmp_path):
        path = write_with_ffmpeg(tmp_path / "x.wav", voice(2.0), RATE, "libmp3lame")
        samples, warnings = read(path)
        assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
        assert warnings == []

    @pytest.mark.parametrize(("channels", "rate"), [(65_535, 2**32 - 1), (1, 2**32 - 1)])
    def test_a_header_that_would_fill_the_memory(self, tmp_path, channels, rate):
        layout = struct.pack("<HHIIHH", 1, channels, rate, 2**32 - 1, 2, 16)
        content = wav_of(chunk(b"data", bytes(2**18))).replace(
            struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16), layout
        )
        (tmp_path / "x.wav").write_bytes(content)
        assert "not a recording" in refusal(tmp_path / "x.wav")


class TestCutOff:
    """What is there is read to its last whole frame; where it ends is told."""

    def test_mp3(self, tmp_path, good):
        samples, warnings = read(cut(good["mp3"], tmp_path / "cut.mp3", 0.5))
        seconds = len(samples) / SAMPLE_RATE
        assert seconds == pytest.approx(SECONDS / 2, abs=0.2)
        assert warnings == [
            f"the recording ends at {seconds:.1f} s, its header announces 6.0 s: cut off or damaged"
        ]
        np.testing.assert_allclose(samples[:-2000], load_audio(good["mp3"])[: len(samples) - 2000])

    def test_flac(self, tmp_path, good):
        samples, warnings = read(cut(good["flac"], tmp_path / "cut.flac", 0.5))
        seconds = len(samples) / SAMPLE_RATE
        assert seconds == pytest.approx(SECONDS / 2, abs=0.3)
        np.testing.assert_array_equal(samples, load_audio(good["flac"])[: len(samples)])
        assert warnings[0].startswith("damaged after 0.0 s: read on with FFmpeg")
        assert warnings[-1].startswith(f"the recording ends at {seconds:.1f} s, its header")

    def test_wav(self, tmp_path, good):
        samples, warnings = read(cut(good["wav"], tmp_path / "cut.wav", 0.5))
        np.testing.assert_array_equal(samples, load_audio(good["wav"])[: len(samples)])
        assert len(samples) == pytest.approx(SECONDS / 2 * SAMPLE_RATE, abs=50)
        assert re.fullmatch(
            r"the file is cut off: 9\d+ of the 192000 bytes of audio its header announces are there"
            r" \(3.0 s\)",
            warnings[0],
        )

    @pytest.mark.parametrize("suffix", ["aiff", "au", "caf", "w64", "rf64"])
    def test_other_containers_of_samples(self, tmp_path, suffix):
        path = tmp_path / f"x.{suffix}"
        soundfile.write(path, voice(SECONDS), RATE, subtype="PCM_16", format=suffix)
        whole, warnings = read(path)
        assert warnings == []
        samples, warnings = read(cut(path, tmp_path / "cut", 0.5))
        np.testing.assert_array_equal(samples, whole[: len(samples)])
        assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS / 2, abs=0.1)
        assert len(warnings) == 1
        assert re.match(r"the file is cut off: \d+ of the \d+ bytes ", warnings[0])

    def test_ogg(self, tmp_path, good):
        samples, warnings = read(cut(good["ogg"], tmp_path / "cut.ogg", 0.6))
        assert 1.0 < len(samples) / SAMPLE_RATE < 5.0
        assert len(warnings) == 1
        assert warnings[0].endswith("it has no end mark")

    def test_webm(self, tmp_path, good):
        samples, warnings = read(cut(good["webm"], tmp_path / "cut.webm", 0.5))
        assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS / 2, abs=0.7)
        assert "its header announces 6.0 s: cut off or damaged" in warnings[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts memory in another way")
class TestBombs:
    """Small files that unfold to hours: 2 h of floats would be 460 MB."""

    MOST_MEMORY = 150 * 2**20  # bytes; numpy, FFmpeg and a few blocks

    @staticmethod
    def peak_memory(path) -> int:
        """Bytes that this process or its child needs at most to read a recording in blocks."""
        code = (
            "import resource, sys; from whisper_npu.runtime.audio.stream import open_audio;"
            "from whisper_npu.runtime.audio import ffmpeg_process;"
            "samples = sum(map(len, open_audio(sys.argv[1])));"
            "ffmpeg_process._end_idle();"
            "who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN;"
            "print(samples, max(resource.getrusage(each).ru_maxrss for each in who))"
        )
        # A process is charged with the peak of the one that starts it: a shell is small.
        shell = ["sh", "-c", '"$@"; exit $?', "sh"]
        command = [*shell, sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        samples, peak = map(int, done.stdout.split())
        assert samples > 3_400 * SAMPLE_RATE
        return peak * (1 if sys.platform == "darwin" else 1024)

    @pytest.mark.slow
    def test_hours_of_silence_in_a_flac(self, tmp_path):
        with soundfile.SoundFile(tmp_path / "x.flac", "w", RATE, 1, "PCM_16") as file:
            for _ in range(120):
                file.write(np.zeros(60 * RATE, np.int16))
        assert (tmp_path / "x.flac").stat().st_size < 400_000
        assert self.peak_memory(tmp_path / "x.flac") < self.MOST_MEMORY

    def test_holes(self, tmp_path):
        path = write_with_holes(tmp_path / "x.mka", voice(2.0), hole=500, number=20)
        assert self.peak_memory(path) < self.MOST_MEMORY


class TestDamagedInside:
    """What follows the damage is read, too, and the damage is told."""

    @pytest.mark.slow
    @pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg"])
    def test_both_sides_are_kept(self, tmp_path, suffix):
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * RATE)
        soundfile.write(tmp_path / f"good.{suffix}", noise, RATE)
        whole = load_audio(tmp_path / f"good.{suffix}")
        samples, warnings = read(
            spoil(tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}", 2_000)
        )
        assert warnings
        assert len(samples) > 0.9 * len(whole)
        start, middle, end = 0, 8 * RATE, 12 * RATE
        np.testing.assert_allclose(samples[start:middle], whole[start:middle], atol=1e-3)
        # MP3 frames carry no time: what follows the damage moves forward.
        earliest = end - 2 * RATE if suffix == "mp3" else end
        found = next(
            place
            for place in range(earliest, end + 1)
            if np.allclose(samples[place : place + 100], whole[end : end + 100], atol=1e-3)
        )
        rest = whole[end:-2_000]
        np.testing.assert_allclose(samples[found : found + len(rest)], rest, atol=1e-3)

    def test_damage_late_in_a_flac(self, tmp_path):
        """What libsndfile read before the damage is neither repeated nor lost."""
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * CHUNK_FRAMES)
        soundfile.write(tmp_path / "good.flac", noise, RATE)
        whole = load_audio(tmp_path / "good.flac")
        samples, warnings = read(spoil(tmp_path / "good.flac", tmp_path / "bad.flac", 100))
        assert len(samples) == len(whole)
        different = np.flatnonzero(samples != whole)
        assert different[-1] - different[0] <= 2 * 4096  # two FLAC frames
        assert warnings[0].startswith("damaged after 4.1 s: read on with FFmpeg")

    def test_damage_at_the_end_of_an_ogg(self, tmp_path):
        """FFmpeg takes a damaged page that claims to go beyond the end for the end."""
        soundfile.write(tmp_path / "good.ogg", voice(SECONDS), RATE)
        content = bytearray((tmp_path / "good.ogg").read_bytes())
        pages = [match.start() for match in re.finditer(b"OggS", content)]
        content[pages[-2] + 27 : pages[-2] + 200] = b"\xff" * 173
        (tmp_path / "bad.ogg").write_bytes(content)
        samples, warnings = read(tmp_path / "bad.ogg")
        seconds = len(samples) / SAMPLE_RATE
        assert warnings == [f"damaged: nothing behind {seconds:.1f} s can be read"]

    def test_hole_in_the_timestamps_is_silence(self, tmp_path):
        path = write_with_hole(tmp_path / "x.mka", voice(2.0), hole=0.75)
        samples, warnings = read(path)
        assert len(samples) == 2.75 * SAMPLE_RATE
        assert not samples[RATE : RATE + 12_000].any()
        np.testing.assert_allclose(samples[RATE + 12_000 :], voice(2.0)[RATE:], atol=1e-4)
        assert warnings == [
            "0.75 s of audio are missing in 1 places, the first at 1.0 s: taken as silence"
        ]

    def test_jitter_of_timestamps_is_not_a_hole(self, tmp_path):
        samples, warnings = read(write_with_hole(tmp_path / "x.mka", voice(2.0), hole=0.05))
        assert len(samples) == 2 * SAMPLE_RATE
        assert warnings == []

    @pytest.mark.slow
    def test_holes_are_filled_up_to_an_hour(self, tmp_path):
        """A file of some kilobytes must not unfold to days of silence."""
        path = write_with_holes(tmp_path / "x.mka", voice(2.0), hole=500, number=20)
        samples, warnings = read(path)
        seconds = len(samples) / SAMPLE_RATE
        assert seconds == 2 + 7 * 500
        assert warnings == [
            "3500.00 s of audio are missing in 7 places, the first at 0.1 s: taken as silence",
            "the timestamps jump by 500 s at 3500.8 s and 11 times behind it: ignored",
        ]

    def test_all_packets_are_damaged(self, tmp_path, good):
        content = bytearray(good["m4a"].read_bytes())
        start, end = content.find(b"mdat") + 4, content.find(b"moov") - 4
        content[start:end] = b"\xff" * (end - start)
        (tmp_path / "x.m4a").write_bytes(content)
        assert re.match(
            r": damaged: none of its \d+ packets can be decoded \(", refusal(tmp_path / "x.m4a")
        )

    @pytest.mark.parametrize("pause", [b"\x7c" * 80, (b"\x44" + bytes(5) + b"\x7c" * 7) * 10])
    def test_pauses_in_which_nothing_was_sent_are_not_damage(self, tmp_path, pause):
        """AMR with DTX (3GPP TS 26.093): frames without data, and some of comfort noise."""
        path = write_with_ffmpeg(tmp_path / "x.amr", voice(2.0, 8_000), 8_000, "libopencore_amrnb")
        head, content = path.read_bytes()[:6], path.read_bytes()[6:]
        frames = amr_frames(content)
        path.write_bytes(head + b"".join(frames[:50]) + pause + b"".join(frames[50:]))
        samples, warnings = read(path)
        assert len(samples) == (len(frames) + 80) * SAMPLE_RATE // 50
        assert warnings == []

    def test_broken_clock_is_not_filled(self, tmp_path):
        samples, warnings = read(write_with_hole(tmp_path / "x.mka", voice(2.0), hole=4_000))
        assert len(samples) == 2 * SAMPLE_RATE
        assert warnings == ["the timestamps jump by 4000 s at 1.0 s: ignored"]
