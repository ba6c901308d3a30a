"""Reads facts from the three ONNX graphs, and changes the graphs, after OpenVINO has read them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import (
    SEQUENCE_AXIS,
    is_self_attention,
)
from whisper_npu.runtime.engines.protocol import N_LOGITS, Float32Array
from whisper_npu.runtime.model_folder.config import KVContract
from whisper_npu.runtime.model_folder.folder import DECODER, DECODER_WITH_PAST, ENCODER, ModelFolder
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN
from whisper_npu.runtime.model_folder.linked_weights import without_links
from whisper_npu.runtime.model_folder.read_errors import cannot_read

_NUMPY_FLOATS = {ov.Type.f16, ov.Type.f32, ov.Type.f64}
_MATRIX_RANK = 2
_ROWS_AT_ONCE = 512  # of a table at a time: the result stays in the processor's cache
_THREADS = 2  # that convert; more threads would wait for memory
_LARGE = 768  # elements of the encoder's states


@dataclass(frozen=True)
class GraphDimensions:
    """Sizes read from the graphs themselves, so that no configuration can contradict them."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_vocab: int
    n_text_layer: int
    n_text_head: int
    head_dim: int
    n_text_ctx: int | None  # None where the decoder's table of positions was not found

    @property
    def is_large(self) -> bool:
        """Whether the model is of small's size or larger."""
        return self.n_audio_state >= _LARGE


def read_graph(core: ov.Core, path: Path, *, mapped: bool = False) -> ov.Model:
    """Read an ONNX file.

    Args:
        core: OpenVINO's.
        path: the file.
        mapped: map the weights, for a graph whose weights are hardly read. Mapped weights stay in
            memory until the whole graph is released; copies are freed one by one.

    Raises:
        ModelError: the file is damaged, or its external weights are missing or outside its folder.
    """
    try:
        with without_links(path) as real:
            return core.read_model(real, config={"ENABLE_MMAP": mapped})
    except (RuntimeError, MemoryError) as error:
        raise cannot_read(path, error) from None


def require_tensors(
    model: ov.Model, path: Path, inputs: Mapping[str, int], outputs: Mapping[str, int]
) -> None:
    """Check that a graph is of the expected kind.

    Args:
        model: the graph.
        path: its file, for the message.
        inputs: the rank of each required input.
        outputs: the rank of each required output.

    Raises:
        ModelError: an input or output is missing, or has another rank.
    """
    for kind, ports, wanted in (
        ("input", model.inputs, inputs),
        ("output", model.outputs, outputs),
    ):
        known = {name: tensor for tensor in ports for name in tensor.get_names()}
        for name, rank in wanted.items():
            if name not in known:
                raise ModelError(
                    f"{path} is another graph: it has no {kind} {name}; {EXPORT_AGAIN}"
                )
            shape = known[name].partial_shape
            if shape.rank.is_static and shape.rank.get_length() != rank:
                raise ModelError(
                    f"{path} is another graph: its {kind} {name} has {shape.rank.get_length()} "
                    f"axes instead of {rank}; {EXPORT_AGAIN}"
                )


def port(ports: list[ov.Output], name: str) -> ov.Output:
    """Return the input or output called `name`; a port may carry several names.

    Raises:
        ModelError: there is none.
    """
    for candidate in ports:
        if name in candidate.get_names():
            return candidate
    raise ModelError(f"the graph has no tensor {name}; export the model again")


def state_name(tensor: ov.Output) -> str | None:
    """Return the `past_key_values.*` or `present.*` name of a port, None for other ports."""
    for name in tensor.get_names():
        if name.startswith(("past_key_values.", "present.")):
            return str(name)
    return None


