"""Windows of a stream equal those of the whole file, however it is cut and forgotten."""

import numpy as np
import pytest

from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.features.log_mel import (
    HOP_LENGTH,
    LOG_FLOOR,
    N_FFT,
    log_mel_frames,
    log_mel_spectrogram,
    normalize,
)
from whisper_npu.runtime.features.stream import FeatureStream

N_MELS = 80
FLOOR = np.log10(LOG_FLOOR)


def noise(n_samples, seed=0):
    random = np.random.default_rng(seed)
    swell = 0.02 + 0.2 * np.abs(np.sin(np.arange(n_samples) / 9000))
    return (swell * random.standard_normal(n_samples)).astype(np.float32)


def cut(samples, sizes):
    """Blocks whose sizes go round in `sizes`."""
    start, i = 0, 0
    while start < len(samples):
        size = sizes[i % len(sizes)]
        yield samples[start : start + size]
        start, i = start + size, i + 1


def whole_frames(samples, n_frames):
    """Log-mel frames `(N_MELS, n_frames)` of the recording with silence behind it."""
    silence = np.zeros(n_frames * HOP_LENGTH + N_FFT, np.float32)
    mirrored = np.pad(np.concatenate((samples, silence)), N_FFT // 2, mode="reflect")
    return log_mel_frames(mirrored, N_MELS)[:, :n_frames]


@pytest.mark.parametrize(
    "sizes",
    [[1], [7], [159], [160], [161], [199], [200], [201], [399, 1, 401], [16_001], [10**6]],
    ids=str,
)
def test_block_sizes_do_not_matter(sizes):
    samples = noise(6_007 if sizes == [1] else 40_000 + 123)
    n_frames = len(samples) // HOP_LENGTH
    stream = FeatureStream(cut(samples, sizes), N_MELS)
    got = stream.window(0, n_frames + 40)
    want = normalize(whole_frames(samples, n_frames + 40))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert stream.n_frames == n_frames
    assert stream.duration == len(samples) / SAMPLE_RATE


def test_every_small_block_size():
    samples = noise(1_500)
    want = normalize(whole_frames(samples, 20))
    for size in range(1, 201):
        got = FeatureStream(cut(samples, [size]), N_MELS).window(0, 20)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5, err_msg=f"blocks of {size}")


@pytest.mark.parametrize("n_samples", [1, 2, 100, 159, 160, 199, 200, 201, 202, 400, 800])
def test_very_short_recordings(n_samples):
    samples = noise(n_samples)
    stream = FeatureStream(cut(samples, [33]), N_MELS)
    assert stream.available(0, 3000) == n_samples // HOP_LENGTH
    got = stream.window(0, 50)
    np.testing.assert_allclose(got, normalize(whole_frames(samples, 50)), rtol=0, atol=1e-5)


def test_equals_the_features_of_the_whole_recording():
    samples = noise(30 * SAMPLE_RATE)
    got = FeatureStream(cut(samples, [4_567]), N_MELS).window(0, 3000)
    want = log_mel_spectrogram(samples, N_MELS)
    # The reference mirrors a whole window's end too; behind a recording there is silence.
    np.testing.assert_allclose(got[:, :2998], want[:, :2998], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [64_000, 64_010, 64_159, 1_600, 470_001])
def test_the_last_window_equals_the_reference(n_samples):
    """Also when it is asked for by its content, as transcription does."""
    from transformers import WhisperFeatureExtractor

    samples = noise(n_samples)
    want = WhisperFeatureExtractor()(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")
    stream = FeatureStream(cut(samples, [16_000]), N_MELS)
    content = stream.available(0, 3000)
    got = stream.window(0, 3000, content)
    np.testing.assert_allclose(got, want["input_features"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seek", [0, 1, 250, 399, 700])
def test_windows_anywhere(seek):
    samples = noise(8 * SAMPLE_RATE)
    frames = whole_frames(samples, 1_200)
    stream = FeatureStream(cut(samples, [1_111]), N_MELS)
    got = stream.window(seek, 400)
    np.testing.assert_allclose(got, normalize(frames[:, seek : seek + 400]), atol=1e-5)
    assert stream.peak(seek, 400) == pytest.approx(frames[:, seek : seek + 400].max(), abs=1e-4)


def test_content_is_followed_by_silence():
    samples = noise(8 * SAMPLE_RATE)
    want = whole_frames(samples, 800)[:, 100:400]
    want[:, 120:] = FLOOR
    got = FeatureStream(cut(samples, [999]), N_MELS).window(100, 300, 120)
    np.testing.assert_allclose(got, normalize(want), rtol=0, atol=1e-5)


def test_reads_no_further_than_asked():
    read = []

    def blocks():
        for i in range(20):
            read.append(i)
            yield noise(SAMPLE_RATE, i)

    stream = FeatureStream(blocks(), N_MELS)
    assert read == []
    stream.window(0, 100)
    assert read == [0, 1]  # the hundredth frame reaches 10 ms into the second block
    assert stream.n_frames is None
    assert stream.available(0, 500) == 500
    assert len(read) == 6
    assert stream.available(1_900, 500) == 100
    assert stream.available(2_000, 500) == 0
    assert stream.available(9_000, 500) == 0
    assert stream.n_frames == 2_000
    assert len(read) == 20


def _owner(array):
    """The array that holds a view's memory."""
    return array if array.base is None else _owner(array.base)


def test_forgetting_keeps_memory_flat_and_windows_right():
    samples = noise(120 * SAMPLE_RATE)
    frames = whole_frames(samples, 12_400)
    stream = FeatureStream(cut(samples, [SAMPLE_RATE]), N_MELS)
    held = []
    for seek in range(0, 11_900, 170):
        got = stream.window(seek, 300)
        np.testing.assert_allclose(got, normalize(frames[:, seek : seek + 300]), atol=1e-5)
        stream.forget(seek)
        held.append(sum(_owner(piece).shape[1] for piece in stream._frames.pieces))
        assert len(stream._samples) < N_FFT + HOP_LENGTH
    # The window, what its last block brought, and the block that it begins in.
    assert max(held) <= 300 + 3 * 100


def test_forgetting_the_future_or_the_past_does_no_harm():
    samples = noise(4 * SAMPLE_RATE)
    frames = whole_frames(samples, 800)
    stream = FeatureStream(cut(samples, [500]), N_MELS)
    stream.forget(0)
    stream.window(0, 100)
    stream.forget(50)
    stream.forget(10)  # nothing comes back
    np.testing.assert_allclose(
        stream.window(60, 100), normalize(frames[:, 60:160]), rtol=0, atol=1e-5
    )
    stream.forget(10_000)
    np.testing.assert_allclose(
        stream.window(300, 100), normalize(frames[:, 300:400]), rtol=0, atol=1e-5
    )


def test_silence_has_the_floor_as_its_peak():
    stream = FeatureStream(iter([np.zeros(SAMPLE_RATE, np.float32)]), N_MELS)
    assert stream.peak(0, 100) == pytest.approx(FLOOR)
    np.testing.assert_allclose(stream.window(0, 100), (FLOOR + 4) / 4, rtol=1e-6)


def test_small_blocks_make_few_pieces():
    samples = noise(12 * SAMPLE_RATE)
    stream = FeatureStream(cut(samples, [HOP_LENGTH]), N_MELS)
    got = stream.window(0, 1_000)
    assert len(stream._frames.pieces) <= 11
    np.testing.assert_allclose(got, normalize(whole_frames(samples, 1_000)), atol=1e-5)
