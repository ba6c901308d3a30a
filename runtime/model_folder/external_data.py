"""Finds the data files that an ONNX graph names, and refuses files outside the model folder.

ONNX keeps large weights in files beside the graph and names them in the graph. Model folders come
from anywhere: such a name may be an absolute path, leave the folder by `..`, or be a symbolic link.
Every reader of external data must ask this module first. It reads the names from the protobuf
encoding, because running a model needs no `onnx` package.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.digests import default_memory

# Fields of onnx.proto3 that lead to a tensor's external data, by message.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        **{5: "tensor", 10: "tensor", 6: "graph", 11: "graph"},
        **{22: "sparse tensor", 23: "sparse tensor"},
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_LOCATION = b"location"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10  # bytes
_DEEPEST = 100  # nested messages, as many as protobuf allows


def external_files(graph: Path) -> tuple[Path, ...]:
    """Return the data files that hold a graph's weights, all of them in its folder.

    Args:
        graph: an ONNX file. The names in it are remembered (see `digests`).

    Raises:
        ModelError: the file cannot be read, or names a data file that is missing, no regular file,
            or outside its folder.
    """
    return tuple(data_file(graph.parent, name) for name in external_names(graph))


def external_names(graph: Path) -> tuple[str, ...]:
    """Return the names of data files in a graph as they are: they may lead anywhere, or nowhere.

    Raises:
        ModelError: the file cannot be read, or is no ONNX file.
    """
    try:
        return tuple(default_memory().recall(graph, "external data", _locations))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {graph}: {error}; export the model again") from None


def data_file(folder: Path, location: str) -> Path:
    """Return the file that a graph in `folder` calls `location`.

    A symbolic link may lead to another place in the folder. In a snapshot of a Hugging Face hub's
    cache it may lead to the cache's blobs, the usual target of such links.

    Raises:
        ModelError: the file is missing, no regular file, or outside the folder.
    """
    is_outside = leads_out(location)
    folder = folder.resolve()
    try:
        target = folder if is_outside else (folder / location).resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise ModelError(f"{folder}: the weights {location!r} are a link to nothing") from None
    is_inside = target.is_relative_to(folder) or _is_hub_blob(target, folder)
    if is_outside or not is_inside:
        raise ModelError(
            f"{folder}: a graph keeps weights in {location!r}, outside the model folder; they are "
            "not read. Export the model again, or copy them into the folder"
        )
    if not target.is_file():
        state = "is no regular file" if target.exists() else "is missing"
        raise ModelError(
            f"{folder}: a graph keeps weights in {location!r}, which {state}; export the model "
            "again, or copy the whole folder again"
        )
    return folder / location


def leads_out(location: str) -> bool:
    """Whether a file's name is none, or leads out of the folder that it is relative to."""
    return bool(
        not location
        or "\0" in location
        or PurePosixPath(location).is_absolute()
        or PureWindowsPath(location).anchor
        or ".." in PureWindowsPath(location).parts
    )


def map_tensor(
    folder: Path, entries: Mapping[str, str], dtype: npt.DTypeLike, shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Return the values of a tensor in an external file, mapped from disk and not read.

    Args:
        folder: the folder of the graph.
        entries: the graph's entries for the tensor: ONNX's `location` and `offset`.
        dtype: of the values.
        shape: of the tensor.

    Raises:
        ModelError: the file is missing, no regular file, or outside the folder.
        OSError: the file cannot be mapped.
        ValueError: the file is too short, or the offset is no number.
    """
    path = data_file(folder, entries.get("location", ""))
    return np.memmap(path, dtype, "r", offset=int(entries.get("offset", 0)), shape=shape)


def _is_hub_blob(target: Path, folder: Path) -> bool:
    """Whether a file is a blob of the hub cache whose snapshot is the folder.

    The cache holds `blobs/<sha256>` and links to them in `snapshots/<revision>/`.
    """
    return any(
        parent.name == "snapshots" and target.parent == parent.parent / "blobs"
        for parent in folder.parents
    )


def _locations(stream: BinaryIO) -> list[str]:
    """Return the names of data files in an ONNX file, each once.

    Raises:
        ValueError: the file is no protobuf message.
    """
    size = stream.seek(0, 2)
    if not size:
        raise ValueError("it is empty")
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found: dict[str, None] = {}
        _collect(content, 0, size, "model", found, 0)
    return list(found)


def _collect(
    content: mmap.mmap, start: int, end: int, message: str, found: dict[str, None], depth: int
) -> None:
    """Add the names in the message between two positions."""
    if depth > _DEEPEST:
        raise ValueError("its messages are nested too deeply")
    children = _FIELDS[message]
    for field, begin, stop in _fields(content, start, end):
        child = children.get(field)
        if child == "entry":
            entry = {key: content[a:b] for key, a, b in _fields(content, begin, stop)}
            if entry.get(_ENTRY_KEY) == _LOCATION:
                found[entry.get(_ENTRY_VALUE, b"").decode()] = None
        elif child is not None:
            _collect(content, begin, stop, child, found, depth + 1)


def _fields(content: mmap.mmap, position: int, end: int) -> list[tuple[int, int, int]]:
    """Return the number, begin and end of each field of a message that holds bytes."""
    found = []
    while position < end:
        tag, position = _varint(content, position, end)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, position = _varint(content, position, end)
            found.append((field, position, position + length))
            position += length
        elif kind == _VARINT:
            _, position = _varint(content, position, end)
        elif kind in _FIXED_SIZES:
            position += _FIXED_SIZES[kind]
        else:
            raise ValueError("it is no ONNX file")
    if position != end:
        raise ValueError("it is truncated")
    return found


def _varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Read a number of variable length; return it and the position after it."""
    number = 0
    for index in range(min(_LONGEST_VARINT, end - position)):
        byte = content[position + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, position + index + 1
    raise ValueError("it is no ONNX file")
