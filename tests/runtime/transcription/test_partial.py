"""Text while it is being decoded: by callback, by iterator, and what becomes of the thread."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import MappingProxyType

import pytest
import tiny_whisper
from fake_backend import Say, fake_model
from pauses import PausesEverySoOften

from whisper_npu import load_model
from whisper_npu.errors import UsageError
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.transcription.partial import Partial, Reports, in_background

ENGLISH = {"vad": False, "mode": "sequential", "language": "en"}
INVENT = {**ENGLISH, "no_speech_threshold": None, "temperature": (0.0,)}


def none_is_left(within=5.0):
    """Whether the threads of decoding end, those of streams once they have done their batch."""
    for thread in threads():
        thread.join(within)
    return not threads()


earlier = set()
"""Threads that other tests of the process left behind."""


@pytest.fixture(autouse=True)
def _know_earlier_threads():
    earlier.clear()
    earlier.update(threading.enumerate())


def threads():
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("whisper-npu") and thread not in earlier
    }


@pytest.fixture
def model(tmp_path):
    """Says "One two." of any sound."""
    model = fake_model(tmp_path, [Say(())])
    begin = model.tokenizer.special.timestamp_begin
    model.backend.script = [Say((begin, *model.tokenizer.encode(" One two."), begin + 90))]
    return model


class TestCallback:
    def test_text_grows_to_the_whole(self, model):
        seen = []
        sound = tiny_whisper.synthetic_speech(0, 3)
        stream = model.transcribe(sound, on_partial=seen.append, **ENGLISH)
        assert seen == []
        assert stream.text == "One two."
        assert seen[-1] == Partial(0.0, 3.0, " One two.", 0.0)
        texts = [partial.text for partial in seen]
        assert all(late.startswith(early) for early, late in pairwise(texts))
        assert len(set(texts)) > 3

    def test_a_retry_begins_anew(self, model):
        model.backend.script = [
            Say(tuple(model.tokenizer.encode(" bad")), logit=3.0),
            Say(tuple(model.tokenizer.encode(" good"))),
        ]
        seen = []
        sound = tiny_whisper.synthetic_speech(0, 3)
        model.transcribe(
            sound, on_partial=seen.append, without_timestamps=True, best_of=1, **ENGLISH
        ).result()
        assert [partial.temperature for partial in seen] == sorted(p.temperature for p in seen)
        assert {partial.temperature for partial in seen} == {0.0, 0.2}

    def test_half_a_character_is_not_shown(self, model):
        model.backend.script = [Say(tuple(model.tokenizer.encode(" é好")))]
        seen = []
        sound = tiny_whisper.synthetic_speech(0, 3)
        stream = model.transcribe(sound, on_partial=seen.append, without_timestamps=True, **ENGLISH)
        assert stream.text == "é好"
        assert not any("\ufffd" in partial.text for partial in seen)

    @pytest.mark.slow
    @pytest.mark.parametrize("beam_size", [None, 3])
    @pytest.mark.parametrize("mode", ["sequential", "batched"])
    def test_every_window_in_every_mode(self, tiny_folder, mode, beam_size):
        model = load_model(tiny_folder)
        options = {**INVENT, "mode": mode, "vad": mode == "batched", "beam_size": beam_size}
        if mode == "batched":
            model.voice_activity = AlwaysSpeech()
        seen = []
        sound = tiny_whisper.synthetic_speech(1, 40)
        result = model.transcribe(sound, on_partial=seen.append, **options).result()
        windows = {round(partial.start * 100) for partial in seen}
        assert len(windows) > 1
        assert {segment.seek for segment in result.segments} <= windows
        assert result.text == model.transcribe(sound, **options).text


class AlwaysSpeech:
    def detector(self):
        return self

    def judge(self, chunks):
        return lambda: (abs(chunks).max(axis=1) * 0 + 1).astype("float32")


class TestIterator:
    def test_partial_texts_then_their_segments(self, model):
        sound = tiny_whisper.synthetic_speech(0, 3)
        stream = model.transcribe(sound, **ENGLISH)
        updates = list(stream.updates())
        assert isinstance(updates[-1], Segment)
        assert updates[-2].text == updates[-1].text == " One two."
        assert all(isinstance(update, Partial) for update in updates[:-1])
        assert stream.text == "One two."
        assert threads() == set()

    def test_with_a_callback_as_well(self, model):
        seen = []
        stream = model.transcribe(
            tiny_whisper.synthetic_speech(0, 3), on_partial=seen.append, **ENGLISH
        )
        assert seen == [u for u in stream.updates() if isinstance(u, Partial)] != []

    @pytest.mark.slow
    def test_left_early(self, model):
        stream = model.transcribe(tiny_whisper.synthetic_speech(0, 300), **ENGLISH)
        updates = stream.updates()
        next(updates)
        updates.close()
        assert threads() == set()
        assert model.backend.open_sessions == 0
        assert len(model.backend.windows) < 5
        for _ in range(2):
            with pytest.raises(UsageError, match="closed before its end"):
                stream.result()

    def test_never_begun(self, model):
        model.transcribe(tiny_whisper.synthetic_speech(0, 3), **ENGLISH).updates()
        assert threads() == set()
        assert model.backend.windows == []


class TestSeveral:
    """Recordings whose windows are decoded together."""

    OPTIONS = MappingProxyType({**INVENT, "mode": "batched", "vad": True, "sample_len": 12})

    @pytest.fixture
    def several(self, tiny_folder):
        model = load_model(tiny_folder)
        model.voice_activity = PausesEverySoOften()
        return model

    @pytest.fixture
    def sounds(self):
        return [tiny_whisper.synthetic_speech(n, seconds) for n, seconds in enumerate((200, 90))]

    @pytest.mark.slow
    def test_each_hears_of_its_own_windows(self, several, sounds):
        streams = several.transcribe_all(sounds, **self.OPTIONS, batch_size=3)
        first = next(streams)
        starts = {u.start for u in first.updates() if isinstance(u, Partial)}
        assert starts <= {segment.seek / 100 for segment in first.segments}
        assert min(starts) > 90  # the other is no longer
        assert next(streams).text == several.transcribe(sounds[1], **self.OPTIONS).text

    @pytest.mark.slow
    def test_one_given_up_costs_the_others_nothing(self, several, sounds):
        alone = several.transcribe(sounds[1], **self.OPTIONS).text
        streams = several.transcribe_all(sounds, **self.OPTIONS, batch_size=1)
        first = next(streams)
        updates = first.updates()
        while not isinstance(next(updates), Partial):
            pass
        updates.close()
        with pytest.raises(UsageError, match="closed before its end"):
            first.result()
        assert next(streams).text == alone
        streams.close()
        assert none_is_left()

    def test_a_callback_that_fails_ends_its_recording(self, several, sounds):
        def fail(_partial):
            raise ValueError("no room")

        stream = several.transcribe(sounds[0], on_partial=fail, **self.OPTIONS)
        for _ in range(2):
            with pytest.raises(ValueError, match="no room"):
                stream.result()
        assert none_is_left()


class TestReports:
    def test_one_at_a_time(self):
        seen, second_is_inside = [], threading.Event()

        def watch(partial):
            if partial.start == 0:
                second.start()
                assert not second_is_inside.wait(0.2)  # it has to stay outside
            else:
                second_is_inside.set()
            seen.append(partial.start)

        reports = Reports(watch)
        second = threading.Thread(target=lambda: reports.give(Partial(1.0, 2.0, "", 0.0)))
        reports.give(Partial(0.0, 1.0, "", 0.0))
        second.join()
        assert reports.error is None
        assert seen == [0.0, 1.0]

    def test_none_after_one_that_failed(self):
        calls = []

        def fail(partial):
            calls.append(partial)
            raise ValueError("no room")

        reports = Reports(fail)
        for n in range(3):
            reports.give(Partial(n, n + 1, "", 0.0))
        assert len(calls) == 1
        assert str(reports.error) == "no room"


class TestInBackground:
    def test_an_error_comes_after_the_items_before_it(self):
        def produce(emit):
            emit(1)
            raise ValueError("broken")

        items = in_background(produce)
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)
        assert threads() == set()

    def test_every_thread_that_waits_ends(self):
        """Windows are decoded in several."""

        def produce(emit):
            with ThreadPoolExecutor(max_workers=3) as several:
                for each in [several.submit(lambda: [emit(n) for n in range(100)]) for _ in "abc"]:
                    each.result()

        items = in_background(produce)
        next(items)
        items.close()
        assert threads() == set()

    def test_it_does_not_run_far_ahead(self):
        produced = []

        def produce(emit):
            for number in range(1000):
                produced.append(number)
                emit(number)

        items = in_background(produce)
        next(items)
        items.close()
        assert len(produced) < 20
        assert threads() == set()
