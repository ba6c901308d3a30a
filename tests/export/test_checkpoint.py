import errno
import json
import shutil
from pathlib import Path

import pytest
import tiny_whisper
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from released_weights import check_loaded_again
from safetensors.torch import load_file, save_file

from whisper_npu import load_model
from whisper_npu.errors import CheckpointError, UsageError
from whisper_npu.export import hub, hub_client
from whisper_npu.export.checkpoint import load_checkpoint, standard_tokenizer
from whisper_npu.export.onnx_export import export_model
from whisper_npu.export.source import SourceKind, find_source, with_digest


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_local_folder(folder: Path, weights: str) -> None:
    original = load_file(folder / "model.safetensors")
    if weights == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(original, folder / weights)
    checkpoint = load_checkpoint(str(folder))
    loaded = checkpoint.model.state_dict()
    for name, tensor in original.items():
        assert torch.equal(loaded[name], tensor)
    assert checkpoint.model.config._attn_implementation == "eager"
    assert not checkpoint.model.training
    assert checkpoint.tokenizer_json == (folder / "tokenizer.json").read_bytes()
    assert checkpoint.source.kind is SourceKind.HF_FOLDER


def test_half_precision_is_widened(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({n: t.half() for n, t in load_file(path).items()}, path, {"format": "pt"})
    model = load_checkpoint(str(folder)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_released_weights_are_loaded_again(folder: Path) -> None:
    checkpoint = load_checkpoint(str(folder))
    checkpoint.model.set_attn_implementation("sdpa")
    check_loaded_again(checkpoint)


def test_missing_generation_config_is_built_from_the_tokenizer(folder: Path) -> None:
    config = load_checkpoint(str(folder)).generation_config
    eot = config["eos_token_id"]
    assert config["is_multilingual"] is True
    assert config["decoder_start_token_id"] == eot + 1
    assert config["lang_to_id"] == {"<|en|>": eot + 2, "<|zh|>": eot + 3, "<|de|>": eot + 4} | {
        "<|es|>": eot + 5,
        "<|fr|>": eot + 6,
    }
    assert config["task"] == "transcribe"
    assert config["task_to_id"] == {"translate": eot + 7, "transcribe": eot + 8}
    assert config["no_timestamps_token_id"] == eot + 12
    assert config["alignment_heads"] == [[1, 0], [1, 1]]  # all heads of the upper half
    assert config["max_length"] == tiny_whisper.N_TEXT_CTX
    assert {eot + 1, eot + 7, eot + 8, eot + 9, eot + 10, eot + 11} <= set(
        config["suppress_tokens"]
    )
    assert eot not in config["suppress_tokens"]
    assert config["begin_suppress_tokens"][-1] == eot


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 1, 8])
def test_an_english_model_is_told_by_its_tokens(tmp_path: Path, padding: int) -> None:
    """Not by its size: fine-tunes are padded for speed, or have a token more."""
    folder = tiny_whisper.save_checkpoint(tmp_path / "x", english=True, padding=padding)
    others = {"is_multilingual": True, "lang_to_id": {"<|en|>": 50259}, "language": "german"}
    for given in ({}, others):
        (folder / "generation_config.json").write_text(json.dumps(given))
        config = load_checkpoint(str(folder)).generation_config
        assert config["is_multilingual"] is False
        assert config.keys().isdisjoint({"lang_to_id", "task_to_id", "language", "task"})


@pytest.mark.slow
def test_a_padded_english_model_is_exported_as_one(tmp_path: Path, tiny_audio: list[Path]) -> None:
    folder = tiny_whisper.save_checkpoint(tmp_path / "x", english=True, padding=8)
    out = export_model(str(folder), tmp_path / "out", parity_audio=tiny_audio)
    model = load_model(out, precision="f32")
    assert not model.is_multilingual
    with pytest.raises(UsageError, match="English-only"):
        model.resolve(language="de")
    assert model.transcribe(tiny_audio[0], sample_len=4).language == "en"


