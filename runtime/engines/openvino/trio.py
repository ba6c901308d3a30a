"""Reads the three graphs of a model folder, whatever its layout.

Encoder, decoder, and decoder with past: these three, with the same inputs and outputs, are what all
later code works on. A merged decoder is split, a decoder with states of its own gets explicit ones,
and graphs in half precision are computed in float32 (their weights stay in half precision).
"""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import openvino as ov

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.openvino.explicit_states import split_stateful
from whisper_npu.runtime.engines.openvino.graphs import is_finite, port, state_name
from whisper_npu.runtime.engines.openvino.merged_decoder import split_merged
from whisper_npu.runtime.engines.openvino.uniform import make_uniform
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN
from whisper_npu.runtime.model_folder.layout import Layout, weight_files
from whisper_npu.runtime.model_folder.linked_weights import without_links
from whisper_npu.runtime.model_folder.read_errors import cannot_read

# OpenVINO's message for operators that it cannot read.
_UNKNOWN_OPERATORS = re.compile(r"No conversion rule found for operations: *(?P<names>.*)")
_NUMPY_FLOATS = {ov.Type.f16, ov.Type.f32, ov.Type.f64}


Part = Literal["encoder", "decoder", "with_past"]
_PARTS: tuple[Part, ...] = get_args(Part)
_STATE_RANK = 4  # rows, heads, positions, elements of a head


def read_trio(core: ov.Core, folder: ModelFolder) -> tuple[ov.Model, ov.Model, ov.Model]:
    """Read the encoder, the decoder, and the decoder with past, with mapped weights.

    Raises:
        ModelError: a file is damaged, is another graph, or belongs to another model.
    """
    with ThreadPoolExecutor(max_workers=3) as readers:
        encoder, decoder, with_past = readers.map(
            lambda part: read_part(core, folder, part, mapped=True), _PARTS
        )
    _require_one_model(folder, encoder, decoder, with_past)
    return encoder, decoder, with_past


def file_of(folder: ModelFolder, part: Part) -> Path:
    """Return the file that holds one of the three graphs."""
    return folder.layout.graphs_in_order[_PARTS.index(part)]


def read_part(core: ov.Core, folder: ModelFolder, part: Part, *, mapped: bool = False) -> ov.Model:
    """Read one of the three graphs.

    Args:
        core: OpenVINO's.
        folder: the model.
        part: which graph.
        mapped: map the weights (see `read_graph`).

    Raises:
        ModelError: the file is damaged or another graph.
    """
    file = file_of(folder, part)
    graph = _read(core, file, folder.layout, mapped=mapped)
    try:
        return _as_part(graph, folder.layout, part, file)
    except RuntimeError as error:  # OpenVINO's, about the graph and no device
        raise cannot_read(file, error) from None


def _as_part(graph: ov.Model, layout: Layout, part: Part, file: Path) -> ov.Model:
    """Return one of the three graphs, made of the graph in its file, which is used up."""
    if part != "encoder" and layout.with_past is None:
        split = split_stateful if layout.is_openvino else split_merged
        decoder, with_past = split(graph, file)
        graph = decoder if part == "decoder" else with_past
    states = {"logits": 3, "present.0.decoder.key": _STATE_RANK}
    if part == "encoder":
        require_tensors(graph, file, {"input_features": 3}, {"last_hidden_state": 3})
    elif part == "decoder":
        require_tensors(graph, file, {"input_ids": 2, "encoder_hidden_states": 3}, states)
    else:
        past = dict.fromkeys(
            ("past_key_values.0.decoder.key", "past_key_values.0.encoder.key"), _STATE_RANK
        )
        require_tensors(graph, file, {"input_ids": 2} | past, states)
    return make_uniform(graph)


def _read(core: ov.Core, path: Path, layout: Layout, *, mapped: bool) -> ov.Model:
    """Read a graph; an error for operators that OpenVINO lacks names the other variants."""
    try:
        return read_graph(core, path, mapped=mapped)
    except UnknownOperatorsError as error:
        raise ModelError(f"{error}; {layout.way_on}") from None


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

    names = [path.name for path in folder.layout.graphs_in_order]
    first, second = sizes(decoder), sizes(with_past)
    for what, size in first.items():
        if second[what] != size:
            raise ModelError(
                f"{folder.path}: {names[1]} has {size} {what}, {names[2]} {second[what]}: "
                f"they are of different models; {EXPORT_AGAIN}"
            )
    given = port(encoder.outputs, "last_hidden_state").partial_shape[2]
    taken = port(decoder.inputs, "encoder_hidden_states").partial_shape[2]
    if given.is_static and taken.is_static and given != taken:
        raise ModelError(
            f"{folder.path}: {names[0]} gives states of width {given.get_length()}, {names[1]} "
            f"takes {taken.get_length()}: they are of different models; {EXPORT_AGAIN}"
        )


class UnknownOperatorsError(ModelError):
    """A graph has operators that OpenVINO lacks."""


def read_graph(core: ov.Core, path: Path, *, mapped: bool = False) -> ov.Model:
    """Read an ONNX file, or an OpenVINO file with its weights.

    Args:
        core: OpenVINO's.
        path: the file.
        mapped: map the weights, for a graph whose weights are hardly read. Mapped weights stay in
            memory until the whole graph is released; copies are freed one by one.

    Raises:
        ModelError: the file is damaged, or its external weights are missing or outside its folder.
    """
    config = {"ENABLE_MMAP": mapped}
    try:
        if path.suffix == ".xml":
            (weights,) = weight_files(path)
            return core.read_model(path, weights, config=config)
        with without_links(path) as real:
            return core.read_model(real, config=config)
    except (RuntimeError, MemoryError) as error:
        unknown = _UNKNOWN_OPERATORS.search(str(error))
        if unknown is not None:
            names = unknown["names"].strip()
            raise UnknownOperatorsError(f"OpenVINO cannot read {path}: it has no {names}") from None
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
        ModelError: an input or output is missing, or it or a state has another or no fixed rank.
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
            _require_rank(known[name], name, kind, rank, path)
        for name, tensor in known.items():
            if state_name(tensor) is not None:
                _require_rank(tensor, name, kind, _STATE_RANK, path)


def _require_rank(tensor: ov.Output, name: str, kind: str, rank: int, path: Path) -> None:
    found = tensor.partial_shape.rank
    if found != ov.Dimension(rank):
        axes = f"{found.get_length()}" if found.is_static else "an unknown number of"
        raise ModelError(
            f"{path} is another graph: its {kind} {name} has {axes} axes instead of {rank}; "
            f"{EXPORT_AGAIN}"
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
