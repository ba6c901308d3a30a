import json
import zipfile
from pathlib import Path

import pytest
import tiny_whisper
import torch
from released_weights import check_loaded_again

from whisper_npu.errors import CheckpointError
from whisper_npu.export import checkpoint as checkpoint_module
from whisper_npu.export.checkpoint import load_checkpoint, standard_tokenizer
from whisper_npu.export.tokens import (
    begin_suppressed_tokens,
    read_special_tokens,
    suppressed_tokens,
    with_cantonese,
)

TOKENIZER = tiny_whisper.build_tokenizer_json()


@pytest.fixture
def pt_file(tmp_path: Path, monkeypatch) -> Path:
    """The tiny Whisper as openai/whisper would save it."""
    model = tiny_whisper.build_model(TOKENIZER)
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "proj_out.weight":
            continue
        state[_openai_name(name)] = tensor.clone()
    config = model.config
    dims = {"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 64, "n_audio_head": 2}
    dims |= {"n_audio_layer": 2, "n_vocab": config.vocab_size, "n_text_ctx": 448}
    dims |= {"n_text_state": 64, "n_text_head": 2, "n_text_layer": 2}
    path = tmp_path / "tiny.pt"
    torch.save({"dims": dims, "model_state_dict": state}, path)
    monkeypatch.setattr(checkpoint_module, "standard_tokenizer", lambda *_: TOKENIZER)
    return path


def test_released_weights_are_loaded_again(pt_file: Path) -> None:
    check_loaded_again(load_checkpoint(str(pt_file)))


def _openai_name(name: str) -> str:
    """transformers' name to openai/whisper's, part by part (ours goes the other way by regex)."""
    table = {
        "layers": "blocks",
        "embed_tokens": "token_embedding",
        "self_attn": "attn",
        "encoder_attn": "cross_attn",
        "self_attn_layer_norm": "attn_ln",
        "encoder_attn_layer_norm": "cross_attn_ln",
        "final_layer_norm": "mlp_ln",
        "q_proj": "query",
        "k_proj": "key",
        "v_proj": "value",
        "out_proj": "out",
        "fc1": "mlp.0",
        "fc2": "mlp.2",
    }
    parts = name.removeprefix("model.").split(".")
    if "embed_positions" in parts:
        return f"{parts[0]}.positional_embedding"
    if parts[1] == "layer_norm":
        parts[1] = "ln_post" if parts[0] == "encoder" else "ln"
    return ".".join(table.get(part, part) for part in parts)


def test_weights_return_unchanged(pt_file: Path) -> None:
    checkpoint = load_checkpoint(str(pt_file))
    original = tiny_whisper.build_model(TOKENIZER).state_dict()
    loaded = checkpoint.model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert checkpoint.source.kind == "openai"
    assert checkpoint.generation_config["alignment_heads"] == [[1, 0], [1, 1]]


def test_half_precision_is_widened(pt_file: Path) -> None:
    content = torch.load(pt_file)
    content["model_state_dict"] = {n: t.half() for n, t in content["model_state_dict"].items()}
    torch.save(content, pt_file)
    model = load_checkpoint(str(pt_file)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_truncated_file(pt_file: Path, share: float) -> None:
    content = pt_file.read_bytes()
    pt_file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_checkpoint(str(pt_file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"state": {}}, "model_state_dict"),
        ([1, 2], "model_state_dict"),
        ({"dims": {"n_mels": 80}, "model_state_dict": {}}, "dims"),
    ],
)
def test_other_pt_files_are_refused(tmp_path: Path, content, words: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(str(tmp_path / "other.pt"))


def test_missing_tensor_is_named(pt_file: Path) -> None:
    content = torch.load(pt_file)
    del content["model_state_dict"]["decoder.blocks.1.cross_attn.query.weight"]
    torch.save(content, pt_file)
    with pytest.raises(CheckpointError, match=r"layers\.1\.encoder_attn\.q_proj\.weight"):
        load_checkpoint(str(pt_file))


def test_unknown_vocabulary_has_no_tokenizer() -> None:
    with pytest.raises(CheckpointError, match="12345"):
        standard_tokenizer(12345)


def test_cantonese_moves_the_tokens_behind_it() -> None:
    before = read_special_tokens(TOKENIZER, 2000)
    after = read_special_tokens(with_cantonese(TOKENIZER), 2000)
    assert after.languages == {**before.languages, "<|yue|>": before.tasks["translate"]}
    assert after.tasks == {task: token + 1 for task, token in before.tasks.items()}
    assert after.no_timestamps == before.no_timestamps + 1
    assert (after.eot, after.sot) == (before.eot, before.sot)


@pytest.mark.parametrize(("name", "n_vocab"), [("tiny.en", 51864), ("base", 51865)])
def test_suppressed_tokens_are_those_openai_published(real_asset, name: str, n_vocab: int) -> None:
    """The independent oracle: CTranslate2's config.json carries Hugging Face's published lists."""
    settings = json.loads((real_asset(name) / "config.json").read_text())
    tokenizer = standard_tokenizer(n_vocab)
    special = read_special_tokens(tokenizer, n_vocab)
    assert suppressed_tokens(tokenizer, special) == sorted(settings["suppress_ids"])
    assert begin_suppressed_tokens(tokenizer, special) == settings["suppress_ids_begin"]


def test_large_v3_token_ids(real_asset) -> None:
    """Ids of openai/whisper-large-v3's published tokenizer."""
    real_asset("base")
    special = read_special_tokens(standard_tokenizer(51866), 51866)
    assert special.languages["<|yue|>"] == 50358
    assert special.tasks == {"translate": 50359, "transcribe": 50360}
    assert special.no_timestamps == 50364
    assert len(special.languages) == 100


def _refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


NAME = "decoder.blocks.1.attn.query.weight"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, f"model_state_dict['{NAME}'] is no tensor"),
        ("weights", "is no tensor"),
        (None, "is no tensor"),
        ([torch.zeros(2)], "is no tensor"),
        (torch.zeros(64, 64, dtype=torch.int64), "no plain tensor of floating-point numbers"),
        (torch.zeros(64, 64).to_sparse(), "no plain tensor"),
        (torch.zeros(64, 64, device="meta"), "no plain tensor"),
        (torch.tensor(1.0), "has the shape (), expected (64, 64)"),
        (torch.zeros(1).expand(50_000, 40_000), "has the shape (50000, 40000), but only 4 bytes"),
    ],
    ids=["int", "string", "none", "list", "whole", "sparse", "meta", "scalar", "bomb"],
)
def test_what_is_no_weight(pt_file: Path, value, words: str) -> None:
    content = torch.load(pt_file)
    content["model_state_dict"][NAME] = value
    torch.save(content, pt_file)
    assert words in _refused(pt_file)


