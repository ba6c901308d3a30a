import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
import torch
from ctranslate2_files import quantize, variables_of, write_folder, write_model_bin
from released_weights import check_loaded_again

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint import load_checkpoint
from whisper_npu.export.ctranslate2 import end_of_text, read_weights

SETTINGS = {
    "alignment_heads": [[1, 0]],
    "lang_ids": [999],  # off by one in published English-only models: must not be believed
    "suppress_ids": [1, 2, 3],
    "suppress_ids_begin": [220],
}
TOKENIZER = tiny_whisper.build_tokenizer_json()


@pytest.fixture(scope="module")
def model():
    return tiny_whisper.build_model(TOKENIZER)


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "ct2", model, TOKENIZER, "float32", SETTINGS)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [("float32", 0), ("float16", 1e-3), ("int16", 2e-3), ("int8", 1e-2), ("int8_float16", 1e-2)],
)
def test_weights_return_within_the_quantization_step(model, tmp_path, kind, tolerance) -> None:
    folder = write_folder(tmp_path / "ct2", model, TOKENIZER, kind, SETTINGS)
    checkpoint = load_checkpoint(str(folder))
    original = model.state_dict()
    loaded = checkpoint.model.state_dict()
    assert loaded.keys() == original.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype is torch.float32, name
        largest = original[name].abs().max()
        assert (tensor - original[name]).abs().max() <= tolerance * largest, name


def test_int8_is_dequantized_row_by_row(model) -> None:
    array = variables_of(model)["decoder/layer_0/ffn/linear_0/weight"]
    stored = quantize({"a/weight": array}, "int8")
    error = np.abs(stored["a/weight"] / stored["a/weight_scale"][:, None] - array)
    assert (error <= np.abs(array).max(axis=1, keepdims=True) / 254 * 1.001).all()


def test_released_weights_are_loaded_again(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder))
    checkpoint.model.set_attn_implementation("sdpa")
    check_loaded_again(checkpoint)


def test_model_is_ready_for_export(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder))
    assert not checkpoint.model.training
    assert checkpoint.model.config._attn_implementation == "eager"
    assert checkpoint.model.proj_out.weight is checkpoint.model.model.decoder.embed_tokens.weight
    assert checkpoint.source.kind == "ctranslate2"
    assert len(checkpoint.source.sha256 or "") == 64


def test_settings_become_the_generation_config(folder: Path) -> None:
    config = load_checkpoint(str(folder)).generation_config
    assert config["suppress_tokens"] == [1, 2, 3]
    assert config["begin_suppress_tokens"] == [220]
    assert config["alignment_heads"] == [[1, 0]]
    assert list(config["lang_to_id"]) == [f"<|{code}|>" for code in tiny_whisper.LANGUAGES]
    assert config["lang_to_id"]["<|en|>"] == config["decoder_start_token_id"] + 1


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99999])
def test_truncated_file_is_named(folder: Path, share: float) -> None:
    path = folder / "model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"model\.bin") as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_other_architecture_is_named(folder: Path) -> None:
    write_model_bin(folder / "model.bin", {"encoder/x": np.zeros(3, np.float32)}, "TransformerSpec")
    (folder / "model.bin").write_bytes(
        (folder / "model.bin").read_bytes().replace(b"decoder/embeddings/weight", b"encoder/x")
    )
    with pytest.raises(CheckpointError, match="TransformerSpec"):
        load_checkpoint(str(folder))


def test_missing_variable_is_named(model, folder: Path) -> None:
    variables = variables_of(model)
    del variables["decoder/layer_1/ffn/linear_1/bias"]
    write_model_bin(folder / "model.bin", variables)
    with pytest.raises(CheckpointError, match="decoder/layer_1/ffn/linear_1/bias"):
        read_weights(folder)


def test_wrong_shape_is_named(model, folder: Path) -> None:
    variables = variables_of(model)
    variables["decoder/layer_1/ffn/linear_1/bias"] = np.zeros(7, np.float32)
    write_model_bin(folder / "model.bin", variables)
    with pytest.raises(CheckpointError, match=r"layers\.1\.fc2\.bias"):
        load_checkpoint(str(folder))


def test_unknown_quantization_is_refused(model, folder: Path) -> None:
    variables = quantize(variables_of(model), "int8")
    del variables["decoder/embeddings/weight_scale"]
    write_model_bin(folder / "model.bin", variables)
    with pytest.raises(CheckpointError, match="quantiz"):
        load_checkpoint(str(folder))


def test_broken_settings_are_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(str(folder))


