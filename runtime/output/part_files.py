"""Files being written under another name: whose they are, and removing those of killed programs."""

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
_YOUNG = 60.0  # seconds: between making a draft and holding it another program must not remove it


def open_draft(folder: Path) -> tuple[Path, TextIO]:
    """Make a file that is held as long as it is open.

    Its name does not depend on that of the file to be, which may be as long as a name can be.

    Raises:
        OSError: it cannot be made.
    """
    _remove_abandoned(folder)
    path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
    file = path.open("x", encoding="utf-8", newline="\n")
    if os.name != "nt":  # Windows does not let others remove an open file
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, file


@cache
def _remove_abandoned(folder: Path) -> None:
    """Remove the drafts of programs that were killed, once per folder and program."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # it is held, or somebody else removed it
            if time.time() - path.stat().st_mtime < _YOUNG:
                continue
            if os.name != "nt":
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
