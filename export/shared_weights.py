"""Stores every weight of several ONNX graphs once, in one external data file beside them.

The two decoders have the same weights, and each has the token embedding twice: the output
projection is the transposed embedding. Written one by one, the graphs take 2.8 times the memory of
the parameters.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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


class SharedWeights:
    """Writes graphs into a folder, and each distinct weight once into the data file beside them.

    Used as a context manager. A weight is read, compared and written by itself, so that the weights
    are never in memory together.
    """

    def __init__(self, target: Path) -> None:
        """Create the data file.

        Args:
            target: An existing folder.
        """
        self._target = target
        self._file = (target / DATA_FILE).open("wb")
        self._tensors: dict[Key, _Stored] = {}
        self._graphs: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """Close the data file; check the graphs, unless an error is under way."""
        with self._file:
            self._fill_page()
        if kind is None:
            for path in self._graphs:
                check_references(path)

    def write(
        self, name: str, model: onnx.ModelProto, weights: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Write a graph, and those of its weights that are not stored yet.

        Args:
            name: The graph's file name.
            model: The graph without its initializers; it is changed.
            weights: The initializers by name. Each is looked up once.

        Raises:
            ExportError: The graph has subgraphs, which are not supported.
        """
        graph = model.graph
        for node in graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise ExportError(f"{name}: the node {node.name} holds a graph of its own")
        # A table for lookups keeps its layout, and its multiplied copy becomes a transpose:
        # runtimes fold a transpose into a matrix product, but would store the table of a lookup
        # again.
        gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
        placed: dict[_Stored, str] = {}
        aliases: list[onnx.NodeProto] = []
        for tensor in sorted(weights, key=lambda tensor: tensor not in gathered):
            self._add(graph, tensor, weights[tensor], placed, aliases)
        graph.initializer.extend(_external(name, stored) for stored, name in placed.items())
        nodes = list(graph.node)
        del graph.node[:]
        graph.node.extend([*aliases, *nodes])
        path = self._target / name
        onnx.save(model, path)
        self._graphs.append(path)

    def _add(
        self,
        graph: onnx.GraphProto,
        name: str,
        array: NDArray[np.generic],
        placed: dict[_Stored, str],
        aliases: list[onnx.NodeProto],
    ) -> None:
        """Add a weight to a graph: inline, in the data file, or as a node that reads another one.

        Args:
            graph: Receives a small weight.
            name: The weight's name.
            array: Its values.
            placed: The graph's names of stored tensors; receives a stored weight.
            aliases: Receives the node.
        """
        if array.nbytes < INLINE_BELOW:
            graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            return
        stored, is_transpose = self._store(name, array)
        if is_transpose:
            # Another graph may have the stored layout; this graph then refers to it by a new name.
            source = placed.setdefault(stored, f"{name}_transposed")
            aliases.append(onnx.helper.make_node("Transpose", [source], [name], perm=[1, 0]))
        elif stored in placed:
            aliases.append(onnx.helper.make_node("Identity", [placed[stored]], [name]))
        else:
            placed[stored] = name

    def _store(self, name: str, array: NDArray[np.generic]) -> tuple[_Stored, bool]:
        """Store an array, unless the array or its exact transpose is stored already.

        Returns:
            The stored tensor, and whether the array is its transpose.
        """
        key = _key(array)
        if key in self._tensors:
            return self._tensors[key], False
        if array.ndim == MATRIX_RANK:
            transposed = self._tensors.get(_key(array.T))
            if transposed is not None:
                return transposed, True
        self._fill_page()
        offset = self._file.tell()
        for piece in _pieces(array):
            self._file.write(piece.data.cast("B"))
        stored = _Stored(name, key[0], array.shape, offset, array.nbytes)
        self._tensors[key] = stored
        return stored, False

    def _fill_page(self) -> None:
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))


def share_weights(sources: Sequence[Path], target: Path) -> None:
    """Rewrite ONNX files so that they share one external data file.

    Args:
        sources: The graphs, their weights inline or in external files.
        target: An existing folder that receives files of the same names and `DATA_FILE`.

    Raises:
        ExportError: A graph has subgraphs with weights, which are not supported, or a reference
            outside the data file.
    """
    with SharedWeights(target) as shared:
        for path in sources:
            model = onnx.load(path, load_external_data=False)
            weights = _Initializers(model.graph, path.parent)
            shared.write(path.name, model, weights)


class _Initializers(Mapping[str, NDArray[np.generic]]):
    """The initializers of a graph, taken out of it; a value is dropped after it was read once."""

    def __init__(self, graph: onnx.GraphProto, folder: Path) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._folder = folder
        del graph.initializer[:]

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        tensor = self._tensors[name]
        array = read_tensor(tensor, self._folder)
        tensor.ClearField("raw_data")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


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


def _key(array: NDArray[np.generic]) -> Key:
    digest = hashlib.sha256()
    for piece in _pieces(array):
        digest.update(piece.data.cast("B"))
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, digest.digest()


def _pieces(array: NDArray[np.generic], rows: int = 1024) -> Iterator[NDArray[np.generic]]:
    """An array's content in C order, a few rows at a time, so that no transpose is copied whole."""
    if array.ndim == 0:
        yield np.ascontiguousarray(array)
        return
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])
