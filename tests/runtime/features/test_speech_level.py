"""The signal the speech detector gets: free of offset, and loud enough."""

import numpy as np
import pytest

from whisper_npu.runtime.features.speech_level import SpeechLevel

RATE, CHUNK = 16_000, 512


@pytest.fixture
def speech():
    """Ten seconds of a tone that comes and goes, its peaks at a third of full scale."""
    times = np.arange(10 * RATE) / RATE
    loud = 0.5 - 0.5 * np.cos(2 * np.pi * times)
    return (0.33 * loud * np.sin(2 * np.pi * 220 * times)).astype(np.float32)


def normalize(samples, *, blocks=1):
    chunks = samples[: len(samples) // CHUNK * CHUNK].reshape(-1, CHUNK)
    level = SpeechLevel(RATE / CHUNK)
    return np.concatenate([level.normalize(block) for block in np.array_split(chunks, blocks)])


def test_speech_that_is_loud_enough_stays_as_it_is(speech):
    from_here = RATE // 2 // CHUNK * CHUNK  # its first peak
    level = normalize(speech).ravel()[from_here:]
    assert level == pytest.approx(speech[from_here : from_here + len(level)], abs=2e-3)


@pytest.mark.parametrize("decibels", [-30, -50, -70])
def test_quiet_speech_is_amplified(speech, decibels):
    quiet = speech * np.float32(10 ** (decibels / 20))
    assert np.abs(normalize(quiet)[60:]).max() == pytest.approx(0.05, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.06, -0.3])
def test_a_constant_offset_goes(speech, offset):
    spoilt = np.float32(0.1) * speech + np.float32(offset)
    assert normalize(spoilt) == pytest.approx(normalize(np.float32(0.1) * speech), abs=2e-3)


def test_a_quiet_speaker_is_heard_behind_a_loud_one(speech):
    both = np.concatenate((speech, speech * np.float32(0.005)))
    level = np.abs(normalize(both)).max(axis=1)
    assert level[: 10 * RATE // CHUNK].max() == pytest.approx(0.33, rel=0.05)
    assert level[-5 * RATE // CHUNK :].max() == pytest.approx(0.05, rel=0.05)


def test_nothing_is_amplified_beyond_full_scale(speech):
    jump = np.concatenate((speech * np.float32(1e-3), speech))
    assert np.abs(normalize(jump)).max() < 0.5


def test_rounding_noise_stays_small():
    dither = np.random.default_rng(0).integers(-1, 2, 5 * RATE).astype(np.float32) / 32768
    assert np.abs(normalize(dither)).max() < 0.05


def test_how_the_stream_is_cut_changes_nothing(speech):
    quiet = speech * np.float32(0.01) + np.float32(0.1)
    assert (normalize(quiet) == normalize(quiet, blocks=37)).all()


def test_beside_another_channel_quiet_speech_stays_quiet(speech):
    """It is the other channel's, leaking in; an offset goes all the same."""
    leaking = speech * np.float32(0.01) + np.float32(0.1)
    chunks = leaking[: len(leaking) // CHUNK * CHUNK].reshape(-1, CHUNK)
    level = SpeechLevel(RATE / CHUNK, amplifies=False).normalize(chunks)
    assert np.abs(level[60:]).max() == pytest.approx(0.0033, rel=0.1)
