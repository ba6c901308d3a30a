"""Measures a server under load: `whisper-npu benchmark-server`, `scripts/benchmark_server.py`.

Clips of the recordings are sent one after another, from many callers at once, and beside a long
recording that the server transcribes meanwhile.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.choices import PRECISIONS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.outputs import check_outputs, needing_the_extra, write_text
from whisper_npu.scripts.common.tables import text_table

if TYPE_CHECKING:
    from whisper_npu.scripts.benchmarks.server_load import Load

_MIB = 1 << 20
_SHOWN = 5  # differing texts

EPILOG = f"""\
examples:
  whisper-npu benchmark-server talk.wav --model models/tiny.en
  whisper-npu benchmark-server recordings/ --model base --clients 8 --rounds 5 --plot load.png

It starts a server of its own on a free port of this machine, and asks it with OpenAI's client
(pip install 'whisper-npu[dev]'). Clips have the same text in every situation, or it fails.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "benchmark-server",
        description="Measure what callers of a server wait, alone, together, and beside long work.",
        epilog=EPILOG,
    )
    parser.add_argument("recordings", nargs="+", metavar="FILE", help="speech: files or folders")
    parser.add_argument(
        "--model",
        default=cli.DEFAULT_MODEL,
        help="model folder, or the name of a model (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=cli.device,
        default="CPU",
        help="device of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        help="precision of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="length of a clip (default: %(default)g)"
    )
    parser.add_argument(
        "--clients", type=int, default=16, help="callers at once (default: %(default)s)"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=48,
        help="requests of a round in each situation (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--long",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="length of the long recording (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time to FILE")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the waiting times (png, svg, pdf)"
    )
    return parser


def benchmark_server(arguments: argparse.Namespace) -> int:
    """Measure as the command line says; returns the exit code."""
    for name in ("clients", "requests", "rounds", "seconds", "long"):
        if not getattr(arguments, name) > 0:  # NaN is not above 0
            raise UsageError(f"--{name} must be above 0")
    check_outputs((arguments.json,), arguments.plot)
    from whisper_npu.runtime.audio.stream import list_audio_files  # noqa: PLC0415 - slow to import

    recordings = list_audio_files(arguments.recordings)
    model = cli.find_model(arguments.model)
    with needing_the_extra("measuring a server", "dev"):
        from whisper_npu.scripts.benchmarks import server_load  # noqa: PLC0415
    from whisper_npu.scripts.benchmarks.conditions import (  # noqa: PLC0415
        busy_warning,
        conditions,
        conditions_line,
    )

    wanted = server_load.Wanted(
        model=str(model),
        clip_seconds=arguments.seconds,
        clients=arguments.clients,
        requests=arguments.requests,
        rounds=arguments.rounds,
        long_seconds=arguments.long,
        device=arguments.device,
        precision=arguments.precision,
    )
    found = conditions(0)
    if warning := busy_warning(found):
        console.warning(warning)
    with tempfile.TemporaryDirectory(prefix="whisper-npu-") as folder:
        load = server_load.measure(wanted, recordings, Path(folder), console.note)
    print(f"{model.name}; {conditions_line(found)}\n\n{report(load, wanted.clients)}")
    for line in load.differing[:_SHOWN]:
        console.error(line)
    if arguments.json:
        content = {"conditions": found, "wanted": asdict(wanted), **asdict(load)}
        write_text(arguments.json, json.dumps(content, indent=2) + "\n")
    if arguments.plot:
        _draw(load, arguments.plot, model.name)
    return cli.EXIT_SOME_FAILED if load.differing else cli.EXIT_OK


def report(load: "Load", clients: int) -> str:
    """The figures as text."""
    from whisper_npu.scripts.benchmarks.server_load import (  # noqa: PLC0415 - needs the extra
        ALONE,
        BESIDE,
        TOGETHER,
        late,
    )
    from whisper_npu.scripts.benchmarks.spread import ratios, spread  # noqa: PLC0415

    names = {ALONE: ALONE, TOGETHER: f"{clients} callers at once", BESIDE: BESIDE}
    rows = []
    for situation, name in names.items():
        speed = spread(load.audio_seconds / one.elapsed[situation] for one in load.rounds)
        every = [seconds for one in load.rounds for seconds in one.latencies[situation]]
        waits = (1000 * spread(every).median, 1000 * late(every))
        rows.append([name, speed.text(), *(f"{wait:.0f}" for wait in waits)])
    header = ["requests", "times real time", "median ms", "95 of 100 within ms"]
    together = ratios(
        [one.elapsed[ALONE] for one in load.rounds], [one.elapsed[TOGETHER] for one in load.rounds]
    )
    slower = [ratio for one in load.rounds for ratio in one.slowdowns(BESIDE)]
    return "\n".join(
        [
            text_table(header, rows),
            "",
            f"at once, times one after another: {together.text('.2f')}",
            f"a clip's time beside a long recording, times its time alone: "
            f"{spread(slower).median:.2f} in the middle, 95 of 100 within {late(slower):.2f}",
            f"HTTP adds {1000 * load.http_seconds:.1f} ms to a clip (median of pairs)",
            f"memory of the server after each round: "
            f"{', '.join(f'{held / _MIB:.0f}' for held in load.memory)} MiB",
            f"texts that differ from those sent alone: {len(load.differing)}",
        ]
    )


def _draw(load: "Load", path: Path, model: str) -> None:
    """Draw how many of the requests had their text after which time."""
    from whisper_npu.scripts.common.plots import (  # noqa: PLC0415 - slow to import
        PALETTE,
        new_figure,
        save,
    )

    figure, axes = new_figure(
        f"Waiting for a server, {model}", "all rounds", "seconds to the text", "% of the requests"
    )
    for situation, color in zip(load.rounds[0].latencies, PALETTE, strict=False):
        every = sorted(s for one in load.rounds for s in one.latencies[situation])
        shares = [100 * (number + 1) / len(every) for number in range(len(every))]
        axes.step(every, shares, where="post", label=situation, color=color)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="lower right")
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(benchmark_server, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
