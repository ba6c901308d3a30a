"""Decodes thousands of damaged recordings and counts what became of them: `make fuzz`.

Each has to be read, read with a warning, or refused with one line. A signal, a hang or any other
exception is a fault of ours; the files that show it are kept.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Timer
from typing import TYPE_CHECKING
from unittest import mock

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.scripts.common import cli

if TYPE_CHECKING:
    from whisper_npu.runtime.audio.source import Samples, SourceFile, Warn
    from whisper_npu.runtime.audio_choices import TrackChoice

READ, WARNED, REFUSED = "read", "read with warnings", "refused"
# In FFmpeg's child: one file's error, but to be looked into.
CRASHED, HUNG, CANNOT = "FFmpeg crashed", "FFmpeg hung", "FFmpeg cannot decode"
SIGNAL, HANG, TRACEBACK = "signal", "hang", "traceback"
OUTCOMES = (READ, WARNED, REFUSED, CRASHED, HUNG, CANNOT, SIGNAL, HANG, TRACEBACK)
FAULTS = (CRASHED, HUNG, CANNOT, SIGNAL, HANG, TRACEBACK)

_MODULE = "whisper_npu.scripts.fuzz_audio"
_WORKER = "--work"
_FILES_PER_COMMAND = 50

EPILOG = """\
examples:
  python scripts/fuzz_audio.py
  python scripts/fuzz_audio.py --files 500 --model models/tiny.en
  python scripts/fuzz_audio.py --seed 7 --keep /tmp/failing

exit codes:
  0  every file was read or refused
  1  there was a signal, a hang or a traceback; the files are kept
  2  the command line is wrong
"""


@dataclass(frozen=True)
class Verdict:
    """What became of a file, and a line on it."""

    path: Path
    outcome: str
    text: str = ""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "fuzz_audio",
        description="Decode damaged recordings of every kind, and count what becomes of them.",
        epilog=EPILOG,
    )
    parser.add_argument("--files", type=int, default=5_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS", help="per file")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="default: one per core"
    )
    parser.add_argument("--keep", metavar="DIR", default="build/fuzz", help="for failing files")
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="leave FFmpeg in its child process, as the product does, which hides its crashes",
    )
    parser.add_argument(
        "--model", metavar="DIR", help="run the files through `whisper-npu transcribe` instead"
    )
    parser.add_argument(
        "recordings", nargs="*", metavar="FILE", help="damage these, too, beside made ones"
    )
    return parser


def fuzz(arguments: argparse.Namespace) -> int:
    """Damage, decode and count; returns the exit code."""
    if min(arguments.files, arguments.jobs) < 1 or arguments.limit <= 0:
        raise UsageError("--files, --jobs and --limit must be above 0")
    kept = Path(arguments.keep)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-audio-") as folder:
        files = write_files(
            Path(folder), arguments.files, arguments.seed, [*map(Path, arguments.recordings)]
        )
        for verdict in _verdicts(files, arguments):
            counts[verdict.outcome] += 1
            if verdict.outcome in FAULTS:
                kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(verdict.path, kept)
                place = kept / verdict.path.name
                print(f"{verdict.outcome}: {place}: {verdict.text}", file=sys.stderr)
    print(f"{arguments.files} files, seed {arguments.seed}:")
    for outcome in OUTCOMES:
        print(f"  {outcome:<20} {counts[outcome]:>6}")
    return cli.EXIT_SOME_FAILED if any(counts[each] for each in FAULTS) else cli.EXIT_OK


def write_files(
    folder: Path, number: int, seed: int, recordings: Sequence[Path] = ()
) -> list[Path]:
    """Write damaged copies of recordings of every kind.

    The same seed damages the same places; encoders put the time and random numbers into some files.

    Args:
        folder: an existing one.
        number: of files.
        seed: of the damage.
        recordings: what to damage beside recordings made here.
    """
    import numpy as np  # noqa: PLC0415 - not needed to print --help

    from whisper_npu.scripts.benchmarks.audio_mutations import mutate  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.audio_seeds import write_seeds  # noqa: PLC0415

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


def _verdicts(files: Sequence[Path], arguments: argparse.Namespace) -> Iterator[Verdict]:
    size = _FILES_PER_COMMAND if arguments.model else -(-len(files) // (4 * arguments.jobs))
    parts = [files[start : start + size] for start in range(0, len(files), size)]

    def judge(part: Sequence[Path]) -> list[Verdict]:
        if arguments.model:
            return transcribe(part, arguments.model, arguments.limit)
        return list(decode(part, arguments.limit, isolated=arguments.isolated))

    with ThreadPoolExecutor(arguments.jobs) as threads:
        for verdicts in threads.map(judge, parts):
            yield from verdicts


def decode(files: Sequence[Path], limit: float, *, isolated: bool) -> Iterator[Verdict]:
    """Decode files in worker processes, many in each: a new one only where one has died.

    Args:
        files: what to decode.
        limit: seconds for each.
        isolated: whether FFmpeg has a child process of its own, as in the product.
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
    return [sys.executable, "-m", _MODULE, _WORKER, *(["--isolated"] * isolated)]


