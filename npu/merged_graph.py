"""Splits a merged decoder, an ONNX graph with an `If`, into the decoders with and without a past.

OpenVINO's graphs are split by `runtime/engines/openvino/merged_decoder.py`. ONNX is split for
static graphs, and for ONNX Runtime, whose OpenVINO provider cannot run such an `If`.
"""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import is_cross_attention
from whisper_npu.runtime.model_folder.regular_files import open_regular

_PAST = "past_key_values."
_BRANCHES = ("then_branch", "else_branch")


def split_merged(merged: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the decoder and the decoder with past of a merged decoder.

    Args:
        merged: the graph.
        path: its file, for the message.

    Raises:
        ModelError: the graph is no merged decoder.
    """
    choices = [node for node in merged.graph.node if node.op_type == "If"]
    if len(choices) != 1:
        raise ModelError(
            f"{path} is no merged decoder: it has {len(choices)} branches, not one; export the "
            "model again"
        )
    branches = [_branch(merged, choices[0], name) for name in _BRANCHES]
    with_past = [each for each in branches if any(map(_is_past, each.graph.input))]
    without = [each for each in branches if not any(map(_is_past, each.graph.input))]
    if len(with_past) != 1 or len(without) != 1:
        raise ModelError(
            f"{path} is no merged decoder: {len(with_past)} of its branches take a past, not one; "
            "export the model again"
        )
    return without[0], with_past[0]


def read_merged(path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Read the two decoders of a merged decoder; external weights are not loaded.

    Raises:
        ModelError: the file cannot be read or is no merged decoder.
    """
    try:
        with open_regular(path) as stream:
            merged = onnx.load_model_from_string(stream.read())
    except (OSError, ValueError, DecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; export the model again") from None
    return split_merged(merged, path)


def _branch(merged: onnx.ModelProto, choice: onnx.NodeProto, name: str) -> onnx.ModelProto:
    """Return a branch as a graph, with the names that the merged graph's tensors have."""
    body = next(each.g for each in choice.attribute if each.name == name)
    outer = merged.graph
    graph = onnx.GraphProto(name=name)
    constants = {each.name: each for each in (*outer.initializer, *body.initializer)}
    before = [node for node in outer.node if node is not choice and node.op_type != "If"]
    given = {each.name: each for each in outer.input}
    made = dict(zip(choice.output, (value.name for value in body.output), strict=True))
    nodes = [*before, *body.node]
    produced = {tensor: node for node in nodes for tensor in node.output}
    values = {value.name: value for value in outer.output}
    renamed: dict[str, str] = {}
    for output in outer.output:
        inner = made[output.name]
        source = produced.get(inner)
        is_placeholder = source is None or source.op_type in ("Constant", "ConstantOfShape")
        if is_cross_attention(output.name) and is_placeholder:
            continue  # the branch with past returns no cross-attention states
        graph.output.append(values[output.name])
        if inner != output.name:
            renamed[inner] = output.name
    needed = {value.name for value in graph.output} | set(renamed)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    for node in reversed(kept):
        copy = graph.node.add()
        copy.CopyFrom(node)
        for names in (copy.input, copy.output):
            names[:] = [renamed.get(tensor, tensor) for tensor in names]
    graph.initializer.extend(each for key, each in constants.items() if key in needed)
    graph.input.extend(each for key, each in given.items() if key in needed)
    model = onnx.ModelProto()
    for field in ("ir_version", "opset_import", "producer_name", "functions"):
        value = getattr(merged, field)
        if isinstance(value, int | str):
            setattr(model, field, value)
        else:
            getattr(model, field).extend(value)
    model.graph.CopyFrom(graph)
    return model


def _is_past(value: onnx.ValueInfoProto) -> bool:
    return bool(value.name.startswith(_PAST))