@pytest.mark.parametrize(
    ("n_vocab", "eot", "asset"),
    [
        (51864, None, "tiny.en"),
        (51865, 50256, "tiny.en"),
        (51872, 50256, "tiny.en"),
        (51865, 50257, "base"),
        (51866, None, "base"),
    ],
)
def test_the_tokenizer_of_a_folder_without_one(
    n_vocab: int, eot: int | None, asset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer_json = tiny_whisper.build_tokenizer_json()
    (tmp_path / asset).mkdir()
    (tmp_path / asset / "tokenizer.json").write_bytes(tokenizer_json)
    monkeypatch.setattr("whisper_npu.export.checkpoint.fetch", lambda name, _: tmp_path / name)
    found = standard_tokenizer(n_vocab, eot=eot)
    assert (b"<|yue|>" in found) == (n_vocab == 51866)
    with pytest.raises(CheckpointError, match="no tokenizer is known"):
        standard_tokenizer(51872, eot=50257)


def test_given_generation_config_is_kept(folder: Path) -> None:
    given = {"suppress_tokens": [], "alignment_heads": [[0, 1]], "max_length": 99, "own": "x"}
    (folder / "generation_config.json").write_text(json.dumps(given))
    config = load_checkpoint(str(folder)).generation_config
    assert {key: config[key] for key in given} == given
    assert "lang_to_id" in config


def test_preprocessor_config_is_complete(folder: Path) -> None:
    settings = load_checkpoint(str(folder)).preprocessor_config
    expected = {"feature_size": 80, "sampling_rate": 16000, "n_fft": 400, "hop_length": 160}
    expected |= {"chunk_length": 30, "nb_max_frames": 3000, "n_samples": 480000}
    assert expected.items() <= settings.items()


def test_contradicting_preprocessor_config_is_refused(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128}))
    with pytest.raises(CheckpointError, match="feature_size"):
        load_checkpoint(str(folder))


def test_vocab_and_merges_become_tokenizer_json(folder: Path) -> None:
    from tokenizers import Tokenizer

    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    content = json.loads(original.to_str())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [
        pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
    ]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    converted = Tokenizer.from_str(load_checkpoint(str(folder)).tokenizer_json.decode())
    text = " the rain, in Spaín: 42"
    assert (
        converted.encode(text, add_special_tokens=False).ids
        == original.encode(text, add_special_tokens=False).ids
    )
    assert converted.token_to_id("<|notimestamps|>") == original.token_to_id("<|notimestamps|>")


def test_gpt2_folder_is_refused_by_name(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="GPT2LMHeadModel"):
        load_checkpoint(str(tmp_path))


def test_whisper_classifier_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["WhisperForAudioClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="WhisperForAudioClassification"):
        load_checkpoint(str(folder))


def _edit_weights(folder: Path, edit) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, {"format": "pt"})


NAME = "model.decoder.layers.1.fc2.bias"


@pytest.mark.parametrize(
    "edit",
    [
        lambda weights: weights.pop(NAME),
        lambda weights: weights.update({NAME: torch.zeros(3)}),
        lambda weights: weights.update({"model.decoder.layers.1.fc3.bias": torch.zeros(3)}),
    ],
    ids=["missing", "wrong shape", "unexpected"],
)
def test_wrong_weights_are_named(folder: Path, edit) -> None:
    _edit_weights(folder, edit)
    with pytest.raises(CheckpointError, match=r"layers\.1\.fc[23]\.bias"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_weights(folder: Path, weights: str, share: float) -> None:
    if weights == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / weights)
        (folder / "model.safetensors").unlink()
    content = (folder / weights).read_bytes()
    (folder / weights).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(str(folder))


def test_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] = 99999
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="99999"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    "argument", ["./nothing", "a/b/c", "nothing/", "nothing.pt", "~/nothing", "/nothing"]
)
def test_what_looks_like_a_path_never_reaches_the_hub(argument: str, monkeypatch) -> None:
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(CheckpointError, match="no file or folder"):
        load_checkpoint(argument)


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean tiny\? `whisper-npu export --help` "):
        load_checkpoint("tinyy")


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match=r"\.pt"):
        find_source(str(tmp_path / "model.onnx"))


