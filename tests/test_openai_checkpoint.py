import json
from pathlib import Path

import pytest
import tiny_whisper
import torch

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
