"""Damages files like disks, networks, broken programs and attackers, for `fuzz_audio`."""

from collections.abc import Callable, Sequence

import numpy as np

_HEADER = 512  # bytes that probably hold sizes, rates and counts
_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
_MOST_AT_ONCE = 3

Random = np.random.Generator
Mutation = Callable[[bytearray, bytes, Random], bytearray]


def mutate(content: bytes, other: bytes, random: Random) -> bytes:
    """A damaged copy of `content`; `other` is a recording to splice in."""
    changed = bytearray(content)
    for _ in range(random.integers(1, _MOST_AT_ONCE + 1)):
        mutation = MUTATIONS[random.integers(len(MUTATIONS))]
        changed = mutation(changed, other, random)
    return bytes(changed)


def _place(content: Sequence[int], random: Random, end: int | None = None) -> int:
    return int(random.integers(max(1, min(len(content), end or len(content)))))


def _flip_bits(content: bytearray, _: bytes, random: Random) -> bytearray:
    for _count in range(random.integers(1, 20)):
        if content:
            content[_place(content, random)] ^= 1 << random.integers(8)
    return content


def _flip_header_bits(content: bytearray, _: bytes, random: Random) -> bytearray:
    for _count in range(random.integers(1, 8)):
        if content:
            content[_place(content, random, _HEADER)] ^= 1 << random.integers(8)
    return content


def _truncate(content: bytearray, _: bytes, random: Random) -> bytearray:
    return content[: _place(content, random)]


def _overwrite(content: bytearray, _: bytes, random: Random) -> bytearray:
    start, size = _place(content, random), int(random.integers(1, 2_000))
    size = min(size, len(content) - start)
    filling = (bytes(size), b"\xff" * size, random.bytes(size))[random.integers(3)]
    content[start : start + size] = filling
    return content


def _set_field(content: bytearray, _: bytes, random: Random) -> bytearray:
    """Replace a number of 1, 2, 4 or 8 bytes by a number that often breaks programs."""
    start, size = _place(content, random, _HEADER), 1 << int(random.integers(4))
    value = _VALUES[random.integers(len(_VALUES))] % (1 << 8 * size)
    field = value.to_bytes(size, "little" if random.integers(2) else "big")
    if start + size <= len(content):
        content[start : start + size] = field
    return content


def _set_chunk_size(content: bytearray, _: bytes, random: Random) -> bytearray:
    """Replace the number before or after a four-letter code: sizes of RIFF, IFF, CAF and MP4."""
    codes = [
        place
        for place in range(min(len(content) - 8, 4 * _HEADER))
        if content[place : place + 4].isalnum()
    ]
    if not codes:
        return content
    place = codes[random.integers(len(codes))] + (-4 if random.integers(2) else 4)
    value = _VALUES[random.integers(len(_VALUES))]
    if place >= 0:
        content[place : place + 4] = value.to_bytes(4, "little" if random.integers(2) else "big")
    return content


def _remove(content: bytearray, _: bytes, random: Random) -> bytearray:
    start, size = _place(content, random), int(random.integers(1, 1_000))
    del content[start : start + size]
    return content


def _repeat(content: bytearray, _: bytes, random: Random) -> bytearray:
    start, size = _place(content, random), int(random.integers(1, 4_000))
    piece = content[start : start + size]
    content[start:start] = piece * int(random.integers(1, 4))
    return content


def _insert(content: bytearray, _: bytes, random: Random) -> bytearray:
    start = _place(content, random)
    content[start:start] = random.bytes(int(random.integers(1, 500)))
    return content


def _splice(content: bytearray, other: bytes, random: Random) -> bytearray:
    """Join the start of one recording and the rest of another."""
    return content[: _place(content, random)] + other[_place(other, random) :]


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _flip_header_bits,
    _truncate,
    _overwrite,
    _set_field,
    _set_chunk_size,
    _remove,
    _repeat,
    _insert,
    _splice,
)
