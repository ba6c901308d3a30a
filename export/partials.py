"""Makes folders that appear whole or not at all, and cleans up after killed programs.

A folder is made under a hidden name beside its final place and renamed at the end. The program that
makes it holds a lock, which the operating system releases if the program dies. So the holder of the
lock knows that every unfinished folder for that place is abandoned.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path

REPLACED = "replaced"  # inside an unfinished folder: the old content of the final place
_MOMENT = 2.0  # seconds: longer than two renames take


def prefix(place: Path) -> str:
    """The beginning of the names of unfinished folders for a place."""
    return f".{place.name}.partial-"


@contextlib.contextmanager
def locked(
    place: Path, *, timeout: float = -1, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Lock a place, so that no other program makes it.

    Args:
        place: the folder to be made; its parent folder exists.
        timeout: seconds to wait for the lock; negative for no limit.
        waiting: called once if another program holds the lock.

    Raises:
        TimeoutError: another program still holds the lock.
        OSError: the parent folder cannot be written to.
    """
    from filelock import FileLock, Timeout  # noqa: PLC0415 - a twentieth of a second, rarely needed

    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is not None:
            waiting()
        lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        if os.name != "nt":  # a waiting program notices that the file is gone, and makes it again
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def tidy(place: Path) -> None:
    """Remove unfinished folders of killed programs, unless a program is making the place now.

    If a program was killed after it moved the old content away, the old content returns.

    Raises:
        OSError: the parent folder cannot be written to.
    """
    if not unfinished(place):
        return
    with (
        contextlib.suppress(TimeoutError),
        locked(place, timeout=0 if place.exists() else _MOMENT),
    ):
        clean(place)


def clean(place: Path) -> None:
    """The same as `tidy`, for a place that the caller has locked."""
    for folder in unfinished(place):
        old = folder / REPLACED
        if old.is_dir() and not place.exists():
            old.replace(place)
        shutil.rmtree(folder, ignore_errors=True)


def unfinished(place: Path) -> list[Path]:
    """The unfinished folders for a place."""
    return [folder for folder in place.parent.glob(f"{escape(prefix(place))}*") if folder.is_dir()]


def move_into_place(folder: Path, place: Path) -> None:
    """Rename a finished folder; the old content stays in place until then.

    Args:
        folder: the finished folder, inside an unfinished folder that receives the old content.
        place: the final place.
    """
    old = folder.with_name(REPLACED)
    had_old = place.exists()
    if had_old:
        place.replace(old)
    try:
        folder.replace(place)
    except BaseException:  # not even an interrupt may lose the old folder
        if had_old:
            old.replace(place)
        raise
