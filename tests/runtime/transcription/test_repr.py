"""How models, streams and sessions print themselves: true at every moment, and without work."""

import numpy as np
import pytest
from fake_backend import ENGLISH, Say, sound

from whisper_npu.errors import AudioError
from whisper_npu.runtime.transcription.live import LiveTranscriber
from whisper_npu.runtime.transcription.turns import TurnDetector


@pytest.fixture
def model(make, words):
    model = make(Say(()))
    at = model.stamp
    model.backend.script = [Say((at(0), *words(" One."), at(4)))]
    return model


def test_a_model(model):
    name = model.folder.name
    precision = model.backend.precision
    assert repr(model) == f"<WhisperModel {name} on FAKE, {precision}>"
    model.close()
    assert repr(model) == f"<WhisperModel {name}, closed>"


def test_a_stream(model):
    name = model.folder.name
    stream = model.transcribe(sound(6), **ENGLISH)
    assert repr(stream) == (
        f"<TranscriptionStream by {name}, not begun: 0.0 s of about 6.0 s done>"
    )
    assert model.backend.windows == []
    assert stream.text == "One."
    assert repr(stream) == f"<TranscriptionStream by {name}, complete: 6.0 s of about 6.0 s done>"
    model.close()
    assert ", complete: " in repr(stream)


def test_a_stream_that_was_closed_or_stopped(model):
    closed = model.transcribe(sound(6), **ENGLISH)
    closed.close()
    assert ", closed: 0.0 s of about 6.0 s done>" in repr(closed)
    stopped = model.transcribe(sound(6), **ENGLISH)
    stopped.stop()
    stopped.result()
    assert ", stopped: " in repr(stopped)


def test_a_stream_that_failed(model, monkeypatch):
    def fail(*_arguments):
        raise AudioError("damaged")

    stream = model.transcribe(sound(6), **ENGLISH)
    monkeypatch.setattr(stream.group, "advance", fail)
    with pytest.raises(AudioError):
        stream.result()
    assert ", failed (AudioError): " in repr(stream)


def test_channels(model):
    both = np.stack((sound(6), sound(6, seed=1)), axis=1)
    stream = model.transcribe(both, **ENGLISH, channels="split")
    assert ", not begun: 0.0 s of about 6.0 s done>" in repr(stream)
    stream.close()
    assert ", closed: " in repr(stream)


def test_several_recordings(model):
    assert repr(model.transcribe_all([])) == "<StreamsInOrder: 0 streams opened ahead>"


def test_live_sessions_and_turns(model):
    live = LiveTranscriber(model, language="en", vad=False)
    assert repr(live) == f"<LiveTranscriber by {model.folder.name}, open: 0.0 s heard>"
    live.feed(np.zeros(8000, np.float32))
    live.close()
    assert repr(live) == f"<LiveTranscriber by {model.folder.name}, finished: 0.5 s heard>"
    assert repr(TurnDetector(model)) == "<TurnDetector, between turns: 0.0 s heard>"
