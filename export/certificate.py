"""Writes what `whisper-npu verify` found into a model folder's certificate."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openvino as ov

from whisper_npu.errors import ExportError
from whisper_npu.export.manifest import FORMAT, describe_file, is_export, write_content
from whisper_npu.runtime.model_folder.config import NOT_VERIFIED, VERIFIED
from whisper_npu.runtime.model_folder.folder import MANIFEST, ModelFolder
from whisper_npu.runtime.model_folder.json_files import read_object
from whisper_npu.version import __version__

_ADVICE = "give --read-only to write no certificate"


def require_writable(folder: ModelFolder) -> None:
    """Make sure that a certificate can be written, before the checks, which take minutes.

    Raises:
        ExportError: the folder cannot be written to.
    """
    if not os.access(folder.path, os.W_OK):
        raise ExportError(f"cannot write to {folder.path}; {_ADVICE}")


def certify(folder: ModelFolder, checks: Sequence[dict[str, Any]], against: str | None) -> Path:
    """Write the certificate of a verified folder, or renew it.

    The entries of an export, such as the source and the parity with PyTorch, stay, and so do the
    entries of other variants. Of a folder of another exporter, the certificate names the variants
    that were compared with a checkpoint; only these count as verified.

    Args:
        folder: the folder, with the verified variant.
        checks: the passed checks, for JSON.
        against: the checkpoint that it was compared with, if any.

    Returns:
        the certificate's path.

    Raises:
        ExportError: it cannot be written.
        ModelError: the earlier certificate, or a file, cannot be read.
    """
    path, variant = folder.path / MANIFEST, folder.layout.variant
    content = {"format": FORMAT, "whisper_npu": __version__, **read_object(path)}
    if not is_export(content):
        compared = dict(content.get("parity", {}).get("variants") or {})
        if against is not None:
            compared[variant] = against
        status = VERIFIED if compared else NOT_VERIFIED
        content["parity"] = {"status": status, "variants": compared}
    try:
        described = {
            file.relative_to(folder.path).as_posix(): describe_file(file) for file in folder.files()
        }
    except OSError as error:
        raise ExportError(f"cannot read {error.filename}: {error.strerror or error}") from None
    content["files"] = {**content.get("files", {}), **described}
    before = content.get("checked", {})
    content["checked"] = {
        **{name: entry for name, entry in before.items() if isinstance(entry, dict)},
        variant: {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "whisper_npu": __version__,
            "openvino": ov.get_version(),
            "checkpoint": against,
            "checks": list(checks),
        },
    }
    try:
        write_content(folder.path, content)
    except ExportError as error:
        raise ExportError(f"{error}; {_ADVICE}") from None
    return path
