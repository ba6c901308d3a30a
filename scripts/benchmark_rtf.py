"""Measures speed: `whisper-npu benchmark`, `python scripts/benchmark_rtf.py`.

How many seconds of audio a second of processing transcribes, where the time goes, how soon the
first words come, and how much of the machine is used; any number of configurations side by side.
"""

import argparse
import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
)
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra, write_text

if TYPE_CHECKING:
    from whisper_npu.scripts.benchmarks.recordings import Recording
    from whisper_npu.scripts.benchmarks.roofline import Machine, StageRoof
    from whisper_npu.scripts.benchmarks.rtf import Configuration, Loaded, Measurement
    from whisper_npu.scripts.benchmarks.rtf_report import Accuracy, Workload

LENGTHS = (5.0, 30.0, 60.0, 300.0)  # seconds
START_CLIP = 11.0  # seconds of audio that a started program is given
AS_GIVEN = "as given"
BUILT_IN = "beckett"

EPILOG = f"""\
examples:
  whisper-npu benchmark talk.flac --language en
  whisper-npu benchmark --references long.tsv --compare precision=f32 \\
      --compare "kv-cache=concat mode=sequential" --json rtf.json --plot rtf.png
  whisper-npu benchmark --model base --lengths --roofline

Times are from opening a file to its text; loading the model is not in them. The last line printed
is the speed of the first configuration, as `RTFx: 187.3`.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "benchmark",
        description="Measure how fast an exported Whisper model transcribes.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="recordings and folders (default: those of --references, else the built-in one)",
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--references",
        action="append",
        default=[],
        metavar="TSV",
        help="what is said in the recordings (audio<TAB>reference, or a LibriSpeech folder): "
        "gives the error rate beside the speed",
    )
    what.add_argument(
        "--lengths",
        nargs="*",
        metavar="SECONDS",
        help="also measure recordings of these lengths, made from the others "
        f"(default: {' '.join(f'{length:g}' for length in LENGTHS)})",
    )
    what.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="OPTIONS",
        help='a further configuration: "precision=f32 mode=sequential" is the one given, with '
        "these options changed",
    )
    what.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="counted runs (default: %(default)s)"
    )
    _add_one_by_one(what)
    what.add_argument(
        "--no-start",
        action="store_true",
        help="leave out cold and warm start and peak memory, measured in processes of their own",
    )
    what.add_argument(
        "--roofline",
        action="store_true",
        help="measure this processor's peaks, and show each stage beside them",
    )
    out = parser.add_argument_group("results")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything, texts included")
    out.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    out.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the stages' times (png, svg, pdf)"
    )
    add_model_options(parser)
    add_decoding_options(parser)
    return parser


def _add_one_by_one(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="let each recording wait for the text of the one before it (by default windows of "
        "several recordings are decoded together, as `transcribe` does)",
    )


def benchmark_rtf(arguments: argparse.Namespace) -> int:
    """Measure what the command line asks for; returns the exit code."""
    lengths = _separate_lengths(arguments)
    if arguments.repeats < 1:
        raise UsageError(f"--repeats is {arguments.repeats}; give 1 or more")
    check_outputs((arguments.json, arguments.markdown), arguments.plot)
    configurations = _configurations(arguments)
    with needing_the_extra("error rates"):
        from whisper_npu.scripts.benchmarks import rtf_report as report  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.conditions import (  # noqa: PLC0415
        busy_warning,
        conditions,
        conditions_line,
    )
    from whisper_npu.scripts.benchmarks.recordings import find_recordings  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.rtf import load  # noqa: PLC0415

    paths = arguments.files
    if not paths and not arguments.references:
        from whisper_npu.export.assets import fetch  # noqa: PLC0415

        paths = [fetch(BUILT_IN)]
    recordings = find_recordings(paths, arguments.references)
    found = conditions(arguments.threads)
    if warning := busy_warning(found):
        console.warning(warning)
    loaded = [load(configuration) for configuration in configurations]

    workloads = [_measure("recordings", loaded, recordings, arguments.repeats)]
    if not arguments.no_start:
        for measured in workloads[0].measurements:
            _start(measured, recordings)
    with tempfile.TemporaryDirectory(prefix="whisper-npu-") as folder:
        workloads += _measure_lengths(lengths, loaded, recordings, arguments.repeats, Path(folder))
    machine, roofs = _roofline(loaded[0], recordings) if arguments.roofline else (None, [])

    print(conditions_line(found))
    for workload in workloads:
        print(f"\n{workload.description}")
        if workload.accuracy_note:
            print(workload.accuracy_note)
        print(f"\n{report.speed_table(workload)}\n\n{report.stage_table(workload)}")
    if not arguments.no_start:
        print(f"\n{report.start_table(workloads[0].measurements)}")
    if machine is not None:
        print(f"\n{report.machine_line(machine)}\n\n{report.roof_table(roofs)}")
        print(f"\n{report.next_line(roofs)}")
    print()
    if arguments.json:
        content = report.to_json(workloads, found, machine, roofs)
        write_text(arguments.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if arguments.markdown:
        write_text(arguments.markdown, report.markdown(workloads, found, machine, roofs))
    if arguments.plot:
        _plot(workloads[0], arguments.plot)
    print(f"RTFx: {workloads[0].measurements[0].rtfx.median:.1f}")
    return cli.EXIT_OK


def _separate_lengths(arguments: argparse.Namespace) -> list[float]:
    """Lengths asked for; what follows `--lengths` and is no number is a file."""
    if arguments.lengths is None:
        return []
    lengths = []
    for word in arguments.lengths:
        if not re.fullmatch(r"[\d.,]+", word):
            arguments.files.append(word)
            continue
        try:
            lengths += [float(number) for number in word.split(",") if number]
        except ValueError:
            raise UsageError(f"--lengths takes seconds, not {word!r}") from None
    if any(length <= 0 for length in lengths):
        raise UsageError("--lengths takes seconds above 0")
    return lengths or list(LENGTHS)


class _OptionParser(argparse.ArgumentParser):
    """Turns what argparse would exit with into our own error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"--compare: {message}")


