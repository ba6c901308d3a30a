"""Locates the user's cache of compiled graphs, fetched assets and facts about files."""

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "WHISPER_NPU_CACHE"


def cache_folder() -> Path:
    """Return `$WHISPER_NPU_CACHE`, else the user's cache directory; it need not exist."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else platformdirs.user_cache_path("whisper-npu")
