"""Model folders of other exporters compute what this project's own folder computes."""

import json
import tempfile

import numpy as np
import onnx
import openvino as ov
import pytest
from decoding_checks import TOLERANCE
from layouts import (
    as_openvino,
    as_stateful_openvino,
    edit_merged,
    in_subfolder,
    with_8_bit_onnx,
    with_8_bits,
    with_merged_decoder,
)
from model_surgery import copy_folder
from openvino import opset13 as ops

from whisper_npu import load_model
from whisper_npu.errors import ModelError, UsageError
from whisper_npu.npu.merged_graph import read_merged
from whisper_npu.npu.onnxruntime_files import rewritten
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.openvino import alignment, explicit_states
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, DECODER, DECODER_WITH_PAST

pytestmark = pytest.mark.slow

MAKERS = {
    "onnx/": in_subfolder,
    "merged": with_merged_decoder,
    "openvino": as_openvino,
    "openvino, stateful": as_stateful_openvino,
}
PROMPT, STEPS = 3, 4


@pytest.fixture(scope="module", params=list(MAKERS))
def folder(request, tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("layout") / "model"
    return MAKERS[request.param](tiny_folder, place)


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    features = random.standard_normal((2, 80, 3000)).astype(np.float32)
    return features, random.integers(0, 300, (2, PROMPT + STEPS))


def run(backend, inputs):
    """Encoded windows, and the logits of a prompt and single steps."""
    features, tokens = inputs
    hidden = backend.encode(features)
    session = backend.start(hidden)
    try:
        found = [session.step(tokens[:, :PROMPT]).copy()]
        for at in range(PROMPT, PROMPT + STEPS):
            found.append(session.step(tokens[:, at : at + 1]).copy())
    finally:
        session.close()
    return hidden, np.concatenate(found, axis=1)


@pytest.fixture(scope="module")
def expected(tiny_folder, inputs):
    backend = OpenVINOBackend(read_model_folder(tiny_folder), kv_cache="concat", precision="f32")
    return run(backend, inputs)


@pytest.mark.parametrize("kind", ["stateful", "concat", "static", "off"])
def test_every_cache_gives_the_same_logits(folder, inputs, expected, kind):
    backend = OpenVINOBackend(read_model_folder(folder), kv_cache=kind, precision="f32")
    for got, wanted in zip(run(backend, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
    assert backend.can_align
    assert backend.n_vocab == expected[1].shape[2]
    assert len(backend.window_frames) > 1  # short windows are encoded short


def test_weights_in_half_precision(tiny_folder, tmp_path, inputs, expected):
    folder = as_openvino(tiny_folder, tmp_path / "model", compress=True)
    backend = OpenVINOBackend(read_model_folder(folder), precision="f32")
    assert backend.precision == "f32"
    assert len(backend.window_frames) > 1
    for got, wanted in zip(run(backend, inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=0.2)
        assert np.abs(got - wanted).mean() < 0.02


def test_words_get_times(folder, inputs, tiny_folder):
    features, tokens = inputs
    found = []
    for path in (tiny_folder, folder):
        backend = OpenVINOBackend(read_model_folder(path), precision="f32")
        found.append(backend.align(backend.encode(features), tokens)[1])
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)


def test_a_folder_is_known_by_all_its_files(folder):
    read = read_model_folder(folder)
    before = read.graphs_digest()
    files = [folder / name for name in read.graph_digests()]
    assert sum(file.stat().st_size for file in files) == read.size
    weights = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_model_folder(folder).graphs_digest() != before
    content[-1] ^= 1
    weights.write_bytes(content)
    assert read_model_folder(folder).graphs_digest() == before


def test_onnxruntime_runs_a_merged_decoder(tiny_folder, tmp_path, inputs, expected):
    from whisper_npu.loading import load_backend

    merged = read_model_folder(with_merged_decoder(tiny_folder, tmp_path / "merged"))
    for kind in ("concat", "off"):
        backend = load_backend(merged, backend="onnxruntime", kv_cache=kind)
        np.testing.assert_allclose(run(backend, inputs)[1], expected[1], atol=TOLERANCE)
        assert not backend.can_align


def test_the_npu_runs_a_merged_decoder(tiny_folder, tmp_path):
    from whisper_npu.npu.build_bundle import ensure_bundle

    bundles = [
        ensure_bundle(read_model_folder(folder))
        for folder in (
            copy_folder(tiny_folder, tmp_path / "trio"),
            with_merged_decoder(tiny_folder, tmp_path / "merged"),
        )
    ]
    graphs = [
        {name: graph.inputs | graph.outputs for name, graph in bundle.graphs.items()}
        for bundle in bundles
    ]
    alignment = {name for name in graphs[0] if name.startswith("align")}
    assert graphs[1] == {name: graphs[0][name] for name in graphs[0].keys() - alignment}


def test_openvinos_files_have_no_other_engine(tiny_folder, tmp_path):
    folder = as_openvino(tiny_folder, tmp_path / "model")
    with pytest.raises(UsageError, match=r"OpenVINO's own format; give --backend openvino"):
        load_model(folder, backend="onnxruntime")
    with pytest.raises(ModelError, match=r"give --device CPU or GPU, or .*whisper-npu export"):
        load_model(folder, device="NPU_EMULATED")


def test_stored_8_bits_stay_and_are_named(tiny_folder, tmp_path, inputs):
    folder = with_8_bits(
        as_stateful_openvino(tiny_folder, tmp_path / "model"), tmp_path / "compressed"
    )
    exact = OpenVINOBackend(read_model_folder(folder), precision="f32")
    assert exact.precision == "f32 (int8 weights)"
    assert exact.is_exact
    rounded = OpenVINOBackend(read_model_folder(folder), precision="int8")
    assert rounded.precision.startswith("int8+")
    hidden, logits = run(exact, inputs)
    other_hidden, other_logits = run(rounded, inputs)
    assert np.corrcoef(hidden.ravel(), other_hidden.ravel())[0, 1] > 0.99
    assert np.corrcoef(logits.ravel(), other_logits.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "options",
    [
        {"kv_cache": "stateful", "precision": "f32"},
        {"backend": "onnxruntime", "precision": "f32"},
        {"device": "NPU_EMULATED"},
    ],
)
def test_f32_rounds_no_activations(tiny_folder, tmp_path, inputs, options):
    """The processor's plugin would, where weights are in 8 bits, and call it f32."""
    folder = with_8_bit_onnx(tiny_folder, tmp_path / "model")
    exact = OpenVINOBackend(read_model_folder(folder), kv_cache="off", precision="f32")
    with load_model(folder, **options) as model:
        if "device" not in options:
            assert model.backend.precision == "f32 (int8 weights)"
        assert model.backend.is_exact
        for got, wanted in zip(run(model.backend, inputs), run(exact, inputs), strict=True):
            np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


def add_casts(graph, choice):
    """What a converter to half precision leaves after the branches."""
    for place, name in enumerate(choice.output):
        choice.output[place] = f"{name}_inside"
        graph.node.append(
            onnx.helper.make_node("Cast", [f"{name}_inside"], [name], to=onnx.TensorProto.FLOAT)
        )


def add_sum(graph, choice):
    place = list(choice.output).index("present.1.decoder.key")
    choice.output[place] = "half"
    graph.node.append(onnx.helper.make_node("Add", ["half", "half"], ["present.1.decoder.key"]))


def add_output(graph, choice):
    graph.node.append(
        onnx.helper.make_node("Cast", ["input_ids"], ["further"], to=onnx.TensorProto.FLOAT)
    )
    graph.output.append(onnx.helper.make_tensor_value_info("further", 1, ["rows", "n"]))


def remove_branch(graph, choice):
    del choice.attribute[1]


def remove_output(graph, choice):
    del choice.attribute[0].g.output[0]


@pytest.mark.parametrize("change", [add_casts, add_output])
def test_a_merged_decoder_with_further_nodes(tiny_folder, tmp_path, inputs, expected, change):
    folder = with_merged_decoder(tiny_folder, tmp_path / "model")
    edit_merged(folder / "decoder_model_merged.onnx", change)
    backend = OpenVINOBackend(read_model_folder(folder), kv_cache="concat", precision="f32")
    np.testing.assert_allclose(run(backend, inputs)[1], expected[1], atol=TOLERANCE)
    with load_model(folder, backend="onnxruntime", kv_cache="concat") as model:
        np.testing.assert_allclose(run(model.backend, inputs)[1], expected[1], atol=TOLERANCE)


@pytest.mark.parametrize("change", [add_sum, remove_branch, remove_output])
def test_what_is_no_merged_decoder(tiny_folder, tmp_path, change):
    folder = with_merged_decoder(tiny_folder, tmp_path / "model")
    path = folder / "decoder_model_merged.onnx"
    edit_merged(path, change)
    for call in (lambda: OpenVINOBackend(read_model_folder(folder)), lambda: read_merged(path)):
        with pytest.raises(ModelError, match=str(path)) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [DECODER, DECODER_WITH_PAST])
def test_tensors_without_a_rank(tiny_folder, tmp_path, name):
    folder = copy_folder(tiny_folder, tmp_path / "model")
    (folder / "export_manifest.json").unlink()
    model = onnx.load(folder / name, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, folder / name)
    with pytest.raises(ModelError, match="has an unknown number of axes instead of 2"):
        OpenVINOBackend(read_model_folder(folder))


def test_states_that_are_joined_again_and_again():
    """There are more ways through such a graph than can be counted."""
    state = ops.parameter([1, 2, 3, 4], np.float32)
    joined = state
    for _ in range(60):
        joined = ops.multiply(joined, joined)
    read = ops.scaled_dot_product_attention(joined, joined, joined, causal=False)
    model = ov.Model([read], [state], "decoder")
    (parameter,) = model.get_parameters()
    found = list(explicit_states._attentions(parameter.output(0)))
    assert {kind for _, kind in found} == {"key", "value"}
    assert alignment._weights_of(parameter.output(0)) == []


def test_an_alignment_graph_that_is_added_later_counts(tiny_folder, tmp_path):
    """The cache of compiled graphs knows the other graphs only."""
    folder = copy_folder(tiny_folder, tmp_path / "model")
    (folder / "export_manifest.json").unlink()
    kept = (folder / ALIGNMENT).rename(tmp_path / ALIGNMENT)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(content))
    cache = CompileCache(tmp_path / "cache", 1 << 30)
    assert not OpenVINOBackend(read_model_folder(folder), cache=cache).can_align
    n_files = len(list(cache.folder.iterdir()))
    kept.rename(folder / ALIGNMENT)
    assert OpenVINOBackend(read_model_folder(folder), cache=cache).can_align
    assert len(list(cache.folder.iterdir())) == n_files


def test_an_engines_error_is_not_taken_for_a_full_disk(tiny_folder, tmp_path):
    layout = read_model_folder(with_merged_decoder(tiny_folder, tmp_path / "model")).layout
    with pytest.raises(FileNotFoundError, match="the caller's"), rewritten(layout) as files:
        raise FileNotFoundError("the caller's")
    assert not files[0].parent.exists()


def test_no_place_for_rewritten_graphs(tiny_folder, tmp_path, monkeypatch):
    layout = read_model_folder(with_merged_decoder(tiny_folder, tmp_path / "model")).layout
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ModelError, match=r"cannot be rewritten in .*missing"), rewritten(layout):
        pass


def test_operators_that_openvino_lacks(tiny_folder, tmp_path):
    folder = in_subfolder(tiny_folder, tmp_path / "model", "_fp16")
    encoder = onnx.load(folder / "onnx" / "encoder_model_fp16.onnx")
    product = next(node for node in encoder.graph.node if node.op_type == "MatMul")
    product.op_type, product.domain = "MatMulBnb4", "com.microsoft"
    encoder.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(encoder, folder / "onnx" / "encoder_model_bnb4.onnx")
    with pytest.raises(ModelError, match=r"it has no com\.microsoft\.MatMulBnb4; .*: fp16") as e:
        load_model(folder, variant="encoder=bnb4,decoder=fp16")
    assert "\n" not in str(e.value)
