"""Makes and compiles a model's static graphs ahead of time: `whisper-npu compile MODEL`."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whisper_npu.errors import DeviceError, UsageError
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import add_variant

if TYPE_CHECKING:
    from whisper_npu.npu.bundle import Bundle

EPILOG = """\
The static graphs are written into the model folder. Copy the folder to the target machine, which
then needs no onnx package. Compiled graphs are kept in the user's cache (`whisper-npu cache`).

examples:
  whisper-npu compile models/tiny.en                       make static graphs, compile for this NPU
  whisper-npu compile models/tiny.en --device none         make static graphs only
  whisper-npu compile models/tiny.en --platform 4000       for another machine's NPU (Lunar Lake)
  whisper-npu compile models/tiny.en --weights f16 --windows 10 20

Platforms: 3720 Meteor Lake and Arrow Lake, 4000 Lunar Lake, 5010 Panther Lake.

exit codes:
  0  everything was made
  2  the command line is wrong
  3  the model, the device or the compiler cannot be used; the message says what is missing
"""

PLATFORMS = ("3720", "4000", "5010", "5020")
WEIGHTS = ("auto", "lossless", "f16", "int8")
NO_DEVICE = "none"


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "compile",
        description="Make a model's static graphs for the NPU and compile them ahead of time.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=cli.DEFAULT_MODEL,
        help="model folder, or name of a model (default: %(default)s)",
    )
    add_variant(parser)
    parser.add_argument(
        "--device",
        type=_device,
        default="NPU",
        help="device to compile for: NPU, NPU_EMULATED or CPU. none makes the static graphs and "
        "compiles nothing, for a machine without the device (default: %(default)s)",
    )
    parser.add_argument(
        "--platform",
        choices=PLATFORMS,
        help="compile for another machine's NPU, of this platform; needs OpenVINO's NPU compiler "
        "(default: this machine's NPU)",
    )
    parser.add_argument(
        "--weights",
        default="auto",
        type=cli.precision(*WEIGHTS),
        choices=WEIGHTS,
        help="number format of the stored weights. lossless stores in 16 bits the weights whose "
        "values stay the same; f16 stores all in 16 bits; int8 stores matrices in 8 bits, which is "
        "smallest and costs accuracy with tiny models; auto is int8 above 200 million parameters, "
        "else lossless (default: %(default)s)",
    )
    parser.add_argument(
        "--windows",
        nargs="*",
        type=int,
        metavar="SECONDS",
        help="also make encoders for these shorter windows, for recordings shorter than 30 s "
        "(default: the windows of the static graphs that are there, if any)",
    )
    return parser


def _device(text: str) -> str:
    return text if text == NO_DEVICE else cli.device(text)


def compile_model(arguments: argparse.Namespace) -> int:
    """Make and compile the graphs; returns the exit code."""
    from whisper_npu.npu.build_bundle import ensure_bundle  # noqa: PLC0415
    from whisper_npu.npu.devices import core_for, require_static, resolve, resolve_platform  # noqa: PLC0415
    from whisper_npu.npu.placement import PARTS  # noqa: PLC0415
    from whisper_npu.npu.static_backend import graph_names  # noqa: PLC0415
    from whisper_npu.npu.static_engine import OpenVINOEngine  # noqa: PLC0415
    from whisper_npu.runtime.engines.compile_cache import default_cache  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.folder import read_model_folder  # noqa: PLC0415

    if arguments.platform and arguments.device != "NPU":
        raise UsageError("--platform names an NPU: it goes with --device NPU")
    if arguments.device != NO_DEVICE:
        require_static(arguments.device)
    started = time.perf_counter()
    core = core_for(arguments.device)
    folder = read_model_folder(
        cli.find_model(arguments.model, arguments.variant), arguments.variant
    )
    bundle = ensure_bundle(
        folder,
        weights=arguments.weights,
        windows=None if arguments.windows is None else tuple(sorted(set(arguments.windows))),
        progress=_print,
    )
    _print(_describe(bundle))
    if arguments.device == NO_DEVICE:
        return cli.EXIT_OK
    if arguments.platform:
        target = resolve_platform(core, arguments.platform)
    else:
        try:
            target = resolve(core, arguments.device)
        except DeviceError as error:
            raise DeviceError(
                f"{error}. The static graphs are made, and the target machine can compile them "
                f"itself; --device {NO_DEVICE} makes them alone"
            ) from error
    cache = default_cache()
    _, names = graph_names(bundle, PARTS)
    engine = OpenVINOEngine(
        core, bundle, target, cache=cache, at_once=(), names=names, progress=_print
    )
    missing = [name for name in names if not engine.is_kept(name)]
    if missing:
        raise DeviceError(
            f"{', '.join(missing)} could not be kept in {cache.folder}; is the disk full, or "
            "the limit WHISPER_NPU_CACHE_LIMIT too low?"
        )
    seconds = time.perf_counter() - started
    _print(
        f"{len(names)} graphs are compiled for {target.label} in {cache.folder} ({seconds:.0f} s)"
    )
    return cli.EXIT_OK


def _describe(bundle: "Bundle") -> str:
    size = sum(path.stat().st_size for path in bundle.path.iterdir())
    return (
        f"{bundle.path}: {len(bundle.graphs)} static graphs, {size / 1e6:.0f} MB, prompts up to "
        f"{bundle.buckets[-1]} tokens at once, windows of "
        f"{', '.join(f'{frames / 100:g}' for frames in bundle.frames)} s, weights {bundle.weights}"
    )


def _print(line: str) -> None:
    # One write, which threads that compile at the same time cannot mix with theirs.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(compile_model, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
