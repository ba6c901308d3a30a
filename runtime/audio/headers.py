"""Reads the sizes in a file's header, because libsndfile and FFmpeg do not report wrong sizes.

A killed recorder leaves sizes that are too small. A broken download leaves sizes that are too
large. Some editors write the samples of a WAV in several chunks.
"""

import io
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, cast

from whisper_npu.runtime.audio.source import SourceFile

WAV_MP3 = 0x55  # the format tag of MPEG layer 3
_WAV_EXTENSIBLE = 0xFFFE  # the true tag follows in the extension
_MOST_CHUNKS = 10_000
_SMALLEST_REST = 4_096  # bytes after the last chunk that may be audio; fewer are padding
_CHUNKS = frozenset({b"data", b"LIST", b"id3 ", b"bext", b"iXML", b"_PMX", b"JUNK", b"PAD "})
_TAGS = (b"ID3", b"TAG", b"APETAGEX")  # of music players, after the last chunk
# Writers differ in whether a container's size includes its own header.
_CONTAINER_TOLERANCE = 8  # bytes
_RIFF_ORDERS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


def is_placeholder(size: int) -> bool:
    """Whether a WAV's length is a placeholder for an unknown length: near 2 or 4 GB.

    SoX writes 0x7FFFF000, arecord 0x7FFFFFFF or 0x80000000, FFmpeg 0xFFFFFFFF; other programs
    differ by the size of a header.
    """
    return 0x7FFF_0000 <= size <= 0x8000_1000 or size >= 0xFFFF_F000


@dataclass(frozen=True)
class Header:
    """The sizes that a file's header announces.

    Attributes:
        file: the file, or a WAV rewritten with true sizes and all audio in one chunk.
        announced: bytes that the header announces; None if it announces none.
        present: bytes of these that the file holds.
        warnings: one line for every correction.
        wav_format: the format tag of a WAV, else None.
    """

    file: SourceFile
    announced: int | None = None
    present: int = 0
    warnings: tuple[str, ...] = ()
    wav_format: int | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether the file holds less than its header announces."""
        return self.announced is not None and self.present < self.announced


def read_header(file: SourceFile) -> Header:
    """Compare the announced size with the size of the file; reads WAV, AIFF, AU, CAF and W64."""
    file.seek(0)
    head = file.read(40)
    size = file.seek(0, io.SEEK_END)
    if head[:4] in _RIFF_ORDERS and head[8:12] == b"WAVE":
        return _WavReader(file, size, _RIFF_ORDERS[head[:4]]).read()
    announced: int | None = None
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        announced = _uint(head[4:8], ">") + 8 - _CONTAINER_TOLERANCE
    elif head[:4] == b".snd" and _uint(head[8:12], ">") != 0xFFFF_FFFF:
        announced = _uint(head[4:8], ">") + _uint(head[8:12], ">")
    elif head[:16] == _W64_RIFF:
        announced = _uint(head[16:24], "<") - _CONTAINER_TOLERANCE
    elif head[:4] == b"caff":
        announced = _caf_end(file, size)
    return Header(file, announced, size)


def _uint(field: bytes, order: str) -> int:
    return int.from_bytes(field, "little" if order == "<" else "big")


def _caf_end(file: SourceFile, size: int) -> int | None:
    """Return the end of a CAF's audio (Apple Core Audio Format Specification 1.0)."""
    position = 8
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        chunk = file.read(12)
        if len(chunk) < 12 or position >= size:
            return None
        length = int.from_bytes(chunk[4:], "big", signed=True)
        if length < 0:
            return None  # the audio lasts to the end of the file
        position += 12 + length
        if chunk[:4] == b"data":
            return position
    return None


