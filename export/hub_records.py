"""Remembers which variants of the hub's models were fetched whole.

The hub's cache does not say this: a snapshot may lack files, because a download was interrupted or
another program fetched some of them. A record is a small JSON file per repository in this
program's cache. Without it, the hub is asked again; nothing is fetched twice.
"""

import json
import logging
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.runtime.model_folder.json_files import checked, read_object

logger = logging.getLogger("whisper_npu")

_BEST = ""  # the key of the variant that is taken if none is named


@dataclass(frozen=True)
class _Fetched:
    """A variant of a repository's main branch.

    Attributes:
        commit: the snapshot.
        files: all files that were fetched, relative to the snapshot.
    """

    commit: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Record:
    variants: dict[str, _Fetched] = field(default_factory=dict)


def remember(repository: str, variant: str | None, snapshot: Path, files: Iterable[str]) -> None:
    """Note that a variant was fetched whole; if that cannot be written, the hub is asked again.

    Args:
        repository: hub id, `owner/name`.
        variant: as it was asked for; None for the most exact one.
        snapshot: its folder in the hub's cache.
        files: all of its files, relative to the snapshot.
    """
    path = _path(repository)
    found = {**_read(path).variants, variant or _BEST: _Fetched(snapshot.name, tuple(files))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as unfinished:
            json.dump(asdict(_Record(found)), unfinished)
        Path(unfinished.name).replace(path)
    except OSError as error:
        logger.debug("%s cannot be written: %s", path, error.strerror)


def whole_snapshot(repository: str, variant: str | None, snapshots: Path) -> Path | None:
    """Return the snapshot that holds a variant with all of its files; None if there is none.

    Args:
        repository: hub id, `owner/name`.
        variant: as it is asked for; None for the most exact one.
        snapshots: the folder of the repository's snapshots in the hub's cache.
    """
    fetched = _read(_path(repository)).variants.get(variant or _BEST)
    if fetched is None:
        return None
    snapshot = snapshots / fetched.commit
    is_whole = fetched.files and all((snapshot / name).is_file() for name in fetched.files)
    return snapshot if is_whole else None


def _path(repository: str) -> Path:
    return cache_folder() / "hub" / f"{repository.replace('/', '--')}.json"


def _read(path: Path) -> _Record:
    with suppress(ModelError):  # damaged: as if it were not there
        return checked(read_object(path), _Record, path)
    return _Record()
