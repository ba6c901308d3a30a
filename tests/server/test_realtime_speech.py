"""Live speech over the WebSocket with real tiny.en."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soxr
from live_session import COMPLETED, live_session

from whisper_npu import load_audio

SAID = "ever tried ever failed no matter try again fail again fail better"


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower())


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_real_speech(tiny_en_server, beckett, rate):
    audio = soxr.resample(load_audio(beckett), 16_000, rate)
    with live_session(tiny_en_server, rate=rate) as session:
        session.append(np.concatenate((audio, np.zeros(2 * rate, np.float32))))
        session.hear()
    completed = session.of(COMPLETED)
    assert words(" ".join(event["transcript"] for event in completed)) == SAID
    assert [event["transcript"] for event in completed] == [
        session.text_of(event["item_id"]) for event in completed
    ]


def test_many_sessions_get_the_texts_they_get_alone(tiny_en_server, sample_parts):
    def text(samples):
        with live_session(tiny_en_server) as session:
            session.update(turn_detection=None)
            session.append(samples, chunk=len(samples))  # one piece: decoded at the same places
            session.send("input_audio_buffer.commit")
            return session.until(COMPLETED)["transcript"]

    alone = [text(samples) for samples in sample_parts]
    with ThreadPoolExecutor(8) as callers:
        together = list(callers.map(text, 3 * sample_parts))
    assert together == 3 * alone
    assert all(alone)
