"""Files below a local path or a URL of fsspec, written whole or not at all."""

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from whisper_npu import OutputError, UsageError

_DRAFT = re.compile(r"\..+-[0-9a-f]{16}")


class Folder:
    """A folder in any file system that fsspec knows. Can be sent to other processes.

    Attributes:
        url: the path or URL, without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        """Name a folder; it need not exist.

        Raises:
            UsageError: no installed package knows this kind of URL.
        """
        self.url = absolute(url.rstrip("/") or "/")
        self._fs, self._path = filesystem(self.url)

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        return Folder, (self.url,)

    @property
    def local_path(self) -> Path | None:
        """The folder as a local path; None if it is elsewhere."""
        return Path(self._path) if isinstance(self._fs, LocalFileSystem) else None

    def make(self) -> None:
        """Make the folder if it is missing, and check that files can be written.

        Raises:
            UsageError: it cannot be made, or files cannot be written.
        """
        probe = f"{self._path}/.probe-{secrets.token_hex(8)}"
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(probe, b"probe")
            self._fs.rm_file(probe)
        except OSError as error:
            raise UsageError(
                f"{self.url}: cannot be written to: {error.strerror or error}; "
                "choose another --output"
            ) from None

    def remove_drafts(self) -> None:
        """Remove the files that killed programs left unfinished in a local folder."""
        for path in self.local_path.glob(".*") if self.local_path is not None else ():
            if _DRAFT.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def path(self, name: str) -> str:
        """The path or URL of a file in this folder."""
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        """The sorted names of the files in this folder, without files that are being written."""
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._path):
            return []
        found = [path.rsplit("/", 1)[-1] for path in self._fs.ls(self._path, detail=False)]
        return sorted(name for name in found if not name.startswith("."))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        self._fs.invalidate_cache()
        return bool(self._fs.exists(f"{self._path}/{name}"))

    def open(self, name: str) -> BinaryIO:
        """Open a file to read.

        Raises:
            OSError: it cannot be read.
        """
        return cast(BinaryIO, self._fs.open(f"{self._path}/{name}", "rb"))

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}/{name}")

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to write; it gets its name at the end of the block, if no error is raised.

        A local file is renamed. A remote file is written here first, and then sent as a whole: a
        transaction of fsspec would end with the first of several files that are open together.

        Raises:
            OutputError: the file cannot be written.
        """
        target = f"{self._path}/{name}"
        try:
            if not isinstance(self._fs, LocalFileSystem):
                with tempfile.NamedTemporaryFile() as copy:
                    yield cast(BinaryIO, copy)
                    copy.flush()
                    self._fs.put_file(copy.name, target)
                return
            folder, base = os.path.split(target)
            Path(folder).mkdir(parents=True, exist_ok=True)
            draft = Path(folder) / f".{base}-{secrets.token_hex(8)}"
            try:
                with draft.open("xb") as local:
                    yield local
                    local.flush()
                    os.fsync(local.fileno())  # a power cut must not leave an empty file
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.path(name)}: cannot be written: {error.strerror or error}"
            ) from error


def absolute(url: str) -> str:
    """A path or URL that means the same in processes with another current folder."""
    fs, path = filesystem(url)
    return path if isinstance(fs, LocalFileSystem) else url


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        UsageError: no installed package knows this kind of URL.
    """
    if "://" not in url:  # "::" in a local name would be taken for a chain of URLs
        fs = fsspec.filesystem("file")
        return fs, str(fs._strip_protocol(url))
    try:
        fs, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: {error}") from None
    return fs, path
