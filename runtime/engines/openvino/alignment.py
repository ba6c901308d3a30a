"""Runs the alignment graph of a model folder on OpenVINO, for word times.

A folder of this project has a graph for it. For another folder it is made of the decoder: the same
computation as openai/whisper's (timing.py, `find_alignment`).
"""

from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.openvino.graphs import parameters_of, port
from whisper_npu.runtime.engines.openvino.sessions import RequestPool
from whisper_npu.runtime.engines.openvino.trio import read_graph, read_part, require_tensors
from whisper_npu.runtime.engines.protocol import Float32Array, Int64Array
from whisper_npu.runtime.model_folder.config import Heads, upper_half_heads
from whisper_npu.runtime.model_folder.folder import ModelFolder

_END = np.iinfo(np.int64).max
# Operations that may lie between the attention weights, the values and their product.
_PASS_ON = {"Convert", "Identity", "Multiply", "Reshape", "Transpose", "Unsqueeze"}


def read_alignment_graph(core: ov.Core, folder: ModelFolder) -> ov.Model:
    """Read the alignment graph, or make it of the decoder.

    Raises:
        ModelError: the graph is damaged, or the decoder's attention is built in an unknown way.
    """
    file = folder.layout.alignment
    if file is None:
        return _make_alignment_graph(folder, read_part(core, folder, "decoder"))
    model = read_graph(core, file)
    require_tensors(
        model,
        file,
        {"input_ids": 2, "encoder_hidden_states": 3},
        {"token_probabilities": 2, "cross_attentions": 4},
    )
    return model


def can_align(folder: ModelFolder, *, shows_attention: bool) -> bool:
    """Whether a model folder gives word times.

    Args:
        folder: the model.
        shows_attention: see `shows_attention`.
    """
    return folder.layout.alignment is not None or (folder.eot is not None and shows_attention)


def shows_attention(folder: ModelFolder, decoder: ov.Model) -> bool:
    """Whether the weights of all alignment heads can be read from a decoder.

    Args:
        folder: the model.
        decoder: its decoder without a past, as `read_trio` returns it.
    """
    weights = _cross_attention(decoder)
    heads = _alignment_heads(folder, decoder)
    return bool(heads) and all(layer in weights for layer, _ in heads)


def _make_alignment_graph(folder: ModelFolder, decoder: ov.Model) -> ov.Model:
    """Return the alignment graph, made of the decoder without a past, which is used up."""
    if not can_align(folder, shows_attention=shows_attention(folder, decoder)):
        raise ModelError(
            f"word times cannot be read from {folder.layout.decoder}: its attention is built in an "
            "unknown way, or config.json states no eos_token_id; export the model with "
            "`whisper-npu export`"
        )
    n_text_head = _n_text_head(decoder)
    attentions = _attentions(
        _cross_attention(decoder), _alignment_heads(folder, decoder), n_text_head
    )
    results = []
    for name, value in (
        ("token_probabilities", _probabilities(decoder, folder.eot or 0)),
        ("cross_attentions", attentions),
    ):
        result = ops.result(value)
        result.output(0).get_tensor().set_names({name})
        results.append(result)
    return ov.Model(results, parameters_of(results), "alignment")


def _n_text_head(decoder: ov.Model) -> int:
    return int(port(decoder.outputs, "present.0.decoder.key").get_partial_shape()[1].get_length())


def _alignment_heads(folder: ModelFolder, decoder: ov.Model) -> Heads:
    """Return the heads that the configuration names, else all of the decoder's upper half."""
    layers = len(_cross_attention(decoder))
    return folder.alignment_heads or upper_half_heads(layers, _n_text_head(decoder))


def _cross_attention(decoder: ov.Model) -> dict[int, ov.Output]:
    """Return the weights of the cross-attention by layer: the softmax that weighs its values."""
    found = {}
    for tensor in decoder.outputs:
        for name in tensor.get_names():
            if name.startswith("present.") and name.endswith(".encoder.value"):
                values = tensor.get_node().input_value(0)
                while values.get_node().get_type_name() in {"Convert", "Identity"}:
                    values = values.get_node().input_value(0)
                weights = _weights_of(values)
                if len(weights) == 1:
                    found[int(name.split(".")[1])] = weights[0]
    return found


def _weights_of(values: ov.Output) -> list[ov.Output]:
    """Return the softmaxes that are multiplied by values."""
    found = []
    waiting, passed = [values], set[str]()  # a graph may join values with themselves
    while waiting:
        for reader in waiting.pop().get_target_inputs():
            node = reader.get_node()
            if node.get_type_name() in _PASS_ON:
                if node.get_name() in passed:
                    continue
                passed.add(node.get_name())
                waiting.append(node.output(0))
            elif node.get_type_name() == "MatMul" and reader.get_index() == 1:
                weights = node.input_value(0)
                while weights.get_node().get_type_name() in _PASS_ON:
                    weights = weights.get_node().input_value(0)
                if weights.get_node().get_type_name() == "Softmax":
                    found.append(weights)
    return found


def _attentions(weights: Mapping[int, ov.Output], heads: Heads, n_text_head: int) -> ov.Output:
    """Return the attention of the alignment heads, `(batch, heads, n, n_audio_ctx)`."""
    parts = []
    for layer in dict.fromkeys(layer for layer, _ in heads):
        # Some exporters fold the heads into the batch axis; for others this changes nothing.
        shape = ops.shape_of(weights[layer])
        ends = ops.gather(shape, ops.constant([-2, -1]), ops.constant(0))
        by_head = ops.reshape(
            weights[layer], ops.concat([ops.constant([-1, n_text_head]), ends], 0), False
        )
        wanted = [head for of_layer, head in heads if of_layer == layer]
        parts.append(ops.gather(by_head, ops.constant(wanted), ops.constant(1)))
    joined: ov.Output = ops.concat(parts, 1).output(0)
    return joined


def _probabilities(decoder: ov.Model, eot: int) -> ov.Output:
    """Return the probability of each token but the first among text tokens, `(batch, n - 1)`."""
    logits = port(decoder.outputs, "logits").get_node().input_value(0)
    tokens = port(decoder.inputs, "input_ids")
    of_text = ops.slice(logits, [0, 0], [-1, eot], [1, 1], [1, 2])
    following = ops.slice(tokens, [1], [_END], [1], [1])
    text = ops.minimum(following, ops.constant(np.int64(eot - 1)))  # special tokens: no entry
    chosen = ops.gather_elements(
        ops.softmax(of_text, -1), ops.unsqueeze(text, ops.constant([2])), 2
    )
    squeezed: ov.Output = ops.squeeze(chosen, ops.constant([2])).output(0)
    return squeezed


def align(
    pool: RequestPool, request: ov.InferRequest, audio: Float32Array, tokens: Int64Array
) -> tuple[Float32Array, Float32Array]:
    """Run the alignment graph; see `Backend.align`."""
    request.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
    request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
    pool.run(request)
    probabilities = request.get_tensor("token_probabilities").data.copy()
    attentions = request.get_tensor("cross_attentions").data.copy()
    return probabilities, attentions
