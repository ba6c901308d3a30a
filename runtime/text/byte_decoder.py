"""Decodes tokens to text, with the tokenizer's files alone.

Transcribing needs nothing else of a tokenizer. The tokenizer library takes a tenth of a second and
40 MB to read the same file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from whisper_npu.errors import ModelError, WhisperNpuError
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN, Index, explain
from whisper_npu.runtime.text.tokenizer_files import read_tokenizer


@dataclass(frozen=True)
class _Decoder:
    type: str


@dataclass(frozen=True)
class _Model:
    vocab: dict[str, Index]


@dataclass(frozen=True)
class _AddedToken:
    id: Index
    content: str


@dataclass(frozen=True)
class TokenizerFile:
    """The fields we read of `tokenizer.json`."""

    decoder: _Decoder
    model: _Model
    added_tokens: list[_AddedToken]


def _bytes_of_characters() -> dict[str, int]:
    """Return the byte of each character of a byte-level vocabulary (GPT-2's table).

    Printable characters of Latin-1 stand for themselves, those from U+0100 on for the other bytes.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


class TokenText:
    """Finds token ids by name, and the text of ids."""

    def __init__(self, path: Path) -> None:
        """Read a tokenizer; see `read_tokenizer` for the file.

        Raises:
            ModelError: the file cannot be read, is no tokenizer, or its tokens do not stand for
                bytes.
        """
        content = parse_tokenizer(read_tokenizer(path), path)
        if content.decoder.type != "ByteLevel":
            raise ModelError(
                f"cannot read {path}: its tokens do not stand for bytes; {EXPORT_AGAIN}"
            )
        self._ids: dict[str, int] = dict(content.model.vocab)
        self._ids.update({token.content: token.id for token in content.added_tokens})
        self._names = {number: name for name, number in self._ids.items()}
        self._bytes = _bytes_of_characters()

    @property
    def n_vocab(self) -> int:
        """The largest id plus 1."""
        return max(self._names, default=-1) + 1

    def id_of(self, name: str) -> int | None:
        """Return the id of the token called `name`, such as `<|endoftext|>`."""
        return self._ids.get(name)

    def name_of(self, token: int) -> str | None:
        """Return the name of a token, None if it has none."""
        return self._names.get(token)

    def text(self, tokens: Iterable[int]) -> str:
        """Decode `tokens`; bytes that are not UTF-8 give U+FFFD, unknown ids give nothing."""
        raw = bytearray()
        for token in tokens:
            name = self._names.get(token, "")
            try:
                raw += bytes([self._bytes[character] for character in name])
            except KeyError:  # an added token, stored as plain text
                raw += name.encode()
        return raw.decode(errors="replace")


def parse_tokenizer(
    content: bytes,
    name: Path | str,
    *,
    error: type[WhisperNpuError] = ModelError,
    advice: str = EXPORT_AGAIN,
) -> TokenizerFile:
    """Read the fields of a `tokenizer.json`.

    Args:
        content: the content of the file.
        name: the file, for the message.
        error: the error to raise.
        advice: advice to the user, for the message.

    Raises:
        WhisperNpuError: `error`; the content is no tokenizer.
    """
    try:
        return msgspec.json.decode(content, type=TokenizerFile)
    except msgspec.ValidationError as reason:
        raise error(f"{name} is no tokenizer: {explain(reason)}; {advice}") from None
    except (msgspec.DecodeError, UnicodeError) as reason:
        raise error(f"cannot read {name}: {reason}; {advice}") from None
    except RecursionError:
        raise error(f"cannot read {name}: it is nested too deeply; {advice}") from None
