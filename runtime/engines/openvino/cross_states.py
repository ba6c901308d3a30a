"""Changes how graphs make and read the cross-attention states."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import is_cross_attention, past_name
from whisper_npu.runtime.engines.openvino.graphs import (
    converted,
    matrix_of,
    port,
    state_name,
    to_bfloat16,
)
from whisper_npu.runtime.model_folder.layout import DECODER


def cross_attention_projection(
    decoder: ov.Model, element_type: ov.Type, *, multiply_in_it: bool = False
) -> ov.Model:
    """Cut out the part of `decoder_model` that turns encoded audio into cross-attention states.

    Args:
        decoder: the graph of `decoder_model.onnx`; used up by this call.
        element_type: the type of the returned states.
        multiply_in_it: multiply explicitly in that type and in the order matrix by audio, so that
            products return the states in their final form. Audio by matrix would need a transpose
            afterwards. A product of unknown form stays as it is.

    Returns:
        a model from `encoder_hidden_states` to `past_key_values.*.encoder.*`, any batch, in the
        form of `transpose_cross_states`.
    """
    hidden = port(decoder.inputs, "encoder_hidden_states").get_node()
    tokens = port(decoder.inputs, "input_ids").get_node()
    # Exported graphs read the batch size from the tokens; here only the audio has a batch.
    batch = ops.gather(ops.shape_of(hidden), ops.constant([0]), ops.constant(0))
    one_token = ops.broadcast(
        ops.constant(0, dtype=np.int64), ops.concat([batch, ops.constant([1])], 0)
    )
    for target in tokens.output(0).get_target_inputs():
        target.replace_source_output(one_token.output(0))
    heard = ops.unsqueeze(converted(hidden.output(0), element_type), ops.constant(1))
    results = []
    for tensor in decoder.outputs:
        name = state_name(tensor)
        if name and is_cross_attention(name):
            state = tensor.get_node().input_value(0)
            turned = None
            if multiply_in_it:
                turned = _matrix_by_audio(state, hidden, heard, element_type)
            if turned is None:
                turned = _turned(converted(state, element_type))
            result = ops.result(turned)
            result.output(0).get_tensor().set_names({past_name(name)})
            results.append(result)
    if not results:
        raise ModelError(f"{DECODER} returns no present.*.encoder.* states; export the model again")
    return ov.Model(results, [hidden], "cross_attention_projection")


def _matrix_by_audio(
    state: ov.Output, hidden: ov.Node, heard: ov.Node, element_type: ov.Type
) -> ov.Output | None:
    """Return the state `(batch, heads, head_dim, n_audio_ctx)` from a product in this order.

    Args:
        state: `(batch, heads, n_audio_ctx, head_dim)`, made from `hidden` by one matrix, and a bias
            if it has one. The result is None if it is made in another way.
        hidden: the encoded audio, `(batch, n_audio_ctx, width)`.
        heard: the encoded audio in `element_type`, `(batch, 1, n_audio_ctx, width)`.
        element_type: the type of the state.
    """
    n_heads, head_dim = (state.get_partial_shape()[axis] for axis in (1, 3))
    node, bias = state.get_node(), None
    if not (_is_transpose(node, [0, 2, 1, 3]) and n_heads.is_static and head_dim.is_static):
        return None
    node = node.input_value(0).get_node()
    if node.get_type_name() != "Reshape":
        return None
    node = node.input_value(0).get_node()
    if node.get_type_name() == "Add":
        sides = [node.input_value(side).get_node() for side in (0, 1)]
        constants = [side for side in sides if side.get_type_name() == "Constant"]
        if len(constants) != 1:
            return None
        bias = constants[0].data
        (node,) = (side for side in sides if side is not constants[0])
    matrix = matrix_of(node)
    sizes = [n_heads.get_length(), head_dim.get_length()]
    if matrix is None or node.input_value(0).get_node() != hidden:
        return None
    if len(matrix) != np.prod(sizes) or (bias is not None and np.size(bias) != len(matrix)):
        return None

    def constant(values: npt.NDArray[np.floating], width: int) -> ov.Node:
        shaped = np.ascontiguousarray(values, np.float32).reshape(1, *sizes, width)
        return ops.constant(to_bfloat16(shaped) if element_type == ov.Type.bf16 else shaped)

    found = ops.matmul(constant(matrix, matrix.shape[1]), heard, False, True)
    return (found if bias is None else ops.add(found, constant(bias, 1))).output(0)


def transpose_cross_states(
    decoder_with_past: ov.Model, element_type: ov.Type, *, multiply_in_it: bool
) -> None:
    """Change a decoder, in place, to take the cross-attention states in the fastest form.

    Args:
        decoder_with_past: its inputs `past_key_values.*.encoder.*` become `(batch, heads, head_dim,
            n_audio_ctx)`: in both products of an attention, the positions are then neighbours in
            memory, and nothing must be rearranged before it is multiplied.
        element_type: the type of these inputs.
        multiply_in_it: multiply in that type too, whatever the graph is computed in. Otherwise
            the device chooses.
    """
    for tensor in decoder_with_past.inputs:
        name = state_name(tensor)
        if not (name and is_cross_attention(name)):
            continue
        states = tensor.get_node()
        own_type = getattr(ov.Type, tensor.element_type.get_type_name())  # before the change
        products = list(_products_with(states))
        *sizes, n_audio_ctx, head_dim = tensor.partial_shape
        readers = list(states.output(0).get_target_inputs())
        states.set_partial_shape(ov.PartialShape([*sizes, head_dim, n_audio_ctx]))
        states.set_element_type(element_type)
        states.validate_and_infer_types()
        as_before = _turned(converted(states.output(0), own_type))
        for reader in readers:  # readers that are no products keep the old form
            reader.replace_source_output(as_before)
        for product, turned in products:
            computed_in = product.get_element_type()
            multiplied_in = element_type if multiply_in_it else computed_in
            factors = (product.input_value(0), states.output(0))
            found = ops.matmul(
                *(converted(factor, multiplied_in) for factor in factors),
                transpose_a=False,
                transpose_b=not turned,
            )
            product.output(0).replace(converted(found.output(0), computed_in))
    decoder_with_past.validate_nodes_and_infer_types()


def _products_with(states: ov.Node) -> Iterator[tuple[ov.Node, bool]]:
    """Yield products `x @ states`, and whether the states' last two axes are exchanged before."""
    waiting = [(states, False)]
    while waiting:
        node, turned = waiting.pop()
        for reader in node.output(0).get_target_inputs():
            after = reader.get_node()
            kind = after.get_type_name()
            if kind in {"Convert", "Identity"}:
                waiting.append((after, turned))
            elif _is_transpose(after, [0, 1, 3, 2]):
                waiting.append((after, not turned))
            elif kind == "MatMul" and reader.get_index() == 1:
                flags = after.get_attributes()
                if not flags["transpose_a"]:
                    yield after, turned != bool(flags["transpose_b"])


def _is_transpose(node: ov.Node, order: list[int]) -> bool:
    if node.get_type_name() != "Transpose":
        return False
    given = node.input_value(1).get_node()
    return given.get_type_name() == "Constant" and list(given.data) == order


def _turned(states: ov.Output) -> ov.Output:
    """Return states with their last two axes exchanged."""
    return ops.transpose(states, ops.constant([0, 1, 3, 2])).output(0)
