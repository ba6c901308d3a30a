"""The scheduler that all callers share: order, company, cancels and failures, by a fake engine."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Barrier, Event, Lock, Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription import allowance
from whisper_npu.runtime.transcription import scheduler as scheduler_module
from whisper_npu.runtime.transcription.batches import Batch, Priority
from whisper_npu.runtime.transcription.group import Group
from whisper_npu.runtime.transcription.scheduler import Scheduler
from whisper_npu.runtime.transcription.window_decoding import WindowRequest

WHOLE = 3000  # frames
LATE = 60  # seconds after which something hangs
OPTIONS = TranscribeOptions()


class FakeCaller:
    """Wants its windows until it is told otherwise."""

    def __init__(self, name="a", options=OPTIONS):
        self.name, self.options = name, options
        self.times = StageTimes()
        self.is_wanted = True


def window(caller, number=0, *, n_frames=WHOLE, prompt=(), **changes):
    return WindowRequest(
        caller,
        Window(number, number + 1),
        np.zeros((1, n_frames), np.float32),
        DecodingOptions(),
        prompt,
        **changes,
    )


class FakeEngine:
    """Decodes a window to the name of its caller and its number.

    Attributes:
        decoded: what was decoded together, by those names.
        fails: takes the windows to be decoded; it may raise.
        between_steps: takes windows of bulk work under way, and how it makes way for others.
    """

    window_frames = (1000, WHOLE)
    window_bytes = 0

    def __init__(self, n_streams=1, fails=lambda requests: None):
        self.n_streams, self.fails = n_streams, fails
        self.between_steps = lambda requests, make_way: None
        self.decoded, self.requests = [], []

    def parallel(self):
        return self

    def encode(self, features):
        return features

    def decode(self, requests, times, make_way):
        names = [said(request) for request in requests]
        self.requests.append(list(requests))
        if make_way is not None:
            self.between_steps(requests, make_way)
        self.decoded.append(names)
        times.add("decoder", 1.0)
        for request in requests:
            if request.encoded is not None:
                request.encoded.result(LATE)
        self.fails(requests)
        return names


def said(request):
    return f"{request.caller.name}{request.window.start}"


@pytest.fixture(scope="module", autouse=True)
def _the_engine_decodes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            scheduler_module,
            "decode_requests",
            lambda requests, backend, times, make_way: backend.decode(requests, times, make_way),
        )
        patch.setattr(scheduler_module, "encode_ahead", encode_ahead)
        yield


def encode_ahead(request, backend, pool):
    if request.encoded is None:
        request.encoded = pool.submit(backend.encode, request.features)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def scheduler(engine):
    return Scheduler(engine)


@pytest.mark.parametrize(
    ("window_bytes", "n_streams", "size"), [(0, 1, 8), (100, 1, 5), (100, 2, 2), (9999, 1, 1)]
)
def test_batches_are_smaller_if_memory_is_short(
    scheduler, engine, monkeypatch, window_bytes, n_streams, size
):
    monkeypatch.setattr(scheduler_module, "available_bytes", lambda: 1000)
    engine.window_bytes, engine.n_streams = window_bytes, n_streams
    assert scheduler.client(8, Priority.BULK).batch_size == size


def test_short_memory_is_told_once(scheduler, engine, monkeypatch, caplog):
    """Live speech makes a client per window."""
    caplog.set_level("INFO", "whisper_npu")
    free = [1000]
    monkeypatch.setattr(scheduler_module, "available_bytes", lambda: free[0])
    engine.window_bytes = 100
    options = TranscribeOptions(batch_size=8)
    for number in range(3):
        scheduler.decode_now(window(FakeCaller("live", options), number))
    assert len(caplog.records) == 1
    free[0] = 9999
    scheduler.client(8, Priority.BULK)
    free[0] = 100
    scheduler.client(8, Priority.BULK)
    assert len(caplog.records) == 2


def submit(scheduler, name, numbers, priority=Priority.BULK, *, client=None, size=4, **changes):
    """A batch of windows of one caller, queued."""
    caller = FakeCaller(name)
    client = client or scheduler.client(size, priority)
    batch = Batch(client, [window(caller, number, **changes) for number in numbers])
    scheduler.submit([batch])
    return batch


class TestOrder:
    def test_who_waits_has_it_decoded(self, scheduler, engine):
        batch = submit(scheduler, "a", [1, 2])
        assert engine.decoded == []
        scheduler.wait([batch])
        assert batch.results() == ["a1", "a2"]
        assert engine.decoded == [["a1", "a2"]]

    def test_first_come_first_served_among_equals(self, scheduler, engine):
        batches = [submit(scheduler, name, range(4)) for name in "abc"]
        scheduler.wait(batches[-1:])
        assert [names[0] for names in engine.decoded] == ["a0", "b0", "c0"]

    def test_short_work_overtakes_bulk(self, scheduler, engine):
        bulk = submit(scheduler, "a", range(4))
        submit(scheduler, "b", [7], Priority.SHORT)
        scheduler.wait([bulk])
        assert engine.decoded == [["b7"], ["a0", "a1", "a2", "a3"]]

    def test_but_not_for_ever(self, scheduler, engine):
        bulk = submit(scheduler, "a", range(4))
        short = [submit(scheduler, "b", range(4), Priority.SHORT) for _ in range(20)]
        scheduler.wait([bulk])
        assert 1 < len(engine.decoded) < len(short)

    def test_equals_take_turns(self, scheduler, engine):
        one, other = (scheduler.client(4, Priority.BULK) for _ in range(2))
        batches = [submit(scheduler, "a", range(4), client=one) for _ in range(3)]
        batches += [submit(scheduler, "b", range(4), client=other) for _ in range(3)]
        scheduler.wait(batches)
        assert "".join(names[0][0] for names in engine.decoded) == "ababab"

    def test_live_windows_are_decoded_at_once(self, scheduler, engine):
        submit(scheduler, "a", range(4))
        assert scheduler.decode_now(window(FakeCaller("live"))) == "live0"
        assert engine.decoded == [["live0"]]


class TestCompany:
    def test_windows_of_several_callers_share_a_batch(self, scheduler, engine):
        batches = [submit(scheduler, name, [1]) for name in "abcde"]
        scheduler.wait(batches[:1])
        assert engine.decoded == [["a1", "b1", "c1", "d1"]]
        assert [batch.is_done for batch in batches] == [True] * 4 + [False]
        assert batches[1].results() == ["b1"]
        assert (batches[1].times.seconds["decoder"], batches[1].n_together) == (1.0, 4)

    @pytest.mark.parametrize(
        "changes",
        [
            {"prompt": (1, 2)},
            {"n_frames": 1000},
            {"n_frames": 1000, "pad_to_class": True},
            {"options": replace(OPTIONS, temperature=(0.5,))},
            {"options": replace(OPTIONS, word_timestamps=True)},
        ],
    )
    def test_those_that_are_decoded_otherwise_do_not(self, scheduler, engine, changes):
        changes = dict(changes)
        one = submit(scheduler, "a", [1])
        caller = FakeCaller("b", changes.pop("options", OPTIONS))
        other = Batch(scheduler.client(4, Priority.BULK), [window(caller, 2, **changes)])
        scheduler.submit([other])
        scheduler.wait([one, other])
        assert engine.decoded == [["a1"], ["b2"]]

    @pytest.mark.parametrize(
        "changes",
        [
            {"n_frames": 900, "pad_to_full": True},
            {"n_frames": 2500, "pad_to_class": True},
            {"options": replace(OPTIONS, language="de", initial_prompt="Hallo", batch_size=9)},
        ],
    )
    def test_those_that_come_to_the_same_do(self, scheduler, engine, changes):
        changes = dict(changes)
        one = submit(scheduler, "a", [1])
        caller = FakeCaller("b", changes.pop("options", OPTIONS))
        other = Batch(scheduler.client(4, Priority.BULK), [window(caller, 2, **changes)])
        scheduler.submit([other])
        scheduler.wait([one, other])
        assert engine.decoded == [["a1", "b2"]]

    def test_the_smallest_batch_size_holds(self, scheduler, engine):
        batches = [
            submit(scheduler, name, [1], size=n) for name, n in [("a", 4), ("b", 2), ("c", 4)]
        ]
        scheduler.wait(batches)
        assert engine.decoded == [["a1", "b1"], ["c1"]]

    def test_bulk_work_does_not_slow_short_work(self, scheduler, engine):
        batches = [submit(scheduler, "a", [1]), submit(scheduler, "b", [2], Priority.SHORT)]
        scheduler.wait(batches)
        assert engine.decoded == [["b2"], ["a1"]]


class TestMakingWay:
    """Bulk work that is under way."""

    def test_short_work_is_decoded_between_its_steps(self, scheduler, engine):
        bulk = submit(scheduler, "a", [1])

        def steps(requests, make_way):
            assert engine.decoded == []
            submit(scheduler, "b", [7], Priority.SHORT)
            submit(scheduler, "c", [8])
            make_way()
            assert engine.decoded == [["b7"]]

        engine.between_steps = steps
        scheduler.wait([bulk])
        assert engine.decoded == [["b7"], ["a1"]]

    def test_its_time_is_not_that_of_a_stage_of_bulk_work(self, scheduler, engine):
        bulk = submit(scheduler, "a", [1])
        short = []

        def steps(requests, make_way):
            short.append(submit(scheduler, "b", [7], Priority.SHORT))
            make_way()

        engine.between_steps = steps
        scheduler.wait([bulk])
        assert set(bulk.times.seconds) == {"decoder", "more urgent work"}
        assert set(short[0].times.seconds) == {"decoder"}

    def test_but_not_for_ever(self, scheduler, engine, monkeypatch):
        """However much short work comes, a quarter of the time is left."""
        now = [0.0]
        monkeypatch.setattr(allowance.time, "monotonic", lambda: now[0])
        bulk, n_decoded = submit(scheduler, "a", [1]), []

        def steps(requests, make_way):
            for _ in range(100):
                submit(scheduler, "b", [7], Priority.SHORT)
                before = len(engine.decoded)
                make_way()
                n_decoded.append(len(engine.decoded) - before)
                now[0] += 0.1  # a step

        def take_time(requests):
            now[0] += 0.1 if requests[0].caller.name == "b" else 0.0

        engine.between_steps, engine.fails = steps, take_time
        scheduler.wait([bulk])
        assert n_decoded[0] == 1
        worked = 0.1 * len(n_decoded)
        assert worked / (worked + 0.1 * sum(n_decoded)) > 0.22

    def test_an_old_bulk_batch_is_no_urgent_work(self, scheduler, engine):
        bulk = submit(scheduler, "a", [1], size=1)
        old = submit(scheduler, "c", [2], size=1)
        old.n_overtaken = 100

        def steps(requests, make_way):
            if said(requests[0]) == "a1":
                make_way()
                assert engine.decoded in ([], [["c2"]])

        engine.between_steps = steps
        scheduler.wait([bulk, old])
        assert engine.decoded == [["c2"], ["a1"]]

    def test_an_interrupted_caller_leaves_short_work_to_others(self, scheduler, engine):
        bulk = submit(scheduler, "a", [1])
        short = []

        def steps(requests, make_way):
            short.append(submit(scheduler, "b", [7], Priority.SHORT))
            make_way()

        def interrupt(requests):
            if requests[0].caller.name == "b":
                raise KeyboardInterrupt

        engine.between_steps, engine.fails = steps, interrupt
        with pytest.raises(KeyboardInterrupt):
            scheduler.wait([bulk])
        engine.fails = lambda requests: None
        scheduler.wait(short)
        assert short[0].results() == ["b7"]

    def test_the_error_of_short_work_is_its_own(self, scheduler, engine):
        bulk = submit(scheduler, "a", [1])
        short = []

        def steps(requests, make_way):
            short.append(submit(scheduler, "b", [7], Priority.SHORT))
            make_way()

        def fail(requests):
            if requests[0].caller.name == "b":
                raise UsageError("odd")

        engine.between_steps, engine.fails = steps, fail
        scheduler.wait([bulk])
        assert bulk.results() == ["a1"]
        with pytest.raises(UsageError, match="odd"):
            short[0].results()

    def test_the_streams_pause(self, engine):
        engine.n_streams = 2
        scheduler, begun, go_on = Scheduler(engine), Event(), Event()
        order = []

        def steps(requests, make_way):
            begun.set()
            assert go_on.wait(LATE)
            make_way()
            order.append(said(requests[0]))

        def note(requests):
            if requests[0].caller.name == "b":
                order.append("b7")

        engine.between_steps, engine.fails = steps, note
        client = scheduler.client(8, Priority.BULK)
        bulk = Batch(client, [window(FakeCaller(), 1)], parallel=True)
        scheduler.submit([bulk])
        assert begun.wait(LATE)
        short = submit(scheduler, "b", [7], Priority.SHORT)
        go_on.set()
        scheduler.wait([short])
        scheduler.wait([bulk])
        scheduler.close_streams(client)
        assert order == ["b7", "a1"]

    def test_a_stream_pauses_no_longer_than_it_may(self, engine, monkeypatch):
        """Short work that waits for its caller, who does not come."""
        monkeypatch.setattr(allowance, "_AT_FIRST", 0.05)
        monkeypatch.setattr(allowance, "_PER_SECOND", 0.0)
        engine.n_streams = 2
        engine.between_steps = lambda requests, make_way: make_way()
        scheduler = Scheduler(engine)
        short = submit(scheduler, "b", [7], Priority.SHORT)
        client = scheduler.client(8, Priority.BULK)
        bulk = Batch(client, [window(FakeCaller(), 1)], parallel=True)
        scheduler.submit([bulk])
        scheduler.wait([bulk])
        scheduler.close_streams(client)
        assert bulk.results() == ["a1"]
        assert not short.is_done
        assert bulk.times.seconds["more urgent work"] >= 0.04


class TestCancelling:
    def test_what_nobody_wants_is_not_decoded(self, scheduler, engine):
        batches = [submit(scheduler, name, [1]) for name in "ab"]
        batches[0].requests[0].caller.is_wanted = False
        scheduler.wait(batches)
        assert engine.decoded == [["b1"]]
        assert batches[0].results() == [None]

    def test_a_window_that_left_its_batch_has_no_text(self, scheduler, engine):
        batches = [submit(scheduler, name, [1]) for name in "ab"]

        def leave(requests):
            requests[0].caller.is_wanted = False

        engine.fails = leave
        scheduler.wait(batches)
        assert [batch.results() for batch in batches] == [[None], ["b1"]]

    def test_nobody_waits_for_the_company(self, engine):
        """One caller decodes for both; the other is free as soon as it gives up."""
        begun, go_on = Event(), Event()

        def hold(requests):
            begun.set()
            assert go_on.wait(LATE)

        engine.fails = hold
        scheduler = Scheduler(engine)
        one, other = (submit(scheduler, name, [1]) for name in "ab")
        leader = Thread(target=scheduler.wait, args=([one],))
        leader.start()
        assert begun.wait(LATE)
        follower = Thread(target=scheduler.wait, args=([other],))
        follower.start()
        other.requests[0].caller.is_wanted = False
        scheduler.look_again()
        follower.join(LATE)
        assert not follower.is_alive()
        assert not one.is_done
        go_on.set()
        leader.join(LATE)
        assert (one.results(), other.results()) == (["a1"], [None])


class TestStreams:
    """The threads of the pool."""

    @pytest.fixture
    def scheduler(self, engine, monkeypatch):
        """Whose pool closes another client's streams from a thread that it waits for.

        So does the garbage collector, if it finds a dropped stream in a thread that is just being
        started; who starts a thread waits until it runs.
        """
        engine.n_streams = 2
        scheduler = Scheduler(engine)
        dropped = scheduler.client(8, Priority.BULK)

        class Pool(ThreadPoolExecutor):
            def submit(self, *arguments):
                closing = Thread(target=scheduler.close_streams, args=(dropped,), daemon=True)
                closing.start()
                closing.join(5)
                assert not closing.is_alive()
                return super().submit(*arguments)

        monkeypatch.setattr(scheduler_module, "ThreadPoolExecutor", Pool)
        return scheduler

    def test_a_dropped_stream_is_closed_while_a_thread_starts_for_windows(self, scheduler):
        client = scheduler.client(8, Priority.BULK)
        batch = Batch(client, [window(FakeCaller(), 1)], parallel=True)
        scheduler.submit([batch])
        scheduler.wait([batch])
        assert batch.results() == ["a1"]

    def test_a_dropped_stream_is_closed_while_a_thread_starts_to_encode(self, scheduler):
        request = window(FakeCaller(), 1)
        scheduler.encode_ahead(scheduler.client(8, Priority.BULK), [request])
        assert request.encoded.result(LATE) is not None

    def test_threads_finish_their_work_and_end_after_the_last_client(self, engine):
        engine.n_streams = 2
        scheduler, go_on = Scheduler(engine), Event()
        engine.fails = lambda requests: go_on.wait(LATE)
        clients = [scheduler.client(1, Priority.BULK) for _ in range(2)]
        batches = [
            Batch(client, [window(FakeCaller(), number)], parallel=True)
            for client in clients
            for number in range(3)
        ]
        before = threading.enumerate()
        scheduler.submit(batches)
        threads = [each for each in threading.enumerate() if each not in before]
        assert threads
        for client in clients:
            assert scheduler.uses_streams(client)
            scheduler.close_streams(client)
        go_on.set()
        scheduler.wait(batches)
        assert [batch.results() for batch in batches] == 2 * [["a0"], ["a1"], ["a2"]]
        for thread in threads:
            thread.join(LATE)
            assert not thread.is_alive()


class TestFailures:
    def test_the_device_fails_all_that_wait(self, scheduler, engine):
        batches = [submit(scheduler, name, range(3)) for name in "ab"]

        def fail(requests):
            raise DeviceError("NPU failed to run the model: no power")

        engine.fails = fail
        scheduler.wait(batches[:1])
        for batch in batches:
            with pytest.raises(DeviceError, match="no power"):
                batch.results()
        engine.fails = lambda requests: None
        later = submit(scheduler, "c", [1])
        scheduler.wait([later])
        assert later.results() == ["c1"]

    def test_an_error_of_one_caller_stays_with_it(self, scheduler, engine):
        def fail(requests):
            if any(request.caller.name == "b" for request in requests):
                raise UsageError("prompt and prefix fill the context")

        engine.fails = fail
        batches = [submit(scheduler, name, [1]) for name in "abc"]
        scheduler.wait(batches)
        assert [batch.results() for batch in (batches[0], batches[2])] == [["a1"], ["c1"]]
        with pytest.raises(UsageError, match="fill the context"):
            batches[1].results()

    def test_who_is_interrupted_takes_nothing_along(self, scheduler, engine):
        def interrupt(requests):
            raise KeyboardInterrupt

        batches = [submit(scheduler, name, [1]) for name in "ab"]
        engine.fails = interrupt
        with pytest.raises(KeyboardInterrupt):
            scheduler.wait(batches[:1])
        engine.fails = lambda requests: None
        scheduler.wait(batches[1:])
        assert batches[1].results() == ["b1"]
        assert engine.decoded == [["a1", "b1"], ["b1"]]

    def test_a_callback_may_have_something_else_decoded(self, scheduler, engine):
        found = []

        def ask(requests):
            if not found:
                found.append(None)
                found.append(scheduler.decode_now(window(FakeCaller("inner"))))

        engine.fails = ask
        assert scheduler.decode_now(window(FakeCaller("outer"))) == "outer0"
        assert found[1] == "inner0"


@dataclass
class Job:
    """A call: `lengths` windows of each of its recordings, and what happens to it.

    Attributes:
        kind: what its windows can share a batch by.
        at_once: windows of a recording that are ready at the same time.
        leaves_after: windows after which the first recording is given up.
        is_broken: its windows cannot be decoded, by a fault of its own.
    """

    lengths: list
    batch_size: int
    priority: Priority
    kind: int
    at_once: int
    leaves_after: int | None
    is_broken: bool


jobs = st.builds(
    Job,
    lengths=st.lists(st.integers(0, 20), max_size=5),
    batch_size=st.integers(1, 6),
    priority=st.sampled_from(Priority),
    kind=st.integers(0, 2),
    at_once=st.integers(1, 30),
    leaves_after=st.none() | st.integers(0, 5),
    is_broken=st.sampled_from([False, False, False, True]),
)


LIVE = Job([], 4, Priority.SHORT, 0, 1, None, is_broken=False)


@dataclass(eq=False)
class FakeRecording(FakeCaller):
    """A recording of `n` windows, of the job's kind."""

    name: str
    n: int
    job: Job
    leaves_after: int | None
    times: StageTimes = field(default_factory=StageTimes)
    is_wanted: bool = True
    has_ended: bool = False
    n_expected: int = 1
    options: TranscribeOptions = OPTIONS
    planned: int = 0
    taken: list = field(default_factory=list)

    def next_window(self):
        if self.planned == self.n or self.planned - len(self.taken) >= self.job.at_once:
            return None
        self.planned += 1
        return window(self, self.planned, prompt=(0,) * self.job.kind)

    def prefetch(self, room):
        return []

    def accept(self, result):
        self.taken.append(result)
        if len(self.taken) == self.leaves_after or result is None:
            self.is_wanted, self.has_ended = False, True

    def end(self):
        self.has_ended = True


