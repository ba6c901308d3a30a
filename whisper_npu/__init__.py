"""Whisper speech recognition on Intel NPUs, CPUs and GPUs: export, verify, run."""

from pathlib import Path

if not (Path(__file__).parent / "runtime").is_dir():
    # A checkout keeps the subpackages one level up, as folders of the repository.
    __path__.append(str(Path(__file__).parent.parent))

from whisper_npu.version import __version__

__all__ = ["__version__"]