def matrix_of(product: ov.Node) -> npt.NDArray[np.floating] | None:
    """Return the constant that a node multiplies by, `(n_out, n_in)`, in the graph's memory.

    None if the node is no such product, or the constant is no floating-point matrix.
    """
    if product.get_type_name() != "MatMul" or product.get_attributes()["transpose_a"]:
        return None
    by_output = bool(product.get_attributes()["transpose_b"])
    node = product.input_value(1).get_node()
    while node.get_type_name() in {"Transpose", "Convert"}:
        if node.get_type_name() == "Transpose":
            order = node.input_value(1).get_node()
            if order.get_type_name() != "Constant" or list(order.data) != [1, 0]:
                return None
            by_output = not by_output
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or len(node.shape) != _MATRIX_RANK:
        return None
    if node.get_element_type() not in {ov.Type.f32, ov.Type.f16}:
        return None
    matrix: npt.NDArray[np.floating] = node.data
    return matrix if by_output else matrix.T


def to_bfloat16(values: Float32Array) -> ov.Tensor:
    """Round finite numbers to the nearest bf16, ties to even.

    OpenVINO's own conversion of a constant truncates if the last remaining bit is even.
    """
    narrow = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1, values.shape[-1])
    out = narrow.data.view(np.uint16).reshape(bits.shape)

    def convert(start: int) -> None:
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = bits[rows]
        out[rows] = (part + (np.uint32(0x7FFF) + ((part >> 16) & 1))) >> 16

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(convert, range(0, len(bits), _ROWS_AT_ONCE)))
    return narrow


def converted(value: ov.Output, element_type: ov.Type) -> ov.Output:
    """Convert a value to a type; return the value itself if it has this type."""
    if value.get_element_type() == element_type:
        return value
    return ops.convert(value, element_type.get_type_name()).output(0)


def transpose_weights(model: ov.Model) -> None:
    """Store a graph's matrices in the order that the processor's plugin reads, in place.

    The plugin transposes other matrices each time it loads a compiled graph, and keeps the copy.
    """
    for node in model.get_ordered_ops():
        matrix = matrix_of(node)
        if matrix is None or matrix.flags.c_contiguous:
            continue
        turned = ops.constant(np.ascontiguousarray(matrix), shared_memory=True)
        values = converted(turned.output(0), node.get_element_type())
        product = ops.matmul(node.input_value(0), values, transpose_a=False, transpose_b=True)
        node.output(0).replace(product.output(0))
    model.validate_nodes_and_infer_types()


def read_dimensions(encoder: ov.Model, decoder_with_past: ov.Model) -> GraphDimensions:
    """Read the sizes of the model.

    Raises:
        ModelError: a size that must be fixed is dynamic.
    """
    features = port(encoder.inputs, "input_features").partial_shape
    hidden = port(encoder.outputs, "last_hidden_state").partial_shape
    logits = port(decoder_with_past.outputs, "logits").partial_shape
    states = [name for name in map(state_name, decoder_with_past.inputs) if name]
    key = port(decoder_with_past.inputs, "past_key_values.0.decoder.key").partial_shape

    def fixed(dimension: ov.Dimension, what: str) -> int:
        if dimension.is_dynamic:
            raise ModelError(f"{what} is dynamic in the graphs; export the model again")
        return int(dimension.get_length())

    frames = features[2]
    return GraphDimensions(
        n_mels=fixed(features[1], "the number of mel bands"),
        n_audio_ctx=(
            fixed(hidden[1], "n_audio_ctx")
            if frames.is_dynamic
            else fixed(frames, "the number of frames") // 2
        ),
        n_audio_state=fixed(hidden[2], "the encoder's state size"),
        n_vocab=fixed(logits[2], "the vocabulary"),
        n_text_layer=len({name.split(".")[1] for name in states}),
        n_text_head=fixed(key[1], "the number of attention heads"),
        head_dim=fixed(key[3], "the size of an attention head"),
        n_text_ctx=n_positions(decoder_with_past),
    )


