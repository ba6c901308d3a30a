"""Features against transformers' extractor, and the mel filters against their definition."""

import numpy as np
import pytest
import tiny_whisper
from audio_files import voice
from other_threads import TASKS, run_program

from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.engines.protocol import SILENCE_FEATURE
from whisper_npu.runtime.features.log_mel import (
    HOP_LENGTH,
    N_FFT,
    log_mel_frames,
    log_mel_spectrogram,
    mel_filters,
    normalize,
)

TOLERANCE = 1e-4
WINDOW = 30 * SAMPLE_RATE


def extract(samples, n_mels):
    """transformers' features of a recording of up to 30 s, `(n_mels, 3000)`."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    out = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")
    return out["input_features"][0]


def padded(samples):
    return np.pad(samples, (0, WINDOW - len(samples))).astype(np.float32)


def synthetic(name):
    random = np.random.default_rng(1)
    time = np.arange(WINDOW) / SAMPLE_RATE
    return {
        "noise": 0.3 * random.standard_normal(WINDOW),
        "tiny noise": 1e-5 * random.standard_normal(5 * SAMPLE_RATE),
        "silence": np.zeros(3 * SAMPLE_RATE),
        "impulse": np.eye(1, SAMPLE_RATE, 777)[0],
        "full scale square": np.sign(np.sin(2 * np.pi * 100 * time)),
        "sweep": 0.5 * np.sin(2 * np.pi * (20 + 130 * time) * time),
        "voice": voice(12.0),
        "buzz": tiny_whisper.synthetic_speech(5, 7.003),
        "constant": np.full(8000, 0.25),
        "above full scale": 7 * random.standard_normal(9_999),
    }[name].astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "name",
    [
        "noise",
        "tiny noise",
        "silence",
        "impulse",
        "full scale square",
        "sweep",
        "voice",
        "buzz",
        "constant",
        "above full scale",
    ],
)
def test_synthetic_sound(name, n_mels):
    samples = synthetic(name)
    got = log_mel_spectrogram(padded(samples), n_mels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, extract(samples, n_mels), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_sample_recording(beckett, n_mels):
    samples = load_audio(beckett)
    got = log_mel_spectrogram(padded(samples), n_mels)
    np.testing.assert_allclose(got, extract(samples, n_mels), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_shared_recordings(shared_audio, n_mels):
    files = [
        *sorted(shared_audio.glob("librispeech-test-other/*.flac"))[::10],
        *sorted(shared_audio.glob("words/*.wav")),
    ]
    assert len(files) >= 5
    for path in files:
        samples = load_audio(path)[:WINDOW]
        got = log_mel_spectrogram(padded(samples), n_mels)
        np.testing.assert_allclose(
            got, extract(samples, n_mels), rtol=0, atol=TOLERANCE, err_msg=path.name
        )


@pytest.mark.parametrize("n_mels", [80, 128])
def test_mel_filters_equal_the_reference(n_mels):
    from transformers import WhisperFeatureExtractor

    want = WhisperFeatureExtractor(feature_size=n_mels).mel_filters.T
    np.testing.assert_allclose(mel_filters(n_mels), want, rtol=0, atol=1e-7)


def test_frames_depend_on_their_own_samples_only():
    samples = synthetic("noise")[:16_000]
    whole = log_mel_frames(samples, 80)
    assert whole.shape == (80, 1 + (16_000 - N_FFT) // HOP_LENGTH)
    for i in (0, 1, 50, 97):
        own = samples[HOP_LENGTH * i : HOP_LENGTH * i + N_FFT]
        np.testing.assert_allclose(log_mel_frames(own, 80)[:, 0], whole[:, i], atol=1e-5)


@pytest.mark.parametrize("n_samples", [0, 1, 399])
def test_no_whole_frame(n_samples):
    assert log_mel_frames(np.zeros(n_samples, np.float32), 80).shape == (80, 0)


def test_range_is_80_db_below_the_peak():
    log_mel = np.array([[-10.0, -5.0, 1.0]], np.float32)
    np.testing.assert_allclose(normalize(log_mel), [[(-7 + 4) / 4, -0.25, 1.25]])
    np.testing.assert_allclose(normalize(log_mel, peak=-1.0), [[(-9 + 4) / 4, -0.25, 1.25]])


SPINNING = """
import numpy as np
from other_threads import seconds_of_other_threads
from whisper_npu.runtime.features.log_mel import log_mel_frames
samples = np.zeros(80_000, np.float32)
log_mel_frames(samples, 80)
before = seconds_of_other_threads()
for _ in range(5):
    log_mel_frames(samples, 80)
print(seconds_of_other_threads() - before)
"""


@pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux tells what threads do")
def test_no_thread_is_left_spinning():
    """A matrix product by BLAS leaves its threads spinning beside the encoder, which comes next.

    On two processors the encoder then takes twice as long. With one there is nothing to see.
    """
    assert run_program(SPINNING) < 0.005  # they have not run at all; spinning, they take 0.06


def test_digital_silence_is_what_engines_are_told():
    features = log_mel_spectrogram(np.zeros(SAMPLE_RATE, np.float32), 80)
    np.testing.assert_allclose(features, SILENCE_FEATURE, rtol=2e-7)  # rounded to float32
