"""Graph surgery: every trio becomes graphs without a dynamic dimension, or a clear error."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from model_surgery import (
    as_other_exporters_write,
    copy_folder,
    edit_manifest,
    hide_lengths,
    make_delta,
)

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.npu import build_bundle, static_graphs
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.npu.bundle import (
    DATA_FILE,
    MANIFEST,
    bundle_path,
    read_bundle,
    weight_format,
)
from whisper_npu.npu.graph_surgery import read_graph
from whisper_npu.npu.operators import SUPPORTED, check_operators, require_floating_point
from whisper_npu.runtime.engines.protocol import N_LOGITS
from whisper_npu.runtime.model_folder.folder import MANIFEST as EXPORT_MANIFEST
from whisper_npu.runtime.model_folder.folder import ModelFolder, read_model_folder
from whisper_npu.runtime.model_folder.layout import (
    ALIGNMENT,
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    GRAPHS,
)


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return copy_folder(tiny_folder, tmp_path_factory.mktemp("static") / "tiny")


@pytest.fixture(scope="module")
def bundle(folder):
    return ensure_bundle(read_model_folder(folder))


def run(path, feed):
    """The outputs of a graph on the CPU in exact arithmetic, by name."""
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(feed)
    return {port.get_any_name(): results[port] for port in compiled.outputs}


def random_feed(bundle, name, seed=0):
    random = np.random.default_rng(seed)
    return {
        key: random.integers(0, 4, shape)
        if key in ("input_ids", "cache_position", "logit_positions", "audio_length")
        else random.standard_normal(shape).astype(np.float32)
        for key, shape in bundle.graphs[name].inputs.items()
    }


@pytest.mark.slow
def test_no_dynamic_dimension_anywhere(bundle):
    """Every node of every compiled graph, not only inputs and outputs."""
    core = ov.Core()
    for graph in bundle.graphs.values():
        compiled = core.compile_model(graph.path, "CPU", {})
        for node in compiled.get_runtime_model().get_ops():
            for output in node.outputs():
                assert output.partial_shape.is_static, (graph.name, node.get_friendly_name())
        for node in core.read_model(graph.path).get_ops():
            for output in node.outputs():
                assert output.partial_shape.is_static, (graph.name, node.get_friendly_name())


def test_files_say_what_the_manifest_says(bundle):
    for graph in bundle.graphs.values():
        model = onnx.load(graph.path)
        onnx.checker.check_model(model, full_check=True)
        for values, shapes in (
            (model.graph.input, graph.inputs),
            (model.graph.output, graph.outputs),
        ):
            dims = {
                value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
                for value in values
            }
            assert dims == shapes
        assert {node.op_type for node in model.graph.node} <= SUPPORTED.keys()
        assert not {"Shape", "Range", "If", "Loop"} & {node.op_type for node in model.graph.node}


def test_buckets_hold_the_longest_prompt(bundle):
    # Half the context less one, <|startofprev|>, and the start sequence without timestamps.
    assert bundle.buckets == (4, 32, 128, 223 + 1 + 4)


def test_encoder_equals_the_dynamic_one(bundle, folder):
    feed = random_feed(bundle, "encoder_3000")
    static = run(bundle.graphs["encoder_3000"].path, feed)["last_hidden_state"]
    dynamic = run(folder / ENCODER, feed)["last_hidden_state"]
    np.testing.assert_allclose(static, dynamic, atol=1e-5)


def test_cross_states_equal_the_dynamic_ones(bundle, folder):
    feed = random_feed(bundle, "cross_3000")
    static = run(bundle.graphs["cross_3000"].path, feed)
    dynamic = run(folder / DECODER, feed | {"input_ids": np.zeros((1, 1), np.int64)})
    assert len(static) == 4
    for name, state in static.items():
        np.testing.assert_allclose(state, dynamic[name], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_tokens", [1, 2, 4])
def test_prefill_ignores_what_pads_it(bundle, n_tokens):
    feed = random_feed(bundle, "prefill_4")
    feed["logit_positions"] = np.full(N_LOGITS, n_tokens - 1)
    path = bundle.graphs["prefill_4"].path
    first = run(path, feed)
    feed["input_ids"][:, n_tokens:] += 1
    second = run(path, feed)
    np.testing.assert_array_equal(first["logits"], second["logits"])
    for name in first.keys() - {"logits"}:
        np.testing.assert_array_equal(first[name][:, :, :n_tokens], second[name][:, :, :n_tokens])


def test_step_ignores_what_lies_behind_its_position(bundle):
    feed = random_feed(bundle, "step_1")
    feed["cache_position"][:] = 7
    path = bundle.graphs["step_1"].path
    first = run(path, feed)
    for name in [name for name in feed if ".decoder." in name]:
        feed[name][:, :, 7:] = 1000.0
    second = run(path, feed)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    feed["past_key_values.0.decoder.value"][:, :, 6] += 1.0
    assert not np.array_equal(run(path, feed)["logits"], first["logits"])


@pytest.mark.slow
def test_shorter_windows_hide_the_end_of_the_audio(folder, tmp_path):
    copy = copy_folder(folder, tmp_path / "elastic")
    bundle = ensure_bundle(read_model_folder(copy), windows=(10, 20))
    assert bundle.frames == (1000, 2000, 3000)
    assert bundle.graphs["encoder_1000"].outputs["last_hidden_state"] == (1, 500, 64)
    feed = random_feed(bundle, "step_1")
    feed["audio_length"][:] = 500
    path = bundle.graphs["step_1"].path
    first = run(path, feed)["logits"]
    for name in [name for name in feed if ".encoder." in name]:
        feed[name][:, :, 500:] = 1000.0
    np.testing.assert_array_equal(run(path, feed)["logits"], first)
    assert ensure_bundle(read_model_folder(copy)).frames == bundle.frames, "loading keeps them"
    with pytest.raises(UsageError, match="shorter than the model's 30 s"):
        ensure_bundle(read_model_folder(copy), windows=(30,))


@pytest.mark.usefixtures("bundle")
def test_made_once_and_again_only_when_the_source_changes(folder, tmp_path, monkeypatch):
    copy = copy_folder(folder, tmp_path / "again")
    model = read_model_folder(copy)
    before = {path: path.stat().st_mtime_ns for path in bundle_path(copy, "lossless").iterdir()}
    assert before
    monkeypatch.setattr(build_bundle, "_build", None)  # would fail if it were called
    ensure_bundle(model)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    monkeypatch.undo()

    (copy / DECODER).write_bytes((copy / DECODER).read_bytes() + b"\x72\x00")  # an empty metadata
    edit_manifest(copy)
    lines = []
    ensure_bundle(read_model_folder(copy), progress=lines.append)
    assert "static graph step_1" in lines


@pytest.mark.usefixtures("bundle")
def test_each_variant_has_its_own(folder, tmp_path, monkeypatch):
    """To use them in turn would make each anew every time."""
    copy = copy_folder(folder, tmp_path / "variants")
    for path in (copy / name for name in GRAPHS):
        shutil.copyfile(path, path.with_name(f"{path.stem}_fp16.onnx"))
    mixed = "encoder=fp16,decoder=plain"
    assert ensure_bundle(read_model_folder(copy, mixed)).path.name == f"lossless-{mixed}"
    monkeypatch.setattr(build_bundle, "_build", None)  # would fail if it were called
    for variant in (None, mixed):
        bundle = ensure_bundle(read_model_folder(copy, variant))
        assert (bundle.weights, bundle.path.parent.parent) == ("lossless", copy)


_BUILD = """
import sys
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.runtime.model_folder.folder import ModelFolder, read_model_folder
ensure_bundle(read_model_folder(sys.argv[1]), windows=(5,))
"""


@pytest.mark.slow
def test_every_process_makes_the_same_files(tiny_folder, tmp_path):
    """Byte for byte; else the graphs would be compiled again wherever they are made again."""
    copies = []
    for seed in ("0", "1", "2"):  # of hashes, which the order of a set depends on
        copies.append(copy_folder(tiny_folder, tmp_path / seed))
        command = [sys.executable, "-c", _BUILD, str(copies[-1])]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    made = [
        {path.name: path.read_bytes() for path in bundle_path(copy, "lossless").iterdir()}
        for copy in copies
    ]
    assert len(made[0]) > 10
    for other in made[1:]:
        assert other.keys() == made[0].keys()
        assert [name for name, content in made[0].items() if other[name] != content] == []


def cut_short(path):
    file = path / DATA_FILE
    file.write_bytes(file.read_bytes()[:-1])


def partly_zeroed(path):
    file = path / DATA_FILE
    content = bytearray(file.read_bytes())
    content[:1000] = bytes(1000)
    file.write_bytes(content)


def longer(path):
    with (path / DATA_FILE).open("ab") as file:
        file.write(b"x")


def of_another_graph(path):
    shutil.copy(path / "prefill_4.onnx", path / "step_1.onnx")


def a_link_elsewhere(path):
    file = path / DATA_FILE
    shutil.move(file, path.parent / "elsewhere.bin")
    file.symlink_to("../elsewhere.bin")


def a_manifest_of_nonsense(path):
    (path / MANIFEST).write_text(json.dumps({"recipe": {"windows": "all"}}))


DAMAGES = [cut_short, partly_zeroed, longer, of_another_graph, a_manifest_of_nonsense]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_bundle_is_made_again(folder, tmp_path, damage):
    copy = copy_folder(folder, tmp_path / "damaged")
    path = bundle_path(copy, "lossless")
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    damage(path)
    with pytest.raises(ModelError, match="no whole bundle"):
        read_bundle(path)
    ensure_bundle(read_model_folder(copy))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == whole
    assert [item.name for item in path.parent.iterdir()] == ["lossless"], "nothing left behind"


@pytest.mark.usefixtures("bundle")
def test_weights_of_a_bundle_are_its_own(folder, tmp_path):
    copy = copy_folder(folder, tmp_path / "linked")
    a_link_elsewhere(bundle_path(copy, "lossless"))
    with pytest.raises(ModelError, match="outside the model folder"):
        read_bundle(bundle_path(copy, "lossless"))


@pytest.mark.slow
def test_a_mended_folder_runs_no_graphs_of_the_damage(tiny_folder, tmp_path):
    """Whatever the certificate says: it was the damaged weights' sha256 for large files."""
    copy = copy_folder(tiny_folder, tmp_path / "mended")
    weights, certificate = copy / "model.onnx_data", copy / EXPORT_MANIFEST
    good, stated = weights.read_bytes(), certificate.read_bytes()
    weights.write_bytes(bytes(len(good) // 2) + good[len(good) // 2 :])
    with pytest.raises(ModelError, match=r"model\.onnx_data differs from what .* certifies"):
        ensure_bundle(read_model_folder(copy))
    certificate.unlink()
    damaged = ensure_bundle(read_model_folder(copy)).data_sha256
    weights.write_bytes(good)
    certificate.write_bytes(stated)
    mended = ensure_bundle(read_model_folder(copy)).data_sha256
    assert mended != damaged
    fresh = ensure_bundle(read_model_folder(copy_folder(tiny_folder, tmp_path / "good")))
    assert mended == fresh.data_sha256


def test_a_failed_build_leaves_the_old_bundle(folder, tmp_path, monkeypatch):
    copy = copy_folder(folder, tmp_path / "failed")
    path = bundle_path(copy, "lossless")
    manifest = (path / MANIFEST).read_bytes()

    def fail(*_):
        raise ModelError("no")

    monkeypatch.setattr(static_graphs, "step_graph", fail)
    with pytest.raises((ModelError, TypeError)):
        ensure_bundle(read_model_folder(copy), windows=(5,))
    assert (path / MANIFEST).read_bytes() == manifest
    assert [item.name for item in path.parent.iterdir()] == ["lossless"]


def test_a_full_disk_is_called_that(folder, tmp_path, monkeypatch):
    copied = read_model_folder(copy_folder(folder, tmp_path / "model"))

    def no_space(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(static_graphs, "step_graph", no_space)
    with pytest.raises(ModelError, match=r"cannot write static graphs into .*: No space left"):
        ensure_bundle(copied, windows=(5,))


def test_weights_are_stored_once(bundle, folder):
    parameters = (folder / "model.onnx_data").stat().st_size
    masks = 4 * sum(
        size**2 for size in (*bundle.buckets, 448)
    )  # constants of the tiny model's size
    assert (bundle.path / DATA_FILE).stat().st_size < 1.02 * parameters + masks


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["f16", "int8"])
def test_smaller_weights_stay_close(folder, bundle, weights, tmp_path):
    copy = copy_folder(folder, tmp_path / weights)
    smaller = ensure_bundle(read_model_folder(copy), weights=weights)
    assert (smaller.path / DATA_FILE).stat().st_size < (bundle.path / DATA_FILE).stat().st_size
    feed = random_feed(bundle, "encoder_3000")
    exact = run(bundle.graphs["encoder_3000"].path, feed)["last_hidden_state"]
    close = run(smaller.graphs["encoder_3000"].path, feed)["last_hidden_state"]
    error = np.abs(exact - close).max()
    assert 0 < error < (0.02 if weights == "f16" else 0.3) * np.abs(exact).max()


@pytest.mark.parametrize(("parameters", "weights"), [(1.9e8, "lossless"), (2.1e8, "int8")])
def test_weights_of_large_models_are_in_8_bits(folder, monkeypatch, parameters, weights):
    monkeypatch.setattr(ModelFolder, "n_parameters", int(parameters))
    model = read_model_folder(folder)
    assert weight_format(model, "auto") == weights
    assert weight_format(model, "f16") == "f16"


def test_unknown_weights_are_refused(folder):
    with pytest.raises(UsageError, match="lossless, f16, int8"):
        ensure_bundle(read_model_folder(folder), weights="int4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda path: as_other_exporters_write(path, one_file_per_graph=True),
        lambda path: as_other_exporters_write(path, one_file_per_graph=False),
        make_delta,
        lambda path: hide_lengths(path, delta=False),
    ],
    ids=["inline weights", "a data file per graph", "delta", "lengths hidden"],
)
def test_other_exporters_trios_give_the_same_graphs(tiny_folder, bundle, tmp_path, change):
    copy = copy_folder(tiny_folder, tmp_path / "other")
    (copy / ALIGNMENT).unlink()  # others have none
    change(copy)
    other = ensure_bundle(read_model_folder(copy))
    for name in ("encoder_3000", "cross_3000", "prefill_32", "step_1"):
        feed = random_feed(bundle, name, seed=3)
        ours, theirs = (run(item.graphs[name].path, feed) for item in (bundle, other))
        assert ours.keys() == theirs.keys()
        for output, value in ours.items():
            np.testing.assert_allclose(theirs[output], value, atol=1e-5, err_msg=output)


def test_a_step_graph_without_a_mask_gets_one(tiny_folder, bundle, tmp_path):
    """Older exporters leave the mask out of a graph that takes one token at a time."""
    copy = copy_folder(tiny_folder, tmp_path / "unmasked")
    path = copy / DECODER_WITH_PAST
    model = onnx.load(path, load_external_data=False)
    adds = {node.output[0]: node for node in model.graph.node if node.op_type == "Add"}
    removed = 0
    for node in model.graph.node:
        if node.op_type == "Softmax" and "self_attn" in node.name:
            node.input[0] = adds[node.input[0]].input[0]
            removed += 1
    assert removed == 2
    onnx.save(model, path)
    (copy / "export_manifest.json").unlink()
    other = ensure_bundle(read_model_folder(copy))
    feed = random_feed(bundle, "step_1")
    ours, theirs = (run(item.graphs["step_1"].path, feed) for item in (bundle, other))
    np.testing.assert_allclose(theirs["logits"], ours["logits"], atol=1e-5)


def _edit(folder: Path, name: str, change) -> Path:
    model = onnx.load(folder / name, load_external_data=False)
    change(model.graph)
    onnx.save(model, folder / name)
    edit_manifest(folder)
    return folder


def _without_states(graph):
    for node in graph.node:
        if node.op_type == "Concat" and node.input[0] == "past_key_values.1.decoder.key":
            node.input[0], node.input[1] = node.input[1], node.input[0]


def _without_positions(graph):
    for tensor in graph.initializer:
        if "embed_positions" in tensor.name:
            tensor.dims[0] -= 1


def _without_projection(graph):
    for node in graph.node:
        if "logits" in node.output:
            node.op_type = "Mul"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_states, r"past_key_values\.1\.decoder\.key is joined .* at 0 places"),
        (_without_positions, "no lookup in a table of 448 positions"),
        (_without_projection, "logits are not a matrix product"),
    ],
)
def test_a_missing_pattern_is_named(tiny_folder, tmp_path, change, message):
    copy = _edit(copy_folder(tiny_folder, tmp_path / "odd"), DECODER_WITH_PAST, change)
    with pytest.raises(ModelError, match=message):
        ensure_bundle(read_model_folder(copy))
    assert not list((copy / "npu").iterdir())


