"""Edits ONNX graphs: fixes shapes, folds nodes that depend only on shapes, cuts, rewires.

During the edit the weights are outside the graph. Each large initializer is a stub with shape and
type, and its values are an array beside the graph (mapped from disk if the source has an external
file). So a model of several gigabytes is edited as fast as a small one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import shape_inference
from onnx.external_data_helper import uses_external_data
from onnx.reference import ReferenceEvaluator

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.external_data import map_tensor
from whisper_npu.runtime.model_folder.regular_files import open_regular

Array = NDArray[Any]

_INLINE_BELOW = 1024  # bytes: shape constants and scalars stay in the graph
_FOLD_BELOW = 1 << 16  # elements: shape arithmetic is folded, weights are not


class Graph:
    """One ONNX graph that is being edited.

    Attributes:
        name: its file name, for errors.
        proto: the model, its large initializers without values.
        weights: the values of the large initializers, by name.
    """

    def __init__(self, name: str, proto: onnx.ModelProto, weights: dict[str, Array]) -> None:
        self.name = name
        self.proto = proto
        self.weights = weights

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The nodes, in topological order."""
        nodes: Sequence[onnx.NodeProto] = self.proto.graph.node
        return nodes

    def copy(self) -> "Graph":
        """A copy of the graph that can be edited separately; the weights are shared."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return Graph(self.name, proto, dict(self.weights))

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        return [value.name for value in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [value.name for value in self.proto.graph.output]

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes `tensor`; None for inputs and constants."""
        return next((node for node in self.nodes if tensor in node.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read `tensor`."""
        return [node for node in self.nodes if tensor in node.input]

    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Constants by name; large ones are stubs without values."""
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def constant(self, tensor: str) -> Array | None:
        """The values of a constant; None if `tensor` is computed or fed."""
        if tensor in self.weights:
            return self.weights[tensor]
        found = self.initializers().get(tensor)
        return None if found is None else onnx.numpy_helper.to_array(found)

    def add_constant(self, name: str, values: Array | np.float32) -> str:
        """Add a constant; returns its name."""
        values = np.asarray(values)
        if values.nbytes < _INLINE_BELOW:
            self.proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        else:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            self.proto.graph.initializer.append(_stub(name, values.shape, dtype))
            self.weights[name] = values
        return name

    def insert(self, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        """Insert nodes before another node, so that the order stays topological."""
        position = next(i for i, node in enumerate(self.nodes) if node is before)
        for offset, node in enumerate(nodes):
            self.proto.graph.node.insert(position + offset, node)

    def replace_uses(self, old: str, new: str) -> None:
        """Make every node that reads `old` read `new`."""
        for node in self.nodes:
            for index, tensor in enumerate(node.input):
                if tensor == old:
                    node.input[index] = new

    def rename(self, old: str, new: str) -> None:
        """Rename a computed tensor everywhere."""
        self.replace_uses(old, new)
        for node in self.nodes:
            for index, tensor in enumerate(node.output):
                if tensor == old:
                    node.output[index] = new

    def set_input_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Fix the inputs' shapes.

        Raises:
            ModelError: an input is missing in `shapes`, or contradicts its shape.
        """
        for value in self.proto.graph.input:
            if value.name not in shapes:
                raise ModelError(f"{self.name} has an input {value.name} that is not known")
            wanted = shapes[value.name]
            dims = value.type.tensor_type.shape.dim
            fixed = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
            if len(fixed) != len(wanted) or any(
                have is not None and have != want for have, want in zip(fixed, wanted, strict=True)
            ):
                raise ModelError(
                    f"{self.name}: input {value.name} has the shape {fixed}, expected {wanted}"
                )
            for dim, size in zip(dims, wanted, strict=True):
                dim.dim_value = size

    def add_input(self, name: str, dtype: int, shape: Sequence[int]) -> str:
        """Add an input; returns its name."""
        self.proto.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        return name

    def set_outputs(self, names: Iterable[str]) -> None:
        """Make these tensors the outputs, and remove all nodes that they do not need."""
        del self.proto.graph.output[:]
        for name in names:
            self.proto.graph.output.append(onnx.ValueInfoProto(name=name))
        self.prune()

    def prune(self) -> None:
        """Remove nodes, inputs and constants that no output needs."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        graph = self.proto.graph
        inputs = [value for value in graph.input if value.name in needed]
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        for field, content in (
            (graph.node, kept[::-1]),
            (graph.input, inputs),
            (graph.initializer, constants),
        ):
            copies = [_copy(item) for item in content]
            del field[:]
            field.extend(copies)
        self.weights = {name: values for name, values in self.weights.items() if name in needed}

    def fold_shapes(self) -> None:
        """Replace every tensor that depends only on shapes by a constant.

        This needs static input shapes. Afterwards the graph states the shape of every tensor.

        Raises:
            ModelError: a shape stays unknown; the message names the tensor.
        """
        self._inline_constant_nodes()
        self._drop_identities()
        while True:
            self.prune()
            shapes = self._infer_shapes()
            if not self._fold_once(shapes):
                break
        for node in self.nodes:
            for tensor in node.output:
                if tensor and shapes.get(tensor) is None:
                    raise ModelError(
                        f"{self.name}: the shape of {tensor} ({node.op_type}) depends on the data; "
                        "the NPU needs fixed shapes. Export the model again"
                    )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of inputs and outputs."""
        graph = self.proto.graph
        return {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.output)
        }

    def _infer_shapes(self) -> dict[str, tuple[int, ...] | None]:
        del self.proto.graph.value_info[:]
        for output in self.proto.graph.output:
            output.ClearField("type")
        try:
            inferred = shape_inference.infer_shapes(self.proto, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"{self.name} is inconsistent: {reason}") from None
        self.proto.CopyFrom(inferred)
        graph = self.proto.graph
        shapes: dict[str, tuple[int, ...] | None] = {}
        for value in (*graph.value_info, *graph.output, *graph.input):
            dims = value.type.tensor_type.shape.dim
            known = value.type.tensor_type.HasField("shape") and all(
                dim.HasField("dim_value") for dim in dims
            )
            shapes[value.name] = tuple(dim.dim_value for dim in dims) if known else None
        for tensor in graph.initializer:
            shapes[tensor.name] = tuple(tensor.dims)
        return shapes

    def _fold_once(self, shapes: Mapping[str, tuple[int, ...] | None]) -> bool:
        constants = {
            name: onnx.numpy_helper.to_array(tensor)
            for name, tensor in self.initializers().items()
            if name not in self.weights
        }
        folded: dict[str, Array] = {}
        for node in self.nodes:
            values: list[Array]
            if node.op_type == "Shape" and shapes.get(node.input[0]) is not None:
                shape = np.array(shapes[node.input[0]], np.int64)
                values = [shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))]]
            elif all(name in constants for name in node.input if name) and _is_small(
                shapes.get(name) for name in node.output
            ):
                feed = {name: constants[name] for name in node.input if name}
                evaluator: Any = ReferenceEvaluator(_single_node_model(node, self.proto))
                values = evaluator.run(None, feed)
            else:
                continue
            results = dict(zip(node.output, map(np.asarray, values), strict=True))
            constants.update(results)
            folded.update(results)
        if not folded:
            return False
        outputs = set(self.outputs)
        kept = [node for node in self.nodes if not set(node.output) <= (folded.keys() - outputs)]
        copies = [_copy(node) for node in kept]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(copies)
        inner = [name for name in folded if name not in outputs]  # in the order of the nodes
        for name in inner:
            self.add_constant(name, folded[name])
        return bool(inner)

    def _inline_constant_nodes(self) -> None:
        kept = []
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                values = onnx.numpy_helper.to_array(node.attribute[0].t)
                self.add_constant(node.output[0], values)
            else:
                kept.append(_copy(node))
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)

    def _drop_identities(self) -> None:
        outputs = set(self.outputs)
        kept = []
        renamed: dict[str, str] = {}
        for node in self.nodes:
            for index, tensor in enumerate(node.input):
                node.input[index] = renamed.get(tensor, tensor)
            if node.op_type == "Identity" and node.output[0] not in outputs:
                renamed[node.output[0]] = node.input[0]
            else:
                kept.append(_copy(node))
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)


def read_graph(path: Path) -> Graph:
    """Read an ONNX file for editing.

    Raises:
        ModelError: the file or its external weights cannot be read, the weights are outside the
            file's folder, or the graph has subgraphs.
    """
    try:
        with open_regular(path) as stream:
            proto = onnx.load_model_from_string(stream.read())
    except (OSError, ValueError, DecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; export the model again") from None
    return graph_of(proto, path)


def graph_of(proto: onnx.ModelProto, path: Path) -> Graph:
    """Make a graph that was read from `path` ready for editing.

    Raises:
        ModelError: the external weights cannot be read or are outside the file's folder, or the
            graph has subgraphs.
    """
    try:
        weights = dict(_take_weights(proto, path))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}; export the model again") from None
    if any(_has_subgraph(node) for node in proto.graph.node):
        raise ModelError(
            f"{path} branches at run time (an If or Loop), which the NPU cannot do; export the "
            "three graphs apart"
        )
    graph = Graph(path.name, proto, weights)
    if _computes_in_half(graph):
        _widen(graph)
    return graph


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, or its default."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def _computes_in_half(graph: Graph) -> bool:
    """Whether a graph computes in half precision; it may also only store its weights so."""
    half = onnx.TensorProto.FLOAT16
    values = (*graph.proto.graph.input, *graph.proto.graph.output)
    return any(value.type.tensor_type.elem_type == half for value in values) or any(
        node.op_type == "Cast" and attribute(node, "to", None) == half for node in graph.nodes
    )


def _widen(graph: Graph) -> None:
    """Make float32 of half precision everywhere, in place; the stored weights are chosen later.

    Masks and positions that are added to a graph are float32.
    """
    proto = graph.proto.graph
    narrow, wide = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for value in (*proto.input, *proto.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    for tensor in proto.initializer:
        if tensor.data_type != narrow:
            continue
        if tensor.name in graph.weights:
            graph.weights[tensor.name] = graph.weights[tensor.name].astype(np.float32)
            tensor.data_type = wide
        else:
            tensor.CopyFrom(_as_float32(tensor))
    for node in graph.nodes:
        for item in node.attribute:
            if item.t.data_type == narrow:
                item.t.CopyFrom(_as_float32(item.t))
            elif node.op_type == "Cast" and item.name == "to" and item.i == narrow:
                item.i = wide
    del proto.value_info[:]


def _as_float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    return onnx.numpy_helper.from_array(values, tensor.name)


def _take_weights(proto: onnx.ModelProto, path: Path) -> Iterator[tuple[str, Array]]:
    """Move the values of large initializers out of the graph."""
    for index, tensor in enumerate(proto.graph.initializer):
        values = _values(tensor, path.parent)
        if values.nbytes < _INLINE_BELOW:
            replacement = onnx.numpy_helper.from_array(np.asarray(values), tensor.name)
        else:
            replacement = _stub(tensor.name, values.shape, tensor.data_type)
            yield tensor.name, values
        proto.graph.initializer[index].CopyFrom(replacement)


def _values(tensor: onnx.TensorProto, folder: Path) -> Array:
    if not uses_external_data(tensor):
        return onnx.numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return map_tensor(folder, entries, dtype, tuple(tensor.dims))


def _stub(name: str, shape: Sequence[int], data_type: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


def _copy(message: Any) -> Any:
    """A copy that stays valid after the deletion of the repeated field of the message."""
    duplicate = type(message)()
    duplicate.CopyFrom(message)
    return duplicate


def _has_subgraph(node: onnx.NodeProto) -> bool:
    return any(item.HasField("g") or len(item.graphs) for item in node.attribute)


def _is_small(shapes: Iterable[tuple[int, ...] | None]) -> bool:
    return all(shape is None or np.prod(shape, dtype=np.int64) < _FOLD_BELOW for shape in shapes)


def _single_node_model(node: onnx.NodeProto, like: onnx.ModelProto) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [node],
        "folded",
        [onnx.ValueInfoProto(name=name) for name in node.input if name],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    return onnx.helper.make_model(
        graph, opset_imports=like.opset_import, ir_version=like.ir_version
    )
