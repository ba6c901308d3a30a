"""Runs recognisers in turns on the same recordings, each in a separate process."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from whisper_npu.errors import WhisperNpuError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.scripts.benchmarks.engine_process import (
    START_CLIP,
    Answer,
    EngineProcess,
    Start,
    start_once,
)
from whisper_npu.scripts.benchmarks.peer_environment import OFFLINE
from whisper_npu.scripts.benchmarks.recordings import Recording, clip, write_wav
from whisper_npu.scripts.benchmarks.rtf import alternate
from whisper_npu.scripts.benchmarks.spread import Spread, ratios, spread
from whisper_npu.scripts.evaluation import wer

OURS = "whisper-npu"

_WARM_UP = 1  # runs and starts that are not measured; they also fill caches of compiled graphs


@dataclass(frozen=True)
class Contestant:
    """A recogniser, and how it is started.

    Attributes:
        name: Its name in reports.
        python: The Python that has it.
        job: The job of `engine_runner.py`.
    """

    name: str
    python: str
    job: Mapping[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of its process."""
        return {} if self.name == OURS else OFFLINE


@dataclass
class SetResult:
    """The results of one set of recordings.

    Attributes:
        name: Name of the set.
        recordings: Recordings, in order.
        audio_seconds: Their length.
        metric: The metric of their texts.
        one_by_one: Whether whisper-npu, too, got one recording after another.
        answers: Measured runs by contestant, in order of time.
    """

    name: str
    recordings: Sequence[Recording]
    audio_seconds: float
    metric: wer.Metric
    one_by_one: bool = False
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    def rtfx_runs(self, name: str) -> list[float]:
        """Seconds of audio per second of processing, for each run."""
        return [self.audio_seconds / sum(answer.seconds) for answer in self.answers[name]]

    def rtfx(self, name: str) -> Spread:
        """Seconds of audio per second of processing."""
        return spread(self.rtfx_runs(name))

    def ratio(self, name: str) -> Spread:
        """The factor of whisper-npu's speed against `name`, over runs of the same round."""
        return ratios(self.rtfx_runs(OURS), self.rtfx_runs(name))

    def edits(self, name: str) -> list[wer.Edits]:
        """Word errors per recording, in the last run."""
        return [
            wer.compare(recording.reference or "", text, self.metric).edits
            for recording, text in zip(self.recordings, self.answers[name][-1].texts, strict=True)
        ]


@dataclass
class Result:
    """The results of all sets.

    Attributes:
        contestants: Contestants that did not fail, whisper-npu first.
        sets: Results of the sets, in order.
        starts: Starts for a short recording, by contestant, in order of time.
        versions: Versions of packages, by contestant.
        peak_bytes: Peak memory by contestant over all sets; None if the system does not tell.
    """

    contestants: list[str]
    sets: list[SetResult]
    starts: dict[str, list[Start]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)

    def start(self, name: str) -> Spread:
        """Seconds from the start of the process to the text."""
        return spread(start.seconds for start in self.starts[name])

    def start_ratio(self, name: str) -> Spread:
        """The factor of the start time of `name` against whisper-npu's."""
        mine = [start.seconds for start in self.starts[OURS]]
        return ratios([start.seconds for start in self.starts[name]], mine)

    @cached_property
    def peers(self) -> list[str]:
        """Names of all contestants except whisper-npu."""
        return [name for name in self.contestants if name != OURS]


def n_runs(n_contestants: int, n_sets: int, repeats: int) -> int:
    """Number of times that `compare` calls `on_run` if nothing fails."""
    return n_contestants * (n_sets + 1) * (repeats + _WARM_UP)


def compare(
    contestants: Sequence[Contestant],
    sets: Mapping[str, Sequence[Recording]],
    repeats: int,
    language: str,
    folder: Path,
    *,
    on_run: Callable[[], object],
    on_failure: Callable[[str, WhisperNpuError], None],
) -> Result:
    """Make all contestants transcribe all sets in turns, and start in turns.

    A peer that fails is left out. If whisper-npu fails, the comparison fails.

    Args:
        contestants: The contestants, whisper-npu first.
        sets: Recordings with references by the set's name.
        repeats: Number of measured runs.
        language: Code of the language of the references.
        folder: Receives the audio as 16 kHz WAV, so that all read the same samples.
        on_run: Called after each run.
        on_failure: Called for each contestant that is left out.

    Raises:
        AudioError: A recording cannot be read.
        DeviceError: whisper-npu failed.
    """
    results: list[SetResult] = []
    files: dict[str, list[Path]] = {}
    for name, recordings in sets.items():
        files[name], seconds = _prepare(recordings, folder, len(files))
        metric = wer.metric_for(language)
        one_by_one = bool(contestants[0].job.get("one_by_one"))
        results.append(SetResult(name, recordings, seconds, metric, one_by_one))
    result = Result([contestant.name for contestant in contestants], results)

    def drop(name: str, error: WhisperNpuError) -> None:
        if name == OURS:
            raise error
        on_failure(name, error)
        result.contestants.remove(name)

    with ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for contestant in contestants:
            try:
                process = EngineProcess(
                    contestant.job, python=contestant.python, environment=contestant.environment
                )
            except WhisperNpuError as error:
                drop(contestant.name, error)
                continue
            processes[contestant.name] = stack.enter_context(process)
            result.versions[contestant.name] = process.versions
        for compared in results:
            compared.answers = {name: [] for name in result.contestants}
            _run_set(compared, files[compared.name], repeats, processes, result, drop, on_run)

    audio = clip(next(iter(sets.values())), START_CLIP, folder / "start.wav")
    racing = [contestant for contestant in contestants if contestant.name in result.contestants]
    result.starts = {contestant.name: [] for contestant in racing}
    for turn, place in enumerate(alternate(len(racing), repeats + _WARM_UP)):
        contestant = racing[place]
        start = start_once(
            contestant.job,
            [audio],
            python=contestant.python,
            environment=contestant.environment,
        )
        on_run()
        if turn >= len(racing) * _WARM_UP:
            result.starts[contestant.name].append(start)
    return result


def _run_set(
    compared: SetResult,
    files: Sequence[Path],
    repeats: int,
    processes: dict[str, EngineProcess],
    result: Result,
    drop: Callable[[str, WhisperNpuError], None],
    on_run: Callable[[], object],
) -> None:
    names = list(result.contestants)
    for turn, place in enumerate(alternate(len(names), repeats + _WARM_UP)):
        name = names[place]
        if name not in result.contestants:
            continue
        try:
            answer = processes[name].transcribe(files)
        except WhisperNpuError as error:
            drop(name, error)
            continue
        on_run()
        result.peak_bytes[name] = answer.peak_bytes
        if turn >= len(names) * _WARM_UP:
            compared.answers[name].append(answer)


def _prepare(
    recordings: Sequence[Recording], folder: Path, number: int
) -> tuple[list[Path], float]:
    """Write recordings as 16 kHz mono WAV; returns the files and their seconds."""
    files = []
    n_samples = 0
    for place, recording in enumerate(recordings):
        samples = load_audio(recording.path)
        n_samples += len(samples)
        files.append(write_wav(folder / f"{number}-{place}.wav", samples))
    return files, n_samples / SAMPLE_RATE
