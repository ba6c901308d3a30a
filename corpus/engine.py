"""Ray Data: streams blocks of work through tasks and actors."""

import logging
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

# Ray reads these when it is imported. Nothing is sent to anyone.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray
import ray.data
from ray.exceptions import RayError

from whisper_npu import DeviceError, UsageError
from whisper_npu.corpus.worker import Worker

_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception): ")  # in a traceback
_OBJECT_STORE_BYTES = 256 << 20  # blocks of work hold names, no audio


@contextmanager
def cluster(address: str | None, *, dashboard: bool) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster.

    Args:
        address: of a running cluster; None starts Ray on this machine, until the end of the block.
        dashboard: whether Ray's dashboard is started.

    Raises:
        UsageError: there is no cluster at the address.
    """
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options["include_dashboard"] = dashboard
        options["object_store_memory"] = _OBJECT_STORE_BYTES
    try:
        with _same_signals():
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"Ray cannot be reached at {address or 'this machine'}: {error}") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _same_signals() -> Iterator[None]:
    """Keep the caller's handlers of signals, which Ray replaces by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def processors() -> int:
    """The processors of all machines of the cluster."""
    return int(ray.cluster_resources().get("CPU", 1))


def memory() -> int:
    """The bytes of memory that Ray may give out, on all machines of the cluster."""
    return int(ray.cluster_resources().get("memory", 0))


def processors_of_a_machine() -> int:
    """The processors of its smallest machine that has any."""
    counts = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return min((count for count in counts if count), default=1)


def map_tables(tables: Iterable[pa.Table], function: Any) -> Iterator[pa.Table]:
    """Apply a function to tables, in tasks of one processor each; results come in any order."""
    yield from _stream(put(tables), function, num_cpus=1)


def put(tables: Iterable[pa.Table]) -> list[Any]:
    """Move tables to Ray's store, out of this process; returns references to them."""
    return [ray.put(table) for table in tables]


def map_in_actors(
    blocks: Sequence[Any], arguments: tuple[Any, ...], *, actors: int, threads: int
) -> Iterator[pa.Table]:
    """Apply `Worker` to tables, in actors; results come in any order.

    Args:
        blocks: references to blocks of work. A block whose actor or machine ends is given to
            another.
        arguments: of `Worker`.
        actors: their number.
        threads: processors that each of them reserves.
    """
    yield from _stream(
        blocks,
        Worker,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=threads,
    )


def _stream(blocks: Sequence[Any], function: Any, **options: Any) -> Iterator[pa.Table]:
    if not blocks:
        return
    data = ray.data.from_arrow_refs(blocks).map_batches(
        function, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **options
    )
    try:
        yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except RayError as error:
        lines = [line for line in str(error).splitlines() if _ERROR_LINE.match(line)]
        reason = lines[-1] if lines else type(error).__name__
        raise DeviceError(f"Ray cannot go on: {reason}") from error
