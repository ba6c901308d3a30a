"""Checks that a device decodes correctly: `whisper-npu selftest MODEL --device NPU`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import add_variant
from whisper_npu.scripts.common.recordings import check_line, read_recordings

if TYPE_CHECKING:
    from whisper_npu.npu.selftest import Check, Reference
    from whisper_npu.runtime.transcription.model import WhisperModel

EPILOG = """\
Without --audio the built-in sample is decoded, whole and in two halves.

examples:
  whisper-npu selftest models/tiny.en --record            where the model was exported
  whisper-npu selftest models/tiny.en --device NPU        on the target machine
  whisper-npu selftest models/tiny.en --audio a.wav b.wav --device NPU
  whisper-npu selftest models/tiny.en --audio a.wav b.wav --transcript a.wav=theirs.json

exit codes:
  0  every check passed
  1  a check found a difference; its line names the first one
  2  the command line is wrong
  3  the model or the device cannot be used
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "selftest",
        description="Compare the tokens that a device decodes with a reference, and check that "
        "they never depend on the recordings decoded before or at the same time.",
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
        type=cli.device,
        default="CPU",
        help="device to check, named as for `whisper-npu transcribe` (default: %(default)s)",
    )
    parser.add_argument(
        "--backend",
        default="openvino",
        help="library that runs the graphs: openvino or onnxruntime (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        help="precision to check, as for `whisper-npu transcribe`; auto is f32 on the CPU, because "
        "other precisions may rightly choose other tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--audio",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="two or more recordings to decode (default: the built-in sample)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write the reference into the model folder and check nothing. The CPU computes it in "
        "f32; do this on the machine of the export",
    )
    parser.add_argument(
        "--transcript",
        action="append",
        default=[],
        metavar="RECORDING=FILE",
        help="check only another runtime's transcript (JSON or text) of a recording. Can be "
        "repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for programs, instead of lines"
    )
    return parser


def selftest(arguments: argparse.Namespace) -> int:
    """Run the self test; returns the exit code."""
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.npu import selftest as tests  # noqa: PLC0415

    folder = cli.find_model(arguments.model, arguments.variant)
    recordings = read_recordings(arguments.audio)
    if arguments.record:
        exact = load_model(folder, kv_cache="concat", precision="f32", variant=arguments.variant)
        path = tests.write_reference(folder, tests.make_reference(exact, recordings))
        print(f"wrote {path}")
        return cli.EXIT_OK
    reference = tests.read_reference(folder)
    if reference is None or recordings.keys() - reference.tokens.keys():
        print("computing the reference on the CPU, in f32", file=sys.stderr)
        exact = load_model(folder, kv_cache="concat", precision="f32", variant=arguments.variant)
        reference = tests.make_reference(exact, recordings)
    auto_on_cpu = arguments.precision == "auto" and arguments.device == "CPU"
    model = load_model(
        folder,
        device=arguments.device,
        backend=arguments.backend,
        precision="f32" if auto_on_cpu else arguments.precision,
        variant=arguments.variant,
    )
    if arguments.transcript:
        checks = [_transcript(model, reference, entry) for entry in arguments.transcript]
    else:
        checks = []
        for check in tests.run(model, recordings, reference):
            checks.append(check)
            if not arguments.json:
                print(check_line(check), flush=True)
    failed = sum(check.passed is False for check in checks)
    device = f"{model.backend.device}, {model.backend.precision}"
    if arguments.json:
        content = {
            "model": model.folder.name,
            "device": model.backend.device,
            "precision": model.backend.precision,
            "passed": not failed,
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(content, indent=2))
    else:
        if arguments.transcript:
            print("\n".join(map(check_line, checks)))
        outcome = f"{failed} of {len(checks)} checks failed" if failed else "everything passed"
        print(f"{model.folder.name} on {device}: {outcome}")
    return cli.EXIT_SOME_FAILED if failed else cli.EXIT_OK


def _transcript(model: "WhisperModel", reference: "Reference", entry: str) -> "Check":
    from whisper_npu.npu.selftest import compare_transcript  # noqa: PLC0415

    name, equals, file = entry.partition("=")
    if not equals or name not in reference.tokens:
        raise UsageError(
            f"--transcript takes RECORDING=FILE with one of {', '.join(reference.tokens)}, "
            f"not {entry!r}"
        )
    return compare_transcript(model, Path(file), reference.tokens[name])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(selftest, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
