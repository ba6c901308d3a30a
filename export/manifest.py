"""The export's certificate: source, versions, files, and the result of the verification."""

import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from whisper_npu.errors import ExportError
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.source import Source
from whisper_npu.runtime.model_folder.config import VERIFIED
from whisper_npu.runtime.model_folder.digests import remembered_sha256, sha256_file
from whisper_npu.version import __version__

MANIFEST = "export_manifest.json"
FORMAT = 1
REVISION = 3  # raise it when the same source would export to other graphs or files
LIBRARIES = {
    "torch": "torch",
    "transformers": "transformers",
    "optimum": "optimum-onnx",
    "onnx": "onnx",
    "openvino": "openvino",
}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that an export depends on, read without importing them."""
    versions = {name: version(distribution) for name, distribution in LIBRARIES.items()}
    return {**versions, "python": platform.python_version()}


def describe_files(folder: Path) -> dict[str, dict[str, str | int]]:
    """The sha256 and size in bytes of every file of a folder except the manifest."""
    return {
        path.name: describe_file(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST
    }


def describe_file(path: Path) -> dict[str, str | int]:
    """The sha256 and size in bytes of a file."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def write_manifest(
    folder: Path,
    source: Source,
    dimensions: Dimensions,
    parity: dict[str, Any],
    precision: dict[str, Any],
) -> None:
    """Write the certificate of a folder that holds all other files already.

    Args:
        folder: The model folder.
        source: The exported checkpoint.
        dimensions: The model's sizes.
        parity: The result of `verify_parity` for the float graphs, before any conversion.
        precision: The `precision`. For a precision other than fp32 also the requested
            `conversion`, the changes to the `graphs`, and the `accuracy`.
    """
    content = {
        "format": FORMAT,
        "whisper_npu": __version__,
        "export_revision": REVISION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source.as_dict(),
        "versions": library_versions(),
        "dimensions": dimensions.as_dict(),
        "kv_contract": "accumulated",
        **{name: value for name, value in precision.items() if value},
        "files": describe_files(folder),
        "parity": parity,
    }
    write_content(folder, content)


def refresh_file(folder: Path, name: str) -> None:
    """Update one file in the certificate of a folder; a folder without certificate stays as it is.

    Raises:
        ExportError: The certificate cannot be written.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    manifest["files"][name] = describe_file(folder / name)
    write_content(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The certificate of a folder, or None if this program wrote none."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(content, dict) and "whisper_npu" in content and "files" in content
    return content if is_ours else None


def is_export(manifest: dict[str, Any]) -> bool:
    """Whether a certificate is of an export; else `whisper-npu verify` made it for other files."""
    return "export_revision" in manifest


def verify_files(folder: Path) -> None:
    """Check that every file of an export is there and unchanged.

    Raises:
        ExportError: The manifest is missing, or a file is missing, added or changed; the message
            names the file.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ExportError(f"{folder} is no export of this program: it has no {MANIFEST}")
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{folder} is incomplete: {name} is missing; export it again")
        if remembered_sha256(path) != expected["sha256"]:
            raise ExportError(f"{path} differs from what was exported (sha256); export it again")


def is_up_to_date(
    folder: Path,
    source: Source,
    *,
    verified: bool,
    precision: str = "fp32",
    conversion: dict[str, Any] | None = None,
) -> bool:
    """Whether a folder holds, unchanged, the files that an export of `source` would make now.

    Args:
        folder: The model folder.
        source: The source with its digest or commit.
        verified: Whether the folder must have a parity certificate.
        precision: The precision that its weights must have.
        conversion: The options that its conversion must have had.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    recorded = manifest.get("source", {})
    identity = source.as_dict()
    same_source = all(
        recorded.get(key) == identity[key] for key in ("kind", "revision", "sha256")
    ) and (identity["sha256"] is not None or recorded.get("argument") == identity["argument"])
    if (
        not same_source
        or manifest.get("format") != FORMAT
        or manifest.get("export_revision") != REVISION
        or manifest.get("versions") != library_versions()
        or manifest.get("precision") != precision
        or manifest.get("conversion", {}) != (conversion or {})
        or (verified and manifest.get("parity", {}).get("status") != VERIFIED)
    ):
        return False
    try:
        verify_files(folder)
    except ExportError:
        return False
    return True


def write_content(folder: Path, content: dict[str, Any]) -> None:
    """Write a folder's certificate; it appears whole, or the old one stays.

    Raises:
        ExportError: The certificate cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path = folder / MANIFEST
    unfinished = path.with_name(f".{MANIFEST}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)  # a link, as in a hub's cache, is replaced and not followed
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