def run(scheduler, number, job):
    """Go through a job; the recordings, and the error it ended by."""
    recordings = [
        FakeRecording(f"{number}/{place}:", n, job, None if place else job.leaves_after)
        for place, n in enumerate(job.lengths)
    ]
    group = Group(scheduler, job.batch_size, iter(recordings), job.priority)
    try:
        while group.advance():
            pass
    except (DeviceError, ValueError) as error:
        return recordings, error
    return recordings, None


class TestAnyCallers:
    """Whoever comes in whatever order: nothing is lost, doubled, swapped or starved."""

    @settings(
        max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        every=st.lists(jobs, min_size=1, max_size=6),
        n_streams=st.integers(1, 3),
        failing=st.none() | st.integers(0, 12),
        leaving=st.none() | st.integers(0, 12),
        n_live=st.integers(0, 2),
    )
    def test_each_gets_its_own(self, every, n_streams, failing, leaving, n_live):
        lock, count = Lock(), iter(range(1_000_000))

        def fail(requests):
            with lock:
                number = next(count)
            kinds = {request.caller.job.kind for request in requests}
            assert len({len(request.prompt) for request in requests}) == len(kinds) == 1
            if number == leaving:  # as its callback fails, or another thread closes it
                requests[0].caller.is_wanted = False
            if number == failing:
                raise DeviceError("no power")
            if any(request.caller.job.is_broken for request in requests):
                raise ValueError("broken")

        engine = FakeEngine(n_streams, fail)
        scheduler = Scheduler(engine)
        together = Barrier(len(every) + n_live)

        def begin(number, job):
            together.wait(LATE)
            return run(scheduler, number, job)

        def speak(number):
            together.wait(LATE)
            for caller in [FakeRecording(f"live{number}/{n}:", 1, LIVE, None) for n in range(5)]:
                try:
                    assert scheduler.decode_now(window(caller)) == f"{caller.name}0"
                except DeviceError:
                    assert failing is not None
                except UsageError:
                    assert not caller.is_wanted

        with ThreadPoolExecutor(len(every) + n_live) as pool:
            live = [pool.submit(speak, number) for number in range(n_live)]
            asked = [pool.submit(begin, *each) for each in enumerate(every)]
            found = [each.result(LATE) for each in asked]
            for each in live:
                each.result(LATE)
        has_failed = any(isinstance(error, DeviceError) for _, error in found)
        assert not has_failed or failing is not None
        for job, (recordings, error) in zip(every, found, strict=True):
            for recording in recordings:
                expected = [f"{recording.name}{n}" for n in range(1, recording.planned + 1)]
                for want, got in zip(expected, recording.taken, strict=False):
                    assert got == want or (got is None and not recording.is_wanted)
                assert len(recording.taken) <= recording.n
                if error is None and recording.is_wanted:
                    assert recording.taken == expected
                    assert recording.planned == recording.n
            if not job.is_broken and not has_failed:
                assert error is None
            if isinstance(error, DeviceError):
                assert "no power" in str(error)
        for requests in engine.requests:
            clients = {request.caller.name.split("/")[0] for request in requests}
            least = min(request.caller.job.batch_size for request in requests)
            assert len(clients) == 1 or len(requests) <= least
        engine.fails = lambda requests: None
        again, error = run(scheduler, 99, Job([3], 4, Priority.BULK, 0, 9, None, is_broken=False))
        assert (again[0].taken, error) == (["99/0:1", "99/0:2", "99/0:3"], None)
