"""Splits a merged decoder into the decoder without a past and the decoder with a past.

optimum merges both into one ONNX graph with an `If`, whose condition is the input
`use_cache_branch`. Each branch is a whole decoder. Each becomes a graph of its own here, so that
all later code sees the same graphs for every model folder.
"""

from pathlib import Path

import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import is_cross_attention
from whisper_npu.runtime.engines.openvino.graphs import parameters_of, state_name
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN

_N_BRANCHES = 2
_PASSES_ON = {"Convert", "Identity"}  # a converter to half precision adds them


def split_merged(merged: ov.Model, path: Path) -> tuple[ov.Model, ov.Model]:
    """Return the decoder and the decoder with past of a merged decoder, which is used up.

    Raises:
        ModelError: the graph is no merged decoder.
    """
    choices = [node for node in merged.get_ordered_ops() if node.get_type_name() == "If"]
    if len(choices) != 1:
        raise ModelError(
            f"{path} is no merged decoder: it has {len(choices)} branches, not one, and no decoder "
            f"with past lies beside it; {EXPORT_AGAIN}"
        )
    branches = [_branch(merged, choices[0], number, path) for number in range(_N_BRANCHES)]
    with_past = [branch for branch in branches if any(map(state_name, branch.inputs))]
    without = [branch for branch in branches if not any(map(state_name, branch.inputs))]
    if len(with_past) != 1 or len(without) != 1:
        raise ModelError(
            f"{path} is no merged decoder: {len(with_past)} of its branches take a past, not one; "
            f"{EXPORT_AGAIN}"
        )
    return without[0], with_past[0]


def _branch(merged: ov.Model, choice: ov.Node, number: int, path: Path) -> ov.Model:
    """Return a branch as a graph, with the names that the merged graph's tensors have.

    Raises:
        ModelError: the logits or a state do not come from a branch.
    """
    body = choice.get_function(number)
    own = body.get_parameters()
    for description in choice.get_input_descriptions(number):
        source = choice.input_value(description.input_index)
        for reader in own[description.body_parameter_index].output(0).get_target_inputs():
            reader.replace_source_output(source)
    values = {
        description.output_index: body.get_results()[description.body_value_index].input_value(0)
        for description in choice.get_output_descriptions(number)
    }
    results = []
    for result in merged.get_results():
        name, names = state_name(result.output(0)), result.output(0).get_names()
        if name is None and "logits" not in names:
            continue
        source = result.input_value(0)
        while source.get_node().get_type_name() in _PASSES_ON:  # types are made uniform later
            source = source.get_node().input_value(0)
        value = values.get(source.get_index())
        if source.get_node().get_name() != choice.get_name() or value is None:
            raise ModelError(
                f"{path} is no merged decoder: {name or 'logits'} does not come from its "
                f"branches; {EXPORT_AGAIN}"
            )
        # The branch with past returns a placeholder for these states, which never change.
        is_placeholder = value.get_node().get_type_name() == "Constant" or any(
            name in source.get_names() for source in merged.inputs
        )
        if name and is_cross_attention(name) and is_placeholder:
            continue
        made = ops.result(value)
        made.output(0).get_tensor().set_names(names)
        results.append(made)
    branch = ov.Model(results, parameters_of(results), f"{merged.get_friendly_name()}_{number}")
    return branch.clone()  # the branches share their inputs
