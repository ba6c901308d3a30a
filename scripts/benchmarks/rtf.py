"""Measures how fast configurations of a model transcribe, alternating between them run by run."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from whisper_npu.errors import AudioError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.runtime.transcription.stream import TranscriptionStream
from whisper_npu.scripts.benchmarks.engine_process import Start
from whisper_npu.scripts.benchmarks.observed_backend import Observations, observe
from whisper_npu.scripts.benchmarks.recordings import Recording
from whisper_npu.scripts.benchmarks.spread import Spread, ratios, spread

# Everything else is done for each token.
_NOT_PER_TOKEN = frozenset(
    {"audio decoding", "features", "speech detection", "encoder", "language detection", "text"}
)
OTHER = "everything else"


@dataclass(frozen=True)
class Configuration:
    """A model to be loaded and used with some options.

    Attributes:
        label: Its name in reports: the options that differ from other configurations.
        folder: The model folder.
        load: Arguments of `load_model` besides the folder and `threads`.
        threads: Processor threads; 0 for one per core.
        options: The options of the transcription.
        one_by_one: Whether a recording waits for the text of the recording before it; otherwise
            windows of several recordings are decoded together.
    """

    label: str
    folder: Path
    load: dict[str, Any]
    threads: int
    options: TranscribeOptions
    one_by_one: bool = False


@dataclass(frozen=True)
class Loaded:
    """A configuration ready to run.

    Attributes:
        configuration: The requested configuration.
        model: The loaded model, whose backend is observed.
        seen: The recorded calls of the backend.
        options: The options that the model really uses.
        settings: The settings that really run: model, device, kv_cache, precision, mode and, in
            `files`, whether recordings are decoded together.
    """

    configuration: Configuration
    model: WhisperModel
    seen: Observations
    options: TranscribeOptions
    settings: dict[str, str]


def load(configuration: Configuration) -> Loaded:
    """Load a configuration.

    Raises:
        WhisperNpuError: The configuration cannot be loaded.
    """
    from whisper_npu.api import load_model  # noqa: PLC0415 - tests put a stand-in there

    loaded = load_model(configuration.folder, threads=configuration.threads, **configuration.load)
    model, seen = observe(loaded)
    options = model.resolve(configuration.options)
    settings = {
        "model": configuration.folder.name,
        "device": loaded.backend.device,
        "kv_cache": loaded.backend.kv_cache,
        "precision": loaded.backend.precision,
        "mode": options.mode,
        "files": "one by one" if configuration.one_by_one else "together",
    }
    return Loaded(configuration, model, seen, options, settings)


@dataclass(frozen=True)
class Run:
    """One run over all recordings.

    Attributes:
        audio_seconds: Length of the recordings.
        seconds: Time from the first file to the last text, reading included.
        stages: Seconds by stage, and the rest as `OTHER`.
        tokens: Tokens in the results, timestamps included.
        first_token: Seconds from a file to the first token, for each recording with a known time;
            for recordings decoded together only for the first.
        first_segment: Seconds from a file to the first segment, for recordings with segments.
        texts: Texts of the recordings.
    """

    audio_seconds: float
    seconds: float
    stages: dict[str, float]
    tokens: int
    first_token: tuple[float, ...]
    first_segment: tuple[float, ...]
    texts: tuple[str, ...]

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of processing."""
        return self.audio_seconds / self.seconds

    @property
    def token_seconds(self) -> float:
        """Seconds per token, in the stages that work token by token."""
        spent = sum(
            seconds
            for stage, seconds in self.stages.items()
            if stage not in _NOT_PER_TOKEN and stage != OTHER
        )
        return spent / max(1, self.tokens)


