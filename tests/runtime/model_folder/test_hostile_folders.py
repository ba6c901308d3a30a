"""Model folders that are hostile, damaged, or put together from two models: one line each."""

import json
import os
from pathlib import Path

import pytest
from model_surgery import (
    copy_folder,
    drop_last_layers_states,
    rename_first,
    write_encoder,
    write_square,
)

from whisper_npu import load_model
from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST, ENCODER, GRAPHS
from whisper_npu.runtime.model_folder.read_errors import cannot_read
from whisper_npu.runtime.text.tokenizer import Tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def stand_in(tmp_path):
    """A folder with every file that has to be there, none of them real."""
    for name in (*GRAPHS, "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model folder that can be loaded, to be damaged: without the certificate of its files."""
    copy = copy_folder(tiny_folder, tmp_path / "tiny")
    (copy / "export_manifest.json").unlink()
    return copy


def change(path, **fields):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | fields))


def refusal(call, *arguments, **options):
    """The one line that a call ends in."""
    with pytest.raises(ModelError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("d_model", "512"),
            ("d_model", [512]),
            ("d_model", -1),
            ("d_model", 0),
            ("d_model", 1e300),
            ("d_model", float("inf")),
            ("d_model", float("nan")),
            ("d_model", 10**30),
            ("vocab_size", True),
            ("max_target_positions", {}),
            ("max_target_positions", "448"),
            ("decoder_layers", 1.5),
            ("eos_token_id", -5),
            ("eos_token_id", "50256"),
            ("eos_token_id", [50256, None]),
            ("architectures", "WhisperModel"),
        ],
    )
    def test_config(self, stand_in, field, value):
        (stand_in / "config.json").write_text(json.dumps({field: value}))
        message = refusal(read_model_folder, stand_in)
        assert message.startswith(f"{stand_in / 'config.json'}: {field}")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("suppress_tokens", 7),
            ("suppress_tokens", "1,2"),
            ("suppress_tokens", ["1"]),
            ("suppress_tokens", [None]),
            ("begin_suppress_tokens", [[220]]),
            ("eos_token_id", -1),
            ("eos_token_id", "end"),
            ("max_length", float("inf")),
            ("max_length", 0),
            ("alignment_heads", 3),
            ("alignment_heads", [[1]]),
            ("alignment_heads", [[1, -1]]),
            ("alignment_heads", [[1, "0"]]),
            ("is_multilingual", "yes"),
            ("lang_to_id", ["<|en|>"]),
            ("lang_to_id", {"<|en|>": None}),
            ("no_timestamps_token_id", {"a": 1}),
        ],
    )
    def test_generation_config(self, stand_in, field, value):
        (stand_in / "generation_config.json").write_text(json.dumps({field: value}))
        message = refusal(read_model_folder, stand_in)
        assert message.startswith(f"{stand_in / 'generation_config.json'}: {field}")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("kv_contract", 1),
            ("files", []),
            ("files", {"model.onnx_data": None}),
            ("files", {"model.onnx_data": {"bytes": "1", "sha256": ""}}),
            ("parity", []),
            ("parity", {"status": 1}),
            ("parity", {"variants": ["plain"]}),
            ("precision", {"a": 1}),
            ("source", "tiny.en"),
            ("source", {"argument": 1}),
        ],
    )
    def test_manifest(self, stand_in, field, value):
        (stand_in / "export_manifest.json").write_text(json.dumps({field: value}))
        assert f"export_manifest.json: {field}" in refusal(read_model_folder, stand_in)

    @pytest.mark.parametrize(
        "name", ["config.json", "generation_config.json", "export_manifest.json"]
    )
    def test_nesting_without_end(self, stand_in, name):
        (stand_in / name).write_text(DEEP)
        message = refusal(read_model_folder, stand_in)
        assert message.startswith(f"cannot read {stand_in / name}: it is nested too deeply")

    @pytest.mark.skipif(os.name == "nt", reason="pipes with a name are POSIX's")
    @pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
    def test_a_pipe_does_not_hang(self, stand_in, name):
        os.mkfifo(stand_in / name)
        assert "it is no regular file" in refusal(read_model_folder, stand_in)

    def test_more_than_a_configuration_can_have(self, stand_in):
        with (stand_in / "config.json").open("wb") as file:
            file.truncate(1 << 30)  # sparse
        assert "has 1073741824 bytes" in refusal(read_model_folder, stand_in)

    def test_numbers_that_nobody_asks_for_may_be_anything(self, stand_in):
        (stand_in / "config.json").write_text('{"dropout": NaN, "max_target_positions": 448}')
        assert read_model_folder(stand_in).n_text_ctx == 448

    @pytest.mark.parametrize(
        "generation",
        [
            {"suppress_tokens": None, "begin_suppress_tokens": None},
            {"alignment_heads": None},
            {"forced_decoder_ids": [[1, None], [2, 50359]]},
            {"eos_token_id": [50257, 50364]},
            {"suppress_tokens": [-1]},
        ],
    )
    def test_what_published_models_say(self, stand_in, generation):
        (stand_in / "generation_config.json").write_text(json.dumps(generation))
        assert read_model_folder(stand_in).alignment_heads == ()

    def test_heads_of_a_teacher(self, stand_in, caplog):
        (stand_in / "config.json").write_text(json.dumps({"decoder_layers": 2}))
        heads = {"alignment_heads": [[1, 0], [10, 3]]}
        (stand_in / "generation_config.json").write_text(json.dumps(heads))
        assert read_model_folder(stand_in).alignment_heads == ()
        assert "as distilled models do: they are not used" in caplog.text


