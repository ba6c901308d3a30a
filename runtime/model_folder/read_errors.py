"""Explains why a graph cannot be read: it is damaged, or the machine lacks memory."""

from pathlib import Path

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN

# Messages of the operating system and the C++ library, which OpenVINO passes on.
_NO_MEMORY = ("cannot allocate memory", "not enough memory", "bad_alloc", "insufficient memory")


def cannot_read(path: Path, error: Exception) -> ModelError:
    """Return one line for a file that could not be loaded, with advice that fits the reason."""
    lines = str(error).strip().splitlines()
    reason = lines[-1] if lines else "out of memory"
    if isinstance(error, MemoryError) or any(words in reason.lower() for words in _NO_MEMORY):
        return ModelError(
            f"not enough memory to load {path}: {reason}; close other programs, or take a smaller "
            "model"
        )
    return ModelError(f"cannot read {path}: {reason}; {EXPORT_AGAIN}")
