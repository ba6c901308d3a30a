"""Damages recordings, decodes them, and gives a verdict on each."""

import json
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer

import numpy as np

from whisper_npu.scripts.benchmarks.audio_mutations import mutate
from whisper_npu.scripts.benchmarks.audio_seeds import write_seeds
from whisper_npu.scripts.common import cli

READ, WARNED, REFUSED = "read", "read with warnings", "refused"
# Outcomes in FFmpeg's child process are the error of one file, but should be examined.
CRASHED, HUNG, CANNOT = "FFmpeg crashed", "FFmpeg hung", "FFmpeg cannot decode"
SIGNAL, HANG, TRACEBACK = "signal", "hang", "traceback"
OUTCOMES = (READ, WARNED, REFUSED, CRASHED, HUNG, CANNOT, SIGNAL, HANG, TRACEBACK)
FAULTS = (CRASHED, HUNG, CANNOT, SIGNAL, HANG, TRACEBACK)

ISOLATED = "--isolated"  # makes the worker run FFmpeg in its child process

_WORKER = "whisper_npu.scripts.benchmarks.audio_fuzzing_worker"
_FILES_PER_COMMAND = 50


@dataclass(frozen=True)
class Verdict:
    """The outcome of a file, and a line that describes it."""

    path: Path
    outcome: str
    text: str = ""


def write_files(
    folder: Path, number: int, seed: int, recordings: Sequence[Path] = ()
) -> list[Path]:
    """Write damaged copies of recordings of every kind.

    The same seed damages the same places. Files still differ, because some encoders write the time
    and random numbers.

    Args:
        folder: an existing folder.
        number: the number of files.
        seed: the seed of the damage.
        recordings: recordings to damage in addition to the generated ones.
    """
    sources = folder / "sources"
    sources.mkdir()
    seeds = [*write_seeds(sources), *recordings]
    files = []
    for index in range(number):
        source = seeds[index % len(seeds)]
        random = np.random.default_rng([seed, index, zlib.crc32(source.name.encode())])
        other = seeds[random.integers(len(seeds))]
        files.append(folder / f"{index:05d}-{source.name}")
        files[-1].write_bytes(mutate(source.read_bytes(), other.read_bytes(), random))
    return files


def find_verdicts(
    files: Sequence[Path], *, jobs: int, limit: float, isolated: bool, model: str | None
) -> Iterator[Verdict]:
    """Decode files in several jobs at once; yields the verdict on each, in order.

    Args:
        files: the files to decode.
        jobs: the number of jobs.
        limit: seconds for each file.
        isolated: see `decode`.
        model: a model folder for `whisper-npu transcribe`; None only decodes the files.
    """
    size = _FILES_PER_COMMAND if model else -(-len(files) // (4 * jobs))
    parts = [files[start : start + size] for start in range(0, len(files), size)]

    def judge(part: Sequence[Path]) -> list[Verdict]:
        if model:
            return transcribe(part, model, limit)
        return list(decode(part, limit, isolated=isolated))

    with ThreadPoolExecutor(jobs) as threads:
        for verdicts in threads.map(judge, parts):
            yield from verdicts


def decode(files: Sequence[Path], limit: float, *, isolated: bool) -> Iterator[Verdict]:
    """Decode files in a worker process, which is replaced only if it dies.

    Args:
        files: the files to decode.
        limit: seconds for each file.
        isolated: whether FFmpeg runs in its child process, as in `transcribe`.
    """
    waiting = deque(files)
    command = _worker_command(isolated=isolated)
    while waiting:
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as worker:
            while waiting and worker.poll() is None:
                path = waiting.popleft()
                answer, is_late = _ask(worker, path, limit)
                if answer:
                    yield Verdict(path, *json.loads(answer))
                else:
                    outcome = HANG if is_late else SIGNAL
                    yield Verdict(path, outcome, f"exit code {worker.wait()}")


def _worker_command(*, isolated: bool) -> list[str]:
    return [sys.executable, "-m", _WORKER, *([ISOLATED] * isolated)]


def _ask(worker: "subprocess.Popen[str]", path: Path, limit: float) -> tuple[str, bool]:
    """The worker's line on a file, empty if it died; and whether it was killed at the limit."""
    late = Event()

    def kill() -> None:
        late.set()
        worker.kill()

    timer = Timer(limit, kill)
    timer.start()
    try:
        print(path, file=worker.stdin, flush=True)
        return worker.stdout.readline() if worker.stdout else "", late.is_set()
    except BrokenPipeError:
        return "", late.is_set()
    finally:
        timer.cancel()


def transcribe(files: Sequence[Path], model: str, limit: float) -> list[Verdict]:
    """Run files through the command line; after a failure halve them until the file is found."""
    command = [sys.executable, "-m", "whisper_npu.scripts.transcribe", *map(str, files)]
    command += ["--model", model]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit * len(files), check=False
        )
        outcome, text = _fault_of(done, files)
    except subprocess.TimeoutExpired:
        outcome, text = HANG, f"took more than {limit * len(files):.0f} s"
    if not outcome:
        refused = {file for file in files if f"error: {file}: " in done.stderr}
        return [Verdict(file, REFUSED if file in refused else READ) for file in files]
    if len(files) == 1:
        return [Verdict(files[0], outcome, text)]
    half = len(files) // 2
    return transcribe(files[:half], model, limit) + transcribe(files[half:], model, limit)


def _fault_of(done: "subprocess.CompletedProcess[str]", files: Sequence[Path]) -> tuple[str, str]:
    """The fault of a run of the command line, as outcome and text; empty if there is none."""
    if done.returncode < 0:
        return SIGNAL, f"exit code {done.returncode}"
    for outcome in (CRASHED, HUNG, CANNOT):
        if outcome in done.stderr:
            return outcome, next(line for line in done.stderr.splitlines() if outcome in line)
    lines = done.stderr.splitlines()
    refused = [line for line in lines if line.startswith("error: ")]
    strange = [line for line in lines if not line.startswith(("error: ", "warning: "))]
    if strange:
        return TRACEBACK, strange[-1]
    missing = [file for file in files if len(files) > 1 and f"==> {file} <==" not in done.stdout]
    if missing:
        return TRACEBACK, f"nothing is said of {missing[0]}"
    if done.returncode != (cli.EXIT_SOME_FAILED if refused else cli.EXIT_OK):
        return TRACEBACK, f"exit code {done.returncode} with {len(refused)} files refused"
    return "", ""