class _WavReader:
    """Finds the audio of a WAV (Microsoft, "Multimedia Programming Interface", 1991; EBU 3306)."""

    def __init__(self, file: SourceFile, size: int, order: str) -> None:
        self._file = file
        self._size = size
        self._order = order
        self._format = b""  # the content of the `fmt ` chunk
        self._long_size: int | None = None  # the size of RF64's first data chunk
        self._spans: list[tuple[int, int]] = []  # audio in the file, in reading order
        self._announced = 0
        self._warnings: list[str] = []
        self._is_as_written = True  # whether libsndfile finds all audio by itself

    def read(self) -> Header:
        """See `read_header`."""
        for kind, start, length in self._chunks():
            if kind == b"fmt ":
                if not self._take_format(start, length):
                    break
            elif kind == b"ds64" and length >= 16:
                self._long_size = _uint(self._bytes(start + 8, 8), "<")
            elif kind == b"data":
                self._take_data(start, length)
        tag = self._tag()
        present = sum(stop - start for start, stop in self._spans)
        if not self._spans or tag is None:
            return Header(self._file, wav_format=tag)
        file = self._file if self._is_as_written else self._as_one_chunk(present)
        return Header(file, self._announced, present, tuple(self._warnings), tag)

    def _chunks(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield kind, start and announced length of chunks; other bytes after data are audio."""
        position = 12
        for _ in range(_MOST_CHUNKS):
            head = self._bytes(position, 8)
            kind, length = head[:4], _uint(head[4:], self._order)
            start = position + 8
            if kind == b"data" and length == 0xFFFF_FFFF and self._long_size is not None:
                length, self._long_size = self._long_size, None
            if self._spans and not self._is_chunk(head, start, length):
                self._take_rest(position)
                return
            if len(head) < 8:
                return
            if kind in _RIFF_ORDERS and self._spans:
                position += 12  # a second WAV after the first
                continue
            yield kind, start, length
            position = min(start + length, self._spans[-1][1] if kind == b"data" else self._size)
            # Chunks begin at even positions, but not every program keeps to it.
            if position % 2 and self._bytes(position, 1) == b"\0":
                position += 1
        self._warnings.append(f"more than {_MOST_CHUNKS} chunks: what follows is left out")

    def _is_chunk(self, head: bytes, start: int, length: int) -> bool:
        if head[:4] in _CHUNKS or head[:4] in _RIFF_ORDERS:
            return True  # a chunk, even if it is cut off
        if len(head) < 8 or start + length > self._size + 1:
            return False
        return all(0x20 <= byte < 0x7F for byte in head[:4])

    def _take_format(self, start: int, length: int) -> bool:
        """Return whether the audio after this chunk has the format of the audio before it."""
        content = self._bytes(start, min(length, 64))
        if self._format and content != self._format:
            self._warnings.append(
                "another recording, of another format, follows in the same file: left out"
            )
            return False
        self._format = content
        return True

    def _take_data(self, start: int, length: int) -> None:
        stop = start + length
        if is_placeholder(length) and stop > self._size:
            stop, length = self._size, self._size - start
        self._announced += length
        if self._spans:
            self._is_as_written = False
            if len(self._spans) == 1:
                self._warnings.append(
                    "the audio is in several data chunks: read one after the other"
                )
        self._spans.append((start, min(stop, self._size)))

    def _take_rest(self, position: int) -> None:
        """Take the bytes after the last chunk as audio if they are more than padding."""
        rest = self._size - position
        if rest < _SMALLEST_REST or self._bytes(position, 8).startswith(_TAGS):
            return
        start, stop = self._spans[-1]
        if position - stop > 1:
            return  # other chunks come between
        self._is_as_written = False
        self._spans[-1] = (start, self._size)
        if stop > start:  # a killed recorder leaves 0, which needs no warning
            self._warnings.append(
                f"the header announces {stop - start} bytes of audio, {self._size - start} are"
                " there: all are read"
            )

    def _tag(self) -> int | None:
        if len(self._format) < 16:
            return None
        tag = _uint(self._format[:2], self._order)
        if tag == _WAV_EXTENSIBLE and len(self._format) >= 26:
            return _uint(self._format[24:26], self._order)
        return tag

    def _as_one_chunk(self, present: int) -> SourceFile:
        order = self._order + "4sI"
        chunk = struct.pack(order, b"fmt ", len(self._format)) + self._format
        length = min(present, 0xFFFF_FFFF)
        riff = b"RIFX" if self._order == ">" else b"RIFF"
        total = min(4 + len(chunk) + 8 + length, 0xFFFF_FFFF)
        head = (
            struct.pack(order, riff, total) + b"WAVE" + chunk + struct.pack(order, b"data", length)
        )
        return SourceFile(cast(BinaryIO, _SplicedFile(head, self._file, self._spans)))

    def _bytes(self, position: int, size: int) -> bytes:
        if position >= self._size:
            return b""
        self._file.seek(position)
        return self._file.read(size)


class _SplicedFile:
    """Parts of a file after a new header, with the methods that `SourceFile` needs."""

    def __init__(self, head: bytes, file: SourceFile, spans: list[tuple[int, int]]) -> None:
        self._head = head
        self._file = file
        self._spans = spans
        lengths = (stop - start for start, stop in spans)
        self._ends = list(accumulate(lengths, initial=len(head)))[1:]  # in the spliced file
        self._size = self._ends[-1]
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read like a file."""
        left = self._size - self._position
        left = max(0, left if size < 0 else min(size, left))
        pieces: list[bytes] = []
        while left and (piece := self._read_piece(left)):
            pieces.append(piece)
            self._position += len(piece)
            left -= len(piece)
        self._file.check()
        return b"".join(pieces)

    def _read_piece(self, size: int) -> bytes:
        offset = self._position
        if offset < len(self._head):
            return self._head[offset : offset + size]
        number = bisect_right(self._ends, offset)
        left = self._ends[number] - offset
        self._file.seek(self._spans[number][1] - left)
        return self._file.read(min(size, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move like a file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position in the file."""
        return self._position