def _configurations(arguments: argparse.Namespace) -> "list[Configuration]":
    """The configuration of the command line, and one for each `--compare`.

    Raises:
        UsageError: An option is unknown or wrong.
        ModelError: A model does not exist.
    """
    parser = _OptionParser(add_help=False, allow_abbrev=False)
    add_model_options(parser)
    add_decoding_options(parser)
    _add_one_by_one(parser)
    found = [_configuration(AS_GIVEN, arguments)]
    for text in arguments.compare:
        changes = cli.spell([f"--{change.lstrip('-')}" for change in shlex.split(text)])
        if not changes:
            raise UsageError('--compare takes options such as "precision=f32 mode=sequential"')
        changed = parser.parse_args(changes, argparse.Namespace(**vars(arguments)))
        found.append(_configuration(text, changed))
    return found


def _configuration(label: str, arguments: argparse.Namespace) -> "Configuration":
    from whisper_npu.scripts.benchmarks.rtf import Configuration  # noqa: PLC0415

    return Configuration(
        label=label,
        folder=cli.find_model(arguments.model).resolve(),
        load={
            "device": arguments.device,
            "backend": arguments.backend,
            "kv_cache": arguments.kv_cache,
            "precision": arguments.precision,
        },
        threads=arguments.threads,
        options=decoding_options(arguments),
        one_by_one=arguments.one_by_one,
    )


