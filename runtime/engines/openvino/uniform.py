"""Gives the graphs of other exporters the inputs, types and operations of this project's export."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import SEQUENCE_AXIS, is_self_attention
from whisper_npu.runtime.engines.openvino.graphs import converted, parameters_of, port, state_name

_KNOWN_INPUTS = {"input_features", "input_ids", "encoder_hidden_states"}
_POSITIONS = {"cache_position", "position_ids"}
_MASKS = {"attention_mask", "decoder_attention_mask"}


def make_uniform(graph: ov.Model) -> ov.Model:
    """Return a graph with the known inputs only, computed in float32; `graph` is used up.

    Raises:
        ModelError: the graph needs an input whose meaning is not known.
    """
    _widen(graph)
    _expand_cross_attention(graph)
    _fix_mel_bands(graph)
    results = graph.get_results()
    needed = {node.get_name() for node in parameters_of(results)}
    for tensor in graph.inputs:
        names = tensor.get_names()
        is_known = bool(names & _KNOWN_INPUTS) or state_name(tensor) is not None
        if is_known or tensor.get_node().get_name() not in needed:
            continue
        _replace(tensor, _usual_value(graph, tensor))
    # Without the inputs that have just been replaced, and those that nothing reads.
    return ov.Model(results, parameters_of(results), graph.get_friendly_name())


def _usual_value(graph: ov.Model, tensor: ov.Output) -> ov.Output:
    """Return the value of an input that follows from the others."""
    names = tensor.get_names()
    tokens = ops.shape_of(port(graph.inputs, "input_ids"))
    batch, n_new = (ops.gather(tokens, ops.constant([axis]), ops.constant(0)) for axis in (0, 1))
    pasts = [each for each in graph.inputs if is_self_attention(state_name(each) or "")]
    end = n_new
    start: ov.Node = ops.constant([0])
    if pasts:
        sizes = ops.shape_of(pasts[0])
        start = ops.gather(sizes, ops.constant([SEQUENCE_AXIS]), ops.constant(0))
        end = ops.add(start, n_new)
    own_type = tensor.get_element_type()
    if names & _POSITIONS:
        ends = [ops.squeeze(each, ops.constant([0])) for each in (start, end)]
        value = ops.range(*ends, ops.constant(1), "i64").output(0)
        if tensor.get_partial_shape().rank == ov.Dimension(2):
            value = ops.broadcast(value, ops.concat([batch, n_new], 0)).output(0)
        return converted(value, own_type)
    if names & _MASKS:
        one = ops.constant(1, dtype=np.int64)
        return converted(ops.broadcast(one, ops.concat([batch, end], 0)).output(0), own_type)
    raise ModelError(
        f"a graph of the model needs an input {' or '.join(sorted(names))}, which is not known; "
        "export the model again"
    )


def _widen(graph: ov.Model) -> None:
    """Compute in float32 instead of half precision, and take int64 tokens, in place.

    Its constants stay in half precision: each is converted where it is read.
    """
    wide = ov.Type.f32
    narrow = [
        node
        for node in graph.get_ordered_ops()
        if node.get_output_size() and node.get_output_element_type(0) == ov.Type.f16
    ]
    for node in narrow:
        kind = node.get_type_name()
        if kind == "Parameter":
            node.set_element_type(wide)
        elif kind == "Constant":
            value = node.output(0)
            readers = [
                reader
                for reader in value.get_target_inputs()
                if not _converts_to_float32(reader.get_node())
            ]
            if readers:
                converted_value = ops.convert(node, "f32").output(0)
                for reader in readers:
                    reader.replace_source_output(converted_value)
        elif kind == "Convert":
            _replace(node.output(0), converted(node.input_value(0), wide))
    for tensor in graph.inputs:
        if "input_ids" in tensor.get_names() and tensor.get_element_type() != ov.Type.i64:
            own_type, readers = tensor.get_element_type(), tensor.get_target_inputs()
            tensor.get_node().set_element_type(ov.Type.i64)
            tensor.get_node().validate_and_infer_types()
            given = ops.convert(tensor, own_type.get_type_name()).output(0)
            for reader in readers:
                reader.replace_source_output(given)
    graph.validate_nodes_and_infer_types()


def _converts_to_float32(node: ov.Node) -> bool:
    return bool(
        node.get_type_name() == "Convert" and node.get_output_element_type(0) == ov.Type.f32
    )


def _expand_cross_attention(graph: ov.Model) -> None:
    """Replace fused attention without a mask by its steps, in place.

    In a decoder this is the cross-attention. Its keys and values can then be changed
    (`cross_states`), and its weights be read (`alignment_queries`).
    """
    if not any("input_ids" in tensor.get_names() for tensor in graph.inputs):
        return
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or _is_masked(node):
            continue
        queries, keys, values = (node.input_value(place) for place in range(3))
        scores = ops.matmul(queries, keys, transpose_a=False, transpose_b=True)
        weights = ops.softmax(ops.multiply(scores, _scale(node)), -1)
        _replace(node.output(0), ops.matmul(weights, values, False, False).output(0))
    graph.validate_nodes_and_infer_types()


def _is_masked(attention: ov.Node) -> bool:
    if attention.get_attributes()["causal"]:
        return True
    if attention.get_input_size() <= 3:
        return False
    mask = attention.input_value(3).get_node()
    while mask.get_type_name() == "Convert":
        mask = mask.input_value(0).get_node()
    return not (mask.get_type_name() == "Constant" and not mask.shape and not mask.data.any())


def _scale(attention: ov.Node) -> ov.Output:
    if attention.get_input_size() > 4:
        return attention.input_value(4)
    head_dim = attention.get_input_partial_shape(0)[3].get_length()
    return ops.constant(np.float32(head_dim**-0.5)).output(0)


def _fix_mel_bands(graph: ov.Model) -> None:
    """Fix the number of mel bands of an encoder that leaves it open, in place.

    The first convolution has it.
    """
    for tensor in graph.inputs:
        shape = tensor.get_partial_shape()
        if "input_features" not in tensor.get_names() or shape[1].is_static:
            continue
        for reader in tensor.get_target_inputs():
            node = reader.get_node()
            if node.get_type_name() == "Convolution":
                shape[1] = node.get_input_partial_shape(1)[1]
        graph.reshape({tensor: shape})


def _replace(old: ov.Output, new: ov.Output) -> None:
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)
