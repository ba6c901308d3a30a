"""A tokenizer in its older form, `vocab.json` with `merges.txt`, is the same tokenizer."""

import json

import pytest
import tiny_whisper

from whisper_npu.errors import ModelError
from whisper_npu.runtime.text.tokenizer import Tokenizer

TEXTS = (
    " the rest of the tale",
    "Don't! It's 3.5 %  \n\ttabs",
    "Straße, 日本語, 🎉",
    " thethe <|en|> the",
)


def with_added_token(number):
    """A `tokenizer_config.json` with a token of that id."""
    return json.dumps({"added_tokens_decoder": {number: {"content": "y"}}}).encode()


@pytest.fixture
def forms(tmp_path):
    """A tokenizer in both forms, and the folder of the older one."""
    content = tiny_whisper.build_tokenizer_json()
    (tmp_path / "tokenizer.json").write_bytes(content)
    stated = json.loads(content)
    older = tmp_path / "older"
    older.mkdir()
    (older / "vocab.json").write_text(json.dumps(stated["model"]["vocab"]))
    merges = ["#version: 0.2", *(" ".join(merge) for merge in stated["model"]["merges"]), ""]
    (older / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    added = {token["content"]: token["id"] for token in stated["added_tokens"]}
    (older / "added_tokens.json").write_text(json.dumps(added))
    return tmp_path / "tokenizer.json", older


def same(first, second):
    assert first.special == second.special
    assert first.n_vocab == second.n_vocab
    assert first.annotation_tokens == second.annotation_tokens
    for text in TEXTS:
        tokens = first.encode(text)
        assert tokens == second.encode(text)
        assert first.decode(tokens) == second.decode(tokens)


def test_both_forms_are_the_same(forms):
    newer, older = forms
    same(Tokenizer(newer), Tokenizer(older / "vocab.json"))


def test_added_tokens_in_the_configuration(forms):
    newer, older = forms
    added = json.loads((older / "added_tokens.json").read_text())
    (older / "added_tokens.json").unlink()
    stated = {str(number): {"content": name, "special": True} for name, number in added.items()}
    (older / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": stated}))
    same(Tokenizer(newer), Tokenizer(older / "vocab.json"))


def test_transformers_reads_the_same(forms):
    from transformers import WhisperTokenizer

    _, older = forms
    theirs = WhisperTokenizer(str(older / "vocab.json"), str(older / "merges.txt"))
    ours = Tokenizer(older / "vocab.json")
    for text in TEXTS[:3]:
        assert ours.encode(text) == theirs.convert_tokens_to_ids(theirs.tokenize(text))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("merges.txt", b"a b c\n", "'a b c' is no pair"),
        ("merges.txt", b"\xff\n", "cannot read"),
        ("vocab.json", b'{"a": -1}', "expected int"),
        ("vocab.json", b"[]", "holds no JSON object"),
        ("added_tokens.json", b'{"a": "b"}', "expected int"),
        ("tokenizer_config.json", with_added_token("x"), "no id"),
        ("tokenizer_config.json", with_added_token("9" * 5000), "no id"),
    ],
)
def test_a_damaged_file_is_named(forms, file, content, message):
    _, older = forms
    (older / file).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        _ = Tokenizer(older / "vocab.json").annotation_tokens
    assert str(older / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(forms):
    _, older = forms
    (older / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"merges\.txt: there is no such file"):
        Tokenizer(older / "vocab.json")
