"""Writes a Whisper checkpoint in whisper.cpp's format (models/convert-pt-to-ggml.py there).

Little-endian: a magic number; eleven int32 sizes; the mel filter bank; the text tokens in order of
their ids; then every tensor with its number of dimensions, name length, type, dimensions from the
fastest on, name and values.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.features.log_mel import mel_filters

Array = npt.NDArray[Any]

_MAGIC = 0x67676D6C
_F32, _F16 = 0, 1
_SIZES = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels"),
)
_RENAMED = (
    ("model.", ""),
    (".layers.", ".blocks."),
    (".self_attn_layer_norm.", ".attn_ln."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".final_layer_norm.", ".mlp_ln."),
    (".self_attn.", ".attn."),
    (".encoder_attn.", ".cross_attn."),
    (".q_proj.", ".query."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".out_proj.", ".out."),
    (".fc1.", ".mlp.0."),
    (".fc2.", ".mlp.2."),
    ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."),
    ("decoder.embed_tokens.", "decoder.token_embedding."),
    (".embed_positions.weight", ".positional_embedding"),
)


def write_ggml(
    weights: Mapping[str, Array], sizes: Mapping[str, int], tokenizer_json: bytes, path: Path
) -> None:
    """Write a checkpoint with float16 matrices, as whisper.cpp's converter does.

    Args:
        weights: Float32 arrays by Hugging Face's names, without the tied projection.
        sizes: `n_vocab`, `n_audio_ctx`, `n_audio_state`, `n_audio_head`, `n_audio_layer`,
            `n_text_ctx`, `n_text_state`, `n_text_head`, `n_text_layer`, `n_mels`.
        tokenizer_json: The content of tokenizer.json, a byte-level BPE.
        path: The file to write.
    """
    with path.open("wb") as file:
        file.write(struct.pack("<I", _MAGIC))
        file.write(struct.pack("<11i", *(sizes[name] for name in _SIZES), _F16))
        filters = mel_filters(sizes["n_mels"])
        file.write(struct.pack("<2i", *filters.shape))
        file.write(filters.astype("<f4").tobytes())
        tokens = text_tokens(tokenizer_json)
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, values in weights.items():
            _write_tensor(file, ggml_name(name), values)


def ggml_name(name: str) -> str:
    """The name of openai/whisper and whisper.cpp for a name of Hugging Face."""
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def _write_tensor(file: BinaryIO, name: str, values: Array) -> None:
    if name in {"encoder.conv1.bias", "encoder.conv2.bias"}:
        values = values.reshape(-1, 1)  # whisper.cpp adds it to every position
    exact = values.ndim < 2 or name.endswith(("bias", "positional_embedding"))
    kind, dtype = (_F32, "<f4") if exact else (_F16, "<f2")
    encoded = name.encode()
    file.write(struct.pack("<3i", values.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(np.ascontiguousarray(values).astype(dtype).tobytes())


def text_tokens(tokenizer_json: bytes) -> list[bytes]:
    """The bytes of every text token, in order of their ids, which are below all special tokens."""
    content = json.loads(tokenizer_json)
    special = {token["content"] for token in content["added_tokens"]}
    to_byte = _bytes_by_character()
    words = sorted(
        (number, word) for word, number in content["model"]["vocab"].items() if word not in special
    )
    return [bytes(to_byte[character] for character in word) for _, word in words]


def _bytes_by_character() -> dict[str, int]:
    """The byte that each character of a byte-level BPE stands for (GPT-2's encoder.py).

    Printable bytes stand for themselves; other bytes have characters after the first 256.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
