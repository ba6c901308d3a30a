"""Lets engines read graphs whose data files are symbolic links, as in a Hugging Face hub's cache.

OpenVINO and ONNX Runtime refuse a data file that is a link out of the graph's folder (OpenVINO's
`sanitize_path`, ONNX Runtime's `ValidateExternalDataPath`). In a hub's snapshot every file is such
a link. While such a graph is read, a temporary folder holds hard links to its files.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.runtime.model_folder.external_data import external_files

logger = logging.getLogger("whisper_npu")

_ABANDONED_AFTER = 3600.0  # seconds: reading a graph takes less


@contextmanager
def without_links(graph: Path) -> Iterator[Path]:
    """Yield the graph itself if no data file is a link; else the same graph among hard links.

    Args:
        graph: an ONNX file.

    Raises:
        ModelError: the graph or a data file cannot be read or is outside the folder (see
            `external_files`), or the links cannot be made.
    """
    folder = graph.parent.resolve()
    files = external_files(graph)
    if all(file.resolve() == file for file in files):
        yield graph
        return
    place = cache_folder() / "linked"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
        stand_in = tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise _cannot_link(place, error) from None
    with stand_in as name:
        try:
            for file in (folder / graph.name, *files):
                target = Path(name) / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(file.resolve(), target)
        except OSError as error:
            raise _cannot_link(place, error) from None
        yield Path(name) / graph.name


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy if the two are on different file systems."""
    try:
        os.link(source, target)
    except OSError as error:
        logger.info("%s is copied to be read: %s", source, error.strerror)
        shutil.copyfile(source, target)


def _cannot_link(place: Path, error: OSError) -> ModelError:
    return ModelError(
        f"weights that are symbolic links cannot be put into {place} to be read: {error.strerror}; "
        "free some space, or copy the model folder with its links followed (cp -rL)"
    )


def _remove_abandoned(place: Path) -> None:
    """Remove the folders of killed processes."""
    for path in place.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(path)
