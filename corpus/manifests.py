"""Reads the manifests of corpora: every kind becomes rows of `schema.MANIFEST`.

A manifest is read as a stream, so its length costs no memory; a JSON array is read whole.
"""

import contextlib
import gzip
import io
import json
import math
import posixpath
import re
import reprlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from whisper_npu import MEDIA_SUFFIXES, UsageError
from whisper_npu.corpus.storage import filesystem

_UNREADABLE = (
    OSError,
    UnicodeDecodeError,
    EOFError,
    tarfile.TarError,
    zlib.error,
    pa.ArrowException,
)
_GLOB = re.compile(r"[*?[]")
_SAME_LENGTH = 1e-3  # seconds
_ROWS_AT_ONCE = 1000
_TEXT_SUFFIXES = (".txt", ".text", ".lab")
_AUDIO_COLUMNS = ("audio", "bytes", "audio_bytes", "wav", "flac", "mp3")
_HEADER_NAMES = ("audio", "file", "filename", "path")
_TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "reference")


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


class _Manifest:
    """Where a manifest is, and how its paths are meant."""

    def __init__(self, url: str) -> None:
        self.fs, self.path = filesystem(url)
        self.url = url
        self.is_local = isinstance(self.fs, LocalFileSystem)

    @property
    def is_pattern(self) -> bool:
        """Whether it is a pattern; a file or folder may have such characters in its name."""
        return _GLOB.search(self.path) is not None and not self.fs.exists(self.path)

    def unusable(self, reason: object) -> UsageError:
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


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _seconds(manifest: _Manifest, where: str, row: dict[str, Any], name: str) -> float | None:
    """The seconds in a field, which may be a number as text; None if it is absent or null.

    Raises:
        UsageError: it is no number, or is below 0.
    """
    value = row.get(name)
    if value is None:
        return None
    seconds = math.nan
    is_digits = not isinstance(value, str) or "_" not in value  # `float` takes "1_0", too
    if isinstance(value, int | float | str) and not isinstance(value, bool) and is_digits:
        with contextlib.suppress(ValueError, OverflowError):  # of an int of hundreds of digits
            seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        shown = reprlib.repr(value)
        raise manifest.unusable(f"{where}: {name} is {shown}; give seconds as a number, 0 or more")
    return seconds


def _nemo(manifest: _Manifest) -> Iterator[Item]:
    """NeMo: `audio_filepath`, `duration`, `text`; with `offset` the row is a cut."""
    for where, row in manifest.objects():
        named = row.get("audio_filepath")
        if not isinstance(named, str):
            raise manifest.unusable(f"{where} has no audio_filepath")
        offset = _seconds(manifest, where, row, "offset")
        duration = _seconds(manifest, where, row, "duration")
        given = row.get("id")
        # 15 digits tell all cuts apart, and show the numbers as they were written.
        cut = "" if offset is None else f"@{offset:.15g}+{duration or 0:.15g}"
        yield Item(
            id=named + cut if given is None else str(given),
            audio=manifest.locate(named),
            offset=offset,
            seconds=None if offset is None else duration,
            stated_seconds=duration,
            reference=_text(row.get("text")),
            fields=json.dumps(row),
        )


def _lhotse(manifest: _Manifest) -> Iterator[Item]:
    """Recordings and cuts of lhotse."""
    for where, row in manifest.objects():
        is_cut = "sources" not in row
        recording = row.get("recording") if is_cut else row
        sources = recording.get("sources") if isinstance(recording, dict) else None
        if not isinstance(recording, dict) or not isinstance(sources, list) or not sources:
            raise manifest.unusable(
                f"{where} ({row.get('type', 'unknown')}) names no recording with sources; "
                "give recordings or MonoCuts that hold their recording"
            )
        source = sources[0] if isinstance(sources[0], dict) else {}
        if len(sources) > 1 or source.get("type") not in ("file", "url"):
            raise manifest.unusable(
                f"{where}: recording {recording.get('id')} is no single file or URL"
            )
        whole = _seconds(manifest, where, recording, "duration")
        length = _seconds(manifest, where, row, "duration")
        offset = _seconds(manifest, where, row, "start") if is_cut else None
        if offset == 0 and None not in (whole, length) and _same(cast(float, length), whole):
            offset = None
        said = row.get("supervisions") or []
        if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
            raise manifest.unusable(f"{where}: supervisions are no list of objects")
        spoken = " ".join(text for each in said if (text := _text(each.get("text"))))
        yield Item(
            id=str(row.get("id", recording.get("id"))),
            audio=manifest.locate(str(source.get("source", ""))),
            offset=offset,
            seconds=None if offset is None else length,
            stated_seconds=length,
            reference=spoken or None,
            fields=json.dumps(row),
        )


def _same(length: float, other: float | None) -> bool:
    return other is not None and abs(length - other) < _SAME_LENGTH


