"""Verifies a model folder, whoever made it: `whisper-npu verify DIR [--against CHECKPOINT]`."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import add_variant
from whisper_npu.scripts.common.recordings import check_line, read_recordings

if TYPE_CHECKING:
    from whisper_npu.npu.selftest import Check, Recordings, Reference
    from whisper_npu.runtime.model_folder.folder import ModelFolder

EPILOG = """\
Compared are, in f32 on the CPU, the tokens of recordings:
  the files with the folder's certificate (export_manifest.json), by their sha256;
  each kind of key/value cache with decoding without a cache;
  ONNX Runtime with OpenVINO, if it is installed (extra [ort]) and the graphs are ONNX;
  the folder with PyTorch running a checkpoint, with --against (extra [export]).
If all are equal, the certificate is written, or renewed with the checks and their date.

exit codes: 0 everything is equal, 1 something differs, 2 wrong options, 3 the folder cannot be used

examples:
  whisper-npu verify models/tiny.en
  whisper-npu verify whisper-small-int4-ov --read-only talk.wav
  whisper-npu verify my-model --against my-checkpoint
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "verify",
        description="Verify a model folder: its files, caches, engines, and its checkpoint.",
        epilog=EPILOG,
    )
    parser.add_argument("model", help="the model folder, a model's name, or a hub id")
    parser.add_argument(
        "audio", nargs="*", type=Path, help="recordings to decode (default: the built-in one)"
    )
    add_variant(parser)
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="compare with this checkpoint in PyTorch: a name, hub id, folder or .pt file",
    )
    parser.add_argument(
        "--read-only", action="store_true", help="write no certificate into the folder"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return parser


def verify(arguments: argparse.Namespace) -> int:
    """Verify the folder; returns the exit code."""
    from whisper_npu.runtime.model_folder.folder import read_model_folder  # noqa: PLC0415

    place = cli.find_model(arguments.model, arguments.variant)
    folder = read_model_folder(place, arguments.variant)
    if not arguments.read_only:
        from whisper_npu.export.certificate import require_writable  # noqa: PLC0415

        require_writable(folder)
    checks = []
    for check in _checks(folder, read_recordings(arguments.audio), arguments.against):
        checks.append(check)
        if not arguments.json:
            print(check_line(check), flush=True)
    failed = sum(check.passed is False for check in checks)
    written, failure = None, None
    if not failed and not arguments.read_only:
        from whisper_npu.errors import ExportError  # noqa: PLC0415
        from whisper_npu.export.certificate import certify  # noqa: PLC0415

        try:
            written = certify(folder, [asdict(check) for check in checks], arguments.against)
        except ExportError as error:  # after the result, which took minutes
            failure = error
    if arguments.json:
        content = {
            "model": folder.name,
            "variant": folder.layout.variant,
            "passed": not failed,
            "checks": [asdict(check) for check in checks],
            "certificate": None if written is None else str(written),
        }
        print(json.dumps(content, indent=2))
    else:
        outcome = f"{failed} of {len(checks)} checks failed" if failed else "everything is equal"
        print(f"{folder.name}: {outcome}{'' if written is None else f'; wrote {written}'}")
    if failure is not None:
        raise failure
    return cli.EXIT_SOME_FAILED if failed else cli.EXIT_OK


def _checks(
    folder: "ModelFolder", recordings: "Recordings", against: str | None
) -> "Iterator[Check]":
    """Yield the checks one by one; each takes seconds.

    Raises:
        UsageError: no recording has speech, so there are no tokens to compare.
    """
    from whisper_npu.errors import ModelError, UsageError  # noqa: PLC0415
    from whisper_npu.npu.selftest import Check  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.verification import verify_folder  # noqa: PLC0415

    try:
        n_certified = verify_folder(folder)
        content = folder.digest()
    except ModelError as error:
        yield Check("files", False, str(error))
        return
    certified = f"{n_certified} files as certified" if n_certified else "no certificate"
    yield Check("files", True if n_certified else None, certified)
    print("decoding without a cache, for comparison", file=sys.stderr)
    reference = _tokens(folder, recordings, kv_cache="off")
    n_tokens = sum(map(len, reference.tokens.values()))
    if not n_tokens:
        raise UsageError(
            f"nothing can be compared: the model finds no speech in {', '.join(recordings)}; give "
            "recordings with speech"
        )
    for kind in ("stateful", "concat", "static"):
        yield _compare(f"cache {kind}", reference, _tokens(folder, recordings, kv_cache=kind))
    if find_spec("onnxruntime") is None:
        yield Check("ONNX Runtime", None, "not installed: pip install 'whisper-npu[ort]'")
    elif folder.layout.is_openvino:
        yield Check("ONNX Runtime", None, "the graphs are OpenVINO's own format")
    else:
        found = _tokens(folder, recordings, backend="onnxruntime", kv_cache="static")
        yield _compare("ONNX Runtime", reference, found)
    if against is not None:
        print(f"decoding with {against} in PyTorch: {n_tokens} tokens", file=sys.stderr)
        yield _compare("PyTorch", _pytorch_tokens(folder, recordings, against), reference)
    if folder.digest() != content:
        yield Check("files", False, "they changed while they were verified; verify them again")


def _tokens(
    folder: "ModelFolder", recordings: "Recordings", *, kv_cache: str, backend: str = "openvino"
) -> "Reference":
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.npu.selftest import make_reference  # noqa: PLC0415

    with load_model(
        folder.path,
        backend=backend,  # type: ignore[arg-type]
        kv_cache=kv_cache,  # type: ignore[arg-type]
        precision="f32",
        variant=folder.layout.variant,
    ) as model:
        return make_reference(model, recordings)


def _pytorch_tokens(
    folder: "ModelFolder", recordings: "Recordings", checkpoint: str
) -> "Reference":
    from whisper_npu.export.checkpoint import load_checkpoint  # noqa: PLC0415 - needs torch
    from whisper_npu.export.torch_backend import TorchBackend  # noqa: PLC0415
    from whisper_npu.npu.selftest import make_reference  # noqa: PLC0415
    from whisper_npu.runtime.features.vad import VoiceActivity  # noqa: PLC0415
    from whisper_npu.runtime.text.tokenizer import Tokenizer  # noqa: PLC0415
    from whisper_npu.runtime.transcription.model import WhisperModel  # noqa: PLC0415

    backend = TorchBackend(load_checkpoint(checkpoint))
    tokenizer = Tokenizer(folder.tokenizer)
    with WhisperModel(folder, backend, tokenizer, VoiceActivity(folder.path)) as model:
        return make_reference(model, recordings)


def _compare(name: str, reference: "Reference", found: "Reference") -> "Check":
    from whisper_npu.npu.selftest import Check, first_difference  # noqa: PLC0415

    for recording, tokens in reference.tokens.items():
        difference = first_difference(tokens, found.tokens[recording])
        if difference is not None:
            return Check(name, False, f"{recording} {difference}")
    n_tokens = sum(map(len, reference.tokens.values()))
    return Check(name, True, f"{n_tokens} tokens of {len(reference.tokens)} recordings are equal")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(verify, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
