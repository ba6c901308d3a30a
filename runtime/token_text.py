"""Text of tokens, from `tokenizer.json` alone.

Nothing else of a tokenizer is needed to transcribe, and the library that has the rest takes a tenth
of a second and 40 MB to read the same file.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def _bytes_of_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table).

    Printable characters of Latin-1 stand for themselves, those from U+0100 on for the other bytes.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


class TokenText:
    """Ids of tokens by name, and the text of ids."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no tokenizer, or none whose tokens stand for bytes.
        """
        content: Any = json.loads(path.read_bytes())
        try:
            if content["decoder"]["type"] != "ByteLevel":
                raise ValueError("its tokens do not stand for bytes")
            self._ids: dict[str, int] = dict(content["model"]["vocab"])
            self._ids.update({token["content"]: token["id"] for token in content["added_tokens"]})
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
        except TypeError:
            raise ValueError("it is no tokenizer") from None
        self._names = {number: name for name, number in self._ids.items()}
        self._bytes = _bytes_of_characters()

    def id_of(self, name: str) -> int | None:
        """The token called `name`, such as `<|endoftext|>`."""
        return self._ids.get(name)

    def text(self, tokens: Iterable[int]) -> str:
        """Text of `tokens`; U+FFFD where their bytes are not UTF-8, nothing for unknown ids."""
        raw = bytearray()
        for token in tokens:
            name = self._names.get(token, "")
            try:
                raw += bytes([self._bytes[character] for character in name])
            except KeyError:  # an added token, which is text as it is
                raw += name.encode()
        return raw.decode(errors="replace")
