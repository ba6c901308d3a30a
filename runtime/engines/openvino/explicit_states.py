"""Turns a decoder that keeps its states itself into the two decoders with explicit states.

optimum-intel writes such a decoder. Its self-attention states are variables that begin empty. Its
cross-attention states are variables too, which the first run after a reset computes from the audio.
Here the variables become inputs `past_key_values.*` and outputs `present.*`, so that all later code
sees the same graphs for every model folder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import is_self_attention, past_name
from whisper_npu.runtime.engines.openvino.graphs import parameters_of, port
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN

_BEAM = "beam_idx"
_SELF_STATE = re.compile(r"(?P<layer>\d+)\.decoder\.(?P<kind>key|value)")
_PASSES_ON = {"Convert", "Identity", "Reshape", "Transpose", "Unsqueeze", "Broadcast", "Multiply"}


@dataclass(frozen=True)
class _State:
    """A variable of the decoder.

    Attributes:
        present: its name as an output, `present.0.decoder.key`.
        read: the value that the graph reads, in the order of its rows.
        initial: the value of the first run; None if the graph does not state it.
        next: the value of the next run.
    """

    present: str
    read: ov.Output
    initial: ov.Output | None
    next: ov.Output


def split_stateful(stateful: ov.Model, path: Path) -> tuple[ov.Model, ov.Model]:
    """Return the decoder and the decoder with past of a decoder that keeps its states.

    Args:
        stateful: the graph; used up by this call.
        path: its file, for the message.

    Raises:
        ModelError: the graph keeps no states, or they are not those of a Whisper decoder.
    """
    copy = stateful.clone()
    return _without_past(copy, path), _with_past(stateful, path)


def _without_past(model: ov.Model, path: Path) -> ov.Model:
    tokens = port(model.inputs, "input_ids")
    batch = ops.gather(ops.shape_of(tokens), ops.constant([0]), ops.constant(0))
    results = [_result(port(model.outputs, "logits").get_node().input_value(0), {"logits"})]
    for state in _states(model, path):
        if is_self_attention(state.present):
            shape = state.read.get_partial_shape()
            sizes = ops.constant([shape[1].get_length(), 0, shape[3].get_length()])
            zero = ops.constant(0, dtype=state.read.get_element_type().to_dtype())
            empty = ops.broadcast(zero, ops.concat([batch, sizes], 0)).output(0)
            results.append(_result(state.next, {state.present}))
            _replace(state.read, empty)
        elif state.initial is not None:
            results.append(_result(state.initial, {state.present}))
            _replace(state.read, state.initial)
        else:
            raise ModelError(f"{path} does not compute {state.present}; {EXPORT_AGAIN}")
    return ov.Model(results, parameters_of(results), "decoder")


def _with_past(model: ov.Model, path: Path) -> ov.Model:
    results = [_result(port(model.outputs, "logits").get_node().input_value(0), {"logits"})]
    for state in _states(model, path):
        past = ops.parameter(state.read.get_partial_shape(), state.read.get_element_type())
        past.output(0).get_tensor().set_names({past_name(state.present)})
        if is_self_attention(state.present):
            results.append(_result(state.next, {state.present}))
        _replace(state.read, past.output(0))
    return ov.Model(results, parameters_of(results), "decoder_with_past")


def _result(value: ov.Output, names: set[str]) -> ov.Node:
    result = ops.result(value)
    result.output(0).get_tensor().set_names(names)
    return result


def _replace(old: ov.Output, new: ov.Output) -> None:
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)


def _states(model: ov.Model, path: Path) -> list[_State]:
    """Return the variables of a decoder.

    Raises:
        ModelError: they are not those of a Whisper decoder.
    """
    assigned = {_variable(sink): sink.input_value(0) for sink in model.get_sinks()}
    order = {node.get_name(): i for i, node in enumerate(model.get_ordered_ops())}
    found: list[_State] = []
    cross: dict[str, list[tuple[int, ov.Node]]] = {"key": [], "value": []}
    for node in model.get_ops():
        if node.get_type_name() != "ReadValue":
            continue
        name = _self_state(_variable(node))
        if name is not None:
            found.append(_state(node, name, assigned, path))
            continue
        for reader, kind in _attentions(node.output(0)):
            cross[kind].append((order[reader.get_name()], node))
    n_self = len(found)
    for kind, nodes in cross.items():  # layers follow each other
        for layer, (_, node) in enumerate(sorted(nodes, key=lambda each: each[0])):
            found.append(_state(node, f"present.{layer}.encoder.{kind}", assigned, path))
    if not n_self or any(2 * len(nodes) != n_self for nodes in cross.values()):
        raise ModelError(
            f"{path} keeps {n_self} states of self-attention and {len(found) - n_self} of "
            f"cross-attention, and no decoder with past lies beside it: it is no Whisper decoder "
            f"with a cache; {EXPORT_AGAIN}, with the task automatic-speech-recognition-with-past"
        )
    return found


def _state(node: ov.Node, name: str, assigned: Mapping[str, ov.Output], path: Path) -> _State:
    read, following = _in_order(node.output(0)), assigned.get(_variable(node))
    shape = read.get_partial_shape()
    if following is None or shape[1].is_dynamic or shape[3].is_dynamic:
        raise ModelError(f"{path}: the state {name} is never written, or has no fixed sizes")
    return _State(name, read, node.input_value(0) if node.get_input_size() else None, following)


def _variable(node: ov.Node) -> str:
    return str(node.get_attributes()["variable_id"])


def _self_state(variable: str) -> str | None:
    """Return the `present.*` name for the id of a self-attention's variable; else None.

    optimum-intel joins the names of input and output to an id.
    """
    found = _SELF_STATE.search(variable)
    return f"present.{found['layer']}.decoder.{found['kind']}" if found else None


def _in_order(read: ov.Output) -> ov.Output:
    """Return a state after the reordering of its rows by `beam_idx`, if there is one."""
    for reader in read.get_target_inputs():
        node = reader.get_node()
        if node.get_type_name() == "Gather" and _BEAM in node.input_value(1).get_names():
            reordered: ov.Output = node.output(0)
            return reordered
    return read


def _attentions(read: ov.Output) -> Iterator[tuple[ov.Node, str]]:
    """Yield the nodes of attentions that read a state, and whether as `key` or as `value`."""
    waiting, passed = [read], set[str]()  # a graph may join a state with itself again and again
    while waiting:
        for reader in waiting.pop().get_target_inputs():
            node = reader.get_node()
            if node.get_type_name() == "ScaledDotProductAttention":
                yield node, "key" if reader.get_index() == 1 else "value"
            elif node.get_type_name() == "MatMul":
                weights = node.input_value(0).get_node()
                while weights.get_type_name() in _PASSES_ON:
                    weights = weights.input_value(0).get_node()
                yield node, "value" if weights.get_type_name() == "Softmax" else "key"
            elif node.get_type_name() in _PASSES_ON and node.get_name() not in passed:
                passed.add(node.get_name())
                waiting.append(node.output(0))
