"""Turns the three dynamic graphs of a Whisper export into graphs with static shapes only.

Nothing is found by a node's name: positions are found by the table that they index, states by their
inputs, masks as in `attention_masks`. A missing pattern is an error that names the pattern.

| graph     | from to                                                                         |
| --------- | ------------------------------------------------------------------------------- |
| encoder   | features of one window length to hidden states                                  |
| cross     | hidden states to the cross-attention states of every layer                      |
| prefill   | up to `n` tokens and no past to logits of chosen positions and `n` new states   |
| step      | one token and a buffer of the whole context to logits and its new states        |
| align     | hidden states and a finished text to the attention for word times               |

In `prefill` the padding follows the real tokens, so the causal mask hides it, and its states are
not used. In `step` the graph replaces the buffer's position by the new state (`Where(index ==
cache_position, new, past)`) and masks the positions after it. It also returns the state, and the
host writes it into its buffer.
"""

import operator
from dataclasses import dataclass

import numpy as np
import onnx

from whisper_npu.errors import ModelError
from whisper_npu.npu.attention_masks import MASKED, mask_audio, mask_scores
from whisper_npu.npu.graph_surgery import Graph
from whisper_npu.runtime.engines.kv_cache import is_cross_attention, is_self_attention
from whisper_npu.runtime.engines.protocol import N_LOGITS

INPUT_IDS = "input_ids"
CACHE_POSITION = "cache_position"
LOGIT_POSITIONS = "logit_positions"
AUDIO_LENGTH = "audio_length"
LOGITS = "logits"
FEATURES = "input_features"
HIDDEN = "last_hidden_state"
ENCODER_HIDDEN = "encoder_hidden_states"

