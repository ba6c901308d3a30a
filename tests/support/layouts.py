"""Makes model folders in the layouts of other exporters, from the tiny Whisper."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
from openvino import opset13 as ops
from openvino.op.util import Variable, VariableInfo

from whisper_npu.runtime.engines.openvino.graphs import port, state_name
from whisper_npu.runtime.engines.openvino.int8_weights import round_matrix
from whisper_npu.runtime.engines.openvino.stateful import make_stateful
from whisper_npu.runtime.model_folder.layout import (
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    GRAPHS,
    TOKENIZER,
)


def copy_configs(source, target):
    """Copy the configurations and the tokenizer of a model folder, without its manifest."""
    target.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", TOKENIZER):
        shutil.copy(source / name, target / name)
    return target


def in_subfolder(source, target, suffix=""):
    """The trio in `onnx/`, as onnx-community has it, each graph with its weights inside."""
    copy_configs(source, target)
    (target / "onnx").mkdir()
    for name in GRAPHS:
        onnx.save(
            onnx.load(source / name), target / "onnx" / name.replace(".onnx", f"{suffix}.onnx")
        )
    return target


def with_merged_decoder(source, target):
    """One decoder for both steps, as optimum's post-processing makes it."""
    from optimum.onnx import merge_decoders

    copy_configs(source, target)
    onnx.save(onnx.load(source / ENCODER), target / ENCODER)
    first, second = onnx.load(source / DECODER), onnx.load(source / DECODER_WITH_PAST)
    merged = target / "decoder_model_merged.onnx"
    merge_decoders(first, second, save_path=merged, strict=False)
    return target


def as_openvino(source, target, *, compress=False):
    """OpenVINO's own files of the trio, as older versions of optimum-intel write them."""
    copy_configs(source, target)
    core = ov.Core()
    for name in GRAPHS:
        model = core.read_model(source / name)
        ov.save_model(model, target / f"openvino_{Path(name).stem}.xml", compress_to_fp16=compress)
    return target


def as_stateful_openvino(source, target):
    """OpenVINO's own files with a decoder that keeps all states, as optimum-intel writes them."""
    copy_configs(source, target)
    core = ov.Core()
    encoder = core.read_model(source / ENCODER)
    ov.save_model(encoder, target / "openvino_encoder_model.xml", compress_to_fp16=False)
    decoder = core.read_model(source / DECODER)
    with_past = core.read_model(source / DECODER_WITH_PAST)
    make_stateful(with_past, "accumulated", fuse=False)
    tokens = port(with_past.inputs, "input_ids")
    for reader in port(decoder.inputs, "input_ids").get_target_inputs():
        reader.replace_source_output(tokens)
    variables, sinks = list(with_past.get_variables()), list(with_past.get_sinks())
    for number, past in enumerate(with_past.inputs):
        name = state_name(past)
        if name is None:
            continue
        projected = port(decoder.outputs, name.replace("past_key_values", "present"))
        info = VariableInfo()
        info.variable_id = str(100 + number)  # optimum-intel's ids say nothing either
        info.data_shape, info.data_type = past.partial_shape, past.element_type
        variable = Variable(info)
        state = ops.read_value(projected.get_node().input_value(0), variable)
        for reader in past.get_target_inputs():
            reader.replace_source_output(state.output(0))
        variables.append(variable)
        sinks.append(ops.assign(state, variable))
    hidden = port(decoder.inputs, "encoder_hidden_states").get_node()
    rows = port(with_past.inputs, "beam_idx").get_node()
    results = [port(with_past.outputs, "logits").get_node()]
    stateful = ov.Model(results, sinks, [tokens.get_node(), hidden, rows], variables, "decoder")
    for number, node in enumerate(stateful.get_ops()):  # the parts have the same names
        node.set_friendly_name(f"{node.get_friendly_name()}_{number}")
    path = target / "openvino_decoder_model.xml"
    ov.save_model(stateful, path, compress_to_fp16=False)
    return target


def with_8_bits(source, target):
    """A folder of OpenVINO's files, with weights that NNCF has rounded to 8 bits."""
    import nncf

    copy_configs(source, target)
    for path in source.glob("*.xml"):
        model = nncf.compress_weights(ov.Core().read_model(path))
        ov.save_model(model, target / path.name, compress_to_fp16=False)
    return target


def with_8_bit_onnx(source, target):
    """The trio in ONNX, each matrix in 8 bits with a scale per output, as quantizers store it."""
    copy_configs(source, target)
    for name in GRAPHS:
        model = onnx.load(source / name)
        graph = model.graph
        stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for number, node in enumerate(list(graph.node)):
            values = stored.get(node.input[1]) if node.op_type == "MatMul" else None
            if values is None or values.ndim != 2:
                continue
            codes, scales = round_matrix(values, 1)
            parts = {"codes": codes, "scales": scales, "zeros": np.zeros_like(scales, np.int8)}
            names = [f"{part}_{number}" for part in parts]
            for part, array in zip(names, parts.values(), strict=True):
                graph.initializer.append(onnx.numpy_helper.from_array(array, part))
            wide = f"wide_{number}"
            graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", names, [wide], axis=1))
            node.input[1] = wide
        read = {tensor for node in graph.node for tensor in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        onnx.save(model, target / name)
    return target


def edit_merged(path, change):
    """Change the `If` and the nodes of a merged decoder; `change` takes the graph and its `If`."""
    model = onnx.load(path)
    change(model.graph, next(node for node in model.graph.node if node.op_type == "If"))
    onnx.save(model, path)