def test_folder_is_not_changed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    load_checkpoint(str(folder))
    assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "copy").iterdir()}


@pytest.mark.parametrize(
    ("name", "written"), [("vocabulary.json", json.dumps), ("vocabulary.txt", "\n".join)]
)
def test_a_list_of_tokens_says_where_a_text_ends(tmp_path: Path, name: str, written) -> None:
    assert end_of_text(tmp_path) is None
    (tmp_path / name).write_text(written(["a", "b", "<|endoftext|>", "<|startoftranscript|>"]))
    assert end_of_text(tmp_path) == 2
    for damaged in (["a", "b"], []):
        (tmp_path / name).write_text(written(damaged))
        with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
            end_of_text(tmp_path)


NAME = "decoder/layer_1/ffn/linear_1/bias"
HEADER = 4 + 2 + len("WhisperSpec") + 1 + 4  # version, name of the spec, revision


def _refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    assert "model.bin" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10_000])
def test_more_variables_than_the_file_has(folder: Path, count: int) -> None:
    path = folder / "model.bin"
    content = bytearray(path.read_bytes())
    content[HEADER : HEADER + 4] = struct.pack("<I", count)
    path.write_bytes(content)
    _refused(folder)


@pytest.mark.parametrize(
    "shape", [(2**32 - 1,) * 8, (2**31, 2**31, 4), (2**16,) * 4, (2**32 - 1, 2**32 - 1)]
)
def test_counts_that_overflow(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A product of 64 bits that came round to the size stated."""
    size = 4 * int(np.prod(shape, dtype=np.uint64)) % 2**32
    name = struct.pack("<H", 2) + b"a\0"
    variable = name + struct.pack(f"<B{len(shape)}IBI", len(shape), *shape, 0, size)
    path = tmp_path / "model.bin"
    spec = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 1)
    path.write_bytes(spec + variable + b"\0" * min(size, 1 << 16) + struct.pack("<I", 0))
    assert "bytes" in _refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (NAME, np.zeros(0, np.float32)),
        (NAME, np.float32(1)),
        (NAME, np.zeros((2, 32), np.float32)),
        ("decoder/embeddings/weight", np.zeros((0, 64), np.float32)),
        ("decoder/embeddings/weight", np.zeros(64, np.float32)),
        ("decoder/position_encodings/encodings", np.zeros(448 * 64, np.float32)),
        ("encoder/position_encodings/encodings", np.zeros((1500, 64, 1), np.float32)),
        ("encoder/conv1/weight", np.zeros(64, np.float32)),
        ("encoder/conv1/weight", np.zeros((64, 80, 4), np.float32)),
        ("encoder/layer_0/self_attention/linear_0/weight", np.zeros((191, 64), np.float32)),
        ("encoder/layer_0/self_attention/linear_0/bias", np.zeros(4, np.float32)),
        ("decoder/layer_0/ffn/layer_norm/gamma", np.zeros((64, 1), np.float32)),
        ("decoder/num_heads", np.int16(0)),
        ("decoder/num_heads", np.int16(-2)),
        ("decoder/num_heads", np.int16(7)),
        ("encoder/num_heads", np.zeros(2, np.int16)),
        ("encoder/num_heads", np.float32(np.nan)),
    ],
)
def test_shapes_that_no_whisper_has(model, folder: Path, name: str, array) -> None:
    write_model_bin(folder / "model.bin", variables_of(model) | {name: np.asarray(array)})
    _refused(folder)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_scales_that_are_no_numbers(model, folder: Path, value: float) -> None:
    variables = quantize(variables_of(model), "int8")
    variables["decoder/embeddings/weight_scale"][3] = value
    write_model_bin(folder / "model.bin", variables)
    assert "the scales of decoder/embeddings/weight do not fit" in _refused(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suppress_ids", "1"),
        ("suppress_ids", [None]),
        ("suppress_ids_begin", {"a": 1}),
        ("alignment_heads", [1]),
        ("alignment_heads", [[1, 2, 3]]),
    ],
)
def test_hostile_settings(folder: Path, field: str, value) -> None:
    (folder / "config.json").write_text(json.dumps(SETTINGS | {field: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {field}"):
        load_checkpoint(str(folder))


def test_heads_of_a_teacher_are_replaced(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(SETTINGS | {"alignment_heads": [[9, 5]]}))
    lines: list[str] = []
    config = load_checkpoint(str(folder), progress=lines.append).generation_config
    assert config["alignment_heads"] == [[1, 0], [1, 1]]
    assert "taking all heads of the upper half" in lines[-1]