# Operators that may lie between the stored weights of the logits and their product.
_WEIGHT_OPERATORS = {"Transpose", "Identity", "Cast", "DequantizeLinear"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, read from its graphs.

    Attributes:
        n_mels: mel bands of the features.
        n_audio_ctx: positions of the encoder for a whole window.
        n_audio_state: width of the encoder.
        n_text_ctx: positions of the decoder.
        n_text_layer: layers of the decoder.
        n_text_head: attention heads of the decoder.
        head_dim: width of a head.
        n_vocab: tokens.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_text_ctx: int
    n_text_layer: int
    n_text_head: int
    head_dim: int
    n_vocab: int


def read_sizes(encoder: Graph, decoder_with_past: Graph, n_text_ctx: int) -> Sizes:
    """Sizes of the graphs' model.

    Raises:
        ModelError: a size cannot be found.
    """
    n_mels = _input_dims(encoder, FEATURES)[1]
    key = _input_dims(decoder_with_past, "past_key_values.0.decoder.key")
    layers = {
        name.split(".")[1]
        for name in decoder_with_past.inputs
        if name.startswith("past_key_values.")
    }
    if n_mels is None or key[1] is None or key[3] is None:
        raise ModelError(f"{decoder_with_past.name}: mel bands or heads are not fixed in the graph")
    positions, n_audio_state = audio_positions(encoder)
    _, projection = _logit_projection(decoder_with_past)
    return Sizes(
        n_mels=n_mels,
        n_audio_ctx=positions,
        n_audio_state=n_audio_state,
        n_text_ctx=n_text_ctx,
        n_text_layer=len(layers),
        n_text_head=key[1],
        head_dim=key[3],
        n_vocab=projection,
    )


def encoder_graph(source: Graph, sizes: Sizes, frames: int) -> Graph:
    """The encoder for windows of `frames` frames; short windows use the first positions.

    Raises:
        ModelError: the graph is not a Whisper encoder.
    """
    graph = without_nan_guards(source)
    length = frames // 2
    if length != sizes.n_audio_ctx:
        node, index = _audio_position_add(graph)
        table = graph.constant(node.input[index])
        if table is None:
            raise ModelError(f"{graph.name}: the encoder's positions are not constant")
        cut = np.ascontiguousarray(table[..., :length, :])
        node.input[index] = graph.add_constant("encoder_positions", cut)
    _free_dims(graph, FEATURES)
    graph.set_input_shapes({FEATURES: (1, sizes.n_mels, frames)})
    graph.set_outputs([HIDDEN])
    graph.fold_shapes()
    return graph


def cross_graph(source: Graph, sizes: Sizes, frames: int) -> Graph:
    """The graph from hidden states to the cross-attention's `present.{i}.encoder.{key,value}`.

    Args:
        source: the graph of `decoder_model.onnx`.
        sizes: the model's.
        frames: the length of the window.

    Raises:
        ModelError: the states depend on more than the audio.
    """
    graph = without_nan_guards(source)
    states = [name for name in graph.outputs if is_cross_attention(name)]
    if len(states) != 2 * sizes.n_text_layer:
        raise ModelError(
            f"{graph.name} returns {len(states)} cross-attention states, not "
            f"{2 * sizes.n_text_layer}; export the model again"
        )
    _free_dims(graph, ENCODER_HIDDEN)
    graph.set_input_shapes(
        {INPUT_IDS: (1, 1), ENCODER_HIDDEN: (1, frames // 2, sizes.n_audio_state)}
    )
    graph.set_outputs(states)
    graph.fold_shapes()
    if graph.inputs != [ENCODER_HIDDEN]:
        raise ModelError(
            f"{graph.name}: cross-attention states depend on {', '.join(graph.inputs)}; "
            "export the model again"
        )
    return graph


def prefill_graph(source: Graph, sizes: Sizes, n_tokens: int, *, audio_mask: bool = False) -> Graph:
    """The graph for up to `n_tokens` tokens on an empty past.

    Args:
        source: the graph of `decoder_with_past_model.onnx`.
        sizes: the model's.
        n_tokens: the number of tokens; fewer tokens are padded at the end.
        audio_mask: whether an input `audio_length` hides the end of the cross-attention states.
    """
    graph = without_nan_guards(source)
    graph.set_outputs([LOGITS])  # else nodes for the old outputs would look like a second path
    _take_positions(graph, sizes, np.arange(n_tokens, dtype=np.int64)[None])
    causal = np.triu(np.full((n_tokens, n_tokens), MASKED, np.float32), 1)[None, None]
    mask = graph.add_constant("causal_mask", causal)
    for past in _self_states(graph):
        concat, new = _state_concat(graph, past)
        graph.replace_uses(concat.output[0], new)
        if past.endswith(".key"):
            mask_scores(graph, new, mask)
        _return_new_state(graph, concat, past, new)
    positions = graph.add_input(LOGIT_POSITIONS, onnx.TensorProto.INT64, (N_LOGITS,))
    product, _ = _logit_projection(graph)
    chosen = onnx.helper.make_node(
        "Gather", [product.input[0], positions], ["hidden_at_logit_positions"], axis=1
    )
    graph.insert(product, chosen)
    product.input[0] = chosen.output[0]
    return _finish_decoder(graph, sizes, n_tokens, 1, audio_mask=audio_mask)


def step_graph(source: Graph, sizes: Sizes, *, rows: int = 1, audio_mask: bool = False) -> Graph:
    """The graph for one token of each row at `cache_position`, on buffers for the whole context."""
    graph = without_nan_guards(source)
    graph.set_outputs([LOGITS])
    position = graph.add_input(CACHE_POSITION, onnx.TensorProto.INT64, (1,))
    first = graph.nodes[0]
    shape = graph.add_constant("position_shape", np.array([1, 1], np.int64))
    row = onnx.helper.make_node("Reshape", [position, shape], ["position_row"])
    graph.insert(first, row)
    _take_positions(graph, sizes, row.output[0])

    indices = np.arange(sizes.n_text_ctx, dtype=np.int64)
    along_scores = graph.add_constant("score_indices", indices[None, None, None])
    along_states = graph.add_constant("state_indices", indices[None, None, :, None])
    visible = graph.add_constant("visible", np.float32(0))
    masked = graph.add_constant("masked", MASKED)
    mask = "step_mask"
    graph.insert(
        first,
        onnx.helper.make_node("LessOrEqual", [along_scores, position], ["is_past"]),
        onnx.helper.make_node("Where", ["is_past", visible, masked], [mask]),
        onnx.helper.make_node("Equal", [along_states, position], ["is_current"]),
    )
    for past in _self_states(graph):
        concat, new = _state_concat(graph, past)
        joined = f"joined.{past}"
        where = onnx.helper.make_node("Where", ["is_current", new, past], [joined])
        graph.insert(concat, where)
        graph.replace_uses(concat.output[0], joined)
        if past.endswith(".key"):
            mask_scores(graph, joined, mask)
        _return_new_state(graph, concat, past, new)
    return _finish_decoder(graph, sizes, 1, rows, audio_mask=audio_mask)


def alignment_graph(source: Graph, sizes: Sizes, frames: int) -> Graph:
    """The alignment graph for one row of the whole context; shorter texts are padded."""
    graph = without_nan_guards(source)
    outputs = graph.outputs
    _free_dims(graph, INPUT_IDS)
    _free_dims(graph, ENCODER_HIDDEN)
    graph.set_input_shapes(
        {
            INPUT_IDS: (1, sizes.n_text_ctx),
            ENCODER_HIDDEN: (1, frames // 2, sizes.n_audio_state),
        }
    )
    graph.set_outputs(outputs)
    graph.fold_shapes()
    return graph


def _finish_decoder(
    graph: Graph, sizes: Sizes, n_tokens: int, rows: int, *, audio_mask: bool
) -> Graph:
    states = _self_states(graph)
    if audio_mask:
        mask_audio(graph, AUDIO_LENGTH, sizes.n_audio_ctx)
    for name in graph.inputs:
        if name not in (CACHE_POSITION, LOGIT_POSITIONS, AUDIO_LENGTH):
            _free_dims(graph, name)
    shapes: dict[str, tuple[int, ...]] = {
        INPUT_IDS: (rows, n_tokens),
        CACHE_POSITION: (1,),
        LOGIT_POSITIONS: (N_LOGITS,),
        AUDIO_LENGTH: (1,),
    }
    for name in graph.inputs:
        if is_self_attention(name):
            shapes[name] = (rows, sizes.n_text_head, sizes.n_text_ctx, sizes.head_dim)
        elif is_cross_attention(name):
            shapes[name] = (rows, sizes.n_text_head, sizes.n_audio_ctx, sizes.head_dim)
    graph.set_input_shapes(shapes)
    graph.set_outputs(
        [LOGITS, *(state.replace("past_key_values.", "present.") for state in states)]
    )
    graph.fold_shapes()
    return graph


def without_nan_guards(source: Graph) -> Graph:
    """A copy without the guard of attention against rows that are completely masked.

    PyTorch's scaled dot-product attention is exported as `Where(IsNaN(weights), 0, weights)`. The
    masks of these graphs are finite, so no weight is NaN; and the NPU has no `IsNaN`.
    """
    graph = source.copy()
    tested = {node.output[0]: node.input[0] for node in graph.nodes if node.op_type == "IsNaN"}
    for node in list(graph.nodes):
        if node.op_type == "Where" and tested.get(node.input[0]) == node.input[2]:
            graph.replace_uses(node.output[0], node.input[2])
    graph.prune()
    return graph


def _input_dims(graph: Graph, name: str) -> list[int | None]:
    for value in graph.proto.graph.input:
        if value.name == name:
            return [
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            ]
    raise ModelError(f"{graph.name} has no input {name}; export the model again")


def _free_dims(graph: Graph, name: str) -> None:
    """Make the sizes of an input free that the export has fixed."""
    for value in graph.proto.graph.input:
        if value.name == name:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def _self_states(graph: Graph) -> list[str]:
    states = [
        name
        for name in graph.inputs
        if name.startswith("past_key_values.") and is_self_attention(name)
    ]
    if not states:
        raise ModelError(f"{graph.name} takes no past_key_values.*.decoder.*; export it again")
    return states


def _audio_position_add(graph: Graph) -> tuple[onnx.NodeProto, int]:
    """The node that adds the encoder's positions: the first Add of a table `(positions, state)`."""
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        for index, name in enumerate(node.input):
            tensor = graph.initializers().get(name)
            if tensor is not None and len([size for size in tensor.dims if size > 1]) == 2:
                return node, index
    raise ModelError(f"{graph.name} adds no table of positions: it is no Whisper encoder")


def audio_positions(graph: Graph) -> tuple[int, int]:
    """Number and width of the encoder's positions."""
    node, index = _audio_position_add(graph)
    dims = graph.initializers()[node.input[index]].dims
    return int(dims[-2]), int(dims[-1])


def _logit_projection(graph: Graph) -> tuple[onnx.NodeProto, int]:
    """The matrix product of the logits, and the size of the vocabulary."""
    product = graph.producer(LOGITS)
    while product is not None and product.op_type in ("Identity", "Cast"):
        product = graph.producer(product.input[0])
    if product is None or product.op_type != "MatMul":
        raise ModelError(f"{graph.name}: the logits are not a matrix product; export it again")
    weight = product.input[1]
    transposed = False
    while weight not in graph.initializers():
        node = graph.producer(weight)
        if node is None or node.op_type not in _WEIGHT_OPERATORS:
            raise ModelError(f"{graph.name}: the logits' weights are not constant")
        transposed ^= node.op_type == "Transpose"
        weight = node.input[0]
    dims = graph.initializers()[weight].dims
    return product, int(dims[0] if transposed else dims[-1])


def _take_positions(graph: Graph, sizes: Sizes, positions: str | np.ndarray) -> None:
    """Make the decoder look up its positions by `positions` `(1, n)`, not by the past's length.

    Raises:
        ModelError: no lookup in a table of `n_text_ctx` rows is found.
    """
    tables = {
        name
        for name, tensor in graph.initializers().items()
        if len(tensor.dims) == 2 and tensor.dims[0] == sizes.n_text_ctx
    }
    for node in graph.nodes:
        if node.op_type not in ("Gather", "Slice") or node.input[0] not in tables:
            continue
        # The gathered rows keep the shape that the graph expects: (1, n, state) or (n, state).
        indices = positions
        if node.op_type == "Slice":
            flat = onnx.helper.make_node(
                "Gather", [node.input[0], _tensor(graph, indices)], ["positions_3d"], axis=0
            )
            graph.insert(node, flat)
            _replace_by(graph, node, flat.output[0])
        else:
            node.input[1] = _tensor(graph, indices)
        return
    raise ModelError(
        f"{graph.name}: no lookup in a table of {sizes.n_text_ctx} positions was found; the "
        "decoder's positions cannot be fed. Export the model again"
    )


def _tensor(graph: Graph, value: str | np.ndarray) -> str:
    return value if isinstance(value, str) else graph.add_constant("prefill_positions", value)


def _replace_by(graph: Graph, node: onnx.NodeProto, tensor: str) -> None:
    graph.replace_uses(node.output[0], tensor)


def _state_concat(graph: Graph, past: str) -> tuple[onnx.NodeProto, str]:
    """The node that joins `past` to the new states, and the new states.

    Raises:
        ModelError: there is not exactly one such node.
    """
    joins = [
        node
        for node in graph.consumers(past)
        if node.op_type == "Concat" and len(node.input) == 2 and node.input[0] == past
    ]
    if len(joins) != 1:
        raise ModelError(
            f"{graph.name}: {past} is joined to new states at {len(joins)} places, not one; "
            "export the model again"
        )
    return joins[0], joins[0].input[1]


def _return_new_state(graph: Graph, concat: onnx.NodeProto, past: str, new: str) -> None:
    """Make `present.*` the new states (the delta contract)."""
    present = past.replace("past_key_values.", "present.", 1)
    for node in graph.nodes:
        for index, tensor in enumerate(node.output):
            if tensor == present:
                node.output[index] = f"unused.{present}"
    graph.rename(new, present)
    concat.input[1] = present


def operators(graph: Graph) -> set[str]:
    """The operators of the graph."""
    return set(map(operator.attrgetter("op_type"), graph.nodes))
