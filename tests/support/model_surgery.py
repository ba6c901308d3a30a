"""Makes model folders like those of other exporters, from folders of this exporter."""

import json
import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from whisper_npu.export.manifest import describe_file
from whisper_npu.runtime.model_folder.folder import MANIFEST
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, DECODER_WITH_PAST, GRAPHS


def copy_folder(folder, target):
    return Path(shutil.copytree(folder, target))


def edit_manifest(folder, **changes):
    """Change entries of the manifest (None removes one), and certify the files as they are now."""
    path = folder / MANIFEST
    files = [each for each in folder.iterdir() if each.is_file() and each != path]
    certified = {"files": {each.name: describe_file(each) for each in files}}
    manifest = json.loads(path.read_text()) | certified | changes
    path.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def name_weights(folder, name):
    """Rename the file of the three graphs' weights, and remove the manifest."""
    (folder / "model.onnx_data").rename(folder / name)
    for path in (folder / graph for graph in GRAPHS):
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        onnx.save(model, path)
    (folder / ALIGNMENT).unlink(missing_ok=True)
    (folder / MANIFEST).unlink()
    return folder


def _rewire_present(folder, replacement):
    """Replace the value of each `present.*.decoder.*` output; attention reads the same as before.

    `replacement(name, past, new, joined)` returns the nodes that compute output `name` from the
    tensors of the past, of the new tokens, and of both joined.
    """
    path = folder / DECODER_WITH_PAST
    model = onnx.load(path, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    for output in model.graph.output:
        name = output.name
        if ".decoder." not in name:
            continue
        concat = producers[name]
        assert concat.op_type == "Concat"
        past, new = concat.input
        joined = f"{name}.joined"
        for node in model.graph.node:
            for i, read in enumerate(node.input):
                if read == name:
                    node.input[i] = joined
        concat.output[0] = joined
        model.graph.node.extend(replacement(name, past, new, joined))
        output.type.tensor_type.shape.dim[2].dim_param = f"length of {name}"
    onnx.save(model, path)


def make_delta(folder):
    """Make `present.*` hold only the new states, as older exporters and NPU graphs do."""
    _rewire_present(
        folder, lambda name, _past, new, _joined: [helper.make_node("Identity", [new], [name])]
    )
    edit_manifest(folder, kv_contract="delta")
    return folder


def _through_nonzero(name, source):
    """Nodes that pass `source` through unchanged, but hide its length from shape inference."""
    made = {part: f"{name}.{part}" for part in ("axes", "peak", "same", "where", "flat", "zero")}
    return [
        helper.make_node(
            "Constant",
            [],
            [made["axes"]],
            value=helper.make_tensor(made["axes"], onnx.TensorProto.INT64, [3], [0, 1, 3]),
        ),
        helper.make_node(
            "Constant",
            [],
            [made["zero"]],
            value=helper.make_tensor(made["zero"], onnx.TensorProto.INT64, [1], [0]),
        ),
        helper.make_node("ReduceMax", [source, made["axes"]], [made["peak"]], keepdims=0),
        helper.make_node("Equal", [made["peak"], made["peak"]], [made["same"]]),
        helper.make_node("NonZero", [made["same"]], [made["where"]]),
        helper.make_node("Squeeze", [made["where"], made["zero"]], [made["flat"]]),
        helper.make_node("Gather", [source, made["flat"]], [name], axis=2),
    ]


def hide_lengths(folder, *, delta):
    """Make the length of `present.*` depend on the data, and remove it from the manifest."""
    _rewire_present(
        folder,
        lambda name, _past, new, joined: _through_nonzero(name, new if delta else joined),
    )
    edit_manifest(folder, kv_contract=None)
    return folder


def return_nothing_known(folder):
    """Make `present.*` hold past, new and past states, which no contract has."""
    _rewire_present(
        folder,
        lambda name, past, _new, joined: [
            helper.make_node("Concat", [joined, past], [name], axis=2)
        ],
    )
    edit_manifest(folder, kv_contract=None)
    return folder


def as_other_exporters_write(folder, *, one_file_per_graph):
    """Give each graph its own weights: inside the ONNX file, or in one data file beside it."""
    models = {name: onnx.load(folder / name) for name in GRAPHS}
    (folder / "model.onnx_data").unlink()
    (folder / ALIGNMENT).unlink(missing_ok=True)
    for name, model in models.items():
        if one_file_per_graph:
            onnx.save(model, folder / name)
        else:
            onnx.save(
                model,
                folder / name,
                save_as_external_data=True,
                all_tensors_to_one_file=True,
                location=f"{name}_data",
                size_threshold=1024,
            )
    (folder / MANIFEST).unlink()
    (folder / "generation_config.json").unlink()
    return folder


def rename_first(path, side):
    """Rename a graph's first input or output."""
    model = onnx.load(path, load_external_data=False)
    values = getattr(model.graph, side)
    before, values[0].name = values[0].name, "renamed"
    for node in model.graph.node:
        names = getattr(node, side)
        names[:] = ["renamed" if name == before else name for name in names]
        # Other nodes may read an output, too.
        node.input[:] = ["renamed" if name == before else name for name in node.input]
    path.write_bytes(model.SerializeToString())


def drop_last_layers_states(path):
    """Remove the states of the last layer from a cached decoder's outputs."""
    model = onnx.load(path, load_external_data=False)
    last = max(value.name.split(".")[1] for value in model.graph.output if "." in value.name)
    kept = [value for value in model.graph.output if f".{last}." not in value.name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    path.write_bytes(model.SerializeToString())


def write_encoder(path, width):
    """Write a dummy encoder with states of any width."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, 1500, width])
    nodes = [
        helper.make_node("ReduceMean", ["input_features"], ["mean"], keepdims=1),
        helper.make_node("Expand", ["mean", "shape"], ["last_hidden_state"]),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("input_features", TensorProto.FLOAT, ["batch", 80, 3000])]
    outputs = [value("last_hidden_state", TensorProto.FLOAT, ["batch", 1500, width])]
    _write(path, nodes, inputs, outputs, [shape])


def write_square(path):
    """Write a graph that has nothing to do with speech: `y = x * x`."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    _write(path, nodes, [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])])


def _write(path, nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "made", inputs, outputs, list(constants))
    opset = [helper.make_opsetid("", 18)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )
