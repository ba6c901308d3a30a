"""Reads CTranslate2 (faster-whisper) checkpoints back into Hugging Face weights.

The layout of model.bin is what CTranslate2's python/ctranslate2/specs/model_spec.py writes:
little-endian; version, spec name, revision, the variables, then aliases.
"""

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint_files import (
    CONFIG,
    CTranslate2Settings,
    check_json,
    read_checked,
)
from whisper_npu.export.dimensions import Dimensions

SPEC = "WhisperSpec"
BFLOAT16 = 5
DTYPES: dict[int, Any] = {
    0: np.float32,
    1: np.int8,
    2: np.int16,
    3: np.int32,
    4: np.float16,
    BFLOAT16: np.uint16,  # numpy has no bfloat16: its 16 bits are widened while they are read
}
CONV_KERNEL = 3  # both of the encoder's convolutions
CONV_RANKS = (3, 2)  # some versions merge inputs and kernel into one axis
MAX_RANK = 8

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Variables:
    """The variables of a mapped model.bin, each dequantized on demand."""

    path: Path
    arrays: dict[str, NDArray[Any]]
    bfloat16: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def integer(self, name: str) -> int:
        """A scalar such as `decoder/num_heads`."""
        stored = self._get(name)
        if stored.size != 1 or stored.dtype.kind not in "iu" or name in self.bfloat16:
            raise CheckpointError(f"{self.path}: {name} is no whole number")
        return int(stored.reshape(()))

    def shape(self, name: str, *ranks: int) -> tuple[int, ...]:
        """The stored shape of a variable; its number of axes must be one of `ranks`.

        Raises:
            CheckpointError: The variable is missing, or has another rank.
        """
        shape = self._get(name).shape
        if len(shape) not in ranks:
            wanted = " or ".join(map(str, ranks))
            raise CheckpointError(f"{self.path}: {name} has the shape {shape}, not {wanted} axes")
        return shape

    def float32(self, name: str, *ranks: int) -> NDArray[np.float32]:
        """A variable as a new float32 array, dequantized if it was stored as int8 or int16.

        Raises:
            CheckpointError: The variable is missing, has another rank, or scales that do not fit.
        """
        self.shape(name, *ranks)
        return self._widened(name)

    def _widened(self, name: str) -> NDArray[np.float32]:
        """Any variable in float32.

        CTranslate2 stores `round(weight * scale)`, one scale per row for int8 and one for all for
        int16, beside it as `<name>_scale`.
        """
        stored = self._get(name)
        if name in self.bfloat16:
            widened = stored.astype(np.uint32) << 16
            return widened.view(np.float32)
        values = stored.astype(np.float32)
        if stored.dtype.kind == "i":
            if f"{name}_zero" in self.arrays or f"{name}_scale" not in self.arrays:
                raise CheckpointError(
                    f"{self.path}: {name} is quantized in a way this reader does not know; convert"
                    " the model again with --quantization float16, int8, int8_float16 or int16"
                )
            scale = self._widened(f"{name}_scale").reshape(-1)
            fits = scale.size in (1, len(values)) and np.all(scale) and np.isfinite(scale).all()
            if not fits:
                raise CheckpointError(f"{self.path}: the scales of {name} do not fit its rows")
            values /= scale.reshape(-1, *[1] * (values.ndim - 1))
        return values

    def _get(self, name: str) -> NDArray[Any]:
        if name not in self.arrays:
            raise CheckpointError(f"{self.path} lacks the variable {name}")
        return self.arrays[name]


class _Cursor:
    """Sequential reads from a buffer; a buffer that is too short is a clear error."""

    def __init__(self, path: Path, buffer: memoryview) -> None:
        self.path = path
        self.buffer = buffer
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.buffer):
            raise CheckpointError(
                f"{self.path} is truncated: it ends at byte {len(self.buffer)} where at least {end}"
                " are needed; download or copy it again"
            )
        piece = self.buffer[self.position : end]
        self.position = end
        return piece

    def integer(self, form: str) -> int:
        (value,) = struct.unpack("<" + form, self.take(struct.calcsize(form)))
        return int(value)

    def string(self) -> str:
        raw = bytes(self.take(self.integer("H")))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path} is no CTranslate2 model: garbled names") from error


def read_variables(path: Path) -> Variables:
    """Map a model.bin into memory.

    Args:
        path: The file.

    Returns:
        Its variables by name, aliases resolved.

    Raises:
        CheckpointError: The file is unreadable, truncated, or of another architecture.
    """
    try:
        with path.open("rb") as file:
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise CheckpointError(f"cannot read {path}: {error}") from error
    cursor = _Cursor(path, buffer)
    version = cursor.integer("I")
    spec = cursor.string()
    if spec != SPEC:
        raise CheckpointError(
            f"{path} holds a CTranslate2 '{spec}' (version {version}), not a Whisper model ({SPEC})"
        )
    cursor.integer("I")  # the spec's revision: all revisions have the same names for Whisper
    arrays: dict[str, NDArray[Any]] = {}
    bfloat16 = set()
    for _ in range(cursor.integer("I")):
        name, array, code = _read_variable(cursor)
        arrays[name] = array
        if code == BFLOAT16:
            bfloat16.add(name)
    for _ in range(cursor.integer("I")):
        alias, name = cursor.string(), cursor.string()
        if name not in arrays:
            raise CheckpointError(f"{path}: {alias} stands for {name}, which is not there")
        arrays[alias] = arrays[name]
    return Variables(path, arrays, frozenset(bfloat16))


