"""Rounds matrices to 8 bits, so that graphs compute their products in 8 bits.

Every output of a matrix product has its own scale, so that its largest weight is 127. With such
weights OpenVINO's processor plugin also rounds activations as they arrive, in groups of neighbours
with one scale each, and multiplies integers. Attention, normalisation and convolutions stay in
floating point.

The plugin does so if activations are in f32. In a graph computed in bf16 it may instead convert the
matrices to bf16, at every product anew (seen on a processor with AMX).
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.runtime.engines.openvino.graphs import matrix_of, to_bfloat16
from whisper_npu.runtime.engines.protocol import Float32Array

GROUP = 128
"""Elements of an activation that share a scale. 32 are more exact, but no faster than bf16."""

_LARGEST = 127
_MATRIX_RANK = 2
_SMALLEST = 4096  # elements of a matrix: its zero points may be stored in the same way
_STORED = {"u4": "int4", "i4": "int4", "nf4": "int4", "u8": "int8", "i8": "int8"}
_OUTPUTS_AT_ONCE = 512  # of a matrix at a time: the result stays in the processor's cache
_THREADS = 2  # that round; more threads would wait for memory


def round_matrix(
    values: npt.NDArray[np.floating], axis: int
) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Round a matrix to `codes * scales`, with one scale for each index along `axis`.

    Args:
        values: floating point, two dimensions.
        axis: that of a product's outputs.

    Returns:
        codes int8 of the same shape, -127 to 127, and scales float32, one for each output.
    """
    largest = np.abs(values).max(axis=1 - axis).astype(np.float32)
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    codes = np.rint(values / np.expand_dims(scales, 1 - axis)).astype(np.int8)
    return codes, scales


def round_products(model: ov.Model, *, attention: bool) -> int:
    """Round the matrices a graph multiplies by to 8 bits, in place.

    Args:
        model: a graph. Products without a constant matrix, matrices that are already in 8 bits, and
            lookup tables stay as they are.
        attention: also round the matrices of an attention's queries, keys, values and output, which
            are the square matrices of a Whisper. They make an encoder twice as inexact, and hardly
            faster if they are small (docs/performance.md has figures by size).

    Returns:
        the number of rounded products.
    """
    found = [
        (node, matrix)
        for node in model.get_ordered_ops()
        if (matrix := matrix_of(node)) is not None
        and (attention or matrix.shape[0] != matrix.shape[1])
    ]
    rounded = [_RoundedMatrix(matrix) for _, matrix in found]
    parts = [(each, outputs) for each in rounded for outputs in each.parts()]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda part: part[0].round(part[1]), parts))
    for (node, _), result in zip(found, rounded, strict=True):
        codes = ops.constant(result.codes_by_output(), shared_memory=True)
        product = ops.matmul(
            node.input_value(0),
            ops.multiply(ops.convert(codes, "f32"), ops.constant(result.scales[:, None])),
            transpose_a=False,
            transpose_b=True,
        )
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def narrow_tables(model: ov.Model) -> None:
    """Store lookup tables in bf16, in place.

    In a graph computed in bf16 this changes nothing: values from a table are rounded to it anyway.
    In a graph computed in f32 it adds a rounding, smaller than that of 8 bits.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather" or node.get_attributes()["batch_dims"]:
            continue
        source = node.input_value(0)
        table = source.get_node()
        if table.get_type_name() != "Constant" or table.get_element_type() != ov.Type.f32:
            continue
        if len(table.shape) != _MATRIX_RANK:
            continue
        narrow = to_bfloat16(table.data)
        looked_up = ops.gather(ops.constant(narrow), node.input_value(1), node.input_value(2))
        wide = ops.convert(looked_up, "f32")
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()


def has_matrices(model: ov.Model) -> bool:
    """Whether a graph has matrices that `round_products` rounds."""
    return any(matrix_of(node) is not None for node in model.get_ordered_ops())


def stored_weights(models: Iterable[ov.Model]) -> str:
    """Return `int4` or `int8` if matrices of graphs are stored so, the smallest; else nothing.

    `round_products` leaves such matrices as they are.
    """
    found = set()
    for model in models:
        for node in model.get_ops():
            if node.get_type_name() == "Constant" and np.prod(node.shape) >= _SMALLEST:
                found.add(_STORED.get(node.get_element_type().get_type_name(), ""))
    return min(found - {""}, default="")


def named_precision(arithmetic: str, stored: str) -> str:
    """Return the name of arithmetic in floating point on weights that are stored in `stored`."""
    return f"{arithmetic} ({stored} weights)" if stored else arithmetic


class _RoundedMatrix:
    """A matrix `(n_out, n_in)` rounded part by part, in its stored order.

    Transposing a matrix takes longer than rounding it.

    Attributes:
        axis: the axis of the outputs, in memory.
        codes: int8 `(n_out, n_in)`; or, if outputs are neighbours in memory, `(n_in, n_out)`.
        scales: float32 `(n_out,)`.
    """

    def __init__(self, matrix: npt.NDArray[np.floating]) -> None:
        self.axis = 0 if matrix.flags.c_contiguous else 1
        self._stored = matrix if self.axis == 0 else matrix.T
        self.codes = np.empty(self._stored.shape, np.int8)
        self.scales = np.empty(len(matrix), np.float32)

    def codes_by_output(self) -> npt.NDArray[np.int8]:
        """Int8 `(n_out, n_in)`, stored in this order; see `transpose_weights`."""
        return np.ascontiguousarray(self.codes if self.axis == 0 else self.codes.T)

    def parts(self) -> list[slice]:
        starts = range(0, len(self.scales), _OUTPUTS_AT_ONCE)
        return [slice(start, start + _OUTPUTS_AT_ONCE) for start in starts]

    def round(self, outputs: slice) -> None:
        part = (outputs, slice(None)) if self.axis == 0 else (slice(None), outputs)
        self.codes[part], self.scales[outputs] = round_matrix(self._stored[part], self.axis)
