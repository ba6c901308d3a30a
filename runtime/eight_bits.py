"""Matrices in 8 bits, and graphs whose products are computed in them.

Every output of a matrix product has a scale of its own, so that its largest weight is 127. With
such weights OpenVINO's processor plugin also rounds what they are multiplied by, as it comes, in
groups of neighbours with one scale each, and multiplies integers. Attention, normalisation and
convolutions stay in floating point.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.runtime.backend import Float32Array
from whisper_npu.runtime.openvino_graphs import matrix_of

GROUP = 128
"""Elements of an activation that share a scale. 32 are more exact, but no faster than bf16."""

_LARGEST = 127
_MATRIX_RANK = 2
_OUTPUTS_AT_ONCE = 512  # of a matrix: what is made of them stays in the processor's cache
_THREADS = 2  # that round; more would wait for memory


def round_matrix(
    values: npt.NDArray[np.floating], axis: int
) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """A matrix as `codes * scales`, one scale for each place along `axis`.

    Args:
        values: floating point, two dimensions.
        axis: that of a product's outputs.

    Returns:
        codes int8 of the same shape, -127 to 127, and scales float32, as many as there are outputs.
    """
    largest = np.abs(values).max(axis=1 - axis).astype(np.float32)
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    codes = np.rint(values / np.expand_dims(scales, 1 - axis)).astype(np.int8)
    return codes, scales


def round_products(model: ov.Model, *, attention: bool) -> int:
    """Round the matrices a graph multiplies by to 8 bits, in place.

    Args:
        model: a graph. Products of matrices that are no constants, and matrices that are in 8 bits
            already, stay as they are; so do tables that are looked up.
        attention: also what makes an attention's queries, keys, values and output, which are the
            square matrices of a Whisper. An encoder is twice as far off with them, and hardly
            faster.

    Returns:
        how many products.
    """
    found = [
        (node, matrix)
        for node in model.get_ordered_ops()
        if (matrix := matrix_of(node)) is not None
        and (attention or matrix.shape[0] != matrix.shape[1])
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        rounded = list(threads.map(_round_parts, (matrix for _, matrix in found)))
    for (node, _), (codes, scales) in zip(found, rounded, strict=True):
        weights = ops.multiply(
            ops.convert(ops.constant(codes, shared_memory=True), "f32"), ops.constant(scales)
        )
        by_output = scales.shape[1] == 1
        product = ops.matmul(node.input_value(0), weights, transpose_a=False, transpose_b=by_output)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def has_rounded_products(model: ov.Model) -> bool:
    """Whether a graph holds matrices in 8 bits already."""
    return any(
        node.get_type_name() == "Constant"
        and len(node.shape) == _MATRIX_RANK
        and node.get_element_type() in {ov.Type.i8, ov.Type.u8}
        for node in model.get_ordered_ops()
    )


def _round_parts(
    matrix: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Codes and scales of a matrix `(n_out, n_in)`, part by part, in the order it is stored in.

    Returns:
        `(n_out, n_in)` and `(n_out, 1)`; or, where outputs are neighbours in memory,
        `(n_in, n_out)` and `(1, n_out)`: turning a matrix takes longer than rounding it.
    """
    axis = 0 if matrix.flags.c_contiguous else 1
    stored = matrix if axis == 0 else matrix.T
    codes = np.empty(stored.shape, np.int8)
    scales = np.empty(len(matrix), np.float32)
    for start in range(0, len(matrix), _OUTPUTS_AT_ONCE):
        outputs = slice(start, start + _OUTPUTS_AT_ONCE)
        part = (outputs, slice(None)) if axis == 0 else (slice(None), outputs)
        codes[part], scales[outputs] = round_matrix(stored[part], axis)
    return codes, np.expand_dims(scales, 1 - axis)