def test_strides_that_go_back(pt_file: Path) -> None:
    """PyTorch itself makes no such tensor: the pickle is edited."""
    content = torch.load(pt_file)
    content["model_state_dict"][NAME] = torch.zeros(65, 77)[:64, :64]  # strides (77, 1)
    torch.save(content, pt_file)
    edited = pt_file.with_name("edited.pt")
    with zipfile.ZipFile(pt_file) as before, zipfile.ZipFile(edited, "w") as after:
        for entry in before.infolist():
            data = before.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert data.count(b"KMK\x01\x86") == 1  # the tuple (77, 1)
                data = data.replace(b"KMK\x01\x86", b"J\xff\xff\xff\xffK\x01\x86")
            after.writestr(entry.filename, data)
    assert "strides=[-1, 1]" in _refused(edited)


def test_many_tensors_of_one_storage(pt_file: Path) -> None:
    content = torch.load(pt_file)
    shared = torch.zeros(256, 1024)
    content["model_state_dict"] |= {f"more.{i}": shared for i in range(100)}
    torch.save(content, pt_file)
    assert "cannot hold" in _refused(pt_file)


def test_compressed_archive(pt_file: Path) -> None:
    packed = pt_file.with_name("packed.pt")
    deflated = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(pt_file) as before, zipfile.ZipFile(packed, "w", deflated) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, bytes(len(before.read(entry))))
    assert "unfold to" in _refused(packed)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n_mels", "80", "dims: n_mels: expected int, got str"),
        ("n_text_layer", -1, "dims: n_text_layer: expected int >= 1"),
        ("n_text_layer", 10**9, "dims says 1000000000 decoder layers, model_state_dict has 2"),
        ("n_vocab", 10**15, "dims: n_vocab: expected int <= 2147483647"),
        ("n_audio_head", 7, "64 wide, which 7 attention heads do not divide"),
        ("n_text_state", 128, "its encoder is 64 wide, its decoder 128"),
        ("n_audio_ctx", None, "dims: n_audio_ctx"),
    ],
)
def test_sizes_that_no_whisper_has(pt_file: Path, field: str, value, words: str) -> None:
    content = torch.load(pt_file)
    content["dims"][field] = value
    torch.save(content, pt_file)
    assert words in _refused(pt_file)


@pytest.mark.parametrize("state", [[1, 2], {1: torch.zeros(2)}, "x"])
def test_state_that_is_no_dictionary_of_tensors(pt_file: Path, state) -> None:
    content = torch.load(pt_file)
    content["model_state_dict"] = state
    torch.save(content, pt_file)
    assert "model_state_dict" in _refused(pt_file)


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"dims": Payload(), "model_state_dict": {}}, tmp_path / "evil.pt")
    _refused(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
