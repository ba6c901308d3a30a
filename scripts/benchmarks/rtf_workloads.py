"""Measures recordings, recordings of given lengths, starts, and the roofline."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from whisper_npu.errors import UsageError
from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE
from whisper_npu.scripts.benchmarks import roofline
from whisper_npu.scripts.benchmarks.engine_process import START_CLIP, start_once
from whisper_npu.scripts.benchmarks.recordings import Recording, clip
from whisper_npu.scripts.benchmarks.roofline import Machine, StageRoof
from whisper_npu.scripts.benchmarks.rtf import Loaded, Measurement, job, measure, run_once
from whisper_npu.scripts.benchmarks.rtf_report import Accuracy, Workload, accuracy


def measure_workload(
    name: str, loaded: Sequence[Loaded], recordings: Sequence[Recording], repeats: int
) -> Workload:
    """Run every configuration on the recordings, in turns, with a progress bar.

    Args:
        name: The workload's name in reports.
        loaded: The configurations.
        recordings: The recordings to transcribe.
        repeats: Number of measured runs of each.

    Raises:
        AudioError: A recording cannot be read.
        DeviceError: A device failed.
    """
    total = (repeats + 1) * len(loaded)
    with tqdm(total=total, desc=name, unit="run", disable=None) as bar:
        measurements = measure(loaded, recordings, repeats, lambda _: bar.update())
    language = next((each.options.language for each in loaded if each.options.language), "en")
    checked: list[Accuracy | None] = [
        accuracy(recordings, measured.runs[-1].texts, language) for measured in measurements
    ]
    return Workload(name, tuple(recordings), tuple(measurements), tuple(checked))


def measure_lengths(
    lengths: Sequence[float],
    loaded: Sequence[Loaded],
    recordings: Sequence[Recording],
    repeats: int,
    folder: Path,
) -> Iterator[Workload]:
    """Run every configuration on one recording of each length, made from the given recordings.

    Args:
        lengths: Lengths in seconds.
        loaded: The configurations.
        recordings: The recordings from which recordings of these lengths are made.
        repeats: Number of measured runs of each.
        folder: The folder to write them to.
    """
    for length in lengths:
        path = clip(recordings, length, folder / f"{length:g}.wav")
        yield measure_workload(f"{length:g} s", loaded, [Recording(path.name, path)], repeats)


def measure_starts(measured: Measurement, recordings: Sequence[Recording]) -> None:
    """Start the program with an empty cache of compiled graphs, then again with a full one."""
    loaded = measured.loaded
    with _empty_cache() as cache:
        audio = clip(recordings, START_CLIP, cache / "clip.wav")
        work = job(loaded.configuration, loaded.options)
        environment = {CACHE_VARIABLE: str(cache)}
        measured.cold = start_once(work, [audio], environment=environment)
        warm = start_once(work, [audio], environment=environment)
        # Memory is measured with the real recordings, which need more than the clip.
        peak = start_once(
            work, [recording.path for recording in recordings], environment=environment
        )
        measured.warm = replace(warm, peak_bytes=peak.peak_bytes)


@contextmanager
def _empty_cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="whisper-npu-cache-") as folder:
        yield Path(folder)


def measure_roofline(
    loaded: Loaded, recordings: Sequence[Recording]
) -> tuple[Machine, list[StageRoof]]:
    """The machine's peaks, and the stages of one more run compared with them.

    Raises:
        UsageError: The model does not run on the processor alone.
    """
    device, precision = loaded.settings["device"], loaded.settings["precision"]
    if device != "CPU":
        raise UsageError(f"--roofline knows the peaks of the CPU, not of {device}")
    machine = roofline.measure_machine(loaded.configuration.threads)
    if not machine.flops.keys() >= set(roofline.precisions(precision)):
        raise UsageError(f"--roofline: this processor has no arithmetic in {precision}")
    run = run_once(loaded, recordings)
    sizes = roofline.read_sizes(loaded.model.folder, precision)
    return machine, roofline.roofline(run.stages, loaded.seen, sizes, machine)
