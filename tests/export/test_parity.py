"""The certificate must fail on what it certifies: each test breaks one thing in a good export."""

import json
import re
import shutil
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from whisper_npu.errors import AssetError, ParityError
from whisper_npu.export import parity, parity_audio, parity_graph
from whisper_npu.export.checkpoint import Checkpoint, load_checkpoint
from whisper_npu.export.parity import verify_parity

ENCODER, DECODER, WITH_PAST = (
    "encoder_model.onnx",
    "decoder_model.onnx",
    "decoder_with_past_model.onnx",
)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint))


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))


@pytest.fixture
def verify(folder: Path, checkpoint: Checkpoint, tiny_audio: list[Path]):
    return lambda: verify_parity(folder, checkpoint, tiny_audio)


def _shift_one_weight(path: Path, part: str, by: float) -> None:
    """Add to one value of the first weight whose name contains `part`, in this graph only."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if part in t.name and len(t.dims) > 0)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[array.size // 2] += by
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    _save_inline(model, path)


def _save_inline(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    onnx.save(model, path)


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename tensors inside a graph; its outputs keep their names and so lose their producers."""
    for node in model.graph.node:
        for field in (node.input, node.output):
            renamed = [names.get(name, name) for name in field]
            del field[:]
            field.extend(renamed)


def test_good_export_is_certified(tiny_folder: Path) -> None:
    certificate = json.loads((tiny_folder / "export_manifest.json").read_text())["parity"]
    assert certificate["status"] == "verified"
    assert certificate["tokens_compared"] == certificate["tokens_equal"] > 448
    assert certificate["forced_decode_length"] == 449
    assert certificate["recordings"] == [
        "synthetic-4s.wav",
        "synthetic-11s.wav",
        "synthetic-30s.wav",
    ]
    assert certificate["synthetic_audio"] is False
    differences = certificate["max_abs_diff"]
    assert differences["encoder_model"].keys() == {"last_hidden_state"}
    assert len(differences["decoder_model"]) == 1 + 2 * 4
    assert len(differences["decoder_with_past_model"]) == 1 + 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "part", "output"),
    [
        (ENCODER, "conv1.weight", "last_hidden_state"),
        (DECODER, "embed_positions", "logits"),
        (WITH_PAST, "fc1.bias", "logits"),
    ],
)
def test_one_changed_weight_fails_with_both_sides(
    folder: Path, verify, graph: str, part: str, output: str
) -> None:
    _shift_one_weight(folder / graph, part, 1.0)
    with pytest.raises(ParityError) as caught:
        verify()
    message = str(caught.value)
    assert message.startswith(graph)
    assert "PyTorch says" in message
    assert "tolerance" in message
    assert "\n" not in message
    assert output in message


@pytest.mark.slow
def test_nan_fails(folder: Path, verify) -> None:
    _shift_one_weight(folder / ENCODER, "conv1.bias", float("nan"))
    with pytest.raises(ParityError, match="nan"):
        verify()


@pytest.mark.slow
def test_exchanged_names_fail(folder: Path, verify) -> None:
    """Key and value of one layer exchanged: names and shapes are right, values are not."""
    model = onnx.load(folder / WITH_PAST, load_external_data=False)
    key, value = "present.1.decoder.key", "present.1.decoder.value"
    _rename(model, {key: "true_key", value: "true_value"})
    for source, target in (("true_key", value), ("true_value", key)):
        model.graph.node.append(onnx.helper.make_node("Identity", [source], [target]))
    onnx.save(model, folder / WITH_PAST)
    with pytest.raises(ParityError, match=r"present\.1\.decoder\.key"):
        verify()


@pytest.mark.slow
def test_missing_output_is_named(folder: Path, verify) -> None:
    model = onnx.load(folder / DECODER, load_external_data=False)
    kept = [v for v in model.graph.output if v.name != "present.1.encoder.value"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, folder / DECODER)
    with pytest.raises(ParityError, match=r"missing \['present\.1\.encoder\.value'\]"):
        verify()


def test_fixed_axis_is_named(folder: Path, verify) -> None:
    model = onnx.load(folder / ENCODER, load_external_data=False)
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    axis.Clear()
    axis.dim_value = 1
    onnx.save(model, folder / ENCODER)
    with pytest.raises(ParityError, match=r"input_features has the axes \(1, 80, 3000\)"):
        verify()


@pytest.mark.slow
def test_delta_cache_fails_as_a_shape(folder: Path, verify) -> None:
    """A graph that returns only the new states where the joined cache is promised."""
    model = onnx.load(folder / WITH_PAST, load_external_data=False)
    joined = "present.0.decoder.key"
    new = next(node.input[1] for node in model.graph.node if joined in node.output)
    _rename(model, {joined: "joined_key"})
    model.graph.node.append(onnx.helper.make_node("Identity", [new], [joined]))
    onnx.save(model, folder / WITH_PAST)
    with pytest.raises(ParityError, match=r"present\.0\.decoder\.key has the shape"):
        verify()


@pytest.fixture
def large(monkeypatch) -> None:
    """The tiny Whisper is compared as a large model is."""
    monkeypatch.setattr(parity, "LARGE", 0)
    monkeypatch.setattr(parity_graph, "PART_BYTES", 1)


