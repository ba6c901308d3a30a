"""Returns the queries of a decoder's alignment heads while it decodes.

The queries are a few hundred numbers for each token. With the keys of the cross-attention, which a
session holds anyway, they give the attention of each token. So the time of each token is known
without running the text through another graph.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.runtime.engines.kv_cache import is_cross_attention
from whisper_npu.runtime.engines.openvino import graphs
from whisper_npu.runtime.engines.protocol import Float32Array

QUERIES = "alignment_queries"
"""Output float32 `(batch, heads, n, head_dim)`, scaled."""

_IN_ONE_THREAD = 2**18  # multiplications up to which OpenBLAS uses only the calling thread

Heads = Sequence[tuple[int, int]]
"""Alignment heads by layer and index in the layer."""


def expose_queries(decoder: ov.Model, heads: Heads) -> bool:
    """Add the output `QUERIES` to a decoder with past, in place.

    Args:
        decoder: takes the states `past_key_values.*.encoder.key`.
        heads: in the order of the output; heads of a layer are neighbours.

    Returns:
        False if the attention is built in an unknown way; the graph is then unchanged.
    """
    found = _cross_queries(decoder)
    parts = []
    for layer in dict.fromkeys(layer for layer, _ in heads):
        queries = found.get(layer)
        if queries is None:
            return False
        wanted = [head for of_layer, head in heads if of_layer == layer]
        parts.append(ops.gather(queries, ops.constant(wanted), ops.constant(1)).output(0))
    if not parts:
        return False
    result = ops.result(ops.concat(parts, 1) if len(parts) > 1 else parts[0])
    result.output(0).get_tensor().set_names({QUERIES})
    decoder.add_results([result])
    decoder.validate_nodes_and_infer_types()
    return True


def _cross_queries(decoder: ov.Model) -> dict[int, ov.Output]:
    """Return the scaled queries of the cross-attention by layer, `(batch, heads, n, head_dim)`."""
    found = {}
    for node in decoder.get_ordered_ops():
        if node.get_type_name() != "Softmax":
            continue
        scores, factor = _unconverted(node.input_value(0)).get_node(), None
        if scores.get_type_name() == "Multiply":
            factor = scores.input_value(1)
            if list(factor.get_partial_shape().to_shape()) not in ([], [1]):
                continue
            scores = _unconverted(scores.input_value(0)).get_node()
        if scores.get_type_name() != "MatMul" or scores.get_attributes()["transpose_a"]:
            continue
        keys = scores.input_value(1).get_node()
        while keys.get_type_name() in {"Transpose", "Convert", "Identity"}:
            keys = keys.input_value(0).get_node()
        if keys.get_type_name() != "Parameter":
            continue
        name = graphs.state_name(keys.output(0))
        queries = _unconverted(scores.input_value(0))
        if (
            name
            and is_cross_attention(name)
            and queries.get_partial_shape().rank == ov.Dimension(4)
        ):
            scaled = queries if factor is None else ops.multiply(queries, factor).output(0)
            found[int(name.split(".")[1])] = scaled
    return found


def _unconverted(value: ov.Output) -> ov.Output:
    """Return a value as it was before conversions to other types."""
    while value.get_node().get_type_name() == "Convert":
        value = value.get_node().input_value(0)
    return value


def attention_weights(
    queries: Float32Array,
    keys: dict[str, ov.Tensor],
    heads: Heads,
    row: int,
    n_positions: int,
    pooled: int,
) -> Iterator[Float32Array]:
    """Yield the attention of tokens, one alignment head after another.

    Args:
        queries: float32 `(heads, n, head_dim)` of one row.
        keys: the cross-attention states, `past_key_values.*.encoder.key` among them, `(batch,
            n_text_head, head_dim, n_audio_ctx)`.
        heads: in the order of the queries.
        row: the row's index in the batch.
        n_positions: number of pooled positions to return, from the first on.
        pooled: audio positions that are pooled into one of them.

    Yields:
        float32 `(n, n_positions)`, in proportion to the attention.
    """
    for of_head, (layer, head) in zip(queries, heads, strict=True):
        key = _numbers(keys[f"past_key_values.{layer}.encoder.key"], row, head)
        end = n_positions * pooled
        key = np.add.reduce([key[:, first:end:pooled] for first in range(pooled)])
        scores = _product(of_head / pooled, key)
        scores -= scores.max(axis=-1, keepdims=True)
        yield np.exp(scores, out=scores)


def _product(queries: Float32Array, keys: Float32Array) -> Float32Array:
    """Compute `queries @ keys`, some rows at a time: for more rows, numpy would wake its threads.

    These threads would wait for processor cores that decode.
    """
    n, width = queries.shape
    at_once = max(1, _IN_ONE_THREAD // keys.size)
    blocks = np.zeros((-(-n // at_once), at_once, width), np.float32)
    blocks.reshape(-1, width)[:n] = queries
    scores: Float32Array = np.matmul(blocks, keys).reshape(-1, keys.shape[1])[:n]
    return scores


def _numbers(states: ov.Tensor, row: int, head: int) -> Float32Array:
    """Return one head's states as float32 `(head_dim, positions)`, whatever their stored type."""
    values = states.data[row, head]
    if states.get_element_type() != ov.Type.bf16:
        return np.asarray(values, np.float32)
    bits = values.view(np.uint16).astype(np.uint32) << 16
    numbers: Float32Array = bits.view(np.float32)
    return numbers
