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

_PAST, _PRESENT = "past_key_values.", "present."
_BRANCHES = ("then_branch", "else_branch")
_PASSES_ON = {"Cast", "Identity"}  # a converter to half precision adds them


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
    bodies = {each.name: each.g for each in choices[0].attribute}
    n_made = [len(bodies[name].output) for name in _BRANCHES if name in bodies]
    if n_made != [len(choices[0].output)] * len(_BRANCHES):
        raise ModelError(
            f"{path} is no merged decoder: its branches give other outputs than it has; export the "
            "model again"
        )
    branches = [_branch(merged, choices[0], bodies[name], path) for name in _BRANCHES]
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


def _branch(
    merged: onnx.ModelProto, choice: onnx.NodeProto, body: onnx.GraphProto, path: Path
) -> onnx.ModelProto:
    """Return a branch as a graph, with the names that the merged graph's tensors have.

    Raises:
        ModelError: the logits or a state do not come from a branch.
    """
    outer = merged.graph
    graph = onnx.GraphProto(name=body.name)
    place = next(i for i, node in enumerate(outer.node) if node.op_type == "If")
    before, after = outer.node[:place], outer.node[place + 1 :]
    outputs, renamed = _outputs(outer, choice, body, path)
    graph.output.extend(outputs)
    needed = {value.name for value in outputs} | set(renamed)
    kept = []
    for nodes, names in ((after, {}), (body.node, renamed), (before, {})):
        for node in reversed(nodes):
            if needed.intersection(node.output):
                kept.append((node, names))
                needed.update(node.input)
    for node, names in reversed(kept):
        copy = graph.node.add()
        copy.CopyFrom(node)
        for tensors in (copy.input, copy.output):
            tensors[:] = [names.get(tensor, tensor) for tensor in tensors]
    constants = {each.name: each for each in (*outer.initializer, *body.initializer)}
    graph.initializer.extend(each for key, each in constants.items() if key in needed)
    graph.input.extend(each for each in outer.input if each.name in needed)
    model = onnx.ModelProto()
    for field in ("ir_version", "opset_import", "producer_name", "functions"):
        value = getattr(merged, field)
        if isinstance(value, int | str):
            setattr(model, field, value)
        else:
            getattr(model, field).extend(value)
    model.graph.CopyFrom(graph)
    return model


def _outputs(
    outer: onnx.GraphProto, choice: onnx.NodeProto, body: onnx.GraphProto, path: Path
) -> tuple[list[onnx.ValueInfoProto], dict[str, str]]:
    """Return the outputs that a branch computes, and new names for tensors in the branch.

    Raises:
        ModelError: the logits or a state do not come from the branch.
    """
    made = dict(zip(choice.output, (value.name for value in body.output), strict=True))
    produced = {tensor: node for node in (*outer.node, *body.node) for tensor in node.output}
    passing = {node.output[0]: node.input[0] for node in outer.node if node.op_type in _PASSES_ON}
    outputs, renamed = [], {}
    for output in outer.output:
        if output.name != "logits" and not output.name.startswith(_PRESENT):
            continue
        name = output.name
        while name in passing:
            name = passing[name]
        if name not in made:
            raise ModelError(
                f"{path} is no merged decoder: {output.name} does not come from its branches; "
                "export the model again"
            )
        inner = made[name]
        source = produced.get(inner)
        is_placeholder = source is None or source.op_type in ("Constant", "ConstantOfShape")
        if is_cross_attention(output.name) and is_placeholder:
            continue  # the branch with past returns no cross-attention states
        outputs.append(output)
        if inner != name:
            renamed[inner] = name
    return outputs, renamed


def _is_past(value: onnx.ValueInfoProto) -> bool:
    return bool(value.name.startswith(_PAST))
