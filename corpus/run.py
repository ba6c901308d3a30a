"""Runs a corpus: reads the manifest, does what no earlier run has done, writes the outputs."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

import whisper_npu
from whisper_npu import UsageError, WhisperNpuError, model_digest
from whisper_npu.corpus import engine
from whisper_npu.corpus.manifests import read_manifest
from whisper_npu.corpus.names import RESULTS, RUN_FILE, STATE, SUBTITLE_FORMATS
from whisper_npu.corpus.parts import can_cut, cut, join, missing
from whisper_npu.corpus.plan import (
    Part,
    Plan,
    examine_block,
    index_blocks,
    list_sources,
    make_plan,
    work_blocks,
    write_index,
    write_manifest,
)
from whisper_npu.corpus.publish import publish
from whisper_npu.corpus.sizing import (
    MOST_THREADS,
    Size,
    Trial,
    best,
    measured,
    n_trial_blocks,
    sizes,
)
from whisper_npu.corpus.storage import Folder, absolute
from whisper_npu.corpus.store import KEY_LENGTH, ResultStore
from whisper_npu.corpus.worker import ModelSettings

_LONGEST_BLOCK, _SHORTEST_BLOCK = 600.0, 60.0  # seconds of audio
_BLOCKS_PER_ACTOR = 8
# Bytes of memory of an actor: the first for each byte of the model's files, the second in any case.
_MEMORY_PER_MODEL, _MEMORY_PER_ACTOR = 1.5, 500e6


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: rows of the manifest.
        items: different recordings and cuts to transcribe in this run.
        done: of them, those transcribed so far.
        failed: of them, those that could not be transcribed.
        seconds: seconds of audio to transcribe in this run, partly estimated.
        seconds_done: seconds of audio transcribed so far.
        elapsed: seconds since the first block of work was given out.
        actors: processes that transcribe.
        threads: threads of each of them.
        trials: the numbers of actors and threads that were tried, and their speed.
    """

    rows: int
    items: int
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    seconds_done: float = 0.0
    elapsed: float = 0.0
    actors: int = 0
    threads: int = 0
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CorpusJob:
    """A corpus, and how to transcribe it.

    Attributes:
        manifest: a path or URL.
        output: the folder of the outputs, a path or URL.
        settings: the model and its options.
        kind: kind of the manifest; None finds it out.
        subtitles: formats of subtitles.
        retry_errors: whether recordings that failed in an earlier run are tried again.
        address: of a cluster of Ray; None for this machine alone.
        actors: number of processes with a model. 0, with no number of threads, chooses both: large
            works try some on their first blocks.
        dashboard: whether Ray's dashboard is started.
        block_seconds: seconds of audio that an actor gets at a time, and stores at a time; 0 for a
            length that keeps all actors busy.
    """

    manifest: str
    output: str
    settings: ModelSettings
    kind: str | None = None
    subtitles: Sequence[str] = ()
    retry_errors: bool = False
    address: str | None = None
    actors: int = 0
    dashboard: bool = False
    block_seconds: float = 0.0