def _ask(worker: "subprocess.Popen[str]", path: Path, limit: float) -> tuple[str, bool]:
    """A worker's line on a file, empty if it died; whether it was killed for taking too long."""
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


def work(*, isolated: bool) -> int:
    """Decode the files that standard input names, and write a verdict on each."""
    from whisper_npu.runtime.audio import decoders, ffmpeg_child  # noqa: PLC0415

    ffmpeg_child.limit_resources()
    answers = os.fdopen(os.dup(1), "w")  # what C code prints must not get between
    os.dup2(2, 1)
    with contextlib.ExitStack() as stack:
        if not isolated:
            stack.enter_context(mock.patch.object(decoders, "open_ffmpeg", _Unprotected))
        for line in sys.stdin:
            print(json.dumps(_judge(line.rstrip("\n"))), file=answers, flush=True)
    return cli.EXIT_OK


def _judge(name: str) -> tuple[str, str]:
    """Outcome and text of decoding one file."""
    import numpy as np  # noqa: PLC0415

    from whisper_npu.runtime.audio.stream import open_audio  # noqa: PLC0415

    try:
        with open_audio(name) as stream:
            for block in stream:
                if not np.isfinite(block).all():
                    return TRACEBACK, "samples are not finite"
            return (WARNED, stream.warnings[0]) if stream.warnings else (READ, "")
    except AudioError as error:
        text = str(error)
        if "\n" in text or not text.startswith(f"{name}: "):
            return TRACEBACK, f"not one line with the file's name: {text!r}"
        for outcome in (CRASHED, HUNG, CANNOT):
            if outcome in text:
                return outcome, text
        return REFUSED, text
    except Exception as error:
        return TRACEBACK, "".join(traceback.format_exception(error)).replace("\n", " | ")


class _Unprotected:
    """FFmpeg in this process, so that what it dies of is seen."""

    def __init__(
        self,
        file: "SourceFile",
        warn: "Warn",
        *,
        skip_frames: int = 0,
        track: "TrackChoice" = None,
    ) -> None:
        from whisper_npu.runtime.audio.ffmpeg import FFmpegDecoder  # noqa: PLC0415

        with _without_memory_error():
            self._decoder = FFmpegDecoder(file, warn, skip_frames, track)
        self.duration = self._decoder.duration
        self.n_channels = self._decoder.n_channels
        self.tracks, self.track = self._decoder.tracks, self._decoder.track
        self.close = self._decoder.close

    def chunks(self) -> "Iterator[tuple[int, Samples]]":
        """See `Decoder.chunks`."""
        with _without_memory_error():
            yield from self._decoder.chunks()


@contextlib.contextmanager
def _without_memory_error() -> Iterator[None]:
    """The limit of memory makes FFmpeg refuse a file, as in its child process."""
    from whisper_npu.runtime.audio.source import RefusedError  # noqa: PLC0415

    try:
        yield
    except MemoryError:
        raise RefusedError("FFmpeg wants more than 2 GB of memory") from None


def transcribe(files: Sequence[Path], model: str, limit: float) -> list[Verdict]:
    """Run files through the command line; where that fails, halve them until the file is found."""
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
    """What is wrong with a run of the command line, as an outcome and a text; empty if nothing."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [_WORKER]:
        return work(isolated="--isolated" in arguments)
    return cli.run(fuzz, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())
