"""Parts of a recording: joined, they are the whole."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from whisper_npu import TranscribeOptions, UsageError, load_model
from whisper_npu.runtime.audio.stream import load_audio


@pytest.fixture(scope="module")
def model(tiny_en_folder):
    with load_model(tiny_en_folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def recording(beckett, tmp_path_factory):
    """Seventy seconds of speech with a long pause in it."""
    speech = load_audio(beckett)
    path = tmp_path_factory.mktemp("part") / "long.wav"
    pieces = (speech, speech, speech, np.zeros(16_000 * 10, np.float32), speech, speech, speech)
    soundfile.write(path, np.concatenate(pieces), 16_000)
    return path


@pytest.mark.parametrize(
    ("cuts", "options"),
    [
        ((35.0,), {}),
        ((5.0, 6.0, 50.0), {}),
        ((20.0, 1000.0), {"word_timestamps": True}),
        ((20.0, 42.0), {"vad_min_silence": 0.5, "batch_size": 2}),
    ],
)
def test_parts_are_the_whole(model, recording, cuts, options):
    whole = model.transcribe(recording, **options).result()
    parts = [
        model.transcribe(recording, part=part, **options).result()
        for part in pairwise((0.0, *cuts, math.inf))
    ]
    segments = [segment for part in parts for segment in part.segments]
    numbered = tuple(replace(each, id=number) for number, each in enumerate(segments))
    assert numbered == whole.segments
    assert max(part.duration for part in parts) == whole.duration
    for fate, seconds in whole.coverage.seconds().items():
        joined = sum(part.coverage.seconds()[fate] for part in parts)
        assert joined == pytest.approx(seconds, abs=0.02)  # less than a frame at each edge


def test_no_more_is_read_than_the_part_needs(model, recording):
    part = model.transcribe(recording, part=(0, 5)).result()
    assert part.segments
    assert part.duration < 70.0
    assert all(segment.start < 35.0 for segment in part.segments)


@pytest.mark.parametrize(
    ("part", "others", "message"),
    [
        ((5, 5), {}, "give its start and end in seconds"),
        ((-1, 5), {}, "give its start and end in seconds"),
        ((math.nan, 5), {}, "give its start and end in seconds"),
        ((1,), {}, "give its start and end in seconds"),
        ("12", {}, "give its start and end in seconds"),
        ((0, 5), {"mode": "sequential"}, "not with sequential mode"),
        ((0, 5), {"vad": False}, "not with sequential mode"),
        ((0, 5), {"condition_on_previous_text": True}, "not with condition_on_previous_text"),
        ((0, 5), {"prefix": "So"}, "not with prefix"),
        ((0, 5), {"multilingual": True}, "not with multilingual"),
    ],
)
def test_what_is_no_part(part, others, message):
    with pytest.raises(UsageError, match=message):
        TranscribeOptions(part=part, **others)


def test_the_language_of_a_part_is_given(tiny_folder, tiny_audio):
    with load_model(tiny_folder, precision="f32") as multilingual:
        with pytest.raises(UsageError, match="a part needs a language"):
            multilingual.transcribe(tiny_audio[0], part=(0, 5))
        stream = multilingual.transcribe(tiny_audio[0], part=(0, 5), language="en")
        with pytest.raises(UsageError, match="write condition_on_previous_text=False"):
            stream.result()
        _ = multilingual.transcribe(
            tiny_audio[0], part=(0, 5), language="en", condition_on_previous_text=False
        ).text
