"""Which recordings are cut, into which parts, and how their results are joined."""

import math

import numpy as np
import pyarrow as pa
import pytest

from whisper_npu import ModelError, TranscribeOptions, model_languages
from whisper_npu.corpus.parts import can_cut, cut, join, missing
from whisper_npu.corpus.plan import INDEX, Plan
from whisper_npu.corpus.storage import Folder
from whisper_npu.corpus.store import ResultStore
from whisper_npu.corpus.worker import ModelSettings

HOUR = 3600.0


def plan(*seconds, todo=None):
    n = len(seconds)
    return Plan(
        keys=np.array([f"{number:032d}" for number in range(n)], "S32"),
        sources=np.arange(n, dtype=np.int32),
        index=pa.Table.from_pylist([{}] * n, schema=INDEX),
        seconds=np.array(seconds, float),
        todo=np.arange(n) if todo is None else np.array(todo, np.int64),
    )


def edges(parts):
    return [(part.start, part.end) for part in parts]


class TestCut:
    def test_a_recording_alone_is_shared(self):
        assert {number: edges(parts) for number, parts in cut(plan(HOUR), 3).items()} == {
            0: [(0.0, 1200.0), (1200.0, 2400.0), (2400.0, math.inf)]
        }

    def test_recordings_that_share_out_evenly_are_not_cut(self):
        assert cut(plan(HOUR, HOUR, HOUR, HOUR), 4) == {}
        assert cut(plan(*[HOUR] * 10), 2) == {}

    def test_one_that_is_longer_than_a_share(self):
        found = cut(plan(HOUR, 5 * HOUR, HOUR, HOUR), 4)
        assert list(found) == [1]
        assert edges(found[1]) == [
            (0.0, pytest.approx(5 / 3 * HOUR)),
            (pytest.approx(5 / 3 * HOUR), pytest.approx(10 / 3 * HOUR)),
            (pytest.approx(10 / 3 * HOUR), math.inf),
        ]

    def test_parts_are_not_short(self):
        assert cut(plan(1100.0), 8) == {}
        assert len(cut(plan(1900.0), 8)[0]) == 3

    def test_one_actor_has_no_use_for_parts(self):
        assert cut(plan(9 * HOUR, 60.0), 1) == {}

    def test_what_is_done_is_not_cut(self):
        assert cut(plan(HOUR, 100.0, todo=[1]), 2) == {}
        assert cut(plan(HOUR, 100.0, todo=[]), 2) == {}

    def test_every_part_has_a_key_of_its_own(self):
        parts = cut(plan(HOUR, HOUR / 2), 4)[0] + cut(plan(HOUR / 2, HOUR), 4)[1]
        assert len({part.key for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("options", "load", "may"),
    [
        ({}, {}, False),  # the language is detected from the beginning
        ({"language": "en"}, {}, True),
        ({"language": "en"}, {"precision": "int8", "device": "CPU"}, True),
        ({"language": "en"}, {"precision": "f32"}, False),
        ({"language": "en"}, {"device": "NPU"}, False),
        ({"language": "en"}, {"kv_cache": "concat"}, False),
        ({"language": "en"}, {"backend": "onnxruntime"}, False),
        ({"language": "en", "mode": "sequential"}, {}, False),
        ({"language": "en", "vad": False}, {}, False),
        ({"language": "en", "prefix": "So"}, {}, False),
        ({"language": "en", "condition_on_previous_text": True}, {}, False),
        ({"language": "en", "channels": "split"}, {}, False),
        ({"language": "en", "audio_track": "all"}, {}, False),
        ({"multilingual": True}, {}, False),
    ],
)
def test_what_may_be_cut(tiny_folder, options, load, may):
    wanted = TranscribeOptions(**options)
    assert can_cut(ModelSettings(model=str(tiny_folder), load=load, options=wanted)) is may


def test_a_model_for_english_has_its_language(tiny_en_folder, tmp_path):
    assert can_cut(ModelSettings(model=str(tiny_en_folder)))
    with pytest.raises(ModelError):
        can_cut(ModelSettings(model=str(tmp_path)))


def test_the_languages_of_a_model(tiny_folder):
    assert model_languages(tiny_folder) == ("de", "en", "es", "fr", "zh")


def result(key, texts, *, duration, transcribed, silent, error=None, **changes):
    segments = [
        {"id": number, "start": 0.0, "end": 1.0, "text": text} for number, text in enumerate(texts)
    ]
    coverage = {"transcribed": transcribed, "silent": silent, "skipped": 0.0, "dropped": 0.0}
    row = {
        "key": key,
        "text": "".join(texts).strip(),
        "language": "en",
        "segments": segments,
        "duration": duration,
        "coverage": coverage,
        "warnings": [],
        "work_seconds": 2.0,
        "error": error,
        "device": "CPU",
    }
    return row | changes


class TestJoin:
    parts = (
        result("p1", [" One.", " Two."], duration=70.0, transcribed=50.0, silent=1.0),
        result("p2", [], duration=80.0, transcribed=0.0, silent=0.0, warnings=["odd"]),
        result("p3", [" Three."], duration=100.0, transcribed=48.0, silent=1.0, warnings=["odd"]),
    )

    def test_the_whole(self):
        whole = join("k", self.parts)
        assert (whole["key"], whole["text"], whole["duration"]) == ("k", "One. Two. Three.", 100.0)
        assert [(s["id"], s["text"]) for s in whole["segments"]] == [
            (0, " One."),
            (1, " Two."),
            (2, " Three."),
        ]
        assert whole["coverage"] == {
            "transcribed": 98.0,
            "silent": 2.0,
            "skipped": 0.0,
            "dropped": 0.0,
        }
        assert (whole["warnings"], whole["work_seconds"], whole["error"]) == (["odd"], 6.0, None)

    def test_the_error_of_a_part_is_that_of_the_whole(self):
        failed = {"key": "p2", "error": "a.wav: damaged", "work_seconds": 1.0}
        whole = join("k", [self.parts[0], failed, self.parts[2]])
        assert whole == {"key": "k", "error": "a.wav: damaged", "work_seconds": 5.0}


def test_parts_of_an_earlier_run_are_kept(tmp_path):
    store = ResultStore(Folder(str(tmp_path)))
    parts = cut(plan(HOUR, 60.0), 3)
    first, second, third = parts[0]
    store.write([{"key": first.key, "error": None}])
    store.write([{"key": second.key, "error": "damaged"}])
    assert missing(parts, store, retry_errors=False) == {0: [third]}
    assert missing(parts, store, retry_errors=True) == {0: [second, third]}
    assert missing({}, store, retry_errors=True) == {}
