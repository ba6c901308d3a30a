"""Writes incomplete files under another name, and removes those of killed programs."""

import contextlib
import os
import secrets
import time
from functools import cache
from pathlib import Path
from typing import TextIO

if os.name != "nt":
    import fcntl

_PREFIX, _SUFFIX = ".whisper-npu-", ".part"
_YOUNG = 60.0  # seconds: other programs must not remove a draft before it is locked


def open_draft(folder: Path) -> tuple[Path, TextIO]:
    """Make a file that stays locked while it is open.

    Its name does not depend on the final name, which may have the longest possible length.

    Raises:
        OSError: the file cannot be made.
    """
    _remove_abandoned(folder)
    path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    file = path.open("x", encoding="utf-8", newline="\n")
    if os.name != "nt":  # on Windows, others cannot remove an open file
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, file


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove the drafts of killed programs, once per folder and program."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # the draft is locked, or another program removed it
            if time.time() - path.stat().st_mtime < _YOUNG:
                continue
            if os.name != "nt":
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