def test_revision_needs_a_hub_id(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        find_source(str(tiny_checkpoint), "main")
    assert find_source("owner/name", "main").revision == "main"


def test_digest_follows_the_content(folder: Path) -> None:
    before = with_digest(find_source(str(folder))).sha256
    assert with_digest(find_source(str(folder))).sha256 == before
    _edit_weights(folder, lambda weights: weights[NAME].add_(1))
    assert with_digest(find_source(str(folder))).sha256 != before


def _hub_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "first line\nsecond line")
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (GatedRepoError, "gated"),
        (RepositoryNotFoundError, "no model"),
        (RevisionNotFoundError, "revision"),
        (OSError, "hub failed"),
    ],
)
def test_hub_errors_are_one_clear_line(monkeypatch, kind, words: str) -> None:
    def fail(*_args, **_kwargs):
        raise _hub_error(kind)

    monkeypatch.setattr(hub_client, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint("owner/name", revision="v1")
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tiny_checkpoint: Path, tmp_path: Path, monkeypatch) -> Path:
    """A hub cache that holds owner/tiny, and no network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.usefixtures("hub_cache")
def test_a_forbidden_network_is_named() -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids the network; unset it"):
        load_checkpoint("owner/other")


def test_hub_id_from_the_cache_without_a_network(hub_cache: Path) -> None:
    checkpoint = load_checkpoint("owner/tiny")
    assert checkpoint.source.kind is SourceKind.HUB
    assert checkpoint.source.revision == "0123456789abcdef0123456789abcdef01234567"
    assert checkpoint.dimensions.n_text_layer == 2


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("tiny", "openai/whisper-tiny"),
        ("small", "openai/whisper-small"),
        ("medium.en", "openai/whisper-medium.en"),
        ("large-v3", "openai/whisper-large-v3"),
        ("large", "openai/whisper-large-v3"),
        ("turbo", "openai/whisper-large-v3-turbo"),
        ("distil-large-v3", "distil-whisper/distil-large-v3"),
    ],
)
def test_names_of_models_on_the_hub(tmp_path, monkeypatch, name: str, repository: str) -> None:
    monkeypatch.chdir(tmp_path)
    source = find_source(name, "v1")
    assert (source.kind, source.argument, source.revision) == (SourceKind.HUB, repository, "v1")
    assert source.name == name
    assert find_source(repository).argument == repository
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.bin").touch()
    assert find_source(name).kind is SourceKind.CTRANSLATE2  # what exists comes first


def test_a_name_is_fetched_from_the_hub(hub_cache: Path, monkeypatch) -> None:
    from whisper_npu.export import source

    monkeypatch.setitem(source.HUB_NAMES, "small", "owner/tiny")
    assert load_checkpoint("small").source.revision == "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "d_model", "64"),
        ("config.json", "d_model", None),
        ("config.json", "decoder_layers", 10**9),
        ("config.json", "encoder_layers", -1),
        ("config.json", "vocab_size", float("inf")),
        ("config.json", "vocab_size", 10**9),
        ("config.json", "decoder_attention_heads", 7),
        ("config.json", "eos_token_id", "x"),
        ("config.json", "architectures", 3),
        ("config.json", "activation_function", 3),
        ("config.json", "dropout", "x"),
        ("generation_config.json", "suppress_tokens", "x"),
        ("generation_config.json", "alignment_heads", [1]),
        ("generation_config.json", "eos_token_id", -1),
        ("preprocessor_config.json", "sampling_rate", 0),
        ("preprocessor_config.json", "hop_length", "160"),
        ("preprocessor_config.json", "sampling_rate", 8000),
    ],
)
def test_hostile_configurations(folder: Path, file: str, field: str, value) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | {field: value}))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"{}",
        b'{"decoder": {"type": "ByteLevel"}, "model": {"vocab": []}, "added_tokens": []}',
        b'{"decoder": {"type": "x"}, "model": {"vocab": {"\\ud800": 1}}, "added_tokens": []}',
        b'{"decoder": {"type": "x"}, "model": {"vocab": {}}, "added_tokens": [{"id": "1"}]}',
    ],
)
def test_hostile_tokenizers(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json") as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_its_library_refuses(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = 7
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged") as caught:
        load_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_weights_outside_the_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is no file beside it"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    "generation",
    [
        {"eos_token_id": [320, 321]},
        {"alignment_heads": None},
        {"suppress_tokens": None, "begin_suppress_tokens": None},
        {"forced_decoder_ids": [[1, None], [2, 327]]},
        {"alignment_heads": [[10, 1], [1, 0]]},
    ],
)
def test_what_published_models_say(folder: Path, generation: dict) -> None:
    (folder / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = load_checkpoint(str(folder))
    settings = checkpoint.alignment_settings()
    assert settings.heads == ((1, 0), (1, 1))
    assert settings.eot == 320


def test_a_full_disk_is_not_a_missing_network(monkeypatch) -> None:
    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_client, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=r"cannot store config\.json .*free some space"):
        load_checkpoint("owner/name")
