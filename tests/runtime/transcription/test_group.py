"""Which windows of a call are decoded together, when and in how many streams; order, times."""

import gc
from itertools import pairwise
from threading import Event

import pytest

from whisper_npu.errors import DeviceError
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription import scheduler as scheduler_module
from whisper_npu.runtime.transcription.group import Group
from whisper_npu.runtime.transcription.scheduler import Scheduler
from whisper_npu.runtime.transcription.streams_in_order import StreamsInOrder

STREAMS = 2


class FakeRequest:
    encoded = None

    def __init__(self, name, recording, prompt=()):
        self.name = name
        self.prompt = prompt
        self.caller = recording
        self.encoding = StageTimes()


class FakeRecording:
    """Has `n` windows; at most `at_once` of them are ready at the same time.

    Those whose number is in `prompted` have a prompt; `n_ahead` more wait. `n_expected` is what
    its length says.
    """

    is_wanted = True

    def __init__(self, name, n, at_once=100, prompted=(), n_ahead=0, n_expected=1):
        self.name, self.left, self.at_once, self.prompted = name, n, at_once, prompted
        self.n_ahead, self.n_expected = n_ahead, n_expected
        self.times = StageTimes()
        self.has_ended = False
        self.waiting = 0
        self.taken = []

    def next_window(self):
        if self.left == 0 or self.waiting == self.at_once:
            return None
        request = FakeRequest(f"{self.name}{self.left}", self, (1,) * (self.left in self.prompted))
        self.left -= 1
        self.waiting += 1
        return request

    def prefetch(self, room):
        return [FakeRequest(f"{self.name} waits", self) for _ in range(min(room, self.n_ahead))]

    def accept(self, result):
        self.waiting -= 1
        self.taken.append(result)

    def end(self):
        self.has_ended = True


class FakeStreams:
    window_bytes = 0

    def __init__(self, n_streams=STREAMS):
        self.n_streams = n_streams

    def parallel(self):
        return "streams"


def group(backend, batch_size, recordings):
    return Group(Scheduler(backend), batch_size, iter(recordings))


class Batches(list):
    """What was decoded together, by names; `in_one` those of them that were not in streams.

    `ahead` is what was encoded before it was to be decoded.
    """

    def __init__(self):
        super().__init__()
        self.in_one, self.ahead = [], []


@pytest.fixture
def batches(monkeypatch):
    """Hearing a task gives its name, and takes a second."""
    seen = Batches()

    def decode_requests(requests, backend, times, _make_way=None):
        seen.append([request.name for request in requests])
        if backend != "streams":
            seen.in_one.append(seen[-1])
        times.add("decoder", 1.0)
        return [request.name for request in requests]

    monkeypatch.setattr(
        "whisper_npu.runtime.transcription.scheduler.decode_requests", decode_requests
    )
    monkeypatch.setattr(
        "whisper_npu.runtime.transcription.scheduler.encode_ahead",
        lambda request, *_: seen.ahead.append(request.name),
    )
    return seen


def noting(opened, names, n, **kwargs):
    """Recordings of `n` windows that are noted as they are opened."""
    for name in names:
        opened.append(name)
        yield FakeRecording(name, n, **kwargs)


def go_through(recordings, batch_size, n_streams=STREAMS):
    mine = group(FakeStreams(n_streams), batch_size, recordings)
    n_rounds = 0
    while mine.advance():
        n_rounds += 1
    return n_rounds


