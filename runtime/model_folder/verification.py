"""Compares a model folder with its certificate before the folder is used.

The certificate is the export's manifest, which states the sha256 of every file. Digests are
remembered (see `digests`), so that only the first load of a folder reads its files for this.
"""

from pathlib import Path

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.digests import remembered_sha256, sha256_file
from whisper_npu.runtime.model_folder.folder import MANIFEST, ModelFolder
from whisper_npu.runtime.model_folder.layout import weight_files


def verify_folder(folder: ModelFolder) -> int:
    """Check that a folder's files have the digests of its certificate.

    A folder without a certificate is accepted: it comes from another exporter.

    Returns:
        the number of certified files; 0 without a certificate.

    Raises:
        ModelError: a certified file has changed, a graph names weights outside the folder, or the
            certificate or a file cannot be read.
    """
    layout = folder.layout
    for graph in (*layout.graphs, *([layout.alignment] if layout.alignment else [])):
        weight_files(graph)
    n_certified = 0
    for name, digest in _certified(folder).items():
        path = folder.path / name
        if not path.exists():  # the reader of a file reports it missing if the model needs it
            continue
        if not _holds(path, digest):
            raise ModelError(
                f"{path} differs from what {MANIFEST} certifies; export the model again, or delete "
                f"{MANIFEST} to use the folder without a certificate"
            )
        n_certified += 1
    return n_certified


def _certified(folder: ModelFolder) -> dict[str, str]:
    """Return the sha256 of each certified file, by name.

    Raises:
        ModelError: the certificate cannot be understood.
    """
    try:
        stated = folder.manifest.get("files", {})
        return {str(name): str(facts["sha256"]) for name, facts in stated.items()}
    except (AttributeError, KeyError, TypeError):
        raise ModelError(
            f"{folder.path / MANIFEST} is damaged: its files have no sha256; export the model again"
        ) from None


def _holds(path: Path, digest: str) -> bool:
    """Whether a file has a sha256; a remembered digest that differs is computed again."""
    try:
        return remembered_sha256(path) == digest or sha256_file(path) == digest
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(f"cannot read {path}: {reason}; export the model again") from None