def _read_variable(cursor: _Cursor) -> tuple[str, NDArray[Any], int]:
    name = cursor.string()
    rank = cursor.integer("B")
    shape = [cursor.integer("I") for _ in range(min(rank, MAX_RANK))]
    code = cursor.integer("B")
    size = cursor.integer("I")
    if rank > MAX_RANK or code not in DTYPES:
        raise CheckpointError(f"{cursor.path} is damaged at the variable '{name}'")
    dtype = np.dtype(DTYPES[code])
    if size != dtype.itemsize * math.prod(shape):
        raise CheckpointError(f"{cursor.path}: {name} has {size} bytes, which is not {shape}")
    if size == 0:
        raise CheckpointError(f"{cursor.path}: {name} is empty: it has the shape {shape}")
    return name, np.frombuffer(cursor.take(size), dtype).reshape(shape), code


def read_settings(folder: Path) -> dict[str, Any]:
    """CTranslate2's config.json: suppressed tokens and alignment heads; empty if there is none."""
    return read_checked(folder / CONFIG, CTranslate2Settings)


def end_of_text(folder: Path) -> int | None:
    """The index of `<|endoftext|>` in CTranslate2's list of tokens; None if there is no list."""
    for name, read in (("vocabulary.json", json.loads), ("vocabulary.txt", str.splitlines)):
        path = folder / name
        if path.is_file():
            try:
                tokens = read(path.read_text(encoding="utf-8"))
                return int(tokens.index("<|endoftext|>"))
            except (OSError, ValueError, AttributeError) as error:
                raise CheckpointError(f"cannot read {path}: {error}") from error
    return None


def read_weights(folder: Path) -> tuple[Dimensions, Weights]:
    """Read a CTranslate2 folder's weights under their Hugging Face names, in float32.

    Raises:
        CheckpointError: The folder is truncated, of another architecture, or incomplete.
    """
    variables = read_variables(folder / "model.bin")
    return _dimensions(variables), _convert(variables)


def _count_layers(variables: Variables, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/self_attention/linear_0/weight" in variables:
        count += 1
    return count


def _dimensions(variables: Variables) -> Dimensions:
    audio_ctx, audio_state = variables.shape("encoder/position_encodings/encodings", 2)
    text_ctx, text_state = variables.shape("decoder/position_encodings/encodings", 2)
    conv = variables.shape("encoder/conv1/weight", *CONV_RANKS)
    found = Dimensions(
        n_mels=math.prod(conv[1:]) // CONV_KERNEL,
        n_audio_ctx=audio_ctx,
        n_audio_state=audio_state,
        n_audio_head=variables.integer("encoder/num_heads"),
        n_audio_layer=_count_layers(variables, "encoder"),
        n_vocab=variables.shape("decoder/embeddings/weight", 2)[0],
        n_text_ctx=text_ctx,
        n_text_state=text_state,
        n_text_head=variables.integer("decoder/num_heads"),
        n_text_layer=_count_layers(variables, "decoder"),
    )
    sizes = check_json(found.as_dict(), Dimensions, variables.path)
    if sizes.contradiction():
        raise CheckpointError(f"{variables.path} is no whole Whisper: {sizes.contradiction()}")
    return sizes


def _convert(variables: Variables) -> Weights:
    weights: Weights = {}

    def put(name: str, array: NDArray[np.float32]) -> None:
        weights[name] = torch.from_numpy(np.ascontiguousarray(array))

    def linear(source: str, *targets: str) -> None:
        """Split one stored layer into its stacked parts; Whisper's k_proj has no bias."""
        parts = len(targets)
        stacked, bias = (
            variables.float32(f"{source}/weight", 2),
            variables.float32(f"{source}/bias", 1),
        )
        if len(stacked) % parts or len(bias) % parts:
            raise CheckpointError(
                f"{variables.path}: {source} has {len(stacked)} rows and {len(bias)} biases, which"
                f" cannot be split into {parts} equal parts"
            )
        rows, biases = np.split(stacked, parts), np.split(bias, parts)
        for target, row, of_row in zip(targets, rows, biases, strict=True):
            put(f"{target}.weight", row)
            if not target.endswith("k_proj"):
                put(f"{target}.bias", of_row)

    def norm(source: str, target: str) -> None:
        put(f"{target}.weight", variables.float32(f"{source}/gamma", 1))
        put(f"{target}.bias", variables.float32(f"{source}/beta", 1))

    for conv in ("conv1", "conv2"):
        kernel = variables.float32(f"encoder/{conv}/weight", *CONV_RANKS)
        if math.prod(kernel.shape[1:]) % CONV_KERNEL:
            raise CheckpointError(
                f"{variables.path}: encoder/{conv}/weight has the shape {kernel.shape}, which is"
                f" no convolution over {CONV_KERNEL} frames"
            )
        put(f"model.encoder.{conv}.weight", kernel.reshape(len(kernel), -1, CONV_KERNEL))
        put(f"model.encoder.{conv}.bias", variables.float32(f"encoder/{conv}/bias", 1))
    put("model.decoder.embed_tokens.weight", variables.float32("decoder/embeddings/weight", 2))
    for side in ("encoder", "decoder"):
        positions = variables.float32(f"{side}/position_encodings/encodings", 2)
        put(f"model.{side}.embed_positions.weight", positions)
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(_count_layers(variables, side)):
            source, target = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            parts = [f"{target}.self_attn.{name}_proj" for name in "qkv"]
            linear(f"{source}/self_attention/linear_0", *parts)
            linear(f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj")
            norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
            linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            linear(f"{source}/ffn/linear_1", f"{target}.fc2")
            norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
            if side == "decoder":
                cross = f"{target}.encoder_attn"
                linear(f"{source}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{source}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{source}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{source}/attention/layer_norm", f"{cross}_layer_norm")
    return weights