@dataclass
class Measurement:
    """All measured runs of one configuration.

    Attributes:
        loaded: The configuration.
        runs: Runs in order of time; runs of other configurations were in between.
        cold: A start of the program without compiled graphs; None if not measured.
        warm: A second start of the program; None if not measured.
    """

    loaded: Loaded
    runs: list[Run] = field(default_factory=list)
    cold: Start | None = None
    warm: Start | None = None

    @cached_property
    def rtfx(self) -> Spread:
        """Seconds of audio per second of processing."""
        return spread(run.rtfx for run in self.runs)

    @property
    def rtf(self) -> float:
        """Seconds of processing per second of audio, median."""
        return 1 / self.rtfx.median

    @property
    def tokens_per_second(self) -> Spread:
        """Tokens per second of processing."""
        return spread(run.tokens / run.seconds for run in self.runs)

    @property
    def token_seconds(self) -> Spread:
        """Seconds per token; see `Run.token_seconds`."""
        return spread(run.token_seconds for run in self.runs)

    @property
    def first_token(self) -> Spread | None:
        """Seconds to the first token."""
        times = [seconds for run in self.runs for seconds in run.first_token]
        return spread(times) if times else None

    @property
    def first_segment(self) -> Spread | None:
        """Seconds to the first segment."""
        times = [seconds for run in self.runs for seconds in run.first_segment]
        return spread(times) if times else None

    @cached_property
    def stages(self) -> dict[str, Spread]:
        """Seconds by stage, in order of first use."""
        names = dict.fromkeys(name for run in self.runs for name in run.stages)
        ordered = [name for name in names if name != OTHER]
        return {
            name: spread(run.stages.get(name, 0.0) for run in self.runs)
            for name in (*ordered, OTHER)
        }

    def against(self, first: "Measurement") -> Spread:
        """The factor of speed against another configuration, over pairs of runs."""
        pairs = zip(self.runs, first.runs, strict=True)
        mine, theirs = zip(*((a.rtfx, b.rtfx) for a, b in pairs), strict=True)
        return ratios(mine, theirs)


def alternate(n_configurations: int, repeats: int) -> Iterator[int]:
    """Indices of configurations in the order of their runs; every other round goes backwards."""
    for repeat in range(repeats):
        places = range(n_configurations)
        yield from places if repeat % 2 == 0 else reversed(places)


def measure(
    configurations: Sequence[Loaded],
    recordings: Sequence[Recording],
    repeats: int,
    on_run: Callable[[Loaded], None],
) -> list[Measurement]:
    """Transcribe all recordings `repeats` times in every configuration, after one warm-up run.

    Args:
        configurations: Loaded configurations; times do not include loading.
        recordings: The recordings to transcribe.
        repeats: Number of measured runs, 1 or more.
        on_run: Called after each run, warm-ups included.

    Raises:
        AudioError: A recording cannot be read.
        DeviceError: The device failed.
    """
    for loaded in configurations:
        run_once(loaded, recordings)
        on_run(loaded)
    measurements = [Measurement(loaded) for loaded in configurations]
    for place in alternate(len(configurations), repeats):
        measurement = measurements[place]
        measurement.runs.append(run_once(measurement.loaded, recordings))
        on_run(measurement.loaded)
    return measurements


def run_once(loaded: Loaded, recordings: Sequence[Recording]) -> Run:
    """Transcribe all recordings once.

    Raises:
        AudioError: A recording cannot be read.
    """
    model, options, seen = loaded.model, loaded.options, loaded.seen
    stages: dict[str, float] = {}
    first_token: list[float] = []
    first_segment: list[float] = []
    texts: list[str] = []
    audio_seconds = 0.0
    tokens = 0
    one_by_one = loaded.configuration.one_by_one
    paths = [recording.path for recording in recordings]
    seen.clear()
    begin = start = time.perf_counter()
    streams: Iterable[TranscriptionStream | AudioError]
    if one_by_one:
        streams = (model.transcribe(path, options) for path in paths)
    else:
        streams = model.transcribe_all(paths, options)
    for stream in streams:
        if isinstance(stream, AudioError):
            raise stream
        observed = one_by_one or not texts
        if next(iter(stream), None) is not None and observed:
            first_segment.append(time.perf_counter() - start)
        if seen.first_token is not None and observed:
            first_token.append(seen.first_token - start)
        result = stream.result()
        texts.append(result.text)
        audio_seconds += result.duration
        tokens += sum(len(segment.tokens) for segment in result.segments)
        for stage, seconds in stream.times.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        seen.first_token, start = None, time.perf_counter()
    seconds = time.perf_counter() - begin
    stages[OTHER] = max(0.0, seconds - sum(stages.values()))
    return Run(
        audio_seconds=audio_seconds,
        seconds=seconds,
        stages=stages,
        tokens=tokens,
        first_token=tuple(first_token),
        first_segment=tuple(first_segment),
        texts=tuple(texts),
    )


def job(configuration: Configuration, options: TranscribeOptions) -> dict[str, Any]:
    """The job with which `engine_runner.py` loads the configuration in a separate process."""
    return {
        "engine": "whisper-npu",
        "model": str(configuration.folder),
        "threads": configuration.threads,
        "language": options.language,
        "load": configuration.load,
        "one_by_one": configuration.one_by_one,
        "options": {name: value for name, value in vars(options).items() if name != "language"},
    }
