"""Converts the float32 graphs of a model folder to graphs with half-precision or 8-bit weights.

| precision | encoder                                        | decoders and alignment graph        |
| --------- | ---------------------------------------------- | ----------------------------------- |
| fp16      | weights float16, a Cast in front of their use  | the same                            |
| int8      | weights and activations 8-bit, by NNCF, but    | weights int8, one scale per output  |
|           | for the convolutions: fp16 weights             | channel; activations stay float     |

Inputs and outputs stay float32. All graphs still share one data file: the stored form depends only
on the float weight, so shared weights stay shared. Tables of positions stay float32, because
runtimes cut them to the length of a window and look for a plain constant.
"""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from whisper_npu.errors import ExportError
from whisper_npu.export.conversion import Precision
from whisper_npu.export.shared_weights import DATA_FILE, MATRIX_RANK, read_tensor, share_weights
from whisper_npu.runtime.engines.openvino.int8_weights import round_matrix
from whisper_npu.runtime.model_folder.external_data import external_files
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, ENCODER, GRAPHS

CONVERTED = (*GRAPHS, ALIGNMENT)
FEATURES = "input_features"

Progress = Callable[[str], None]
Float32 = NDArray[np.float32]


def convert_graphs(
    source: Path,
    target: Path,
    precision: Precision,
    windows: Sequence[Float32],
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write the graphs of a folder in another precision.

    Args:
        source: A folder with the trio and the alignment graph in float32, weights shared.
        target: An existing folder that receives graphs of the same names and their data file.
        precision: `fp16` or `int8`.
        windows: Features `(1, n_mels, n_frames)` that calibrate the encoder's 8-bit arithmetic.
        progress: Called with one line per step.

    Returns:
        The changes to each graph, in words, for the manifest.

    Raises:
        ExportError: A graph has no weights of a known form, or NNCF failed.
    """
    report = progress or (lambda _line: None)
    done: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="raw-", dir=target.parent) as raw:
        for name in CONVERTED:
            if precision == "int8" and name == ENCODER:
                model = quantize_encoder(source / name, windows)
                done[name] = (
                    "8-bit weights and activations (NNCF, transformer model, mixed preset);"
                    " convolutions: float16 weights"
                )
                report(f"quantized the encoder, calibrated on {len(windows)} windows")
            else:
                model = onnx.load(source / name, load_external_data=False)
                if precision == "int8":
                    count = quantize_weights(model, source)
                    done[name] = f"{count} matrices with 8-bit weights, a scale per output channel"
            count = halve_weights(model, source)
            done.setdefault(name, f"{count} weights in float16")
            onnx.save(
                model,
                Path(raw) / name,
                save_as_external_data=True,
                location=f"{name}.data",
                size_threshold=0,
            )
            del model
        share_weights([Path(raw) / name for name in CONVERTED], target)
    size = (target / DATA_FILE).stat().st_size
    report(f"converted the graphs to {precision}: {size / 1e6:.1f} MB of weights")
    return done


def quantize_encoder(path: Path, windows: Sequence[Float32]) -> onnx.ModelProto:
    """The encoder with 8-bit weights and activations, calibrated on `windows`.

    The convolutions keep float weights. This costs 3 % of the encoder's speed. With 8-bit
    convolutions the error of tiny.en's hidden states was 5.1 % instead of 3.3 % (root mean square,
    5 recordings).

    Raises:
        ExportError: NNCF failed.
        ModelError: The graph's weights are missing, or outside its folder.
    """
    # The library reads this when it is imported: it then sends no usage statistics.
    os.environ.setdefault("NNCF_CI", "1")
    with _quiet():
        import nncf  # noqa: PLC0415 - slow to import, needed for this only

        external_files(
            path
        )  # refuses files outside the folder, because the next line reads all files
        model = onnx.load(path)
        try:
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(list(windows), lambda window: {FEATURES: window}),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(windows),
                ignored_scope=nncf.IgnoredScope(types=["Conv"]),
            )
        except (
            RuntimeError,
            ValueError,  # protobuf's error for a model above 2 GB
            nncf.errors.InternalError,
            nncf.errors.UnsupportedModelError,
            nncf.errors.ValidationError,
        ) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"NNCF could not quantize {path.name}: {reason}") from error
    return quantized


def quantize_weights(model: onnx.ModelProto, folder: Path) -> int:
    """Store the matrices of a graph as int8 with a float32 scale per output channel, in place.

    A `DequantizeLinear` replaces the matrix. OpenVINO's CPU plugin multiplies the stored integers
    directly (`FullyConnectedCompressed`), so a step reads half as much memory as with bfloat16. The
    scales are symmetric, because a zero point cost a tenth of the step.

    Args:
        model: The graph.
        folder: The folder of its external weights.

    Returns:
        The number of matrices.

    Raises:
        ExportError: The graph has no matrices.
    """
    uses = _Uses(model.graph)

    def convert(tensor: TensorProto) -> tuple[list[TensorProto], onnx.NodeProto] | None:
        axis = uses.output_axis(tensor)
        if axis is None:
            return None
        values = read_tensor(tensor, folder).astype(np.float32)
        quantized, scales = round_matrix(values, axis)
        # ONNX Runtime moves conversions, and takes a conversion without a zero point for uint8.
        zeros = np.zeros(scales.shape, np.int8)
        parts = {"int8": quantized, "scale": scales, "zero": zeros}
        names = [f"{tensor.name}_{part}" for part in parts]
        stored = [
            numpy_helper.from_array(np.asarray(array), name)
            for array, name in zip(parts.values(), names, strict=True)
        ]
        return stored, helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis)

    count = _replace_weights(model.graph, convert)
    if not count:
        raise ExportError(f"found no matrices to quantize in {model.graph.name}")
    return count


def halve_weights(model: onnx.ModelProto, folder: Path) -> int:
    """Store the float weights of matrix products and convolutions as float16, in place.

    All other weights, and weights outside the range of half precision, become inline float32
    weights.

    Args:
        model: The graph.
        folder: The folder of its external weights.

    Returns:
        The number of float16 weights.
    """
    uses = _Uses(model.graph)

    def convert(tensor: TensorProto) -> tuple[list[TensorProto], onnx.NodeProto] | None:
        if not uses.is_multiplied(tensor):
            return None
        with np.errstate(over="ignore"):
            half = read_tensor(tensor, folder).astype(np.float16)
        if not np.isfinite(half).all():
            return None
        name = f"{tensor.name}_fp16"
        cast = helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT)
        return [numpy_helper.from_array(half, name)], cast

    count = _replace_weights(model.graph, convert)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            array = np.array(read_tensor(tensor, folder))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return count


class _Uses:
    """Finds out how the constants of a graph are used."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for index, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, index))

    def is_multiplied(self, tensor: TensorProto) -> bool:
        """Whether it is a float32 weight of matrix products or convolutions."""
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < MATRIX_RANK:
            return False
        found = self._roles(tensor.name)
        return "other" not in found and found != {"table"}

    def output_axis(self, tensor: TensorProto) -> int | None:
        """The output axis of a matrix; None if the matrix has other uses than products.

        The token embedding, which is looked up and multiplied, counts as a matrix of products.
        """
        if len(tensor.dims) != MATRIX_RANK or not self.is_multiplied(tensor):
            return None
        axes = {"columns": 1, "rows": 0}
        found = self._roles(tensor.name) - {"table"}
        return axes.get(found.pop()) if len(found) == 1 else None

    def _roles(self, name: str, *, transposed: bool = False) -> set[str]:
        """How a constant is used: `columns` or `rows` are outputs, `filter`, `table` or `other`."""
        found: set[str] = set()
        for node, index in self._readers.get(name, []):
            match node.op_type, index:
                case "MatMul", 1:
                    found.add("rows" if transposed else "columns")
                case "Transpose", 0:
                    found |= self._roles(node.output[0], transposed=not transposed)
                case "Identity", 0:
                    found |= self._roles(node.output[0], transposed=transposed)
                case "Conv", 1:
                    found.add("filter")
                case "Gather", 0 if not transposed:
                    found.add("table")
                case _:
                    found.add("other")
        return found


def _replace_weights(
    graph: onnx.GraphProto,
    convert: Callable[[TensorProto], tuple[list[TensorProto], onnx.NodeProto] | None],
) -> int:
    """Replace a constant by other constants and a node that computes the old one."""
    kept: list[TensorProto] = []
    front: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        converted = convert(tensor)
        if converted is None:
            kept.append(tensor)
            continue
        kept += converted[0]
        front.append(converted[1])
    tensors = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend([*front, *nodes])
    return len(front)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF's progress bars, logs and the warnings of what it imports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
