"""Masks a decoder's attention scores, to hide positions without a token or without audio.

The place of a mask is found by walking from a state to the softmax over its scores.
"""

import numpy as np
import onnx

from whisper_npu.errors import ModelError
from whisper_npu.npu.graph_surgery import Graph
from whisper_npu.runtime.engines.kv_cache import is_cross_attention

MASKED = np.float32(np.finfo(np.float16).min)
"""What hidden positions are lowered by: the NPU computes in half precision."""

# Operators between a state and the softmax over its scores, in every known form of export.
_SCORE_OPERATORS = {"Transpose", "MatMul", "Mul", "Div", "Add", "Cast", "Identity", "Reshape"}


def mask_scores(graph: Graph, state: str, mask: str) -> None:
    """Add `mask` to the scores over `state`, in place of the exported mask if there is one.

    Raises:
        ModelError: no softmax is reached from the state.
    """
    path = _softmax_path(graph, state)
    tensor = state
    for node in path:
        if node.op_type == "Add":
            other = 1 - list(node.input).index(tensor)
            node.input[other] = mask
            return
        tensor = node.output[0]
    _add_mask(graph, path[-1], mask)


def mask_audio(graph: Graph, length_name: str, n_audio_ctx: int) -> None:
    """Hide the cross-attention states after the end of the audio.

    Args:
        graph: a decoder graph; changed in place.
        length_name: name of the new input for the number of audio positions, int64 `(1,)`.
        n_audio_ctx: number of positions of the states.

    Raises:
        ModelError: no softmax is reached from a state.
    """
    length = graph.add_input(length_name, onnx.TensorProto.INT64, (1,))
    indices = np.arange(n_audio_ctx, dtype=np.int64)[None, None, None]
    along_audio = graph.add_constant("audio_indices", indices)
    shown = graph.add_constant("audio_shown", np.float32(0))
    hidden = graph.add_constant("audio_hidden", MASKED)
    graph.insert(
        graph.nodes[0],
        onnx.helper.make_node("Less", [along_audio, length], ["is_audio"]),
        onnx.helper.make_node("Where", ["is_audio", shown, hidden], ["audio_mask"]),
    )
    for name in graph.inputs:
        if is_cross_attention(name) and name.endswith(".key"):
            _add_mask(graph, _softmax_path(graph, name)[-1], "audio_mask")


def _softmax_path(graph: Graph, state: str) -> list[onnx.NodeProto]:
    """The nodes from a key state to the softmax over its scores, softmax last.

    Raises:
        ModelError: no softmax is reached.
    """
    path: list[onnx.NodeProto] = []
    tensor = state
    while True:
        readers = [
            node
            for node in graph.consumers(tensor)
            if node.op_type in _SCORE_OPERATORS or node.op_type == "Softmax"
        ]
        if len(readers) != 1 or (readers[0].op_type == "Reshape" and readers[0].input[0] != tensor):
            raise ModelError(
                f"{graph.name}: the way from {state} to its softmax is lost at {tensor}; "
                "export the model again"
            )
        path.append(readers[0])
        if readers[0].op_type == "Softmax":
            return path
        tensor = readers[0].output[0]


def _add_mask(graph: Graph, softmax: onnx.NodeProto, mask: str) -> None:
    masked = f"masked.{softmax.output[0]}"
    graph.insert(softmax, onnx.helper.make_node("Add", [softmax.input[0], mask], [masked]))
    softmax.input[0] = masked
