"""Reads a multipart request: its fields, and its recording into a file without a name.

The body is parsed while it arrives. Of a recording, at most a block is in memory. Its file has no
name from the start, so the system removes it when the server closes it or dies.
"""

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from whisper_npu.server.config import Limits
from whisper_npu.server.errors import ApiError, ClientGoneError, bad_request

FILE = "file"  # the field of the recording
_MULTIPART = b"multipart/form-data"
_BLOCK = 1 << 20  # bytes of a recording that are kept in memory before they are written
_MOST_FIELD_BYTES = 1 << 20  # of all fields together, without the recording
_MOST_FIELDS = 2000
_MOST_NAME = 200  # characters of a file's name in messages
_CUT_OFF = "the request's body ends too early; send it again"


@dataclass
class Form:
    """A request's fields and its recording. Close it.

    Attributes:
        fields: names and values, in order.
        file: the recording, at its start; None if there is none.
        n_bytes: its size.
    """

    fields: list[tuple[str, str]] = field(default_factory=list)
    file: BinaryIO | None = None
    n_bytes: int = 0

    def close(self) -> None:
        """Close the recording, which deletes it."""
        if self.file is not None:
            self.file.close()


async def read_form(request: Request, limits: Limits, spool: Path) -> Form:
    """Read a request's body.

    Args:
        request: the request; nothing of its body has been read.
        limits: see `Limits`.
        spool: folder of the recording's file.

    Raises:
        ApiError: the body is too large, too slow, cut off or not multipart, or the disk is full.
        ClientGoneError: the caller closed the connection.
    """
    most = limits.upload_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        _check_size(int(announced), most)
    reader = _FormReader(_boundary(request), spool)
    try:
        n_bytes = 0
        async for chunk in _chunks(request, limits):
            n_bytes += len(chunk)
            _check_size(n_bytes, most)
            reader.feed(chunk)
            if reader.n_pending >= _BLOCK:
                await asyncio.to_thread(reader.write_pending)
        if reader.n_pending:
            await asyncio.to_thread(reader.write_pending)
        return reader.finish()
    except BaseException:
        reader.form.close()
        raise


def _check_size(n_bytes: int, most: int) -> None:
    if n_bytes <= most:
        return
    raise ApiError(
        413,
        f"the request is larger than {most} bytes, this server's limit (--max-upload); "
        "send the recording compressed, or in parts",
        param=FILE,
        code="upload_too_large",
    )


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind.lower() != _MULTIPART:
        raise ApiError(
            415,
            "send the fields as multipart/form-data: curl -F file=@talk.mp3 -F model=whisper-1",
            code="not_multipart",
        )
    if not boundary:
        raise bad_request("the Content-Type header names no boundary of the multipart body")
    return boundary


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises:
        ApiError: it arrives too slowly.
        ClientGoneError: the caller closed the connection.
    """
    stream = request.stream()
    begun, n_bytes = monotonic(), 0
    while True:
        latest = begun + limits.stall_seconds + n_bytes / limits.least_rate
        patience = min(limits.stall_seconds, latest - monotonic())
        try:
            async with asyncio.timeout(max(0.0, patience)):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise ApiError(
                408,
                f"the upload is too slow: {n_bytes} bytes in {monotonic() - begun:.0f} s",
                param=FILE,
                code="upload_too_slow",
                headers={"x-should-retry": "false"},
            ) from None
        except ClientDisconnect:
            raise ClientGoneError from None
        if chunk is None:
            return
        n_bytes += len(chunk)
        yield chunk


class _FormReader:
    """Takes the events of a multipart parser.

    Attributes:
        form: what has been read so far.
        n_pending: bytes of the recording that are not yet written.
    """

    def __init__(self, boundary: bytes, spool: Path) -> None:
        self.form = Form()
        self._spool = spool
        self._pending: list[bytes] = []
        self.n_pending = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition: bytes | None = None
        self._name = ""
        self._value = bytearray()
        self._n_field_bytes = 0
        self._in_file = False
        self._has_ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _invalid(error) from None

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body.

        Raises:
            ApiError: the body is not multipart, or has too many or too long fields.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _invalid(error) from None

    def write_pending(self) -> None:
        """Write the bytes of the recording that were parsed; may run in another thread.

        Raises:
            ApiError: the disk is full.
        """
        if self.form.file is None:
            return
        try:
            self.form.file.write(b"".join(self._pending))
        except OSError as error:
            raise _disk_error(error) from None
        self.form.n_bytes += self.n_pending
        self._pending, self.n_pending = [], 0

    def finish(self) -> Form:
        """What was read, after the last byte.

        Raises:
            ApiError: the body ended too early.
        """
        if not self._has_ended:
            raise bad_request(_CUT_OFF, code="body_cut_off")
        if self.form.file is not None:
            try:
                self.form.file.seek(0)  # this also writes what is still buffered
            except OSError as error:
                raise _disk_error(error) from None
        return self.form

    def _begin_part(self) -> None:
        self._disposition = None
        self._name, self._value, self._in_file = "", bytearray(), False

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise bad_request("a part of the multipart body has no name")
        self._name = _text(options[b"name"])
        if b"filename" in options:
            self._begin_file(_text(options[b"filename"]))
        elif self._name == FILE:
            raise bad_request(
                "the field file is text; send the recording as a file: curl -F file=@talk.mp3", FILE
            )
        elif len(self.form.fields) >= _MOST_FIELDS:
            raise bad_request(f"the request has more than {_MOST_FIELDS} fields")

    def _begin_file(self, filename: str) -> None:
        if self._name != FILE:
            raise bad_request(
                f"the recording is in the field {self._name}; its name is {FILE}", self._name
            )
        if self.form.file is not None:
            raise bad_request("the request has two recordings; send one at a time", FILE)
        try:
            self.form.file = _nameless_file(self._spool, filename)
        except OSError as error:
            raise _disk_error(error) from None
        self._in_file = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pending.append(data[start:end])
            self.n_pending += end - start
            return
        self._n_field_bytes += end - start
        if self._n_field_bytes > _MOST_FIELD_BYTES:
            raise bad_request(
                f"the fields beside the recording are longer than {_MOST_FIELD_BYTES} bytes",
                self._name,
            )
        self._value += data[start:end]

    def _end_part(self) -> None:
        if not self._in_file:
            self.form.fields.append((self._name, _text(self._value)))

    def _end(self) -> None:
        self._has_ended = True


def _nameless_file(spool: Path, shown: str) -> BinaryIO:
    """A new file in `spool` without a name there; `shown` is its name in messages."""
    with tempfile.TemporaryFile(dir=spool, buffering=0) as made:
        raw = io.FileIO(os.dup(made.fileno()), "r+")
    # Errors name the file as its sender does, not by a path of this machine.
    raw.name = _in_one_line(shown[-_MOST_NAME:]) or "the recording"
    return io.BufferedRandom(raw)


def _in_one_line(name: str) -> str:
    """A name without characters that end a line or move a terminal's cursor."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", errors="replace")


def _invalid(error: Exception) -> ApiError:
    return bad_request(f"the body is no valid multipart/form-data: {error}", code="bad_multipart")


def _disk_error(error: OSError) -> ApiError:
    return ApiError(
        507,
        f"the server cannot store the recording: {error.strerror or error}",
        kind="server_error",
        code="spool_failed",
        headers={"Retry-After": "30"},
    )
