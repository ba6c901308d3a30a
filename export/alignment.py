"""Makes the graph for word times: the part of the audio that each token of a text attends to.

The graph is cut out of `decoder_model.onnx` by editing ONNX. It needs no PyTorch, shares its
weights with the other graphs, and can be made for a folder that another exporter wrote.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from whisper_npu.errors import ExportError
from whisper_npu.export.manifest import refresh_file
from whisper_npu.export.shared_weights import check_references
from whisper_npu.runtime.model_folder.config import (
    GenerationConfig,
    ModelConfig,
    heads_that_exist,
    tokens,
    upper_half_heads,
)
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, DECODER
from whisper_npu.runtime.model_folder.verification import verify_folder

ATTENTIONS = "cross_attentions"
PROBABILITIES = "token_probabilities"

_OLDEST_OPSET = 13  # since then the operators used here have their present form
_END = np.iinfo(np.int64).max
# Operators that may lie between the attention weights, the values and their product.
_TRANSPARENT = (
    *("Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear"),
    *("Reshape", "Transpose", "Unsqueeze"),
)

Head = tuple[int, int]  # decoder layer, attention head


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of the alignment graph, from a model's configuration.

    Attributes:
        heads: attention heads that follow the speech, in order of layer and head.
        n_text_head: attention heads of each decoder layer.
        eot: the end-of-text token; text tokens are those below it.
    """

    heads: tuple[Head, ...]
    n_text_head: int
    eot: int


def add_alignment_graph(path: str | Path) -> Path:
    """Add the alignment graph to an existing model folder, and to its manifest if it has one.

    Returns:
        The graph's file.

    Raises:
        ModelError: The folder is no model folder, or differs from its certificate.
        ExportError: The graph cannot be made from the folder's files.
    """
    model = read_model_folder(path)
    verify_folder(model)
    if model.layout.decoder != model.path / DECODER:
        raise ExportError(
            f"{path} has {model.layout.decoder.name} and no {DECODER}, which the graph is made of; "
            "with OpenVINO on a CPU or GPU, word times need no such graph"
        )
    try:
        settings = read_settings(model.generation_config, model.config)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from None
    file = write_alignment_graph(model.path, settings)
    refresh_file(model.path, file.name)
    return file


