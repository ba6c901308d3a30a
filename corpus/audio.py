"""Opens the recordings of a corpus: files, parts of tar and parquet files, and cuts of them."""

import hashlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow.parquet as pq
import soundfile
from fsspec.implementations.local import LocalFileSystem

from whisper_npu import AudioError, UsageError, load_audio
from whisper_npu.corpus.manifests import audio_column
from whisper_npu.corpus.storage import filesystem

_RATE = 16_000  # Hz, of `load_audio`
_PIECE = 1 << 20  # bytes
# The names that kinds of stores have for what changes with a file. Of a local file, "created" is
# the time that no program can set back.
_TIMES = (
    *("mtime", "created", "ETag", "etag", "LastModified", "last_modified", "updated", "modified"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """The bytes of a recording.

    Attributes:
        audio: path or URL of the file that holds them.
        start: the first byte in a tar file; None for a whole file.
        size: number of bytes in a tar file.
        row: the row in a parquet file; None for other files.
    """

    audio: str
    start: int | None = None
    size: int | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about a recording.

    Attributes:
        stamp: changes when the file changes; empty if its store tells no time.
        digest: sha256 of the bytes, in hexadecimal; None if they cannot be read.
        seconds: the length by the header; None if it does not say.
        error: the reason why it cannot be read.
    """

    stamp: str
    digest: str | None = None
    seconds: float | None = None
    error: str | None = None


def examine(source: Source, known: Facts | None = None) -> Facts:
    """Read a recording for its digest and length.

    Args:
        source: the recording.
        known: the facts of an earlier run, which hold while the file is unchanged.
    """
    try:
        stamp = stamp_of(source.audio)
        if stamp and known is not None and known.error is None and known.stamp == stamp:
            return known
        with _open(source) as file:
            digest = _digest(file)
            file.seek(0)
            return Facts(stamp, digest, _header_seconds(file))
    except FileNotFoundError:
        return Facts("", error=f"{source.audio}: no such file")
    except Exception as error:
        return Facts("", error=unreadable(source.audio, error))


def unreadable(audio: str, error: Exception) -> str:
    """The line for a recording that cannot be read.

    Every error is caught for it: each kind of store has its own, and one recording must not end a
    run of thousands.
    """
    if isinstance(error, UsageError):  # no package for this kind of URL; it names the URL
        return str(error)
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{audio}: cannot be read: {reason or str(error) or type(error).__name__}"


def stamp_of(audio: str) -> str:
    """Size and times of a file, or what a store has instead; empty if it tells no time.

    Raises:
        OSError: there is no such file, or its store cannot be asked.
    """
    fs, path = filesystem(audio)
    found = fs.info(path)
    times = [str(found[name]) for name in _TIMES if found.get(name)]
    return " ".join((str(found.get("size")), *times)) if times else ""


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _header_seconds(file: IO[bytes]) -> float | None:
    try:
        with soundfile.SoundFile(file) as sound:
            return float(sound.frames / sound.samplerate)
    except (soundfile.SoundFileError, RuntimeError):  # FFmpeg may read it
        return None


@contextmanager
def _open(source: Source) -> Iterator[IO[bytes]]:
    """The bytes of a recording as a file."""
    fs, path = filesystem(source.audio)
    with fs.open(path, "rb") as file:
        if source.row is not None:
            yield io.BytesIO(_cell(file, source.row))
        elif source.start is not None:
            file.seek(source.start)
            yield io.BytesIO(file.read(source.size))
        else:
            yield cast(IO[bytes], file)


def _cell(file: Any, row: int) -> bytes:
    """The bytes in a row of a parquet file; one group of rows is read."""
    table = pq.ParquetFile(file)
    column = audio_column(table.schema_arrow.names)
    for group in range(table.num_row_groups):
        n_rows = table.metadata.row_group(group).num_rows
        if row < n_rows:
            value = table.read_row_group(group, columns=[column])[0][row].as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise ValueError(f"row {row} has no bytes of audio")
            return content
        row -= n_rows
    raise IndexError(f"has no row {row}")


@contextmanager
def opened(source: Source, offset: float | None, seconds: float | None) -> Iterator[Path | bytes]:
    """A recording, or a cut of one, as `transcribe_all` takes it.

    A whole local file is given as its path, so it costs no memory. A remote file is copied to a
    temporary file first. Cuts and members of tar and parquet files are held in memory.

    Args:
        source: the recording.
        offset: seconds before the cut; None for the whole recording.
        seconds: length of the cut; None: to the end.

    Raises:
        AudioError: it cannot be read.
    """
    with ExitStack() as held:
        try:
            recording = _part(source, offset, seconds, held)
        except AudioError:
            raise
        except Exception as error:
            raise AudioError(unreadable(source.audio, error)) from error
        yield recording  # outside, so that an error of the work is not taken for one of the file


def _part(
    source: Source, offset: float | None, seconds: float | None, held: ExitStack
) -> Path | bytes:
    if source.start is not None or source.row is not None:
        with _open(source) as file:
            content = file.read()
        return content if offset is None else _cut(io.BytesIO(content), content, offset, seconds)
    path = held.enter_context(_local_file(source.audio))
    return path if offset is None else _cut(path, path, offset, seconds)


@contextmanager
def _local_file(audio: str) -> Iterator[Path]:
    fs, path = filesystem(audio)
    if isinstance(fs, LocalFileSystem):
        yield Path(path)
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as copy:
        with fs.open(path, "rb") as file:
            shutil.copyfileobj(file, copy, _PIECE)
        copy.flush()
        yield Path(copy.name)


def _cut(
    file: Path | io.BytesIO, recording: Path | bytes, offset: float, seconds: float | None
) -> bytes:
    """A part of a recording as a WAV file with the same samples."""
    try:
        with soundfile.SoundFile(file) as sound:
            rate = sound.samplerate
            first, count = _range(offset, seconds, rate)
            if first >= sound.frames:
                raise AudioError(f"the cut begins after the end, at {offset:g} s")
            is_16_bit = sound.subtype == "PCM_16"
            sound.seek(first)
            samples = sound.read(count, dtype="int16" if is_16_bit else "float32", always_2d=True)
    except soundfile.SoundFileError:  # FFmpeg reads it, from its beginning
        rate, is_16_bit = _RATE, False
        first, count = _range(offset, seconds, rate)
        whole = load_audio(recording)
        samples = np.asarray(whole[first : None if count < 0 else first + count])[:, None]
    if not len(samples):
        raise AudioError(f"the cut at {offset:g} s is empty")
    wav = io.BytesIO()
    soundfile.write(wav, samples, rate, "PCM_16" if is_16_bit else "FLOAT", format="WAV")
    return wav.getvalue()


def _range(offset: float, seconds: float | None, rate: int) -> tuple[int, int]:
    """The first sample and the number of samples, -1 for all."""
    return round(offset * rate), -1 if seconds is None else round(seconds * rate)
