"""How much of a window is encoded, which windows share a batch, and what reaches the decoder."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_whisper
from fake_backend import ENGLISH, SURE, Say, sound

from whisper_npu import TranscribeOptions, load_model
from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.engines.protocol import SILENCE_FEATURE
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.transcription import window_decoding
from whisper_npu.runtime.transcription.batches import Priority
from whisper_npu.runtime.transcription.progress import Progress
from whisper_npu.runtime.transcription.recording_stream import priority_of
from whisper_npu.runtime.transcription.scheduler import Scheduler
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, frames_to_encode

# One attempt, whatever the tiny random model writes.
FIRST_TEXT = {
    "language": "en",
    "vad": False,
    "temperature": 0.0,
    "sample_len": 4,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


def test_short_windows_are_encoded_with_silence_behind_them():
    choices = range(200, 3001, 200)
    assert frames_to_encode(100, choices, 384) == 400
    assert frames_to_encode(100, choices, 512) == 600
    assert frames_to_encode(100, choices, None) == 600  # not known: what harms no model
    assert frames_to_encode(1300, choices, 1280) == 1800
    assert frames_to_encode(2900, choices, 384) == 3000
    assert frames_to_encode(100, (3000,), 384) == 3000


def test_every_option_of_the_decoder_reaches_it(make, monkeypatch):
    given = {
        "task": "translate",
        "best_of": 3,
        "beam_size": 2,
        "patience": 2.0,
        "length_penalty": 0.5,
        "without_timestamps": True,
        "max_initial_timestamp": 0.5,
        "sample_len": 7,
    }
    elsewhere = {"language", "temperature", "suppress_tokens"}
    shared = {each.name for each in fields(DecodingOptions)}
    assert shared & {each.name for each in fields(TranscribeOptions)} == {*given, *elsewhere}

    reached = []
    decode = window_decoding.decode_with_fallback

    def watched(*arguments, **rest):
        (options,) = (each for each in arguments if isinstance(each, DecodingOptions))
        reached.append(options)
        return decode(*arguments, **rest)

    monkeypatch.setattr(window_decoding, "decode_with_fallback", watched)
    make(Say(())).transcribe(sound(3), **ENGLISH | {"mode": "sequential"} | given).result()
    assert reached
    assert {name: getattr(reached[0], name) for name in given} == given


def test_long_work_makes_way_before_each_encoding_and_after_each_step(make, words, monkeypatch):
    calls = []
    monkeypatch.setattr(Scheduler, "_courtesy", lambda *_, **__: lambda: calls.append(1))
    one, two = words(" One."), words(" Two and three.")
    model = make(Say((), logit=SURE))
    at = model.stamp
    model.backend.script = [Say((at(0), *one, at(29))), Say((at(0), *two, at(4)))]
    assert model.transcribe(sound(36), **ENGLISH).text == "One. Two and three."
    assert len(calls) == len(model.backend.windows) + (len(one) + 2) + (len(two) + 2)
    calls.clear()
    model.backend.script = [Say((at(0), *one, at(2)))]
    assert model.transcribe(sound(3), **ENGLISH).text == "One."
    assert calls == []


def test_windows_that_nobody_wants_are_not_encoded(make):
    backend = make(Say(())).backend

    def request(*, is_wanted):
        caller = SimpleNamespace(is_wanted=is_wanted, progress=Progress())
        features = np.full((80, 3000), float(is_wanted), np.float32)
        return WindowRequest(caller, Window(0, 3000), features, DecodingOptions())

    requests = [request(is_wanted=each) for each in (False, True, False)]
    with ThreadPoolExecutor(1) as pool:
        for each in requests:
            window_decoding.encode_ahead(each, backend, pool)
    requests.append(request(is_wanted=False))
    assert window_decoding._encode(requests, 3000, backend, None).shape == (4, 1500, 4)
    encoded = [float(each.max()) for each in backend.windows if each.max() != SILENCE_FEATURE]
    assert encoded == [1.0]


def test_short_recordings_of_a_job_share_a_batch(tiny_folder, monkeypatch):
    """They are filled up to one length for it; recordings by themselves are not."""
    model = load_model(tiny_folder)
    batches = []
    start = model.backend.start

    def watched(audio, rows_per_window=1):
        batches.append(audio.shape[:2])
        return start(audio, rows_per_window)

    monkeypatch.setattr(model.backend, "start", watched)
    sounds = [tiny_whisper.synthetic_speech(seed, seconds) for seed, seconds in ((0, 2), (1, 5))]
    for stream in model.transcribe_all(sounds, **FIRST_TEXT):
        stream.result()
    assert batches == [(2, 500)]
    batches.clear()
    for each in sounds:
        model.transcribe(each, **FIRST_TEXT).result()
    lengths = [positions for _, positions in batches]
    assert len(lengths) == 2
    assert lengths[0] < lengths[1] <= 500


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, Priority.BULK), (0.5, Priority.SHORT), (30.0, Priority.SHORT), (30.1, Priority.BULK)],
)
def test_a_recording_of_one_window_is_short_work(seconds, expected):
    assert priority_of(seconds, 3000) is expected


@pytest.mark.parametrize(("seconds", "expected"), [(5, Priority.SHORT), (65, Priority.BULK)])
def test_a_transcription_is_as_urgent_as_it_is_short(make, seconds, expected, monkeypatch):
    model = make(Say(()))
    asked = []
    client = model.scheduler.client

    def watched(batch_size, priority):
        asked.append(priority)
        return client(batch_size, priority)

    monkeypatch.setattr(model.scheduler, "client", watched)
    model.transcribe(sound(seconds), **ENGLISH)
    assert asked == [expected]