def n_positions(decoder: ov.Model) -> int | None:
    """Return the rows of a decoder's table of positions; None if there is no such table.

    The decoder's other table holds the tokens.
    """
    n_vocab = port(decoder.outputs, "logits").partial_shape[2]
    tables = set()
    for node in decoder.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table = node.input_value(0).get_node()
        while table.get_type_name() == "Convert":
            table = table.input_value(0).get_node()
        if table.get_type_name() == "Constant" and len(table.shape) == _MATRIX_RANK:
            tables.add(int(table.shape[0]))
    found = tables if n_vocab.is_dynamic else tables - {n_vocab.get_length()}
    return found.pop() if len(found) == 1 else None


def detect_contract(decoder_with_past: ov.Model) -> KVContract | None:
    """Find the content of the graph's `present.*.decoder.*` outputs from shapes alone.

    Gives the inputs a past and a different number of new tokens, lets OpenVINO infer the output
    shapes, and compares. None if shape inference leaves the length open: then only one step
    can tell.
    """
    n_past, n_new = 5, 2
    probe = decoder_with_past.clone()
    shapes: dict[ov.Output, ov.PartialShape] = {}
    for tensor in probe.inputs:
        shape = tensor.partial_shape
        name = state_name(tensor)
        if name is None:
            shape[0] = 1
            if "input_ids" in tensor.get_names() and shape[1].is_dynamic:
                shape[1] = n_new
        else:
            shape[0] = 1
            if is_self_attention(name) and shape[SEQUENCE_AXIS].is_dynamic:
                shape[SEQUENCE_AXIS] = n_past
        shapes[tensor] = shape
    probe.reshape(shapes)
    length = port(probe.outputs, "present.0.decoder.key").partial_shape[SEQUENCE_AXIS]
    if length.is_dynamic:
        return None
    past = port(probe.inputs, "past_key_values.0.decoder.key").partial_shape[SEQUENCE_AXIS]
    new = port(probe.inputs, "input_ids").partial_shape[1]
    return contract_of(length.get_length(), past.get_length(), new.get_length())


def contract_of(n_present: int, n_past: int, n_new: int) -> KVContract:
    """Return the contract that gives `n_present` positions for `n_new` tokens after `n_past`.

    Raises:
        ModelError: neither contract does.
    """
    if n_present == n_past + n_new:
        return "accumulated"
    if n_present == n_new:
        return "delta"
    raise ModelError(
        f"present.0.decoder.key has {n_present} positions after {n_past} + {n_new} tokens: that "
        "is neither the joined states nor the new ones; export the model again"
    )


def make_elastic(encoder: ov.Model, n_audio_ctx: int) -> bool:
    """Let the encoder take windows of any even number of frames, in place.

    Adds only as many rows of the positional embedding as the window has positions.

    Returns:
        whether the graph could be changed; if not, it is unchanged.
    """
    found = []
    for node in encoder.get_ordered_ops():
        if node.get_type_name() != "Add":
            continue
        for side in (0, 1):
            table = node.input_value(side)
            shape = table.get_partial_shape()
            is_constant = table.get_node().get_type_name() == "Constant"
            if is_constant and shape.rank.get_length() > 1 and shape[-2] == n_audio_ctx:
                found.append((node, side, shape.rank.get_length() - 2))
    if len(found) != 1:
        return False
    node, side, axis = found[0]
    hidden, table = node.input_value(1 - side), node.input_value(side)
    length = ops.gather(ops.shape_of(hidden), ops.constant([1]), ops.constant(0))
    rows = ops.slice(table, [0], length, [1], [axis])
    node.input(side).replace_source_output(rows.output(0))
    features = port(encoder.inputs, "input_features")
    fixed = features.partial_shape
    try:
        encoder.reshape({features: [-1, fixed[1], -1]})
    except RuntimeError:  # another place in the graph holds the length
        node.input(side).replace_source_output(table)
        encoder.reshape({features: fixed})
        return False
    return True


def keep_last_logits(decoder: ov.Model) -> None:
    """Project only the last `N_LOGITS` positions to the vocabulary, in place.

    The projection is the most expensive part of a prompt's prefill, and its other rows are never
    read. A graph whose logits do not come straight from a matrix product stays unchanged.
    """
    result = port(decoder.outputs, "logits").get_node()
    product = result.input_value(0).get_node()
    if product.get_type_name() != "MatMul":
        return
    hidden = product.input_value(0)
    last = ops.slice(hidden, [-N_LOGITS], [np.iinfo(np.int32).max], [1], [1])
    product.input(0).replace_source_output(last.output(0))
    decoder.validate_nodes_and_infer_types()


