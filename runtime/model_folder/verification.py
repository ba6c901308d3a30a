"""Compares a model folder with its certificate before the folder is used.

The certificate is the export's manifest, which states the sha256 of every file. Digests are
remembered (see `digests`), so that only the first load of a folder reads its files for this.
"""

from pathlib import Path

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.config import VERIFIED, Manifest, ManifestParity
from whisper_npu.runtime.model_folder.digests import remembered_sha256, sha256_file
from whisper_npu.runtime.model_folder.external_data import leads_out
from whisper_npu.runtime.model_folder.folder import MANIFEST, ModelFolder
from whisper_npu.runtime.model_folder.json_files import checked
from whisper_npu.runtime.model_folder.layout import PLAIN, weight_files

_MOST_SHOWN = 80  # characters of a name in a message


def verify_folder(folder: ModelFolder) -> int:
    """Check that a folder's files have the digests of its certificate.

    A folder without a certificate is accepted: it comes from another exporter.

    Returns:
        the number of certified files; 0 without a certificate.

    Raises:
        ModelError: a certified file has changed, a graph names weights outside the folder, the
            certificate names a file outside the folder, or one of them cannot be read.
    """
    layout = folder.layout
    for graph in (*layout.graphs, *([layout.alignment] if layout.alignment else [])):
        weight_files(graph)
    n_certified = 0
    for name, digest in _certified(folder).items():
        if leads_out(name):
            raise ModelError(
                f"{folder.path / MANIFEST} certifies {name[:_MOST_SHOWN]!r}, which is outside the "
                f"model folder; export the model again, or delete {MANIFEST}"
            )
        path = folder.path / name
        if not _exists(path):  # the reader of a file reports it missing if the model needs it
            continue
        if not _holds(path, digest):
            raise ModelError(
                f"{path} differs from what {MANIFEST} certifies; export the model again, or delete "
                f"{MANIFEST} to use the folder without a certificate"
            )
        n_certified += 1
    return n_certified


def is_verified(parity: ManifestParity, variant: str) -> bool:
    """Whether the graphs of a variant were compared with their checkpoint.

    Args:
        parity: the certificate's entry.
        variant: see `Layout`.
    """
    compared = (PLAIN,) if parity.variants is None else parity.variants
    return parity.status == VERIFIED and variant in compared


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _certified(folder: ModelFolder) -> dict[str, str]:
    """Return the sha256 of each certified file, by name."""
    path = folder.path / MANIFEST
    stated = checked(folder.manifest, Manifest, path).files
    return {name: record.sha256 for name, record in stated.items()}


def _holds(path: Path, digest: str) -> bool:
    """Whether a file has a sha256; a remembered digest that differs is computed again."""
    try:
        return remembered_sha256(path) == digest or sha256_file(path) == digest
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"cannot read {path}: {reason}; export the model again") from None
