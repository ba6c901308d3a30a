"""A constant offset is taken out of audio; audio without one stays bit for bit."""

import numpy as np
import pytest
import tiny_whisper

from whisper_npu.runtime.features.constant_offset import ConstantOffset
from whisper_npu.runtime.features.stream import FeatureStream

SPEECH = tiny_whisper.synthetic_speech(0, 8.0)
PIECE = 32_768


def removed(samples, size=PIECE):
    offset = ConstantOffset()
    pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
    return np.concatenate([offset.remove(piece) for piece in pieces])


@pytest.mark.parametrize("offset", [0.0, 0.001, 0.2 * float(SPEECH.std())])
def test_what_does_no_harm_stays_as_it_is(offset):
    samples = SPEECH + np.float32(offset)
    assert (removed(samples) == samples).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [PIECE, 1600])
@pytest.mark.parametrize("offset", [0.06, -0.3])
def test_a_large_offset_goes(size, offset):
    quiet = np.float32(0.02) * SPEECH
    found = removed(quiet + np.float32(offset), size)
    assert found[16_000:] == pytest.approx(quiet[16_000:], abs=2e-3)


def test_nothing_is_nothing():
    assert len(ConstantOffset().remove(np.empty(0, np.float32))) == 0
    assert (removed(np.zeros(16_000, np.float32)) == 0).all()


def features(samples):
    return FeatureStream(iter([samples]), 80).window(0, 700, 700, amplified=True)


@pytest.mark.parametrize("decibels", [-40, -50, -60])
def test_quiet_speech_looks_to_the_model_as_loud_speech_does(decibels):
    loud = features(SPEECH / np.abs(SPEECH).max())
    quiet = features(SPEECH / np.abs(SPEECH).max() * np.float32(10 ** (decibels / 20)))
    assert quiet.max() == pytest.approx(1.25, abs=1e-5)  # log10 power 1, scaled as the reference's
    bands = loud > loud.max() - 1.0  # 40 dB: below it is the floor that no amplification lifts
    difference = (quiet - quiet.max() - loud + loud.max())[bands]
    assert np.abs(difference).max() < 0.02


def test_an_offset_does_not_make_speech_quiet():
    spoilt = features(np.float32(0.05) * SPEECH + np.float32(0.1))
    plain = features(np.float32(0.05) * SPEECH)
    assert np.abs(spoilt - plain)[:, 200:].mean() < 0.05


def test_silence_is_not_made_loud():
    dither = np.random.default_rng(0).integers(-1, 2, 8 * 16_000).astype(np.float32) / 32768
    assert features(dither).max() < features(SPEECH).max() - 0.25
