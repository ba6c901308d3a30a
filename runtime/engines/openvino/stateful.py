"""Lets the plugin keep the decoder's self-attention states, in the form it handles best.

OpenVINO's processor plugin has one operation that appends to a cache in place and attends to it;
its kernel does not depend on the cache's length. The plugin recognises it by its surroundings: a
state that begins empty, is reordered by an input `beam_idx`, is joined to the new keys or values,
and is read by a scaled dot-product attention. ONNX holds the single steps of the attention, so they
are fused again here. If they cannot be fused, the graph computes the same with a kernel per length.
"""

import logging

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import (
    SEQUENCE_AXIS,
    is_self_attention,
    past_name,
)
from whisper_npu.runtime.engines.openvino import graphs
from whisper_npu.runtime.model_folder.config import KVContract
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST

logger = logging.getLogger("whisper_npu")

ROWS = "beam_idx"
"""Input int32 `(batch)`: row `i` continues row `beam_idx[i]`."""


def make_stateful(decoder_with_past: ov.Model, contract: KVContract, *, fuse: bool) -> None:
    """Let the plugin keep the self-attention states, in place.

    The graph loses its states' inputs and outputs and gains the input `ROWS`. States begin with
    no positions after `reset_state`.

    Args:
        decoder_with_past: the graph.
        contract: the content of its `present.*` outputs.
        fuse: fuse the steps of the attention, for the processor's plugin.

    Raises:
        ModelError: an input has no matching output, or a size that must be fixed is dynamic.
    """
    rows = ops.parameter([-1], np.int32, name=ROWS)
    rows.output(0).get_tensor().set_names({ROWS})
    tokens = graphs.port(decoder_with_past.inputs, "input_ids")
    batch = ops.gather(ops.shape_of(tokens), ops.constant([0]), ops.constant(0))
    variables, assignments, inputs, outputs = [], [], [], []
    for past, present in _pairs(decoder_with_past):
        shape = past.partial_shape
        if shape[1].is_dynamic or shape[3].is_dynamic:
            raise ModelError(
                f"{graphs.state_name(past)} has no fixed sizes; export the model again"
            )
        sizes = ops.constant([shape[1].get_length(), 0, shape[3].get_length()])
        zero = ops.constant(0, dtype=past.element_type.to_dtype())
        info = VariableInfo()
        info.variable_id = graphs.state_name(past)
        info.data_shape, info.data_type = shape, past.element_type
        variable = Variable(info)
        empty = ops.broadcast(zero, ops.concat([batch, sizes], 0))
        state = ops.gather(ops.read_value(empty, variable), rows, ops.constant(0))
        for reader in past.get_target_inputs():
            reader.replace_source_output(state.output(0))
        joined = _origin(present.get_node().input_value(0))
        if contract == "delta":
            joined = _join(state.output(0), joined)
        if joined.get_index() != 0:  # a state is assigned from a node's first output
            joined = ops.concat([joined], SEQUENCE_AXIS).output(0)
        assignments.append(ops.assign(joined.get_node(), variable))
        variables.append(variable)
        inputs.append(past.get_node())
        outputs.append(present.get_node())
    decoder_with_past.add_variables(variables)
    decoder_with_past.add_sinks(assignments)
    decoder_with_past.add_parameters([rows])
    for result in outputs:
        decoder_with_past.remove_result(result)
    for parameter in inputs:
        decoder_with_past.remove_parameter(parameter)
    if fuse:
        n_fused = sum(map(_fuse_attention, decoder_with_past.get_ordered_ops()))
        logger.debug("%d attentions fused, for %d states", n_fused, len(variables))
    decoder_with_past.validate_nodes_and_infer_types()


def _pairs(decoder_with_past: ov.Model) -> list[tuple[ov.Output, ov.Output]]:
    """Return the self-attention states' inputs, each with its output."""
    present = {graphs.state_name(tensor): tensor for tensor in decoder_with_past.outputs}
    followers = {past_name(name): tensor for name, tensor in present.items() if name}
    pairs = []
    for tensor in decoder_with_past.inputs:
        name = graphs.state_name(tensor)
        if name and is_self_attention(name):
            if name not in followers:
                raise ModelError(f"{DECODER_WITH_PAST} has no output that follows {name}")
            pairs.append((tensor, followers[name]))
    return pairs


def _origin(tensor: ov.Output) -> ov.Output:
    """Follow a tensor back through nodes that only pass it on."""
    while tensor.get_node().get_type_name() == "Identity":
        tensor = tensor.get_node().input_value(0)
    return tensor


def _join(past: ov.Output, new: ov.Output) -> ov.Output:
    """Join past and new states, by the graph's own join for its attention if it has one."""
    for reader in past.get_target_inputs():
        node = reader.get_node()
        if node.get_type_name() == "Concat" and node.inputs()[-1].get_source_output() == new:
            return node.output(0)
    return ops.concat([past, new], SEQUENCE_AXIS).output(0)


class _OtherGraphError(Exception):
    """The nodes around a softmax are no known attention."""


def _require(holds: bool) -> None:
    if not holds:
        raise _OtherGraphError


def _fuse_attention(node: ov.Node) -> bool:
    """Replace `softmax(queries x keys + mask) x values` by one operation, if it is exactly that."""
    try:
        attended, inputs = _attention_around(node)
    except _OtherGraphError:
        return False
    fused = ops.scaled_dot_product_attention(*inputs, causal=False)
    attended.output(0).replace(fused.output(0))
    return True


def _attention_around(softmax: ov.Node) -> tuple[ov.Node, list[ov.Output]]:
    """Return the last node of an attention, and its queries, keys, values, mask and scale."""
    _require(softmax.get_type_name() == "Softmax")
    rank = softmax.get_output_partial_shape(0).rank
    _require(rank.is_static and rank.get_length() == 4)
    _require(softmax.get_attributes()["axis"] in (-1, 3))
    masked = _source(softmax, 0, "Add")
    scores = masked.input_value(0).get_node()
    scale = 1.0
    if scores.get_type_name() == "Multiply":
        factor = _source(scores, 1, "Constant").get_data()
        _require(factor.size == 1)
        scale = float(factor.item())
        scores = scores.input_value(0).get_node()
    _require(_is_product(scores))
    turned = _source(scores, 1, "Transpose")
    _require(list(_source(turned, 1, "Constant").get_data()) == [0, 1, 3, 2])
    readers = list(softmax.output(0).get_target_inputs())
    _require(len(readers) == 1 and readers[0].get_index() == 0)
    attended = readers[0].get_node()
    _require(_is_product(attended))
    factor_type = masked.get_output_element_type(0).to_dtype()
    return attended, [
        scores.input_value(0),
        turned.input_value(0),
        attended.input_value(1),
        masked.input_value(1),
        ops.constant(scale, dtype=factor_type).output(0),
    ]


def _is_product(node: ov.Node) -> bool:
    """Whether a node multiplies matrices without transposing them."""
    if node.get_type_name() != "MatMul":
        return False
    attributes = node.get_attributes()
    return not (attributes["transpose_a"] or attributes["transpose_b"])


def _source(node: ov.Node, place: int, kind: str) -> ov.Node:
    """Return the node before an input of `node`; it must be of the given kind."""
    source = node.input_value(place).get_node()
    _require(source.get_type_name() == kind)
    return source
