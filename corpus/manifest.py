"""A manifest, and a recording that it names."""

import gzip
import io
import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from fsspec.implementations.local import LocalFileSystem

from whisper_npu import UsageError
from whisper_npu.corpus.storage import filesystem

PATTERN = re.compile(r"[*?[]")  # a character of a glob


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A recording of a corpus, or a cut of one. The attributes are those of `schema.MANIFEST`."""

    id: str
    audio: str
    start: int | None = None
    size: int | None = None
    row: int | None = None
    offset: float | None = None
    seconds: float | None = None
    stated_seconds: float | None = None
    reference: str | None = None
    fields: str | None = None


class Manifest:
    """Where a manifest is, what it holds, and how its paths are meant."""

    def __init__(self, url: str) -> None:
        """Find the file system of a path or URL; nothing is read yet."""
        self.fs, self.path = filesystem(url)
        self.url = url
        self.is_local = isinstance(self.fs, LocalFileSystem)

    @property
    def is_pattern(self) -> bool:
        """Whether it is a pattern; a file or folder may have such characters in its name."""
        return PATTERN.search(self.path) is not None and not self.fs.exists(self.path)

    def unusable(self, reason: object) -> UsageError:
        """The error of a manifest that cannot be used."""
        return UsageError(f"{self.url}: {reason}")

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines that are not empty, with their numbers."""
        with self.fs.open(self.path, "rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if self.path.endswith(".gz") else raw
            with io.TextIOWrapper(cast(Any, binary), encoding="utf-8-sig") as text:
                for number, line in enumerate(text, 1):
                    if line.strip():
                        yield number, line.rstrip("\r\n")

    def objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The JSON objects, and where each is: on a line of its own, or in an array.

        An array is read whole.
        """
        lines = self.lines()
        first = next(lines, None)
        if first is None:
            return
        if first[1].lstrip().startswith("["):
            before, parts = 1, []
            for number, line in chain([first], lines):  # with empty lines, which errors count
                parts += ["\n" * (number - before), line]
                before = number
            text = "".join(parts)
            entries = enumerate(self._parsed("the array", text), 1)
            found = ((f"entry {number}", entry) for number, entry in entries)
        else:
            places = ((f"line {number}", line) for number, line in chain([first], lines))
            found = ((where, self._parsed(where, line)) for where, line in places)
        for where, entry in found:
            if not isinstance(entry, dict):
                raise self.unusable(f"{where} is no JSON object")
            yield where, entry

    def _parsed(self, where: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = str(error)
            if isinstance(error, json.JSONDecodeError):
                line = "" if where.startswith("line ") else f"line {error.lineno}, "
                reason = f"{error.msg} at {line}column {error.colno}"
            raise self.unusable(
                f"{where} is no JSON: {reason}; give one object a line, or an array of objects"
            ) from None

    def locate(self, named: str, below: str = "") -> str:
        """The path or URL of a recording that the manifest names.

        A relative path is below the manifest's folder, or below the current folder if it only
        exists there, as in manifests of lhotse.

        Raises:
            UsageError: the name is empty.
        """
        if not named:
            raise self.unusable("a row names no recording")
        if "://" in named:
            return named
        folder = posixpath.join(posixpath.dirname(self.path), below)
        joined = posixpath.normpath(posixpath.join(folder, named))
        if not self.is_local:
            return str(self.fs.unstrip_protocol(joined))
        if not self.fs.exists(joined) and self.fs.exists(named):
            return str(filesystem(named)[1])
        return joined

    def url_of(self, path: str) -> str:
        """The path or URL of a file that was found in a listing."""
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def files(self, *suffixes: str) -> list[str]:
        """The sorted files below the folder, at any depth, without hidden ones."""
        found = []
        for path in self.fs.find(self.path):
            below = path[len(self.path) :].lstrip("/")
            hidden = any(part.startswith(".") for part in below.split("/"))
            if not hidden and posixpath.splitext(path)[1].lower() in suffixes:
                found.append(path)
        return sorted(found)


def text_of(value: object) -> str | None:
    """The value, if it is text."""
    return value if isinstance(value, str) else None
