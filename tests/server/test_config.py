"""Sizes, names and limits of a server."""

import pytest

from whisper_npu import UsageError
from whisper_npu.server.config import (
    Limits,
    ModelSpec,
    ServerConfig,
    default_spool,
    parse_models,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("25M", 25 << 20),
        ("2 GB", 2 << 30),
        ("1.5g", 3 << 29),
        ("64KiB", 65536),
        ("1T", 1 << 40),
    ],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "big", "-1", "1X", "M", "1e9"])
def test_wrong_sizes(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_models():
    assert parse_models(["tiny.en", "models/base", "own=/data/large v3"]) == (
        ModelSpec("tiny.en", "tiny.en"),
        ModelSpec("base", "models/base"),
        ModelSpec("own", "/data/large v3"),
    )


@pytest.mark.parametrize("given", ["", "=", "a b", "x=", "=models/base", "a/b=models/base"])
def test_wrong_models(given):
    with pytest.raises(UsageError, match="--model NAME=FOLDER"):
        parse_models([given])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ()}, "no model"),
        ({"models": (ModelSpec("a", "x"), ModelSpec("a", "y"))}, "two models are named a"),
        ({"api_key": ""}, "api_key is empty; give it a key, or leave it out"),
        ({"api_key": "key\n"}, "api_key has spaces, line ends or characters"),
        ({"api_key": "schlüssel"}, "characters other than ASCII"),
        ({"api_key": "\udcff"}, "characters other than ASCII"),
    ],
)
def test_wrong_configurations(wrong, message):
    with pytest.raises(UsageError, match=message):
        ServerConfig(**{"models": (ModelSpec("a", "x"),), **wrong})


def test_a_missing_spool_folder(tmp_path):
    with pytest.raises(UsageError, match="make it"):
        ServerConfig(models=(ModelSpec("a", "x"),), spool=tmp_path / "none")


def test_the_key_is_not_shown():
    assert "secret" not in repr(ServerConfig(models=(ModelSpec("a", "x"),), api_key="secret"))


@pytest.mark.parametrize(
    "wrong", [{"active": 0}, {"queue": -1}, {"upload_bytes": 0}, {"work_seconds": 0.0}]
)
def test_wrong_limits(wrong):
    with pytest.raises(UsageError, match="give"):
        Limits(**wrong)


def test_the_spool_folder_that_the_user_chose(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert default_spool() == tmp_path
