"""Writes the weights of several static graphs into one data file, in a given format.

Graphs refer to the file as ONNX external data, which both OpenVINO and ONNX Runtime read. A weight
that several graphs have is stored once, even if a graph has it transposed.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx

from whisper_npu.errors import ModelError
from whisper_npu.npu.graph_surgery import Array, Graph
from whisper_npu.runtime.engines.openvino.graphs import is_finite
from whisper_npu.runtime.engines.openvino.int8_weights import round_matrix

WeightFormat = Literal["lossless", "f16", "int8"]

ALIGNMENT = 64
_MATRIX_RANK = 2
_QUANTIZE_FROM = 64  # rows and columns; 8 bits do not help smaller matrices
_LOOK_FOR_TRANSPOSE_FROM = 1 << 20  # elements: the token embedding


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the data file."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    offset: int
    length: int


class WeightStore:
    """The data file while it is written."""

    def __init__(self, file: BinaryIO, location: str, weights: WeightFormat) -> None:
        self._file = file
        self._location = location
        self._weights = weights
        self._stored: dict[tuple[str, tuple[int, ...], bytes], _Stored] = {}
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The sha256 of the data written so far."""
        return self._digest.hexdigest()

    def place(self, graph: Graph) -> onnx.ModelProto:
        """Store a graph's large constants in the data file; return the graph that refers to them.

        `lossless` stores a tensor in half precision if no value changes, `f16` stores all in half
        precision, and `int8` stores matrices as 8-bit integers with one scale per output channel.

        Raises:
            ModelError: a weight holds NaN or an infinite value.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(graph.proto)
        small = [item for item in proto.graph.initializer if item.name not in graph.weights]
        kept = [onnx.TensorProto.FromString(item.SerializeToString()) for item in small]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        front: list[onnx.NodeProto] = []
        for name, values in graph.weights.items():
            _require_finite(graph, name, values)
            axis = _channel_axis(graph, name, values) if self._weights == "int8" else None
            if axis is not None:
                front += self._place_int8(proto, name, values, axis)
            else:
                front += self._place_float(proto, name, values)
        nodes = list(proto.graph.node)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.graph.node[:]
        proto.graph.node.extend([*front, *copies])
        return proto

    def _place_float(
        self, proto: onnx.ModelProto, name: str, values: Array
    ) -> list[onnx.NodeProto]:
        """Refer to the stored tensor; widen it if it is stored in half precision."""
        half = self._half(values) if values.dtype == np.float32 else None
        stored, is_transpose = self._add(name, values if half is None else half)
        steps: list[tuple[str, dict[str, Any]]] = []
        if is_transpose:
            steps.append(("Transpose", {"perm": [1, 0]}))
        if half is not None:
            steps.append(("Cast", {"to": onnx.TensorProto.FLOAT}))
        tensor = name if not steps else f"{name}.stored"
        proto.graph.initializer.append(self._reference(tensor, stored))
        nodes = []
        for index, (operator, attributes) in enumerate(steps):
            result = name if index == len(steps) - 1 else f"{name}.{operator}"
            nodes.append(onnx.helper.make_node(operator, [tensor], [result], **attributes))
            tensor = result
        return nodes

    def _place_int8(
        self, proto: onnx.ModelProto, name: str, values: Array, axis: int
    ) -> list[onnx.NodeProto]:
        quantized, scales = round_matrix(values, axis)
        stored, _ = self._add(name, quantized, look_for_transpose=False)
        stored_scales, _ = self._add(f"{name}.scales", scales)
        proto.graph.initializer.extend(
            [
                self._reference(f"{name}.int8", stored),
                self._reference(f"{name}.scales", stored_scales),
            ]
        )
        inputs = [f"{name}.int8", f"{name}.scales"]
        return [onnx.helper.make_node("DequantizeLinear", inputs, [name], axis=axis)]

    def _half(self, values: Array) -> Array | None:
        """`values` in half precision if they are stored so, else None."""
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if self._weights == "lossless":
            return half if np.array_equal(half, values) else None
        return half if np.isfinite(half).all() else None

    def _add(
        self, name: str, values: Array, *, look_for_transpose: bool = True
    ) -> tuple[_Stored, bool]:
        """Store an array, unless the array or its transpose is stored already."""
        key = _key(values)
        if key in self._stored:
            return self._stored[key], False
        if (
            look_for_transpose
            and values.ndim == _MATRIX_RANK
            and values.size >= _LOOK_FOR_TRANSPOSE_FROM
        ):
            transposed = _key(np.ascontiguousarray(values.T))
            if transposed in self._stored:
                return self._stored[transposed], True
        padding = b"\0" * (-self._file.tell() % ALIGNMENT)
        self._write(padding)
        stored = _Stored(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype),
            shape=values.shape,
            offset=self._file.tell(),
            length=values.nbytes,
        )
        self._write(np.ascontiguousarray(values).tobytes())
        self._stored[key] = stored
        return stored, False

    def _write(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)

    def _reference(self, name: str, stored: _Stored) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=stored.data_type, dims=stored.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {
            "location": self._location,
            "offset": stored.offset,
            "length": stored.length,
        }
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


def _require_finite(graph: Graph, name: str, values: Array) -> None:
    if values.dtype.kind == "f" and not is_finite(values):
        raise ModelError(
            f"{graph.name}: the weight {name} holds values that are not finite (NaN or infinity); "
            "export the model again"
        )


def _channel_axis(graph: Graph, name: str, values: Array) -> int | None:
    """The axis of a matrix with one scale per index; None for a tensor that is not quantized."""
    if values.ndim != _MATRIX_RANK or values.dtype != np.float32:
        return None
    if min(values.shape) < _QUANTIZE_FROM:
        return None
    readers = graph.consumers(name)
    if all(
        node.op_type == "Transpose" or (node.op_type == "Gather" and node.input[0] == name)
        for node in readers
    ):
        # The token table and the logits' weights have a scale per token. Positions stay exact.
        return 0 if any(node.op_type == "Transpose" for node in readers) else None
    if all(node.op_type == "MatMul" and node.input[1] == name for node in readers):
        return 1
    return None


def _key(values: Array) -> tuple[str, tuple[int, ...], bytes]:
    content = np.ascontiguousarray(values)
    digest = hashlib.sha256(content.reshape(-1).view(np.uint8).data).digest()
    return str(values.dtype), values.shape, digest