def read_trio(core: ov.Core, folder: ModelFolder) -> tuple[ov.Model, ov.Model, ov.Model]:
    """Read the encoder, the decoder, and the decoder with past, with mapped weights.

    Raises:
        ModelError: a file is damaged, is another graph, or belongs to another model.
    """
    with ThreadPoolExecutor(max_workers=3) as readers:
        encoder, decoder, with_past = readers.map(
            lambda name: read_graph(core, folder.path / name, mapped=True),
            (ENCODER, DECODER, DECODER_WITH_PAST),
        )
    path, logits, state = folder.path, {"logits": 3}, {"present.0.decoder.key": 4}
    require_tensors(encoder, path / ENCODER, {"input_features": 3}, {"last_hidden_state": 3})
    require_tensors(
        decoder, path / DECODER, {"input_ids": 2, "encoder_hidden_states": 3}, logits | state
    )
    past = {"input_ids": 2, "past_key_values.0.decoder.key": 4, "past_key_values.0.encoder.key": 4}
    require_tensors(with_past, path / DECODER_WITH_PAST, past, logits | state)
    _require_one_model(folder, encoder, decoder, with_past)
    return encoder, decoder, with_past


def _require_one_model(
    folder: ModelFolder, encoder: ov.Model, decoder: ov.Model, with_past: ov.Model
) -> None:
    """Check that the decoders agree with each other and with the encoder's states."""

    def sizes(graph: ov.Model) -> dict[str, str]:
        states = filter(state_name, graph.outputs)
        layers = {(state_name(tensor) or "").split(".")[1] for tensor in states}
        key = port(graph.outputs, "present.0.decoder.key").partial_shape
        vocabulary = port(graph.outputs, "logits").partial_shape[2]
        heads, head_dim = key[1], key[3]
        return {
            "layers": str(len(layers)),
            "heads": f"{heads} of {head_dim}",
            "tokens": str(vocabulary),
        }

    first, second = sizes(decoder), sizes(with_past)
    for what, size in first.items():
        if second[what] != size:
            raise ModelError(
                f"{folder.path}: {DECODER} has {size} {what}, {DECODER_WITH_PAST} {second[what]}: "
                f"they are of different models; {EXPORT_AGAIN}"
            )
    given = port(encoder.outputs, "last_hidden_state").partial_shape[2]
    taken = port(decoder.inputs, "encoder_hidden_states").partial_shape[2]
    if given.is_static and taken.is_static and given != taken:
        raise ModelError(
            f"{folder.path}: {ENCODER} gives states of width {given.get_length()}, {DECODER} takes "
            f"{taken.get_length()}: they are of different models; {EXPORT_AGAIN}"
        )


def require_finite(path: Path, model: ov.Model) -> None:
    """Refuse weights that are no numbers, or infinite: they decode to arbitrary text.

    Args:
        path: the graph's file, for the message.
        model: the graph.

    Raises:
        ModelError: names the graph and the weight.
    """
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() not in _NUMPY_FLOATS:
            continue
        if not is_finite(node.data):
            raise ModelError(
                f"{path}: the weight {node.get_friendly_name()} holds values that are not finite "
                "(NaN or infinity); export the model again"
            )


def is_finite(values: npt.NDArray[Any]) -> bool:
    """Whether floating-point values are finite, or a mask: only zeros and minus infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        # One pass without a copy. It may overflow for finite values: then check each value.
        total = values.sum(dtype=np.float32 if values.dtype == np.float16 else None)
    if np.isfinite(total):
        return True
    is_mask = np.isneginf(values) | (values == 0)
    return bool(np.isfinite(values).all()) or bool(is_mask.all())