def _measure(
    name: str, loaded: "Sequence[Loaded]", recordings: "Sequence[Recording]", repeats: int
) -> "Workload":
    from tqdm import tqdm  # noqa: PLC0415

    from whisper_npu.scripts.benchmarks.rtf import measure  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.rtf_report import Workload, accuracy  # noqa: PLC0415

    total = (repeats + 1) * len(loaded)
    with tqdm(total=total, desc=name, unit="run", disable=None) as bar:
        measurements = measure(loaded, recordings, repeats, lambda _: bar.update())
    language = next((each.options.language for each in loaded if each.options.language), "en")
    checked: list[Accuracy | None] = [
        accuracy(recordings, measured.runs[-1].texts, language) for measured in measurements
    ]
    return Workload(name, tuple(recordings), tuple(measurements), tuple(checked))


def _measure_lengths(
    lengths: Sequence[float],
    loaded: "Sequence[Loaded]",
    recordings: "Sequence[Recording]",
    repeats: int,
    folder: Path,
) -> "Iterator[Workload]":
    from whisper_npu.scripts.benchmarks.recordings import Recording, clip  # noqa: PLC0415

    for length in lengths:
        path = clip(recordings, length, folder / f"{length:g}.wav")
        yield _measure(f"{length:g} s", loaded, [Recording(path.name, path)], repeats)


def _start(measured: "Measurement", recordings: "Sequence[Recording]") -> None:
    """Start the program with an empty cache of compiled graphs, then again with a full one."""
    from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.engine_process import start_once  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.recordings import clip  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.rtf import job  # noqa: PLC0415

    loaded = measured.loaded
    with _empty_cache() as cache:
        audio = clip(recordings, START_CLIP, cache / "clip.wav")
        work = job(loaded.configuration, loaded.options)
        environment = {CACHE_VARIABLE: str(cache)}
        measured.cold = start_once(work, [audio], environment=environment)
        warm = start_once(work, [audio], environment=environment)
        # Memory is that of the real work, which needs more than the clip does.
        peak = start_once(
            work, [recording.path for recording in recordings], environment=environment
        )
        measured.warm = replace(warm, peak_bytes=peak.peak_bytes)


@contextmanager
def _empty_cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="whisper-npu-cache-") as folder:
        yield Path(folder)


def _roofline(
    loaded: "Loaded", recordings: "Sequence[Recording]"
) -> "tuple[Machine, list[StageRoof]]":
    """The machine's peaks, and the stages of one run more beside them.

    Raises:
        UsageError: The model does not run on the processor alone.
    """
    from whisper_npu.scripts.benchmarks.roofline import (  # noqa: PLC0415
        measure_machine,
        precisions,
        read_sizes,
        roofline,
    )
    from whisper_npu.scripts.benchmarks.rtf import run_once  # noqa: PLC0415

    device, precision = loaded.settings["device"], loaded.settings["precision"]
    if device != "CPU":
        raise UsageError(f"--roofline knows the peaks of the CPU, not of {device}")
    machine = measure_machine(loaded.configuration.threads)
    if not machine.flops.keys() >= set(precisions(precision)):
        raise UsageError(f"--roofline: this processor has no arithmetic in {precision}")
    run = run_once(loaded, recordings)
    sizes = read_sizes(loaded.model.folder, precision)
    return machine, roofline(run.stages, loaded.seen, sizes, machine)


def _plot(workload: "Workload", path: Path) -> None:
    """The stages of every configuration, stacked, per hour of audio."""
    from whisper_npu.scripts.benchmarks import plots  # noqa: PLC0415

    per_hour = 3600 / workload.audio_seconds
    bars = [
        plots.Bar(
            f"{measured.loaded.configuration.label}\nRTFx {measured.rtfx.median:.0f}",
            {name: stage.median * per_hour for name, stage in measured.stages.items()},
        )
        for measured in workload.measurements
    ]
    settings = workload.measurements[0].loaded.settings
    plots.stacked_bars(
        bars,
        path,
        title="Where the time goes",
        subtitle=f"{', '.join(settings.values())}; {workload.audio_seconds:.0f} s of audio",
        x_label="seconds of processing per hour of audio (less is better)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(benchmark_rtf, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
