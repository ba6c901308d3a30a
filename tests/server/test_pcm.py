"""Raw samples: every width, channels, G.711, any cut, other rates."""

import numpy as np
import pytest
import soundfile
import soxr

from whisper_npu.server.pcm import SAMPLE_RATE, RawAudio


def tone(rate, seconds=1.0):
    times = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def raw(samples, subtype, tmp_path):
    """Samples as libsndfile writes them."""
    path = tmp_path / "raw"
    soundfile.write(path, samples, SAMPLE_RATE, subtype, "LITTLE", "RAW")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("subtype", "form", "error"),
    [
        ("PCM_U8", {"width": 1}, 1 / 64),
        ("PCM_16", {"width": 2}, 1e-4),
        ("PCM_24", {"width": 3}, 1e-6),
        ("PCM_32", {"width": 4}, 1e-6),
        ("ULAW", {"encoding": "mu-law"}, 0.02),
        ("ALAW", {"encoding": "a-law"}, 0.02),
    ],
)
def test_formats(tmp_path, subtype, form, error):
    samples = tone(SAMPLE_RATE)
    data = raw(samples, subtype, tmp_path)
    np.testing.assert_allclose(RawAudio(SAMPLE_RATE, **form).push(data), samples, atol=error)


@pytest.mark.parametrize(("subtype", "encoding"), [("ULAW", "mu-law"), ("ALAW", "a-law")])
def test_every_byte_of_g711(tmp_path, subtype, encoding):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)))
    known, _ = soundfile.read(
        path, samplerate=8000, channels=1, subtype=subtype, format="RAW", dtype="float32"
    )
    found = RawAudio(SAMPLE_RATE, encoding=encoding).push(path.read_bytes())
    np.testing.assert_array_equal(found, known)


def test_channels_are_mixed(tmp_path):
    left, right = tone(SAMPLE_RATE), np.zeros(SAMPLE_RATE, np.float32)
    data = raw(np.stack((left, right), axis=1), "PCM_16", tmp_path)
    found = RawAudio(SAMPLE_RATE, channels=2).push(data)
    np.testing.assert_allclose(found, left / 2, atol=1e-4)


@pytest.mark.parametrize("size", [1, 5, 4096])
def test_pieces_may_end_anywhere(tmp_path, size):
    data = raw(
        np.stack((tone(SAMPLE_RATE, 0.1), tone(SAMPLE_RATE, 0.1)), axis=1), "PCM_16", tmp_path
    )
    audio = RawAudio(SAMPLE_RATE, channels=2)
    pieces = [audio.push(data[start : start + size]) for start in range(0, len(data), size)]
    whole = RawAudio(SAMPLE_RATE, channels=2).push(data)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_another_rate_is_resampled_without_a_loss_at_the_end(tmp_path):
    samples = tone(24_000)
    audio = RawAudio(24_000)
    data = raw(samples, "PCM_16", tmp_path)
    found = [audio.push(data[start : start + 960]) for start in range(0, len(data), 960)]
    found.append(audio.end())
    whole = np.concatenate(found)
    assert len(whole) == SAMPLE_RATE
    np.testing.assert_allclose(whole, soxr.resample(samples, 24_000, SAMPLE_RATE), atol=1e-3)


def test_a_stream_begins_anew_after_its_end(tmp_path):
    data = raw(tone(24_000), "PCM_16", tmp_path)
    audio = RawAudio(24_000)
    first = np.concatenate((audio.push(data), audio.end()))
    second = np.concatenate((audio.push(data), audio.end()))
    np.testing.assert_array_equal(first, second)
