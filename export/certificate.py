"""Writes what `whisper-npu verify` found into a model folder's certificate."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openvino as ov

from whisper_npu.errors import ExportError
from whisper_npu.export.manifest import FORMAT, NOT_VERIFIED, VERIFIED, describe_file
from whisper_npu.runtime.model_folder.folder import MANIFEST, ModelFolder
from whisper_npu.version import __version__


def certify(folder: ModelFolder, checks: Sequence[dict[str, Any]], against: str | None) -> Path:
    """Write the certificate of a verified folder, or renew it.

    The entries of an export, such as the source and the parity with PyTorch, stay. A folder of
    another exporter gets the digests of its files, and the status `verified` only if it was
    compared with a checkpoint.

    Args:
        folder: the folder.
        checks: the passed checks, for JSON.
        against: the checkpoint that it was compared with, if any.

    Returns:
        the certificate's path.

    Raises:
        ExportError: it cannot be written.
    """
    path = folder.path / MANIFEST
    content: dict[str, Any] = dict(folder.manifest)
    if not content:
        content = {
            "format": FORMAT,
            "whisper_npu": __version__,
            "source": {"argument": against},
            "parity": {"status": NOT_VERIFIED if against is None else VERIFIED},
        }
    graphs = [folder.path / name for name in folder.graph_digests(alignment=True)]
    others = [each for each in folder.path.iterdir() if each.is_file() and each != path]
    files = sorted({*graphs, *(each for each in others if each.suffix in {".json", ".txt"})})
    content["files"] = {
        **content.get("files", {}),
        **{each.relative_to(folder.path).as_posix(): describe_file(each) for each in files},
    }
    content["checked"] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "whisper_npu": __version__,
        "openvino": ov.get_version(),
        "variant": folder.layout.variant,
        "checkpoint": against,
        "checks": list(checks),
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"cannot write {path}: {error.strerror or error}; give --read-only"
        ) from None
    return path
