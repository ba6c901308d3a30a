"""Recordings of a corpus: digests, cuts, and errors."""

import io
import os

import fsspec
import numpy as np
import pytest
import soundfile
from audio_files import RATE, voice

from whisper_npu import AudioError, load_audio
from whisper_npu.corpus import audio
from whisper_npu.corpus.audio import Source, examine, opened


@pytest.fixture
def sound(tmp_path):
    """Three seconds of a synthetic voice, of 16 bits."""
    path = tmp_path / "voice.wav"
    soundfile.write(path, voice(3.0), RATE, "PCM_16")
    return path


def samples(content):
    return soundfile.read(io.BytesIO(content), dtype="int16")[0]


def test_a_whole_file_stays_a_path(sound):
    with opened(Source(str(sound)), None, None) as recording:
        assert recording == sound


@pytest.mark.parametrize(("offset", "seconds"), [(0.0, 1.0), (0.75, 1.5), (2.0, None), (2.5, 9.0)])
def test_a_cut_has_the_samples_of_its_place(sound, offset, seconds):
    whole, _ = soundfile.read(sound, dtype="int16")
    first = round(offset * RATE)
    end = None if seconds is None else first + round(seconds * RATE)
    with opened(Source(str(sound)), offset, seconds) as recording:
        assert np.array_equal(samples(recording), whole[first:end])


def test_a_cut_keeps_rate_and_channels(tmp_path):
    pair = np.stack([voice(2.0, 8000), voice(2.0, 8000)[::-1]], axis=1)
    soundfile.write(tmp_path / "pair.wav", pair, 8000, "FLOAT")
    with opened(Source(str(tmp_path / "pair.wav")), 0.5, 1.0) as recording:
        cut, rate = soundfile.read(io.BytesIO(recording))
    assert rate == 8000
    assert np.array_equal(cut, pair[4000:12000])


def test_a_cut_of_a_file_that_only_ffmpeg_reads(sound, tmp_path):
    import av

    path = tmp_path / "voice.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(voice(3.0)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    whole = load_audio(path)
    with opened(Source(str(path)), 1.0, 1.0) as recording:
        cut, rate = soundfile.read(io.BytesIO(recording), dtype="float32")
    assert rate == RATE
    assert np.array_equal(cut, whole[RATE : 2 * RATE])


def test_a_cut_after_the_end(sound):
    with (
        pytest.raises(AudioError, match="the cut begins after the end, at 4 s"),
        opened(Source(str(sound)), 4.0, 1.0),
    ):
        pass


def test_a_remote_file(sound):
    fsspec.filesystem("memory").pipe_file("/far/voice.wav", sound.read_bytes())
    source = Source("memory://far/voice.wav")
    assert examine(source).digest == examine(Source(str(sound))).digest
    with opened(source, None, None) as recording:
        assert recording.read_bytes() == sound.read_bytes()
    assert not recording.exists()


def test_facts_are_kept_while_the_file_is_unchanged(sound):
    facts = examine(Source(str(sound)))
    assert (facts.seconds, facts.error) == (3.0, None)
    assert examine(Source(str(sound)), facts) is facts
    soundfile.write(sound, voice(2.0), RATE)
    again = examine(Source(str(sound)), facts)
    assert again.seconds == 2.0
    assert again.digest != facts.digest


def test_errors(tmp_path):
    missing = examine(Source(str(tmp_path / "none.wav")))
    assert missing.error == f"{tmp_path / 'none.wav'}: no such file"
    assert missing.digest is None
    (tmp_path / "text.wav").write_text("no audio")
    assert examine(Source(str(tmp_path / "text.wav"))).seconds is None


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("foo://bar/x.wav", "foo://bar/x.wav: Protocol not known: foo"),
        ("memory://far/none.wav", "memory://far/none.wav: "),
        ("breaks://x.wav", "breaks://x.wav: cannot be read: Unauthorized"),
    ],
)
def test_a_store_that_cannot_be_used_is_an_error_of_the_recording(audio, message):
    """The libraries of stores have errors of their own, which are no OSErrors."""

    class UnauthorizedError(Exception):
        pass

    class Breaks(fsspec.AbstractFileSystem):
        protocol = "breaks"

        def info(self, *_, **__):
            raise UnauthorizedError("Unauthorized")

        open = info

    fsspec.register_implementation("breaks", Breaks, clobber=True)
    assert (examine(Source(audio)).error or "").startswith(message)
    with pytest.raises(AudioError, match=message), opened(Source(audio), None, None):
        pass


def test_a_local_name_with_two_colons(sound):
    """fsspec takes them for a chain of URLs."""
    other = sound.with_name("10::30.wav")
    sound.rename(other)
    assert examine(Source(str(other))).seconds == 3.0
    with opened(Source(str(other)), None, None) as recording:
        assert recording == other


def test_an_error_of_the_work_is_not_one_of_the_file(sound):
    with pytest.raises(ValueError, match="of the work"), opened(Source(str(sound)), None, None):
        raise ValueError("of the work")


def test_another_recording_with_the_same_size_and_time(sound):
    facts, before = examine(Source(str(sound))), sound.stat()
    soundfile.write(sound, voice(3.0)[::-1], RATE, "PCM_16")
    os.utime(sound, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sound.stat().st_size == before.st_size
    assert examine(Source(str(sound)), facts).digest != facts.digest


def test_a_file_whose_store_tells_no_time_is_read_again(monkeypatch):
    monkeypatch.setattr(audio, "_TIMES", ())
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/far/x.wav", b"one")
    facts = examine(Source("memory://far/x.wav"))
    memory.pipe_file("/far/x.wav", b"two")
    assert examine(Source("memory://far/x.wav"), facts).digest != facts.digest
