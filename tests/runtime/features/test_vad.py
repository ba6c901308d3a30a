"""Where there is speech: judged piece by piece, beside what else is done, and none of it lost."""

import shutil

import numpy as np
import pytest

from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.features import vad
from whisper_npu.runtime.features.vad import CHUNK, CHUNKS_PER_SECOND, SpeechMap, VoiceActivity


@pytest.fixture(scope="module")
def voice_activity(real_asset, tmp_path_factory):
    """The network as one graph."""
    folder = tmp_path_factory.mktemp("vad")
    shutil.copy(real_asset("silero-vad"), folder / vad.VAD_MODEL)
    return VoiceActivity(folder)


@pytest.fixture(scope="module")
def speech(beckett):
    """Ten seconds of it."""
    return load_audio(beckett)


class Slow:
    """Judges nothing before it is asked to, and then only once."""

    def __init__(self):
        self.asked = 0

    def judge(self, chunks):
        def judged():
            self.asked += 1
            return np.full(len(chunks), self.asked, np.float32)

        return judged


def heard(detector, samples, sizes):
    """The probabilities of all chunks, the samples heard in blocks whose sizes go round."""
    speech_map, start, i = SpeechMap(detector), 0, 0
    while start < len(samples):
        size = sizes[i % len(sizes)]
        speech_map.hear(samples[start : start + size])
        start, i = start + size, i + 1
    speech_map.finish()
    return speech_map.between(0, len(samples) / SAMPLE_RATE + 1)[0]


@pytest.mark.parametrize(
    "sizes", [[CHUNK], [100], [CHUNK * vad.AT_ONCE], [CHUNK * vad.AT_ONCE + 1], [CHUNK * 93, 7]]
)
def test_how_it_is_cut_does_not_matter(voice_activity, speech, sizes):
    want = heard(voice_activity.detector(), speech, [len(speech)])
    assert len(want) == -(-len(speech) // CHUNK)
    got = heard(voice_activity.detector(), speech, sizes)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


def test_speech_is_told_from_noise(voice_activity, speech):
    noise = 0.01 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32)
    found = heard(voice_activity.detector(), np.concatenate((noise, speech)), [10_000])
    n_noise = int(3 * CHUNKS_PER_SECOND)
    assert found[: n_noise - 2].max() < 0.3
    spans = vad.speech_spans(found[n_noise:], 0.0)
    assert 3 < sum(end - start for start, end in spans) < 7  # there are long pauses


def test_recordings_do_not_mix(voice_activity, speech):
    """Two detectors side by side, each waiting for its own."""
    alone = heard(voice_activity.detector(), speech, [20_000])
    one, other = (SpeechMap(voice_activity.detector()) for _ in range(2))
    for start in range(0, len(speech), 20_000):
        one.hear(speech[start : start + 20_000])
        other.hear(speech[::-1][start : start + 20_000].copy())
    one.finish()
    np.testing.assert_array_equal(one.between(0, 20)[0], alone)


def test_whoever_asks_waits():
    speech_map = SpeechMap(detector := Slow())
    speech_map.hear(np.zeros(3 * CHUNK + 5, np.float32))
    assert detector.asked == 0
    found, first = speech_map.between(0, 1)
    assert (found.tolist(), first) == ([1, 1, 1], 0)
    speech_map.settle()
    assert detector.asked == 1


def test_what_is_heard_next_waits_too():
    speech_map = SpeechMap(detector := Slow())
    speech_map.hear(np.zeros(2 * CHUNK, np.float32))
    speech_map.hear(np.zeros(CHUNK, np.float32))
    assert detector.asked == 1
    speech_map.forget(1 / CHUNKS_PER_SECOND)
    found, first = speech_map.between(0, 1)
    assert (found.tolist(), first) == ([1, 2], 1 / CHUNKS_PER_SECOND)


def test_a_rest_is_judged_at_the_end():
    speech_map = SpeechMap(Slow())
    speech_map.hear(np.zeros(CHUNK + 1, np.float32))
    speech_map.finish()
    assert speech_map.between(0, 1)[0].tolist() == [1, 2]
