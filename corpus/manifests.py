"""Reads the manifests of corpora: every kind becomes rows of `schema.MANIFEST`.

A manifest is read as a stream, so its length costs no memory; a JSON array is read whole.
"""

import json
import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whisper_npu import MEDIA_SUFFIXES, UsageError
from whisper_npu.corpus.json_manifests import json_objects, lhotse, nemo
from whisper_npu.corpus.manifest import PATTERN, Item, Manifest, text_of
from whisper_npu.corpus.names import KINDS

_UNREADABLE = (
    OSError,
    UnicodeDecodeError,
    EOFError,
    tarfile.TarError,
    zlib.error,
    pa.ArrowException,
)
_ROWS_AT_ONCE = 1000
_TEXT_SUFFIXES = (".txt", ".text", ".lab")
_AUDIO_COLUMNS = ("audio", "bytes", "audio_bytes", "wav", "flac", "mp3")
_HEADER_NAMES = ("audio", "file", "filename", "path")
_TEXT_COLUMNS = ("text", "sentence", "transcription", "transcript", "reference")


def _tsv(manifest: Manifest) -> Iterator[Item]:
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


def _common_voice(manifest: Manifest) -> Iterator[Item]:
    """A folder of Common Voice: its `validated.tsv`, or else its only other table."""
    tables = [path for path in manifest.fs.ls(manifest.path, detail=False) if path.endswith(".tsv")]
    chosen = [path for path in tables if posixpath.basename(path) == "validated.tsv"] or tables
    if len(chosen) != 1:
        names = ", ".join(sorted(map(posixpath.basename, tables))) or "none"
        raise manifest.unusable(f"which table? give the path of one of: {names}")
    return _tsv(Manifest(manifest.url_of(chosen[0])))


def _librispeech(manifest: Manifest) -> Iterator[Item]:
    """A folder of LibriSpeech: `*.trans.txt` beside the recordings."""
    for path in manifest.files(".txt"):
        if not path.endswith(".trans.txt"):
            continue
        table = Manifest(manifest.url_of(path))
        for _, line in table.lines():
            utterance, _, reference = line.partition(" ")
            yield Item(id=utterance, audio=table.locate(f"{utterance}.flac"), reference=reference)


def _audio_files(manifest: Manifest) -> Iterator[Item]:
    """The recordings in a folder, those that a glob matches, or a single one."""
    if manifest.fs.isdir(manifest.path):
        found = manifest.files(*MEDIA_SUFFIXES)
        start = len(manifest.path) + 1
    elif manifest.is_pattern:
        found = sorted(path for path in manifest.fs.glob(manifest.path) if manifest.fs.isfile(path))
        start = PATTERN.split(manifest.path)[0].rfind("/") + 1
    else:
        found, start = [manifest.path], manifest.path.rfind("/") + 1
    for path in found:
        yield Item(id=path[start:], audio=manifest.url_of(path))


def _parquet(manifest: Manifest) -> Iterator[Item]:
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
    manifest: Manifest, path: str, is_folder: bool, number: int, row: dict[str, Any]
) -> Item:
    given = row.get("id")
    file = path[len(manifest.path) + 1 :] if is_folder else posixpath.basename(path)
    texts = (text_of(row.get(name)) for name in _TEXT_COLUMNS)
    return Item(
        id=f"{file}#{number}" if given is None else str(given),
        audio=manifest.url_of(path),
        row=number,
        reference=next((text for text in texts if text is not None), None),
        fields=json.dumps(row, default=str),
    )


def _web_dataset(manifest: Manifest) -> Iterator[Item]:
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
    manifest: Manifest, path: str, tar: tarfile.TarFile, key: str, sample: dict[str, Any]
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
        reference=text_of(fields.get("text")) if text is None else text.decode("utf-8").strip(),
        fields=json.dumps(fields) if fields else None,
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()


_READERS: dict[str, Callable[[Manifest], Iterator[Item]]] = {
    "nemo": nemo,
    "lhotse": lhotse,
    "tsv": _tsv,
    "common-voice": _common_voice,
    "librispeech": _librispeech,
    "parquet": _parquet,
    "webdataset": _web_dataset,
    "files": _audio_files,
}


def read_manifest(url: str, kind: str | None = None) -> Iterator[Item]:
    """The rows of a manifest, in order.

    Args:
        url: the manifest, a path or URL: a file, a folder, or a pattern with `*`.
        kind: one of `KINDS`; None finds it out.

    Raises:
        UsageError: the manifest cannot be read, or is of no known kind.
    """
    manifest = Manifest(url)
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


def _check(manifest: Manifest, item: Item) -> None:
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


def _detect(manifest: Manifest) -> Callable[[Manifest], Iterator[Item]]:
    """The reader for a manifest, by its suffix or its content."""
    name = manifest.path.removesuffix(".gz")
    if manifest.is_pattern:
        return _audio_files
    if manifest.fs.isdir(manifest.path):
        return _detect_folder(manifest)
    for suffixes, reader in (
        ((".jsonl", ".json", ".ndjson"), json_objects),
        ((".tsv",), _tsv),
        ((".parquet",), _parquet),
        ((".tar",), _web_dataset),
        (tuple(MEDIA_SUFFIXES), _audio_files),
    ):
        if name.lower().endswith(suffixes):
            return reader
    raise manifest.unusable(f"is of no known kind; give --format: {', '.join(KINDS)}")


def _detect_folder(manifest: Manifest) -> Callable[[Manifest], Iterator[Item]]:
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