def write_alignment_graph(folder: Path, settings: AlignmentSettings) -> Path:
    """Write `decoder_alignment_model.onnx`, cut out of the `decoder_model.onnx` beside it.

    Returns:
        The graph's file.

    Raises:
        ExportError: The structure of the decoder is unknown, or the file cannot be written.
    """
    model = onnx.load(folder / DECODER, load_external_data=False)
    cut_alignment_graph(model, settings)
    target = folder / ALIGNMENT
    partial = target.with_suffix(".partial")
    try:
        onnx.save(model, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ExportError(f"cannot write {target}: {error.strerror or error}") from error
    check_references(target)
    return target


def read_settings(generation_config: GenerationConfig, config: ModelConfig) -> AlignmentSettings:
    """The alignment settings in a model's two configurations.

    If the configurations name no alignment heads, or heads that the model does not have, all heads
    of the decoder's upper half are taken. Distilled models often name the heads of their teacher.

    Raises:
        ExportError: A size or the end-of-text token is missing.
    """
    n_text_layer = _stated("decoder_layers", config.decoder_layers)
    n_text_head = _stated("decoder_attention_heads", config.decoder_attention_heads)
    heads = generation_config.alignment_heads
    if not heads or not heads_that_exist(heads, n_text_layer, n_text_head):
        heads = upper_half_heads(n_text_layer, n_text_head)
    ends = tokens(generation_config.eos_token_id) or tokens(config.eos_token_id)
    return AlignmentSettings(
        heads=tuple(sorted(set(heads))),
        n_text_head=n_text_head,
        eot=_stated("eos_token_id", min(ends, default=None)),
    )


def _stated(name: str, value: int | None) -> int:
    if value is None:
        raise ExportError(
            f"word times need {name}, which the model's configuration does not have; export the"
            " model with `whisper-npu export`, which completes it"
        )
    return value


def cut_alignment_graph(decoder: onnx.ModelProto, settings: AlignmentSettings) -> None:
    """Turn the graph of `decoder_model.onnx` into the alignment graph, in place.

    Inputs stay as they are: `input_ids` `(batch, n)` and `encoder_hidden_states` `(batch, frames,
    n_audio_state)`. Outputs are then

    - `token_probabilities` `(batch, n - 1)`: of `input_ids[:, i + 1]` after the tokens before it,
      among text tokens only; the entries of other tokens have no meaning;
    - `cross_attentions` `(batch, heads, n, frames)`: the attention of each token's position, for
      the alignment heads by layer and head; it adds up to 1 over the frames.

    The computation is openai/whisper's (timing.py, `find_alignment`).

    Args:
        decoder: The graph; its weights need not be loaded.
        settings: The alignment heads and sizes.

    Raises:
        ExportError: The structure of the graph is unknown.
    """
    graph = decoder.graph
    opset = max((entry.version for entry in decoder.opset_import if not entry.domain), default=0)
    if opset < _OLDEST_OPSET:
        raise ExportError(
            f"{DECODER} has opset {opset}; word times need {_OLDEST_OPSET} or newer: export the"
            " model again"
        )
    logits = next((value for value in graph.output if value.name == "logits"), None)
    if logits is None:
        raise ExportError(f"{DECODER} has no output logits; export the model again")
    softmaxes = {layer: _find_cross_softmax(graph, layer) for layer, _ in settings.heads}
    edit = _Edit(graph, convert=logits.type.tensor_type.elem_type != TensorProto.FLOAT)
    _add_attentions(edit, softmaxes, settings)
    _add_probabilities(edit, settings.eot)
    axes = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
    batch, n = (_axis(axis) for axis in axes["input_ids"])
    frames = _axis(axes["encoder_hidden_states"][1])
    shorter = n - 1 if isinstance(n, int) else f"{n} - 1"
    del graph.output[:]
    for name, shape in (
        (PROBABILITIES, (batch, shorter)),
        (ATTENTIONS, (batch, len(settings.heads), n, frames)),
    ):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    _prune(graph)
    graph.name = ALIGNMENT.removesuffix(".onnx")
    heads = " ".join(f"{layer}.{head}" for layer, head in settings.heads)
    decoder.metadata_props.add(key="alignment_heads", value=heads)


class _Edit:
    """Appends nodes and small constants to a graph, under new names."""

    def __init__(self, graph: onnx.GraphProto, *, convert: bool) -> None:
        self.graph = graph
        self.convert = convert
        self.count = 0

    def node(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; return the name of its output."""
        name = output or self._name()
        self.graph.node.append(
            helper.make_node(op, list(inputs), [name], name=f"/alignment/{op}_{name}", **attributes)
        )
        return name

    def ints(self, *values: int) -> str:
        """Append an int64 constant `(len(values),)`; return its name."""
        name = self._name()
        array = np.array(values, np.int64)
        self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def result(self, tensor: str, output: str) -> None:
        """Make a tensor a float32 output of the graph."""
        if self.convert:
            self.node("Cast", tensor, output=output, to=TensorProto.FLOAT)
        else:
            self.node("Identity", tensor, output=output)

    def _name(self) -> str:
        self.count += 1
        return f"alignment_{self.count}"


def _add_attentions(edit: _Edit, softmaxes: Mapping[int, str], settings: AlignmentSettings) -> None:
    parts = []
    for layer, softmax in softmaxes.items():
        # Some exporters fold the heads into the batch axis; for others this changes nothing.
        ends = edit.node("Gather", edit.node("Shape", softmax), edit.ints(-2, -1))
        shape = edit.node("Concat", edit.ints(-1, settings.n_text_head), ends, axis=0)
        by_head = edit.node("Reshape", softmax, shape)
        heads = [head for of_layer, head in settings.heads if of_layer == layer]
        parts.append(edit.node("Gather", by_head, edit.ints(*heads), axis=1))
    edit.result(edit.node("Concat", *parts, axis=1), ATTENTIONS)


def _add_probabilities(edit: _Edit, eot: int) -> None:
    ends = [edit.ints(0, 0), edit.ints(-1, eot), edit.ints(1, 2)]
    probabilities = edit.node("Softmax", edit.node("Slice", "logits", *ends), axis=-1)
    following = edit.node("Slice", "input_ids", edit.ints(1), edit.ints(_END), edit.ints(1))
    text = edit.node("Min", following, edit.ints(eot - 1))  # special tokens have no entry
    chosen = edit.node(
        "GatherElements", probabilities, edit.node("Unsqueeze", text, edit.ints(2)), axis=2
    )
    edit.result(edit.node("Squeeze", chosen, edit.ints(2)), PROBABILITIES)


def _find_cross_softmax(graph: onnx.GraphProto, layer: int) -> str:
    """The cross-attention weights of a layer: the softmax that is multiplied by its values.

    Raises:
        ExportError: There is no such softmax, or more than one.
    """
    producers = {output: node for node in graph.node for output in node.output}
    values = f"present.{layer}.encoder.value"
    reached = {values}
    found: set[str] = set()
    for node in graph.node:  # in order of execution
        if reached.isdisjoint(node.input):
            continue
        if node.op_type in _TRANSPARENT:
            reached.update(node.output)
        elif node.op_type == "MatMul":
            weights = producers.get(node.input[0])
            while weights is not None and weights.op_type in _TRANSPARENT:
                weights = producers.get(weights.input[0])
            if weights is not None and weights.op_type == "Softmax":
                found.add(weights.output[0])
    if len(found) != 1:
        raise ExportError(
            f"{DECODER}: found {len(found)} softmaxes that weigh {values}, not one; word times"
            " need attention that is not fused: export the model with `whisper-npu export`"
        )
    return found.pop()


def _prune(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output needs."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def _axis(axis: onnx.TensorShapeProto.Dimension) -> int | str:
    return str(axis.dim_param) if axis.HasField("dim_param") else int(axis.dim_value)