def _json_lines(manifest: _Manifest) -> Iterator[Item]:
    """NeMo or lhotse, by the first object."""
    for where, first in manifest.objects():
        if "audio_filepath" in first:
            return _nemo(manifest)
        if first.keys() & {"type", "sources", "recording"}:
            return _lhotse(manifest)
        raise manifest.unusable(
            f"{where} has neither audio_filepath (NeMo) nor a recording (lhotse); name the "
            "recording of each object as audio_filepath"
        )
    raise manifest.unusable("is empty")


def _tsv(manifest: _Manifest) -> Iterator[Item]:
    """Lines of `audio<TAB>reference`, or a table of Common Voice with its header."""
    header: list[str] | None = None
    for number, line in manifest.lines():
        cells = line.split("\t")
        if number == 1 and {"path", "sentence"} <= set(cells):
            header = cells
            continue
        if number == 1 and cells[0].lower() in _HEADER_NAMES:
            continue
        if header is None:
            named, reference = cells[0], "\t".join(cells[1:]) if len(cells) > 1 else None
            row: dict[str, str | None] = {"audio": named, "text": reference}
        else:
            row = dict(zip(header, cells, strict=False))
            named, reference = row.get("path") or "", row.get("sentence")
            if named and "." not in posixpath.basename(named):
                named = f"{named}.mp3"  # as the first releases of Common Voice have it
        below = "" if header is None else "clips"
        yield Item(
            id=named,
            audio=manifest.locate(named, below),
            reference=reference,
            fields=json.dumps(row),
        )


def _common_voice(manifest: _Manifest) -> Iterator[Item]:
    """A folder of Common Voice: its `validated.tsv`, or else its only other table."""
    tables = [path for path in manifest.fs.ls(manifest.path, detail=False) if path.endswith(".tsv")]
    chosen = [path for path in tables if posixpath.basename(path) == "validated.tsv"] or tables
    if len(chosen) != 1:
        names = ", ".join(sorted(map(posixpath.basename, tables))) or "none"
        raise manifest.unusable(f"which table? give the path of one of: {names}")
    return _tsv(_Manifest(manifest.url_of(chosen[0])))


def _librispeech(manifest: _Manifest) -> Iterator[Item]:
    """A folder of LibriSpeech: `*.trans.txt` beside the recordings."""
    for path in manifest.files(".txt"):
        if not path.endswith(".trans.txt"):
            continue
        table = _Manifest(manifest.url_of(path))
        for _, line in table.lines():
            utterance, _, reference = line.partition(" ")
            yield Item(id=utterance, audio=table.locate(f"{utterance}.flac"), reference=reference)


def _audio_files(manifest: _Manifest) -> Iterator[Item]:
    """The recordings in a folder, those that a glob matches, or a single one."""
    if manifest.fs.isdir(manifest.path):
        found = manifest.files(*MEDIA_SUFFIXES)
        start = len(manifest.path) + 1
    elif manifest.is_pattern:
        found = sorted(path for path in manifest.fs.glob(manifest.path) if manifest.fs.isfile(path))
        start = _GLOB.split(manifest.path)[0].rfind("/") + 1
    else:
        found, start = [manifest.path], manifest.path.rfind("/") + 1
    for path in found:
        yield Item(id=path[start:], audio=manifest.url_of(path))


def _parquet(manifest: _Manifest) -> Iterator[Item]:
    """Parquet with the bytes of recordings, as data sets of Hugging Face have them."""
    is_folder = manifest.fs.isdir(manifest.path)
    for path in manifest.files(".parquet") if is_folder else [manifest.path]:
        with manifest.fs.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            audio = audio_column(table.schema_arrow.names)
            if audio is None:
                raise manifest.unusable(
                    f"has no column of audio; one of {', '.join(_AUDIO_COLUMNS)} holds the bytes"
                )
            names = [name for name in table.schema_arrow.names if name != audio]
            for number, row in enumerate(_rows(table, names)):
                yield _parquet_item(manifest, path, is_folder, number, row)


def _rows(table: pq.ParquetFile, names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        yield from ({} for _ in range(table.metadata.num_rows))
        return
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=names):
        yield from batch.to_pylist()


def audio_column(names: Iterable[str]) -> str | None:
    """The column of a parquet file that holds the bytes of recordings."""
    return next((name for name in _AUDIO_COLUMNS if name in names), None)


def _parquet_item(
    manifest: _Manifest, path: str, is_folder: bool, number: int, row: dict[str, Any]
) -> Item:
    given = row.get("id")
    file = path[len(manifest.path) + 1 :] if is_folder else posixpath.basename(path)
    texts = (_text(row.get(name)) for name in _TEXT_COLUMNS)
    return Item(
        id=f"{file}#{number}" if given is None else str(given),
        audio=manifest.url_of(path),
        row=number,
        reference=next((text for text in texts if text is not None), None),
        fields=json.dumps(row, default=str),
    )