class TestTokenizers:
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (DEEP, "expected object, got array"),
            ('{"decoder": ' + '{"type": ' * 100_000, "no tokenizer: decoder.type"),
            ('{"model": {"vocab": [["a", 0.1]]}}', "model.vocab: expected object, got array"),
            ('{"model": {"vocab": {"a": "1"}}}', "expected int, got str"),
            ('{"model": {"vocab": {"a": -1}}}', "expected int >= 0"),
            ('{"model": {"vocab": {"a": 1e99}}}', "expected int, got float"),
            ('{"added_tokens": [{"id": null, "content": "a"}]}', "added_tokens[0].id"),
            ('{"added_tokens": {}}', "added_tokens: expected array, got object"),
            ('{"decoder": null}', "decoder: expected object, got null"),
        ],
    )
    def test_hostile(self, tmp_path, content, words):
        path = tmp_path / "tokenizer.json"
        path.write_text(content)
        message = refusal(Tokenizer, path)
        assert str(path) in message
        assert words in message

    def test_of_another_model(self, folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        last = max(token["id"] for token in content["added_tokens"])
        content["added_tokens"].append({"id": last + 1, "content": "<|yue|>", "special": True})
        path.write_text(json.dumps(content))
        message = refusal(load_model, folder)
        assert f"it has the token {last + 1}, the decoder {last + 1} tokens" in message

    def test_special_tokens_at_other_places(self, folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        swapped = {"<|endoftext|>": "<|fr|>", "<|fr|>": "<|endoftext|>"}
        for token in content["added_tokens"]:
            token["content"] = swapped.get(token["content"], token["content"])
        path.write_text(json.dumps(content))
        message = refusal(load_model, folder)
        assert "generation_config.json: eos_token_id is" in message
        assert "they are of different models" in message


class TestModelsThatDoNotBelongTogether:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("max_target_positions", 10, "is 10, but the decoder has 448"),
            ("max_target_positions", 4480, "is 4480, but the decoder has 448"),
            ("num_mel_bins", 128, "is 128, but the graphs have 80"),
            ("max_source_positions", 750, "is 750, but the graphs have 1500"),
            ("vocab_size", 51865, "is 51865, but the graphs have"),
            ("eos_token_id", 3, "is 3, but tokenizer.json says"),
            ("decoder_start_token_id", 3, "is 3, but tokenizer.json says"),
        ],
    )
    def test_config(self, folder, field, value, words):
        change(folder / "config.json", **{field: value})
        assert f"config.json: {field} {words}" in refusal(load_model, folder)

    @pytest.mark.parametrize("kv_cache", ["concat", "static"])
    def test_context_on_onnxruntime(self, folder, kv_cache):
        pytest.importorskip("onnxruntime")
        change(folder / "config.json", max_target_positions=10)
        message = refusal(load_model, folder, backend="onnxruntime", kv_cache=kv_cache)
        assert "max_target_positions is 10, but the decoder has 448" in message

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("suppress_tokens", [1, 1_000_000], "suppress_tokens has 1000000"),
            ("suppress_tokens", [-7], "suppress_tokens has -7"),
            ("begin_suppress_tokens", [99_999], "begin_suppress_tokens has 99999"),
            ("eos_token_id", [3, 5], "eos_token_id is 3, but tokenizer.json says"),
            ("no_timestamps_token_id", 3, "no_timestamps_token_id is 3, but"),
            ("lang_to_id", {"<|en|>": 3}, "lang_to_id[<|en|>] is 3, but"),
            ("task_to_id", {"translate": 3}, "task_to_id[translate] is 3, but"),
        ],
    )
    def test_generation_config(self, folder, field, value, words):
        change(folder / "generation_config.json", **{field: value})
        assert f"generation_config.json: {words}" in refusal(load_model, folder)

    def test_a_short_text_limit_does_not_shorten_the_context(self, folder):
        """A fine-tune's `max_length` is how much it says at most, not what there is room for."""
        content = json.loads((folder / "config.json").read_text())
        del content["max_target_positions"]
        (folder / "config.json").write_text(json.dumps(content))
        change(folder / "generation_config.json", max_length=10)
        assert load_model(folder).backend.n_text_ctx == 448

    @pytest.mark.slow
    @pytest.mark.parametrize("side", ["input", "output"])
    @pytest.mark.parametrize("name", ["vad_model.onnx", *GRAPHS])
    def test_another_graph(self, folder, name, side):
        rename_first(folder / name, side)
        assert str(folder / name) in refusal(load_model, folder)

    @pytest.mark.parametrize("name", ["vad_model.onnx", *GRAPHS])
    def test_a_graph_of_something_else(self, folder, name):
        write_square(folder / name)
        assert str(folder / name) in refusal(load_model, folder)

    def test_another_models_encoder(self, folder):
        write_encoder(folder / ENCODER, width=96)
        message = refusal(load_model, folder)
        assert "gives states of width 96" in message
        assert "takes 64: they are of different models" in message

    def test_another_models_decoder(self, folder):
        """The cached decoder has a layer less than the other."""
        drop_last_layers_states(folder / DECODER_WITH_PAST)
        message = refusal(load_model, folder)
        assert "decoder_model.onnx has 2 layers, decoder_with_past_model.onnx 1" in message


class TestMemory:
    """What a machine lacks is not blamed on the files."""

    @pytest.mark.parametrize("error", [MemoryError(), RuntimeError("mmap: Cannot allocate memory")])
    def test_the_reason_is_told(self, error):
        message = str(cannot_read(Path("x.onnx"), error))
        assert message.startswith("not enough memory to load x.onnx")
        assert "export" not in message

    def test_damage_is_called_so(self):
        message = str(cannot_read(Path("x.onnx"), RuntimeError("a\nbad magic")))
        assert message == "cannot read x.onnx: bad magic; export the model again"
