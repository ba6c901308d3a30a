"""Which request is next: short work before long, and nobody waits for ever."""

import asyncio
from contextlib import ExitStack

import pytest

from whisper_npu.server.admission import SHORT_BYTES, Admission
from whisper_npu.server.config import Limits
from whisper_npu.server.errors import ApiError

SHORT, LONG = SHORT_BYTES, SHORT_BYTES + 1


class Line:
    """Requests that wait for places; each goes on until `leave`."""

    def __init__(self, **limits):
        self.admission = Admission(Limits(**limits))
        self.served = []
        self._leaves = {}
        self._tasks = {}

    async def come(self, name, n_bytes):
        self._leaves[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._request(name, n_bytes))
        await self.settle()

    async def _request(self, name, n_bytes):
        async with self.admission.place(n_bytes):
            self.served.append(name)
            await self._leaves[name].wait()

    async def leave(self, name):
        self._leaves[name].set()
        await self._tasks[name]
        await self.settle()

    async def give_up(self, name):
        self._tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]
        await self.settle()

    @staticmethod
    async def settle():
        for _ in range(5):
            await asyncio.sleep(0)


def in_line(play):
    """A test that is a coroutine."""

    def test(self):
        asyncio.run(play(self))

    return test


class TestOrder:
    @in_line
    async def test_short_requests_overtake_long_ones(self):
        line = Line(active=1)
        for name, size in (("a", LONG), ("b", LONG), ("c", SHORT), ("d", SHORT)):
            await line.come(name, size)
        for name in "acdb":
            await line.leave(name)
        assert line.served == list("acdb")

    @in_line
    async def test_long_requests_take_half_of_the_places(self):
        line = Line(active=4)
        for name in "abc":
            await line.come(name, LONG)
        await line.come("d", SHORT)
        assert line.served == ["a", "b", "d"]
        await line.leave("a")
        assert line.served[-1] == "c"

    @in_line
    async def test_a_long_request_is_overtaken_only_so_often(self):
        line = Line(active=1)
        await line.come("first", SHORT)
        await line.come("long", LONG)
        names = [f"short {number}" for number in range(12)]
        for name in names:
            await line.come(name, SHORT)
        for name in ("first", *names[:8]):
            await line.leave(name)
        assert line.served == ["first", *names[:8], "long"]

    @in_line
    async def test_a_request_that_gives_up_leaves_the_line(self):
        line = Line(active=1)
        for name in "abc":
            await line.come(name, SHORT)
        await line.give_up("b")
        assert line.admission.n_waiting == 1
        await line.leave("a")
        assert line.served == ["a", "c"]
        await line.give_up("c")
        assert line.admission.n_active == 0

    @in_line
    async def test_a_place_is_not_given_to_a_request_that_is_just_leaving(self):
        line = Line(active=1)
        for name in "abc":
            await line.come(name, SHORT)
        line._tasks["b"].cancel()  # its coroutine has not run yet
        line._leaves["a"].set()
        await line.settle()
        assert line.served == ["a", "c"]


class TestCounts:
    def test_entering(self):
        admission = Admission(Limits(active=1, queue=2))
        with ExitStack() as inside:
            for _ in range(3):
                inside.enter_context(admission.enter())
            with pytest.raises(ApiError) as refused, admission.enter():
                pass
        assert refused.value.status == 429
        assert admission.n_inside == 0

    def test_uploading(self):
        admission = Admission(Limits(uploads=1))
        with admission.upload(), pytest.raises(ApiError) as refused, admission.upload():
            pass
        assert refused.value.headers == {"Retry-After": "1"}
        assert admission.n_uploading == 0
