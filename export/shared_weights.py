"""Stores every weight of several ONNX graphs once, in one external data file beside them.

The two decoders have the same weights, and each has the token embedding twice: the output
projection is the transposed embedding. Written one by one, the graphs take 2.8 times the memory of
the parameters.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from whisper_npu.errors import ExportError
from whisper_npu.runtime.model_folder.external_data import data_file, map_tensor

DATA_FILE = "model.onnx_data"
ALIGNMENT = 4096  # bytes: one page, so that each tensor can be mapped by itself
INLINE_BELOW = 1024  # bytes: shape constants stay readable without the data file
MATRIX_RANK = 2

Key = tuple[int, tuple[int, ...], bytes]  # data type, shape, digest of the content


@dataclass(frozen=True)
class _Stored:
    """The place of a tensor in the data file."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    offset: int
    length: int


class _Store:
    """Writes the data file: each distinct tensor once, aligned to pages."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.tensors: dict[Key, _Stored] = {}

    def add(self, name: str, array: NDArray[np.generic], data_type: int) -> tuple[_Stored, bool]:
        """Store an array, unless the array or its exact transpose is stored already.

        Returns:
            The stored tensor, and whether the array is its transpose.
        """
        key = _key(array, data_type)
        if key in self.tensors:
            return self.tensors[key], False
        if array.ndim == MATRIX_RANK:
            transposed = self.tensors.get(_key(array.T, data_type))
            if transposed is not None:
                return transposed, True
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
        offset = self.file.tell()
        self.file.write(np.ascontiguousarray(array).data.cast("B"))
        stored = _Stored(name, data_type, array.shape, offset, array.nbytes)
        self.tensors[key] = stored
        return stored, False


def share_weights(
    sources: Sequence[Path], target: Path, edit: Callable[[onnx.ModelProto], None] | None = None
) -> None:
    """Rewrite ONNX files so that they share one external data file.

    Args:
        sources: The graphs, their weights inline or in external files.
        target: An existing folder that receives files of the same names and `DATA_FILE`.
        edit: Applied to each graph before it is written.

    Raises:
        ExportError: A graph has subgraphs with weights, which are not supported, or a reference
            outside the data file.
    """
    with (target / DATA_FILE).open("wb") as file:
        store = _Store(file)
        for path in sources:
            model = onnx.load(path, load_external_data=False)
            _share_graph(model, path, store)
            if edit is not None:
                edit(model)
            onnx.save(model, target / path.name)
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
    for path in sources:
        check_references(target / path.name)


def check_references(path: Path) -> None:
    """Check that every external tensor of a graph lies within its data file.

    Raises:
        ExportError: A tensor lies outside.
        ModelError: The data file is missing, or outside the graph's folder.
    """
    graph = onnx.load(path, load_external_data=False).graph
    for tensor in graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        data = data_file(path.parent, info.location)
        size = data.stat().st_size
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        needed = item * int(np.prod(tensor.dims, dtype=np.int64))
        if info.length != needed or (info.offset or 0) + needed > size:
            raise ExportError(
                f"{path.name}: {tensor.name} needs {needed} bytes at {info.offset} of {data.name},"
                f" which has {size}"
            )


def _share_graph(model: onnx.ModelProto, path: Path, store: _Store) -> None:
    graph = model.graph
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ExportError(f"{path.name}: the node {node.name} holds a graph of its own")
    initializers = list(graph.initializer)
    del graph.initializer[:]
    # A table for lookups keeps its layout, and its multiplied copy becomes a transpose: runtimes
    # fold a transpose into a matrix product, but would store the table of a lookup again.
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    placed: dict[_Stored, str] = {}
    aliases: list[onnx.NodeProto] = []
    for tensor in sorted(initializers, key=lambda tensor: tensor.name not in gathered):
        array = read_tensor(tensor, path.parent)
        if array.nbytes < INLINE_BELOW:
            graph.initializer.append(onnx.numpy_helper.from_array(array, tensor.name))
            continue
        stored, is_transpose = store.add(tensor.name, array, tensor.data_type)
        if is_transpose:
            # Another graph may have the stored layout; this graph then refers to it by a new name.
            source = placed.setdefault(stored, f"{tensor.name}_transposed")
            aliases.append(onnx.helper.make_node("Transpose", [source], [tensor.name], perm=[1, 0]))
        elif stored in placed:
            aliases.append(onnx.helper.make_node("Identity", [placed[stored]], [tensor.name]))
        else:
            placed[stored] = tensor.name
        tensor.ClearField("raw_data")  # so that a large model's weights are in memory only once
    graph.initializer.extend(_external(name, stored) for stored, name in placed.items())
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*aliases, *nodes])


def _external(name: str, stored: _Stored) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=stored.data_type, dims=stored.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": DATA_FILE, "offset": stored.offset, "length": stored.length}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> NDArray[np.generic]:
    """A tensor's values; external values are mapped, not read.

    Raises:
        ModelError: The data file is missing, or outside the graph's folder.
    """
    if not uses_external_data(tensor):
        return onnx.numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return map_tensor(folder, entries, dtype, tuple(tensor.dims))


def _key(array: NDArray[np.generic], data_type: int) -> Key:
    digest = hashlib.sha256()
    for piece in _pieces(array):
        digest.update(piece.data.cast("B"))
    return data_type, array.shape, digest.digest()


def _pieces(array: NDArray[np.generic], rows: int = 1024) -> Iterator[NDArray[np.generic]]:
    """An array's content in C order, a few rows at a time, so that no transpose is copied whole."""
    if array.ndim == 0:
        yield np.ascontiguousarray(array)
        return
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])
