"""Several threads ask for text of the same recordings: none is lost, and errors find who asked."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, zip_longest
from threading import Barrier, Event, Thread

import pytest
import tiny_whisper
from fake_backend import INVENT, Say, fake_model
from pauses import PausesEverySoOften

from whisper_npu import load_model
from whisper_npu.errors import AudioError, DeviceError, UsageError
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.group import Group
from whisper_npu.runtime.transcription.partial import Partial

LATE = 60  # seconds after which something hangs


def in_threads(n_threads, ask):
    """What `ask(number)` gives in threads that begin together."""
    together = Barrier(n_threads)

    def begin(number):
        together.wait(LATE)
        return ask(number)

    with ThreadPoolExecutor(n_threads) as pool:
        return [each.result(LATE) for each in [pool.submit(begin, n) for n in range(n_threads)]]


def share(stream, ask):
    """What `ask(stream)` gives in four threads."""
    return in_threads(4, lambda _: ask(stream))


def ends(work):
    """Run `work` in a thread, which has to end."""
    found = []
    thread = Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(LATE)
    assert not thread.is_alive(), "it waits for ever"
    return found[0]


@pytest.fixture
def model(tmp_path):
    """Says "One two." of any window."""
    model = fake_model(tmp_path, [Say(())])
    begin = model.tokenizer.special.timestamp_begin
    model.backend.script = [Say((begin, *model.tokenizer.encode(" One two."), begin + 1500))]
    return model


def sounds(*seconds):
    return [tiny_whisper.synthetic_speech(n, each) for n, each in enumerate(seconds)]


class Watched:
    """A recording without windows that has to be planned by one thread at a time."""

    def __init__(self):
        self.times = StageTimes()
        self.has_ended, self.n_expected = False, 1
        self.is_planned, self.is_asked_again = Event(), Event()
        self.inside, self.most, self.n_ends = 0, 0, 0

    def next_window(self):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.is_planned.set()
        self.is_asked_again.wait(0.2)  # by another thread, which has to stay outside
        self.inside -= 1

    def end(self):
        self.n_ends += 1
        self.has_ended = True


class TestRounds:
    def test_one_thread_at_a_time_goes_on(self, model):
        recording = Watched()
        group = Group(model.scheduler, 4, iter([recording]))

        def second():
            assert recording.is_planned.wait(LATE)
            return group.advance()

        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(second)
            assert group.advance() is False
            assert other.result(LATE) is False
        assert recording.most == 1
        assert recording.n_ends == 1


class TestOneStream:
    @pytest.mark.slow
    def test_every_thread_is_given_all_segments(self, model):
        (sound,) = sounds(200)
        expected = list(model.transcribe(sound, **INVENT))
        assert len(expected) == 7
        for _ in range(3):
            assert share(model.transcribe(sound, **INVENT), list) == [expected] * 4

    @pytest.mark.slow
    def test_a_result_is_whole_whoever_decoded_it(self, model):
        (sound,) = sounds(100)
        expected = model.transcribe(sound, **INVENT).result()
        for _ in range(5):
            found = share(model.transcribe(sound, **INVENT), lambda stream: stream.result())
            assert [result.segments for result in found] == [expected.segments] * 4
            assert [result.coverage.spans for result in found] == [expected.coverage.spans] * 4

    @pytest.mark.slow
    def test_updates_beside_a_result(self, model):
        (sound,) = sounds(100)
        stream = model.transcribe(sound, **INVENT)
        expected = model.transcribe(sound, **INVENT).segments

        def ask(number):
            if number:
                return stream.segments
            return tuple(each for each in stream.updates() if isinstance(each, Segment))

        assert in_threads(2, ask) == [expected] * 2

    def test_one_loop_over_its_updates_at_a_time(self, model):
        stream = model.transcribe(sounds(3)[0], **INVENT)
        updates = stream.updates()
        assert isinstance(next(updates), Partial)
        with pytest.raises(UsageError, match="one at a time"):
            next(stream.updates())
        assert isinstance(list(updates)[-1], Segment)
        assert isinstance(list(stream.updates())[-1], Segment)

    @pytest.mark.parametrize("ask", [lambda stream: stream.text, lambda stream: next(iter(stream))])
    def test_a_callback_that_waits_for_itself_is_told(self, model, ask):
        asked = []

        def callback(_):
            asked.append(True)
            ask(stream)

        stream = model.transcribe(sounds(3)[0], on_partial=callback, **INVENT)
        with pytest.raises(UsageError, match="outside of the callback"):
            stream.result()
        assert asked == [True]

    @pytest.mark.slow
    def test_a_callback_may_ask_for_another_text(self, model):
        texts = []

        def callback(_):
            if not texts:
                texts.append(None)
                texts.append(model.transcribe(sounds(40)[0], **INVENT).text)

        stream = model.transcribe(sounds(3)[0], on_partial=callback, **INVENT)
        assert ends(lambda: stream.text) == "One two."
        assert texts[1] == "One two. One two."

    def test_a_failure_is_told_and_a_later_call_begins_anew(self, model):
        start = model.backend.start

        def fail(*_):
            model.backend.start = start
            raise DeviceError("FAKE failed to run the model: no power")

        model.backend.start = fail
        failed = model.transcribe(sounds(3)[0], **INVENT)
        for _ in range(2):
            with pytest.raises(DeviceError, match="no power"):
                _ = failed.text
        assert model.transcribe(sounds(3)[0], **INVENT).text == "One two."

    @pytest.mark.slow
    def test_a_callback_may_close(self, model):
        stream = model.transcribe(sounds(100)[0], on_partial=lambda _: stream.close(), **INVENT)
        with pytest.raises(UsageError, match="closed before its end"):
            stream.result()
        assert len(model.backend.windows) == 1
        assert stream.partial_result().segments == ()  # its window left its batch half decoded


class TestStreamsOfSeveral:
    @pytest.mark.slow
    @pytest.mark.parametrize("n_threads", [2, 3, 8])
    def test_each_recording_has_its_own_text(self, model, n_threads):
        lengths = [1 + n % 5 for n in range(40)]
        streams = model.transcribe_all(sounds(*lengths), **INVENT)
        with ThreadPoolExecutor(n_threads) as pool:
            found = list(pool.map(lambda stream: (stream.text, stream.duration), streams))
        assert found == [("One two.", length) for length in lengths]

    @pytest.mark.slow
    def test_threads_may_share_the_iterator(self, model):
        streams = model.transcribe_all(sounds(*range(1, 31)), **INVENT)
        found = in_threads(4, lambda _: [stream.duration for stream in streams])
        assert sorted(chain.from_iterable(found)) == list(range(1, 31))

    @pytest.mark.slow
    def test_an_error_is_raised_where_its_recording_is_asked_for(self, model):
        def breaking():
            raise OSError(5, "Input/output error")
            yield

        streams = model.transcribe_all(sounds(*[40] * 12), **INVENT, batch_size=2)
        every = [next(streams)]
        every[0]._audio._blocks = breaking()
        every += streams

        def ask(number):
            try:
                return every[number].text
            except AudioError as error:
                return str(error)

        found = in_threads(12, ask)
        assert "Input/output error" in found[0]
        assert found[1:] == ["One two. One two."] * 11

    @pytest.mark.slow
    def test_two_loops_over_updates_taken_in_turn(self, model):
        """Neither fills up while the other waits for it."""
        streams = model.transcribe_all(sounds(65, 65), **INVENT)
        first, second = next(streams), next(streams)

        def in_turn():
            found = [], []
            loops = first.updates(), second.updates()
            for pair in zip_longest(*loops):
                for each, mine in zip(pair, found, strict=True):
                    mine.append(each)
            return found

        for mine in ends(in_turn):
            assert sum(isinstance(each, Segment) for each in mine) == 3

    def test_those_not_handed_out_are_not_opened_after_the_end(self, model):
        opened = []

        def noting():
            for sound in sounds(*[3] * 40):
                opened.append(sound)
                yield sound

        streams = model.transcribe_all(noting(), **INVENT, batch_size=2)
        first = next(streams)
        streams.close()
        n_opened = len(opened)
        assert first.text == "One two."
        assert len(opened) <= n_opened + 1
        assert model.backend.open_sessions == 0


class TestRealGraphs:
    """The tiny random model, its windows decoded in streams."""

    OPTIONS = INVENT | {"mode": "batched", "vad": True, "sample_len": 12}

    @pytest.mark.slow
    @pytest.mark.parametrize("n_threads", [2, 8])
    def test_shared_streams(self, tiny_folder, n_threads):
        model = load_model(tiny_folder, precision="f32")
        model.voice_activity = PausesEverySoOften()
        recordings = sounds(*[2 + n % 7 for n in range(24)], 95)
        expected = [model.transcribe(each, **self.OPTIONS).segments for each in recordings]
        with ThreadPoolExecutor(n_threads) as pool:
            streams = model.transcribe_all(recordings, **self.OPTIONS)
            assert list(pool.map(lambda stream: stream.segments, streams)) == expected

    @pytest.mark.slow
    def test_transcriptions_side_by_side(self, tiny_folder):
        model = load_model(tiny_folder, precision="f32")
        recordings = sounds(3, 40, 7, 65)
        expected = [model.transcribe(each, **self.OPTIONS).segments for each in recordings]
        found = in_threads(
            4, lambda number: model.transcribe(recordings[number], **self.OPTIONS).segments
        )
        assert found == expected


LET_GO = """
import signal, sys, threading
import numpy as np
from whisper_npu import load_model

models = [load_model(sys.argv[1])]
models[0].transcribe(np.zeros(16_000, np.float32), language="en").result()
thread = threading.Thread(target=models.clear)
thread.start()
thread.join()
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
signal.raise_signal(signal.SIGINT)
print(caught)
"""


def test_a_signal_after_another_thread_has_let_go_of_the_model(tiny_folder):
    """OpenVINO's plugin would take the memory in which signals are handled away with it."""
    command = [sys.executable, "-c", LET_GO, str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