def test_an_unsupported_operator_is_refused():
    with pytest.raises(ModelError, match=r"step\.onnx uses NonZero, .*does not document"):
        check_operators("step.onnx", {"Add", "NonZero"}, "export it")


def test_a_quantized_graph_is_refused():
    with pytest.raises(
        ModelError, match=r"encoder_model_int8\.onnx is quantized \(MatMulInteger\)"
    ):
        require_floating_point("encoder_model_int8.onnx", {"Add", "MatMulInteger"}, "take fp16")


def test_a_graph_in_half_precision_becomes_float32(tmp_path):
    half = onnx.TensorProto.FLOAT16
    matrix = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float16)
    small = np.float16([2.5])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "matrix"], ["product"]),
            onnx.helper.make_node("Cast", ["product"], ["wide"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Cast", ["wide"], ["narrow"], to=half),
            onnx.helper.make_node("Mul", ["narrow", "small"], ["y"]),
        ],
        "half",
        [value("x", half, [1, 40])],
        [value("y", half, [1, 40])],
        [
            onnx.numpy_helper.from_array(matrix, "matrix"),
            onnx.numpy_helper.from_array(small, "small"),
        ],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "half.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    read = read_graph(path)
    assert read.weights["matrix"].dtype == np.float32
    np.testing.assert_array_equal(read.weights["matrix"], matrix.astype(np.float32))
    assert read.constant("small").dtype == np.float32
    types = {
        each.type.tensor_type.elem_type
        for each in (*read.proto.graph.input, *read.proto.graph.output)
    }
    assert types == {onnx.TensorProto.FLOAT}
    assert {node.attribute[0].i for node in read.nodes if node.op_type == "Cast"} == types


def test_a_damaged_graph_is_named(tiny_folder, tmp_path):
    copy = copy_folder(tiny_folder, tmp_path / "damaged")
    (copy / ENCODER).write_bytes(b"not an ONNX file")
    with pytest.raises(ModelError, match=r"cannot read .*encoder_model\.onnx"):
        ensure_bundle(read_model_folder(copy))


def test_without_onnx_an_up_to_date_bundle_still_works(folder, tmp_path, monkeypatch):
    copy = copy_folder(folder, tmp_path / "deployed")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    ensure_bundle(read_model_folder(copy))
    shutil.rmtree(copy / "npu")
    with pytest.raises(ModelError, match=r"pip install 'whisper-npu\[npu\]'"):
        ensure_bundle(read_model_folder(copy))


def test_graph_reader_keeps_weights_out_of_the_graph(folder):
    graph = read_graph(folder / ENCODER)
    assert graph.weights
    assert all(tensor.ByteSize() < 2048 for tensor in graph.initializers().values())
    assert json.loads((folder / "config.json").read_text())["num_mel_bins"] == 80
