"""Checks the target folder of an export before torch is imported."""

from pathlib import Path

from whisper_npu.errors import ExportError
from whisper_npu.export.manifest import MANIFEST, is_export, read_manifest
from whisper_npu.export.partials import tidy
from whisper_npu.export.source import Source
from whisper_npu.runtime.model_folder.config import Manifest, ManifestSource
from whisper_npu.runtime.model_folder.json_files import checked


def prepare_target(out: Path, source: Source, *, force: bool) -> None:
    """Clean up after killed exports, and check that this export overwrites no other files.

    Args:
        out: The model folder to write.
        source: The checkpoint to export.
        force: Whether another model's export may be replaced.

    Raises:
        ExportError: `out` holds other files, or cannot be written.
    """
    if out.parent.is_dir():
        try:
            tidy(out)
        except OSError as error:
            raise ExportError(f"cannot write {out}: {error.strerror or error}") from error
    if out.exists() and not out.is_dir():
        raise ExportError(f"cannot export to {out}: it is a file")
    if not out.is_dir() or not any(out.iterdir()):
        return
    manifest = read_manifest(out)
    if manifest is None or not is_export(manifest):
        raise ExportError(
            f"{out} holds something else than an export of this program (no {MANIFEST} of an"
            " export); give another folder, or remove it"
        )
    before = checked(
        manifest, Manifest, out / MANIFEST, error=ExportError, advice="remove the folder"
    ).source
    if not force and not _is_same(before, source):
        raise ExportError(
            f"{out} holds an export of {before.argument}, not of {source.argument}; give another"
            " --output, or --force to replace it"
        )


def _is_same(before: ManifestSource, source: Source) -> bool:
    """Whether both are the same checkpoint, perhaps in an earlier state."""
    if before.argument == source.argument:
        return True
    if source.sha256 is not None and before.sha256 == source.sha256:
        return True
    if source.path is None or before.argument is None:
        return False
    return Path(before.argument).expanduser().resolve() == source.path.resolve()
