"""Reads a tokenizer's files: `tokenizer.json`, or the older `vocab.json` with `merges.txt`.

The older form is what transformers' slow tokenizer writes. Its parts are put together to the
content of a `tokenizer.json`, as transformers does (`convert_slow_tokenizer.py`,
`WhisperConverter`), so that all later code knows one form only.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.json_files import (
    EXPORT_AGAIN,
    Index,
    checked,
    read_bytes,
    read_object,
)
from whisper_npu.runtime.model_folder.layout import MERGES, VOCABULARY

_ADDED = "added_tokens.json"
_CONFIG = "tokenizer_config.json"
_COMMENT = "#version"
_MOST_DIGITS = 10  # of a token's id
_MOST_SHOWN = 40  # characters in a message
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@dataclass(frozen=True)
class _Ids:
    """Ids of tokens by their text."""

    ids: dict[str, Index]


@dataclass(frozen=True)
class _AddedToken:
    """An added token of `tokenizer_config.json`."""

    content: str
    special: bool = True


@dataclass(frozen=True)
class _TokenizerConfig:
    """The fields we read of `tokenizer_config.json`; added tokens are found by their id."""

    added_tokens_decoder: dict[str, _AddedToken] = field(default_factory=dict)


def read_tokenizer(path: Path) -> bytes:
    """Return the content of a `tokenizer.json`.

    Args:
        path: this file, or a `vocab.json`, beside which lie `merges.txt` and, if the model has
            them, `added_tokens.json` and `tokenizer_config.json`.

    Raises:
        ModelError: a file is missing or cannot be understood.
    """
    if path.name == VOCABULARY:
        return json.dumps(_put_together(path)).encode()
    return _read(path)


def _put_together(path: Path) -> dict[str, Any]:
    vocabulary = _read_ids(path)
    added = _added_tokens(path.parent)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token.content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.special,
            }
            for number, token in sorted(added.items())
        ],
        "normalizer": None,
        "pre_tokenizer": _BYTE_LEVEL,
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": _read_merges(path.with_name(MERGES)),
        },
    }


def _read_ids(path: Path) -> dict[str, int]:
    return checked({"ids": read_object(path)}, _Ids, path).ids


def _added_tokens(folder: Path) -> dict[int, _AddedToken]:
    """Return the tokens that are not part of the vocabulary, by id."""
    found = {number: _AddedToken(name) for name, number in _read_ids(folder / _ADDED).items()}
    path = folder / _CONFIG
    stated = checked(read_object(path), _TokenizerConfig, path).added_tokens_decoder
    for number, token in stated.items():
        if not number.isdecimal() or len(number) > _MOST_DIGITS:
            raise ModelError(
                f"{path}: {number[:_MOST_SHOWN]!r} is no id of a token; {EXPORT_AGAIN}"
            )
        found[int(number)] = token
    return found


def _read_merges(path: Path) -> list[list[str]]:
    try:
        first, *lines = _read(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"cannot read {path}: {error}; {EXPORT_AGAIN}") from None
    if not first.startswith(_COMMENT):
        lines.insert(0, first)
    merges = [line.strip().split(" ") for line in lines if line.strip()]
    for merge in merges:
        if len(merge) != 2:
            raise ModelError(f"cannot read {path}: {' '.join(merge)!r} is no pair; {EXPORT_AGAIN}")
    return merges


def _read(path: Path) -> bytes:
    content = read_bytes(path)
    if content is None:
        raise ModelError(f"cannot read {path}: there is no such file; {EXPORT_AGAIN}")
    return content