def run_corpus(
    job: CorpusJob,
    on_progress: Callable[[Progress], None],
    on_status: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Transcribe what no earlier run has transcribed, and write the outputs.

    Args:
        job: the corpus.
        on_progress: called when the work begins and after each block of it.
        on_status: called with a text before each thing that is done before or after the work.

    Returns:
        the final progress.

    Raises:
        UsageError: the manifest or an option is wrong, or another run uses the folder.
        OutputError: the outputs cannot be written.
        ModelError: the model cannot be used.
        DeviceError: the device cannot be used.
    """
    for each in job.subtitles:
        if each not in SUBTITLE_FORMATS:
            raise UsageError(f"subtitles are {each!r}; give {', '.join(SUBTITLE_FORMATS)}")
    on_status("reading the model's files")
    digests = (
        model_digest(job.settings.model, job.settings.load.get("variant")),
        _options_digest(job.settings),
    )
    output = Folder(job.output)
    output.make()
    state = Folder(output.path(STATE))
    state.make()
    with _alone(state), contextlib.ExitStack() as stack:
        on_status("reading the manifest")
        n_rows = write_manifest(state, read_manifest(job.manifest, job.kind))
        attempts = Folder(state.path("attempts"))
        attempts.make()
        stack.enter_context(_forgotten_at_a_stop(attempts))
        on_status("starting Ray" if job.address is None else f"joining Ray at {job.address}")
        stack.enter_context(engine.cluster(job.address, dashboard=job.dashboard))
        store = ResultStore(Folder(output.path(RESULTS)))
        store.folder.make()
        for folder in (output, state, store.folder):
            folder.remove_drafts()
        on_status(f"looking at the recordings of {n_rows} row{'' if n_rows == 1 else 's'}")
        plan = _plan(state, store, digests, retry_errors=job.retry_errors)
        begin = Progress(rows=n_rows, items=len(plan.todo), seconds=plan.seconds_to_do)
        for progress in _work(job, state, store, attempts, plan, begin):
            on_progress(progress)
        on_status("writing the outputs")
        publish(output, state, plan, store.read_keys(), job.subtitles)
        _record(output, job, digests, progress)
    return progress


@contextlib.contextmanager
def _alone(state: Folder) -> Iterator[None]:
    """Refuse a second run in a local folder."""
    if state.local_path is None:
        yield
        return
    try:
        with FileLock(state.local_path / "lock", timeout=0):
            yield
    except Timeout:
        raise UsageError(
            f"{state.url}: another run is using it; wait for its end, or choose another --output"
        ) from None


@contextlib.contextmanager
def _forgotten_at_a_stop(attempts: Folder) -> Iterator[None]:
    """Forget the attempts of blocks under way if the run is told to end: they are not to blame."""
    try:
        yield
    except BaseException as stop:
        if not isinstance(stop, Exception):  # Ctrl-C, SIGTERM
            for name in attempts.names():
                attempts.remove(name)
        raise


def _plan(state: Folder, store: ResultStore, digests: Sequence[str], *, retry_errors: bool) -> Plan:
    names, sources = list_sources(state)
    examined = engine.map_tables(index_blocks(state, names), examine_block)
    index = write_index(state, names, examined)
    return make_plan(
        state, sources, index, store.read_keys(), digests=digests, retry_errors=retry_errors
    )


def _work(
    job: CorpusJob,
    state: Folder,
    store: ResultStore,
    attempts: Folder,
    plan: Plan,
    progress: Progress,
) -> Iterator[Progress]:
    """Transcribe the planned work; the first blocks also tell how many actors are best."""
    known = _sizes(job)
    per_block = progress.seconds / (_BLOCKS_PER_ACTOR * max(size.actors for size in known))
    block_seconds = job.block_seconds or min(_LONGEST_BLOCK, max(_SHORTEST_BLOCK, per_block))
    most = max(size.actors for size in known)
    parts = cut(plan, most) if most > 1 and can_cut(job.settings) else {}
    left = missing(parts, store, retry_errors=job.retry_errors)
    kept = sum(
        plan.seconds[number] * (1 - len(left[number]) / len(every))
        for number, every in parts.items()
    )
    progress = replace(progress, seconds=progress.seconds - float(kept))
    blocks = engine.put(work_blocks(state, plan, block_seconds, left))
    counts = n_trial_blocks(known, len(blocks), progress.seconds)
    trials: list[Trial] = []
    began = time.monotonic()
    yield replace(progress, actors=known[0].actors, threads=known[0].threads)
    for number, count in enumerate([*counts, len(blocks)]):
        is_trial = number < len(counts)
        size = best(trials) if trials and not is_trial else known[number]
        # Trials take the last blocks, because the first may have a long recording each.
        given, blocks = blocks[-count:], blocks[:-count]
        size = replace(size, actors=min(size.actors, max(1, len(given))))
        progress = replace(progress, actors=size.actors, threads=size.threads, trials=tuple(trials))
        told = []
        for done in _transcribed(job, store, attempts, given, size):
            told.append(done)
            progress = replace(
                progress,
                done=progress.done + sum(done["items"].to_pylist()),
                failed=progress.failed + sum(done["failed"].to_pylist()),
                seconds_done=progress.seconds_done + math.fsum(done["seconds"].to_pylist()),
                elapsed=time.monotonic() - began,
            )
            yield progress
        if is_trial:
            trials.append(measured(size, told))
    if parts:
        rows = _join_parts(store, plan, parts)
        yield replace(
            progress,
            done=progress.done + len(rows),
            failed=progress.failed + sum(row["error"] is not None for row in rows),
            elapsed=time.monotonic() - began,  # there may have been no block
        )


def _join_parts(
    store: ResultStore, plan: Plan, parts: Mapping[int, Sequence[Part]]
) -> list[dict[str, Any]]:
    """Store the results of the rows that were cut."""
    keys, rows = store.read_keys(), []
    for number, every in parts.items():
        places, _ = keys.find(np.array([part.key for part in every], f"S{KEY_LENGTH}"))
        rows.append(join(plan.keys[number].decode(), list(keys.results(places))))
        store.write(rows[-1:])
    return rows


def _transcribed(
    job: CorpusJob, store: ResultStore, attempts: Folder, blocks: Sequence[Any], size: Size
) -> Iterator[pa.Table]:
    """What the actors tell of each block, in any order."""
    settings = replace(job.settings, load={**job.settings.load, "threads": size.threads})
    for done in engine.map_in_actors(
        blocks, (settings, store, attempts), actors=size.actors, threads=size.threads
    ):
        _raise_fatal(done)
        yield done


def _sizes(job: CorpusJob) -> list[Size]:
    """The numbers of actors and threads to choose from; what the job says is no choice."""
    machine = engine.processors_of_a_machine()
    threads = job.settings.load.get("threads")
    if job.actors or threads:
        threads = threads or min(MOST_THREADS, machine)
        return [Size(job.actors or _actors_that_fit(job.settings.model, threads), threads)]
    return sizes(machine, lambda count: _actors_that_fit(job.settings.model, count))


def _actors_that_fit(model: str, threads: int) -> int:
    """The number of actors for which there are processors and memory; 1 at least."""
    files = (path for path in Path(model).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    needed = _MEMORY_PER_MODEL * size + _MEMORY_PER_ACTOR
    return max(1, min(engine.processors() // threads, int(engine.memory() / needed)))


def _raise_fatal(done: pa.Table) -> None:
    """Raise the error that an actor returned, if it did."""
    for row in done.to_pylist():
        if row["fatal"] is not None:
            kind: type[WhisperNpuError] = getattr(whisper_npu, row["fatal"], WhisperNpuError)
            raise kind(row["message"])


def _options_digest(settings: ModelSettings) -> str:
    """A digest of what decides a text beside the model; the number of threads does not."""
    load = {name: value for name, value in settings.load.items() if name != "threads"}
    facts = [settings.options.digest(), sorted(load.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _record(output: Folder, job: CorpusJob, digests: Sequence[str], progress: Progress) -> None:
    """Note how the outputs were made."""
    record: dict[str, Any] = {
        "manifest": absolute(job.manifest),
        "kind": job.kind,
        "model": job.settings.model,
        "model_digest": digests[0],
        "options_digest": digests[1],
        "load": job.settings.load,
        "options": asdict(job.settings.options),
        "last_run": asdict(progress),
    }
    with output.create(RUN_FILE) as file:
        file.write(json.dumps(record, indent=2).encode())
