"""Where the user's cache lies: compiled graphs, fetched assets, what is remembered of files."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "WHISPER_NPU_CACHE"


def cache_folder() -> Path:
    """`$WHISPER_NPU_CACHE`, else the user's cache directory; it need not exist."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("whisper-npu")
