"""Writes CTranslate2 folders as CTranslate2's converters do; the opposite of export/ctranslate2.py.

It follows CTranslate2's format, not export/ctranslate2.py, so that each checks the other.
"""

import json
import struct
from pathlib import Path

import numpy as np

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
ATTENTION = {"self_attn": ("self_attention", "qkv"), "encoder_attn": ("attention", "q kv")}


def variables_of(model) -> dict[str, np.ndarray]:
    """A transformers Whisper's weights under CTranslate2's names, float32."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    variables = {}

    def linear(target: str, *names: str) -> None:
        variables[f"{target}/weight"] = np.concatenate([state[f"{n}.weight"] for n in names])
        width = len(state[f"{names[0]}.weight"])
        biases = [state.get(f"{name}.bias", np.zeros(width, np.float32)) for name in names]
        variables[f"{target}/bias"] = np.concatenate(biases)

    def norm(target: str, name: str) -> None:
        variables[f"{target}/gamma"] = state[f"{name}.weight"]
        variables[f"{target}/beta"] = state[f"{name}.bias"]

    for side in ("encoder", "decoder"):
        heads = getattr(model.config, f"{side}_attention_heads")
        variables[f"{side}/num_heads"] = np.array(heads, np.int16)
        positions = state[f"model.{side}.embed_positions.weight"]
        variables[f"{side}/position_encodings/encodings"] = positions
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(getattr(model.config, f"{side}_layers")):
            target, name = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            attentions = ["self_attn"] if side == "encoder" else ["self_attn", "encoder_attn"]
            for attention in attentions:
                theirs, groups = ATTENTION[attention]
                parts = [
                    [f"{name}.{attention}.{letter}_proj" for letter in group]
                    for group in groups.split()
                ]
                parts.append([f"{name}.{attention}.out_proj"])
                for part, names in enumerate(parts):
                    linear(f"{target}/{theirs}/linear_{part}", *names)
                norm(f"{target}/{theirs}/layer_norm", f"{name}.{attention}_layer_norm")
            linear(f"{target}/ffn/linear_0", f"{name}.fc1")
            linear(f"{target}/ffn/linear_1", f"{name}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{name}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        variables[f"encoder/{conv}/weight"] = state[f"model.encoder.{conv}.weight"]
        variables[f"encoder/{conv}/bias"] = state[f"model.encoder.{conv}.bias"]
    variables["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return variables


def quantize(variables: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """The variables that `ct2-transformers-converter --quantization KIND` stores."""
    if kind == "float32":
        return variables
    stored = {}
    for name, array in variables.items():
        is_matrix = name.endswith("/weight") and "conv" not in name
        if array.dtype.kind == "i":
            stored[name] = array
        elif kind == "float16":
            stored[name] = array.astype(np.float16)
        elif not is_matrix:
            stored[name] = array.astype(np.float16) if kind == "int8_float16" else array
        elif kind == "int16":
            scale = np.float32(2**10 / np.abs(array).max())
            stored[name] = np.rint(array * scale).astype(np.int16)
            stored[f"{name}_scale"] = np.array(scale, np.float32)
        else:
            scale = (127 / np.abs(array).max(axis=1)).astype(np.float32)
            stored[name] = np.rint(array * scale[:, None]).astype(np.int8)
            stored[f"{name}_scale"] = scale
    return stored


def _string(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def write_model_bin(
    path: Path, variables: dict[str, np.ndarray], spec: str = "WhisperSpec"
) -> None:
    pieces = [struct.pack("<I", 6), _string(spec), struct.pack("<II", 3, len(variables))]
    for name, array in variables.items():
        raw = np.ascontiguousarray(array).tobytes()
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        code = struct.pack("<BI", CODES[array.dtype.name], len(raw))
        pieces += [_string(name), shape, code, raw]
    pieces += [struct.pack("<I", 1)]
    pieces += [_string("decoder/projection/weight"), _string("decoder/embeddings/weight")]
    path.write_bytes(b"".join(pieces))


def write_folder(folder: Path, model, tokenizer_json: bytes, kind: str, settings: dict) -> Path:
    folder.mkdir(parents=True)
    write_model_bin(folder / "model.bin", quantize(variables_of(model), kind))
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
