"""The alignment graph says what PyTorch's decoder attends to, whoever wrote the decoder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from model_surgery import edit_manifest
from onnx import TensorProto, helper

from whisper_npu.errors import ExportError, ModelError, ParityError
from whisper_npu.export.alignment import (
    AlignmentSettings,
    add_alignment_graph,
    cut_alignment_graph,
)
from whisper_npu.export.checkpoint import load_checkpoint
from whisper_npu.export.manifest import MANIFEST, verify_files
from whisper_npu.export.parity import verify_parity

ALIGNMENT = "decoder_alignment_model.onnx"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


def _configurations(folder: Path) -> tuple[dict, dict]:
    names = ("generation_config.json", "config.json")
    return tuple(json.loads((folder / name).read_text()) for name in names)


def _run(path: Path, tokens: np.ndarray, hidden: np.ndarray) -> dict[str, np.ndarray]:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled({"input_ids": tokens, "encoder_hidden_states": hidden})
    return {name: results[port] for port in compiled.outputs for name in port.get_names()}


def test_attentions_and_probabilities_are_pytorchs(tiny_folder: Path, tiny_checkpoint) -> None:
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    model = load_checkpoint(str(tiny_checkpoint)).model
    heads = _configurations(tiny_folder)[0]["alignment_heads"]
    eot = _configurations(tiny_folder)[0]["eos_token_id"]
    random = np.random.default_rng(3)
    tokens = random.integers(0, eot, (2, 9))
    # Fewer frames than a window has: the graph serves short windows, too.
    hidden = random.standard_normal((2, 700, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.from_numpy(hidden)),
            decoder_input_ids=torch.from_numpy(tokens),
            output_attentions=True,
        )
    attentions = np.stack([expected.cross_attentions[i][:, j].numpy() for i, j in heads], axis=1)
    text = expected.logits[..., :eot].softmax(-1).numpy()

    got = _run(tiny_folder / ALIGNMENT, tokens, hidden)

    assert got["cross_attentions"].shape == (2, len(heads), 9, 700)
    np.testing.assert_allclose(got["cross_attentions"], attentions, rtol=1e-3, atol=1e-8)
    rows = np.arange(2)[:, None], np.arange(8)[None], tokens[:, 1:]
    np.testing.assert_allclose(got["token_probabilities"], text[rows], rtol=1e-3, atol=1e-8)


def test_weights_are_shared_and_nothing_is_left_over(tiny_folder: Path) -> None:
    onnx.checker.check_model(str(tiny_folder / ALIGNMENT))
    model = onnx.load(tiny_folder / ALIGNMENT, load_external_data=False)
    assert [value.name for value in model.graph.output] == [
        "token_probabilities",
        "cross_attentions",
    ]
    assert (tiny_folder / ALIGNMENT).stat().st_size < 200_000
    assert not any("present." in name for node in model.graph.node for name in node.output[1:])
    large = [t for t in model.graph.initializer if np.prod(t.dims) * 4 >= 1024]
    assert large
    assert all(t.data_location == TensorProto.EXTERNAL for t in large)


def test_certificate_covers_it_and_lists_it(tiny_folder: Path) -> None:
    manifest = json.loads((tiny_folder / MANIFEST).read_text())
    assert ALIGNMENT in manifest["files"]
    differences = manifest["parity"]["max_abs_diff"]["decoder_alignment_model"]
    assert differences.keys() == {"token_probabilities", "cross_attentions"}


@pytest.mark.slow
def test_another_head_fails_the_certificate(folder: Path, tiny_checkpoint, tiny_audio) -> None:
    checkpoint = load_checkpoint(str(tiny_checkpoint))
    heads = checkpoint.generation_config["alignment_heads"]
    settings = checkpoint.alignment_settings()
    wrong = replace(settings, heads=((0, 0), *settings.heads[1:]))
    assert [list(head) for head in wrong.heads] != heads
    decoder = onnx.load(folder / "decoder_model.onnx", load_external_data=False)
    cut_alignment_graph(decoder, wrong)
    onnx.save(decoder, folder / ALIGNMENT)
    with pytest.raises(ParityError, match=rf"{ALIGNMENT}.*cross_attentions"):
        verify_parity(folder, checkpoint, tiny_audio)


def test_it_is_added_to_a_folder_without_it(folder: Path) -> None:
    original = (folder / ALIGNMENT).read_bytes()
    (folder / ALIGNMENT).unlink()
    assert add_alignment_graph(folder) == folder / ALIGNMENT
    assert (folder / ALIGNMENT).read_bytes() == original
    verify_files(folder)


def test_it_is_added_to_a_folder_of_another_exporter(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    decoder = onnx.load(folder / "decoder_model.onnx")
    for tensor in decoder.graph.initializer:
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
    onnx.save(decoder, folder / "decoder_model.onnx")
    before = _run(folder / ALIGNMENT, np.ones((1, 3), np.int64), np.ones((1, 20, 64), np.float32))
    add_alignment_graph(folder)
    assert not (folder / MANIFEST).exists()
    after = _run(folder / ALIGNMENT, np.ones((1, 3), np.int64), np.ones((1, 20, 64), np.float32))
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


def _folded_decoder(dtype: int) -> onnx.ModelProto:
    """Attention as older exporters write it: heads in the batch axis, perhaps in half precision."""
    heads, width, vocabulary = 2, 4, 11
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return onnx.numpy_helper.from_array(random.standard_normal(shape).astype(numpy_type), name)

    def ints(name: str, *values: int) -> TensorProto:
        return onnx.numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]),
        helper.make_node("Reshape", ["hidden", "split"], ["q_split"]),
        helper.make_node("Transpose", ["q_split"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["encoder_hidden_states", "split"], ["kv_split"]),
        helper.make_node("Transpose", ["kv_split"], ["present.0.encoder.value"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["q", "fold"], ["q_folded"]),
        helper.make_node("Reshape", ["present.0.encoder.value", "fold"], ["v_folded"]),
        helper.make_node("Transpose", ["v_folded"], ["k_folded"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q_folded", "k_folded"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v_folded"], ["mixed"]),
        helper.make_node("MatMul", ["hidden", "projection"], ["logits"]),
    ]
    width_all = heads * width
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "n"]),
            helper.make_tensor_value_info("encoder_hidden_states", dtype, ["b", "f", width_all]),
        ],
        [
            helper.make_tensor_value_info("logits", dtype, ["b", "n", vocabulary]),
            helper.make_tensor_value_info(
                "present.0.encoder.value", dtype, ["b", heads, "f", width]
            ),
        ],
        [
            weight("embedding", vocabulary, width_all),
            weight("projection", width_all, vocabulary),
            ints("split", 0, -1, heads, width),
            ints("fold", 2 * heads, -1, width),  # batch 2
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


FOLDED = AlignmentSettings(heads=((0, 1),), n_text_head=2, eot=9)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_heads_folded_into_the_batch_are_unfolded(tmp_path: Path, dtype: int) -> None:
    decoder = _folded_decoder(dtype)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in decoder.graph.initializer}
    cut_alignment_graph(decoder, FOLDED)
    onnx.save(decoder, tmp_path / "model.onnx")
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    hidden = np.random.default_rng(1).standard_normal((2, 5, 8))
    hidden = hidden.astype(weights["embedding"].dtype)
    got = _run(tmp_path / "model.onnx", tokens, hidden)
    assert got["cross_attentions"].dtype == got["token_probabilities"].dtype == np.float32

    queries = weights["embedding"][tokens].astype(np.float32)
    scores = queries[..., 4:] @ hidden[..., 4:].astype(np.float32).transpose(0, 2, 1)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    tolerance = 1e-5 if dtype == TensorProto.FLOAT else 2e-2
    np.testing.assert_allclose(got["cross_attentions"][:, 0], expected, atol=tolerance)
    logits = (queries @ weights["projection"].astype(np.float32))[:, :-1, :9]
    text = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(text, tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(got["token_probabilities"], chosen, atol=tolerance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m.opset_import[0], "version", 12), "opset 12"),
        (lambda m: setattr(m.graph.output[0], "name", "scores"), "no output logits"),
        (lambda m: setattr(m.graph.node[9], "op_type", "Sigmoid"), "found 0 softmaxes"),
    ],
)
def test_strange_decoders_are_refused(change, message: str) -> None:
    decoder = _folded_decoder(TensorProto.FLOAT)
    change(decoder)
    with pytest.raises(ExportError, match=message):
        cut_alignment_graph(decoder, FOLDED)


@pytest.mark.parametrize("heads", [None, [], [[2, 0]], [[0, 2]], [[1, 0], [10, 3]]])
def test_unknown_heads_and_a_teachers_become_the_upper_half(folder: Path, heads) -> None:
    config = _configurations(folder)[0]
    (folder / "generation_config.json").write_text(json.dumps(config | {"alignment_heads": heads}))
    edit_manifest(folder)
    add_alignment_graph(folder)
    graph = onnx.load(folder / ALIGNMENT, load_external_data=False).graph
    shape = next(v for v in graph.output if v.name == "cross_attentions").type.tensor_type.shape
    assert shape.dim[1].dim_value == 2  # both heads of the second of two layers
    config["alignment_heads"] = [[1, 0], [1, 1]]
    (folder / "generation_config.json").write_text(json.dumps(config))
    edit_manifest(folder)
    ours = (folder / ALIGNMENT).read_bytes()
    add_alignment_graph(folder)
    assert (folder / ALIGNMENT).read_bytes() == ours


def test_heads_that_are_no_pairs(folder: Path) -> None:
    config = _configurations(folder)[0]
    config["alignment_heads"] = [3]
    (folder / "generation_config.json").write_text(json.dumps(config))
    edit_manifest(folder)
    with pytest.raises(ModelError, match=r"generation_config\.json: alignment_heads\[0\]"):
        add_alignment_graph(folder)


def test_a_damaged_folder_gets_no_graph(folder: Path) -> None:
    """It would be cut out of the damaged decoder, and certified."""
    decoder = folder / "decoder_model.onnx"
    decoder.write_bytes(decoder.read_bytes() + b"\x72\x00")
    certificate = (folder / MANIFEST).read_bytes()
    with pytest.raises(ModelError, match=r"decoder_model\.onnx differs"):
        add_alignment_graph(folder)
    assert (folder / MANIFEST).read_bytes() == certificate


def test_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lacks"):
        add_alignment_graph(tmp_path)
