"""What is passed over or forgotten takes no memory; what is held reads as it was."""

import tracemalloc

import numpy as np
import pytest
from fake_backend import Say, fake_model
from live_speech import LoudIsSpeech, listening_model, reading, silence, speech

from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.features.history import History
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import SpeechMap
from whisper_npu.runtime.features.windows import WindowChooser

FILL = -1.0
MINUTE = 60 * SAMPLE_RATE


def history(n, size=10):
    """The numbers up to `n`, in pieces."""
    made = History(FILL, 1)
    for start in range(0, n, size):
        made.append(np.arange(start, min(n, start + size), dtype=np.float32)[None])
    return made


def read(held, start, end):
    parts = list(held.between(start, end))
    return np.concatenate(parts, axis=-1)[0].tolist() if parts else []


class TestHistory:
    def test_it_reads_as_it_was_written(self):
        assert read(history(45), 7, 33) == list(range(7, 33))
        assert read(history(45), 40, 90) == list(range(40, 45))

    def test_what_is_forgotten_is_gone(self):
        held = history(45)
        held.forget(13)
        assert (held.first, held.end) == (13, 45)
        assert read(held, 0, 16) == [13, 14, 15]
        held.forget(90)
        assert (held.first, held.end) == (45, 45)
        held.append(np.ones((1, 3), np.float32))
        assert read(held, 0, 90) == [1, 1, 1]

    def test_what_is_passed_over_reads_as_fill(self):
        held = history(60)
        held.pass_over(5, 37)
        assert read(held, 0, 60) == [*range(10), *[FILL] * 20, *range(30, 60)]
        held.pass_over(5, 55)
        assert read(held, 0, 60) == [*range(10), *[FILL] * 40, *range(50, 60)]
        held.forget(25)
        assert read(held, 0, 51) == [*[FILL] * 25, 50]
        assert len(held.pieces) == 2

    def test_small_pieces_grow(self):
        held = History(FILL, 8)
        for number in range(64):
            held.append(np.full((1, 1), number, np.float32))
        assert len(held.pieces) <= 8
        assert read(held, 0, 64) == list(range(64))


def blocks(*parts):
    """Blocks of parts, each `(audio of a second, seconds)`."""
    for second, n in parts:
        for _ in range(n):
            yield second.copy()


def quiet_noise():
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    return (0.002 * noise).astype(np.float32)  # no speech to `LoudIsSpeech`, but no silence


@pytest.fixture
def quiet(tmp_path):
    """A model that says nothing."""
    model = fake_model(tmp_path, [Say(())])
    model.voice_activity = LoudIsSpeech()
    return model


def peak_bytes(model, minutes, options, second):
    """Bytes held at most while three seconds of sound and so many minutes behind it are read."""
    stream = model.transcribe(np.zeros(1, np.float32), language="en", **options)
    loud = speech(0, 1)
    stream._session.features._blocks = blocks((loud, 3), (second, 60 * minutes))
    tracemalloc.start()
    try:
        result = stream.result()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert result.duration == 3 + 60 * minutes


@pytest.mark.parametrize(
    ("mode", "vad", "second"),
    [
        ("batched", True, silence(1)),
        ("batched", True, quiet_noise()),
        ("sequential", True, quiet_noise()),
        ("sequential", False, silence(1)),
    ],
)
def test_what_is_held_does_not_grow_with_silence(quiet, mode, vad, second):
    """A minute of frames is 1.9 MB; the first window is still under way in batched mode."""
    options = {"mode": mode, "vad": vad}
    few, many = (peak_bytes(quiet, minutes, options, second) for minutes in (2, 8))
    assert many < few + 2e6


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_text_around_a_long_silence(tmp_path, mode):
    model = listening_model(tmp_path)
    recording = np.concatenate((speech(0, 5), silence(200), speech(5, 10), silence(70)))
    result = model.transcribe(recording, language="en", mode=mode, batch_size=1).result()
    assert result.text.startswith(reading(0, 5).strip())
    assert result.text.endswith(reading(6, 10))  # the simulation loses how a text begins
    assert result.segments[-1].start == pytest.approx(205, abs=1)
    assert result.coverage.seconds()["silent"] == pytest.approx(270, abs=10)


def test_a_window_is_found_where_it_is():
    speech_map = SpeechMap(LoudIsSpeech())
    stream = FeatureStream(
        blocks((silence(1), 130), (speech(0, 1), 5), (silence(1), 60)), 80, speech_map
    )
    chooser = WindowChooser(stream, speech_map, 3000)
    window = chooser.next(0, cut_at_pause=True)
    assert window.offset == pytest.approx(129.6, abs=0.1)
    assert window.end_time == pytest.approx(135.3, abs=0.2)
    assert chooser.speech_seconds(window.offset, window.end_time) == pytest.approx(5, abs=0.2)
    assert chooser.speech_seconds(0, 100) == 0
    assert chooser.next(window.end, cut_at_pause=True) is None