def _web_dataset(manifest: _Manifest) -> Iterator[Item]:
    """Tar files of WebDataset: the members of a recording have one name and several suffixes."""
    is_folder = manifest.fs.isdir(manifest.path)
    for path in manifest.files(".tar") if is_folder else [manifest.path]:
        with manifest.fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            sample: dict[str, tarfile.TarInfo] = {}
            key = ""
            for member in tar:
                folder, base = posixpath.split(member.name)
                stem, _, suffix = base.partition(".")
                if not member.isfile() or base.startswith("."):
                    continue
                if posixpath.join(folder, stem) != key and sample:
                    yield from _web_sample(manifest, path, tar, key, sample)
                    sample = {}
                key = posixpath.join(folder, stem)
                sample[f".{suffix.lower()}"] = member
            yield from _web_sample(manifest, path, tar, key, sample)


def _web_sample(
    manifest: _Manifest, path: str, tar: tarfile.TarFile, key: str, sample: dict[str, Any]
) -> Iterator[Item]:
    audio = next((sample[suffix] for suffix in sample if suffix in MEDIA_SUFFIXES), None)
    if audio is None:
        return
    fields: dict[str, Any] = {}
    if ".json" in sample:
        try:
            fields = dict(json.loads(_content(tar, sample[".json"])))
        except (ValueError, TypeError) as error:
            raise manifest.unusable(f"{sample['.json'].name}: {error}") from None
    text = next((_content(tar, sample[each]) for each in _TEXT_SUFFIXES if each in sample), None)
    yield Item(
        id=key,
        audio=manifest.url_of(path),
        start=audio.offset_data,
        size=audio.size,
        reference=_text(fields.get("text")) if text is None else text.decode("utf-8").strip(),
        fields=json.dumps(fields) if fields else None,
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


_READERS: dict[str, Callable[[_Manifest], Iterator[Item]]] = {
    "nemo": _nemo,
    "lhotse": _lhotse,
    "tsv": _tsv,
    "common-voice": _common_voice,
    "librispeech": _librispeech,
    "parquet": _parquet,
    "webdataset": _web_dataset,
    "files": _audio_files,
}
KINDS = tuple(_READERS)


def read_manifest(url: str, kind: str | None = None) -> Iterator[Item]:
    """The rows of a manifest, in order.

    Args:
        url: the manifest, a path or URL: a file, a folder, or a pattern with `*`.
        kind: one of `KINDS`; None finds it out.

    Raises:
        UsageError: the manifest cannot be read, or is of no known kind.
    """
    manifest = _Manifest(url)
    if kind is not None and kind not in _READERS:
        raise UsageError(f"unknown kind of manifest {kind!r}: one of {', '.join(KINDS)}")
    try:
        if not manifest.is_pattern and not manifest.fs.exists(manifest.path):
            raise manifest.unusable("no such file or folder")
        reader = _READERS[kind] if kind else _detect(manifest)
        for item in reader(manifest):
            _check(manifest, item)
            yield item
    except _UNREADABLE as error:
        raise manifest.unusable(f"cannot be read: {error}") from None


def _check(manifest: _Manifest, item: Item) -> None:
    """Refuse a row that the outputs cannot hold.

    Raises:
        UsageError: an id is empty, or a text is no UTF-8 or has a NUL.
    """
    if not item.id:
        raise manifest.unusable(f"{item.audio} has an empty id")
    for name in ("id", "audio", "reference"):
        text = getattr(item, name) or ""
        if "\x00" in text or not _is_utf8(text):
            raise manifest.unusable(f"the {name} {text!r} has a NUL or is no UTF-8; rename it")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _detect(manifest: _Manifest) -> Callable[[_Manifest], Iterator[Item]]:
    """The reader for a manifest, by its suffix or its content."""
    name = manifest.path.removesuffix(".gz")
    if manifest.is_pattern:
        return _audio_files
    if manifest.fs.isdir(manifest.path):
        return _detect_folder(manifest)
    for suffixes, reader in (
        ((".jsonl", ".json", ".ndjson"), _json_lines),
        ((".tsv",), _tsv),
        ((".parquet",), _parquet),
        ((".tar",), _web_dataset),
        (tuple(MEDIA_SUFFIXES), _audio_files),
    ):
        if name.lower().endswith(suffixes):
            return reader
    raise manifest.unusable(f"is of no known kind; give --format: {', '.join(KINDS)}")


def _detect_folder(manifest: _Manifest) -> Callable[[_Manifest], Iterator[Item]]:
    entries = {posixpath.basename(path) for path in manifest.fs.ls(manifest.path, detail=False)}
    if "clips" in entries and any(name.endswith(".tsv") for name in entries):
        return _common_voice
    if any(name.endswith(".parquet") for name in entries):
        return _parquet
    if any(name.endswith(".tar") for name in entries):
        return _web_dataset
    if any(path.endswith(".trans.txt") for path in manifest.files(".txt")):
        return _librispeech
    return _audio_files