def test_a_large_model_is_compared_in_the_same_cases(
    tiny_folder, tiny_checkpoint, tiny_audio, large
) -> None:
    certificate = verify_parity(tiny_folder, load_checkpoint(str(tiny_checkpoint)), tiny_audio)
    small = json.loads((tiny_folder / "export_manifest.json").read_text())["parity"]
    for key in ("status", "cases", "recordings", "tokens_compared", "tokens_equal"):
        assert certificate[key] == small[key]
    assert certificate["max_abs_diff"].keys() == small["max_abs_diff"].keys()
    assert [len(cases) for cases in certificate["cases"].values()] == [2, 3, 8, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "part"),
    [(ENCODER, "conv1.weight"), (ENCODER, "MatMul"), (DECODER, "MatMul"), (WITH_PAST, "fc1.bias")],
)
def test_a_changed_weight_of_a_large_model_fails(
    folder: Path, verify, large, graph: str, part: str
) -> None:
    _shift_one_weight(folder / graph, part, 1.0)
    with pytest.raises(ParityError, match=graph):
        verify()


def test_weights_of_a_large_model_are_released_while_graphs_run(
    tiny_folder, tiny_checkpoint, tiny_audio, large, monkeypatch
) -> None:
    checkpoint = load_checkpoint(str(tiny_checkpoint))
    model = weakref.ref(checkpoint.model)

    def run_in_parts(*_args) -> None:
        assert model() is None
        raise ParityError("nothing is left to test")

    monkeypatch.setattr(parity, "run_in_parts", run_in_parts)
    with pytest.raises(ParityError, match="nothing is left"):
        verify_parity(tiny_folder, checkpoint, tiny_audio)


def test_nothing_is_left_beside_the_folder(tiny_folder: Path) -> None:
    assert [path.name for path in tiny_folder.parent.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_unreadable_graph_is_named(folder: Path, verify) -> None:
    path = folder / DECODER
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ParityError, match=DECODER) as caught:
        verify()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_one_other_token_fails_with_both_sides(folder: Path, verify, monkeypatch) -> None:
    """Values within tolerance, but one token chosen otherwise: the case tolerances cannot see."""
    original = parity._continue

    def other_choice(decoder, decode, choice, n_text_ctx):
        original(decoder, decode, choice, n_text_ctx)
        if decode.forced:
            decode.tokens[100] += 1

    monkeypatch.setattr(parity, "_continue", other_choice)
    with pytest.raises(
        ParityError, match=r"forced to the limit: token 96 is \d+, PyTorch"
    ) as caught:
        verify()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [5.0, -5.0, float("nan")])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 63, 2), (0, 64, 1), (1, 199, 2)])
def test_the_largest_difference_is_found_in_every_block(place, value: float) -> None:
    wanted = np.random.default_rng(0).standard_normal((2, 200, 3)).astype(np.float32)
    got = wanted.copy()
    got[1, 10, 1] += 1
    got[place] = wanted[place] + value
    with pytest.raises(ParityError, match=re.escape(f"logits{list(place)} is {got[place]:.6g}")):
        parity.Differences().compare("decoder_model", "case", {"logits": got}, [("logits", wanted)])


def test_suppressed_tokens_are_never_chosen(checkpoint: Checkpoint) -> None:
    choice = parity.GreedyChoice(checkpoint)
    config = checkpoint.generation_config
    logits = np.zeros(checkpoint.dimensions.n_vocab, np.float32)
    logits[config["suppress_tokens"]] = 9
    logits[choice.eot] = 8
    logits[100] = 7
    assert choice(logits, start=False, forced=False) == choice.eot
    assert choice(logits, start=True, forced=False) == 100
    assert choice(logits, start=False, forced=True) == 100


@pytest.mark.slow
def test_without_a_recording_synthetic_sound_is_used_and_said(checkpoint, monkeypatch) -> None:
    def fail(_name: str) -> Path:
        raise AssetError("no network")

    monkeypatch.setattr(parity_audio, "fetch", fail)
    lines: list[str] = []
    audio = parity_audio.parity_audio((), checkpoint.preprocessor_config, lines.append)
    assert audio.synthetic
    assert len(audio.windows) == 3
    assert "synthetic" in lines[0]
    again = parity_audio.parity_audio((), checkpoint.preprocessor_config)
    for first, second in zip(audio.windows, again.windows, strict=True):
        np.testing.assert_array_equal(first.features, second.features)


def test_long_recordings_are_used_to_their_end(checkpoint, tmp_path: Path, monkeypatch) -> None:
    import soundfile

    monkeypatch.setattr(parity_audio, "_built_in", lambda _rate: [])
    path = tmp_path / "long.wav"
    soundfile.write(path, np.full(16000 * 65, 0.1, np.float32), 16000)
    audio = parity_audio.parity_audio([path], checkpoint.preprocessor_config)
    names = [window.name for window in audio.windows]
    assert names == ["long.wav from 0 s", "long.wav from 30 s", "long.wav from 60 s"]


@pytest.mark.slow
def test_external_data_is_what_the_graphs_read(folder: Path, verify) -> None:
    """A flipped bit pattern in the shared file reaches all graphs; the first one tells."""
    model = onnx.load(folder / ENCODER, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if uses_external_data(t))
    data = folder / "model.onnx_data"
    content = bytearray(data.read_bytes())
    offset = ExternalDataInfo(tensor).offset or 0
    content[offset : offset + 4] = np.float32(100).tobytes()
    data.write_bytes(content)
    with pytest.raises(ParityError, match=ENCODER):
        verify()
