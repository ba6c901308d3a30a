"""Folders that appear whole or not at all, and what killed programs left of them.

A folder is made under a hidden name beside its place and renamed at the end. Whoever makes one
holds a lock that the operating system takes back from a program that dies; so whoever holds the
lock knows that every unfinished folder for that place is abandoned.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path

REPLACED = "replaced"  # inside an unfinished folder: what was in the place before
_MOMENT = 2.0  # seconds: longer than two renames take


def prefix(place: Path) -> str:
    """What the names of unfinished folders for a place begin with."""
    return f".{place.name}.partial-"


@contextlib.contextmanager
def locked(
    place: Path, *, timeout: float = -1, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a place, so that nobody else makes it.

    Args:
        place: the folder to be made; the folder that it lies in exists.
        timeout: seconds to wait for its holder; negative: as long as it takes.
        waiting: called once if somebody else holds it.

    Raises:
        TimeoutError: somebody else still holds it.
        OSError: the folder it lies in cannot be written to.
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
        if os.name != "nt":  # whoever waits notices that the file has gone, and makes it again
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def tidy(place: Path) -> None:
    """Put back or remove what killed programs left of a place, unless somebody makes it now.

    What was taken out of the place to make room for its successor returns, if the successor never
    came.

    Raises:
        OSError: the folder it lies in cannot be written to.
    """
    if not unfinished(place):
        return
    with (
        contextlib.suppress(TimeoutError),
        locked(place, timeout=0 if place.exists() else _MOMENT),
    ):
        clean(place)


def clean(place: Path) -> None:
    """The same for a place that the caller holds."""
    for folder in unfinished(place):
        old = folder / REPLACED
        if old.is_dir() and not place.exists():
            old.replace(place)
        shutil.rmtree(folder, ignore_errors=True)


def unfinished(place: Path) -> list[Path]:
    """The unfinished folders for a place."""
    return [folder for folder in place.parent.glob(f"{escape(prefix(place))}*") if folder.is_dir()]


def move_into_place(folder: Path, place: Path) -> None:
    """Rename a finished folder; what was in its place stays until it is there.

    Args:
        folder: in an unfinished folder, which takes up what was in the place.
        place: where it goes.
    """
    old = folder.with_name(REPLACED)
    had_old = place.exists()
    if had_old:
        place.replace(old)
    try:
        folder.replace(place)
    except BaseException:  # an interrupt, too, must not cost the old folder
        if had_old:
            old.replace(place)
        raise