class TestRounds:
    def test_every_recording_gets_what_it_planned_in_order(self, batches):
        recordings = [FakeRecording(name, n) for name, n in (("a", 3), ("b", 0), ("c", 12))]
        go_through(recordings, 4)
        for recording, n in zip(recordings, (3, 0, 12), strict=True):
            assert recording.taken == [f"{recording.name}{n - i}" for i in range(n)]
            assert recording.has_ended

    def test_windows_of_several_recordings_share_a_batch(self, batches):
        go_through([FakeRecording("a", 2), FakeRecording("b", 2)], 4)
        assert batches == [["a2", "a1", "b2", "b1"]]

    def test_few_windows_are_one_batch_and_many_are_divided_evenly(self, batches):
        go_through([FakeRecording("a", 7)], 16)
        go_through([FakeRecording("b", 9)], 16)
        assert sorted(len(batch) for batch in batches) == [4, 5, 7]

    def test_streams_are_made_ready_while_more_is_read(self, batches):
        """Not before: here they are not ready until the second recording is being read."""
        second_is_read = Event()

        class SlowStreams(FakeStreams):
            def parallel(self):
                assert second_is_read.wait(30)
                return "streams"

        class Second(FakeRecording):
            def next_window(self):
                second_is_read.set()
                return super().next_window()

        recordings = [FakeRecording("a", 8), Second("b", 3)]
        mine = group(SlowStreams(), 4, recordings)
        while mine.advance():
            pass
        assert [len(recording.taken) for recording in recordings] == [8, 3]
        assert batches.in_one == []

    def test_no_batch_is_larger_than_asked_for(self, batches):
        go_through([FakeRecording("a", 100)], 5)
        assert max(len(batch) for batch in batches) == 5
        assert sum(len(batch) for batch in batches) == 100

    @pytest.mark.parametrize(
        ("n_windows", "n_expected", "sizes"),
        [
            (16, 16, [8, 8]),
            (17, 15, [8, 9]),
            (20, 20, [10, 10]),
            (21, 20, [8, 8, 2, 3]),  # too many for one round
            (12 + 17, 29, [2, 2, 4, 4, 8, 9]),  # the first rounds are small: see below
            (12 + 37, 49, [2, 2, 4, 4, 8, 8, 8, 8, 2, 3]),
        ],
    )
    def test_a_few_windows_are_not_left_for_a_round_of_their_own(
        self, batches, n_windows, n_expected, sizes
    ):
        recording = FakeRecording("a", n_windows, n_expected=n_expected)
        n_rounds = go_through([recording], 8)
        assert n_rounds == len(sizes) / STREAMS
        by_place = sorted(batches, key=lambda batch: -int(batch[0][1:]))
        assert [len(batch) for batch in by_place] == sizes
        assert recording.taken == [f"a{n_windows - i}" for i in range(n_windows)]

    @pytest.mark.parametrize(
        ("batch_size", "n_streams", "sizes"),
        [
            (8, 2, [4, 8, 16, 16, 16]),
            (8, 1, [2, 4, 8, 8, 8, 8, 8, 8, 6]),
            (4, 2, [4, 8, 8, 8, 8, 8, 8, 8]),
            (2, 2, [4] * 15),
        ],
    )
    def test_the_first_words_of_much_audio_come_soon(self, batches, batch_size, n_streams, sizes):
        recording = FakeRecording("a", 60, n_expected=60)
        mine = group(FakeStreams(n_streams), batch_size, [recording])
        taken = [0]
        while mine.advance():
            taken.append(len(recording.taken))
        assert [after - before for before, after in pairwise(taken)] == sizes

    @pytest.mark.parametrize(
        ("batch_size", "n_streams", "n_windows", "largest"),
        [(1, 2, 3, 1), (1, 4, 5, 1), (3, 4, 21, 3), (4, 4, 17, 5), (4, 3, 15, 5), (8, 1, 15, 8)],
    )
    def test_no_batch_takes_in_more_than_a_quarter(
        self, batches, batch_size, n_streams, n_windows, largest
    ):
        go_through([FakeRecording("a", n_windows, n_expected=n_windows)], batch_size, n_streams)
        assert max(len(batch) for batch in batches) == largest
        assert sum(len(batch) for batch in batches) == n_windows

    def test_nothing_is_read_ahead_that_could_not_be_taken_in(self, batches):
        recording = FakeRecording("a", 9, n_expected=9)
        mine = group(FakeStreams(4), 2, [recording])
        mine._begin()
        assert recording.left == 1
        while mine.advance():
            pass

    def test_what_is_held_for_the_next_round_is_of_any_recording(self, batches):
        recordings = [FakeRecording(name, 6) for name in "abcd"]
        go_through(recordings, 8)
        assert sorted(batches[:2]) == [
            ["a6", "a5", "a4", "a3", "a2", "a1", "b6", "b5"],
            ["b4", "b3", "b2", "b1", "c6", "c5", "c4", "c3"],
        ]
        for recording in recordings:
            assert recording.taken == [f"{recording.name}{6 - i}" for i in range(6)]

    @pytest.mark.parametrize(("n_windows", "tail"), [(7, [7]), (21, []), (23, []), (24, [])])
    def test_few_windows_stay_in_the_streams_once_these_are_there(self, batches, n_windows, tail):
        go_through([FakeRecording("a", n_windows)], 8)
        assert [len(batch) for batch in batches.in_one] == tail

    def test_but_one_alone_has_all_threads(self, batches):
        """It was not there when the others were planned."""
        go_through([FakeRecording("a", 17, at_once=16)], 8)
        assert batches.in_one == [["a1"]]

    @pytest.mark.parametrize(
        ("n_windows", "n_waiting", "n_ahead"), [(3, 4, 0), (5, 20, 11), (12, 2, 2), (16, 5, 0)]
    )
    def test_what_waits_is_encoded_where_a_round_has_room(
        self, batches, n_windows, n_waiting, n_ahead
    ):
        """In streams alone, for only there something may be idle."""
        go_through([FakeRecording("a", n_windows, n_ahead=n_waiting)], 8)
        assert batches.ahead.count("a waits") == n_ahead

    @pytest.mark.parametrize(
        ("lengths", "batch_size", "n_ahead"),
        [([20], 8, 2), ([3, 4, 1], 8, 2), ([3, 4], 8, 0), ([20], 3, 0)],
    )
    def test_where_much_is_to_come_streams_begin_with_the_first_windows(
        self, batches, lengths, batch_size, n_ahead
    ):
        """Else nobody knows yet whether there will be streams; small batches never need them."""
        encoded = []

        class Watched(FakeRecording):
            def next_window(self):
                encoded.append(len(set(batches.ahead)))
                return super().next_window()

        recordings = [
            Watched(name, 3, n_expected=n) for name, n in zip("abc", lengths, strict=False)
        ]
        go_through(recordings, batch_size)
        assert encoded[:3] == [0, 0, n_ahead]

    def test_one_window_of_speech_in_a_long_recording_needs_no_streams(self, batches):
        go_through([FakeRecording("a", 1, n_expected=100)], 8)
        assert batches.ahead == []
        assert batches.in_one == [["a1"]]

    def test_recordings_are_opened_until_it_is_known_how_much_there_is(self, batches):
        opened = []
        mine = group(FakeStreams(), 8, noting(opened, "abcdef", 20, n_expected=8))
        assert mine._n_expected(20) == 24
        assert opened == ["a", "b", "c"]

    def test_time_of_what_runs_side_by_side_counts_once(self, batches):
        """Three batches of a second each, in one stream and in two."""

        def seconds(n_streams):
            recording = FakeRecording("a", 12, prompted=(1, 2))
            go_through([recording], 16, n_streams)
            return recording.times.seconds["decoder"]

        assert seconds(1) == pytest.approx(2.0)  # with prompts and without
        assert seconds(2) == pytest.approx(3 / 2)

    def test_in_one_stream_the_next_round_waits_for_this_one(self, batches):
        """Also where it takes two batches, for the prompts differ."""
        recording = FakeRecording("a", 8, prompted=(7, 5, 3, 1))
        mine = group(FakeStreams(1), 4, [recording])
        assert mine.advance()
        assert len(recording.taken) == 4
        assert sum(len(batch) for batch in batches) == 4

    def test_without_streams_a_round_is_one_batch(self, batches):
        assert go_through([FakeRecording("a", 10)], 4, n_streams=1) == 3
        assert [len(batch) for batch in batches] == [4, 4, 2]

    def test_windows_with_and_without_prompts_are_apart(self, batches):
        recordings = [
            FakeRecording("a", 12, prompted=(11, 9, 7, 5)),
            FakeRecording("b", 4, prompted=(1, 2)),
        ]
        go_through(recordings, 8)
        assert sorted(batches) == [
            ["a11", "a9", "a7", "a5", "b2", "b1"],
            ["a12", "a10", "a8", "a6", "a4"],
            ["a3", "a2", "a1", "b4", "b3"],
        ]
        for recording, n in zip(recordings, (12, 4), strict=True):  # each in its own order
            assert recording.taken == [f"{recording.name}{n - i}" for i in range(n)]

    def test_recordings_that_wait_for_their_last_window_go_on_side_by_side(self, batches):
        go_through([FakeRecording("a", 3, at_once=1), FakeRecording("b", 3, at_once=1)], 4)
        assert batches == [["a3", "b3"], ["a2", "b2"], ["a1", "b1"]]

    def test_the_batches_do_not_depend_on_chance(self, batches):
        def compose():
            batches.clear()
            go_through([FakeRecording(c, 11, at_once=6) for c in "abcde"], 6)
            return sorted(batches)

        assert compose() == compose()

    def test_a_recording_that_ended_by_itself_is_not_planned_again(self, batches):
        broken = FakeRecording("a", 5)
        broken.has_ended = True
        go_through([broken, FakeRecording("b", 1)], 4)
        assert batches == [["b1"]]

    @pytest.mark.parametrize("batch_size", [4, 8])
    def test_recordings_are_opened_when_there_is_room(self, batches, batch_size):
        """One stream has no need to know whether there is much to come."""
        opened = []
        group(FakeStreams(1), batch_size, noting(opened, "abc", batch_size)).advance()
        assert opened == ["a"]

    def test_what_was_begun_is_there_for_whoever_goes_on(self, batches, monkeypatch):
        """A batch that had not begun when the streams were let go is not lost."""
        at_work, go = Event(), Event()
        decode_at_once = scheduler_module.decode_requests

        def decode_requests(requests, backend, times, _make_way=None):
            at_work.set()
            go.wait(10)
            return decode_at_once(requests, backend, times)

        monkeypatch.setattr(scheduler_module, "decode_requests", decode_requests)
        recording = FakeRecording("a", 32)
        mine = group(FakeStreams(2), 8, [recording])
        mine._begin()
        mine._begin()
        assert at_work.wait(10)
        mine.close()
        go.set()
        while mine.advance():
            pass
        assert recording.taken == [f"a{i}" for i in range(32, 0, -1)]

    def test_after_a_failure_there_is_no_going_on(self, batches, monkeypatch):
        def fail(requests, backend, times, make_way):
            raise DeviceError("gone")

        monkeypatch.setattr("whisper_npu.runtime.transcription.scheduler.decode_requests", fail)
        mine = group(FakeStreams(), 16, [FakeRecording("a", 20)])
        for _ in range(2):
            with pytest.raises(DeviceError, match="gone"):
                mine.advance()


@pytest.mark.parametrize("make", [Group, StreamsInOrder])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_could_not_be_made_is_dropped_silently(make):
    class Full(Scheduler):
        def client(self, batch_size, priority):
            raise MemoryError

    last = (iter(()),) if make is Group else ((), None)
    with pytest.raises(MemoryError):
        make(Full(FakeStreams()), 2, *last)
    gc.collect()
