"""Reads openai/whisper's own `.pt` files into Hugging Face weights."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint_files import check_json
from whisper_npu.export.dimensions import Dimensions

Weights = dict[str, torch.Tensor]

_MOST_SHARED = 2  # uses of a stored number at most: tied embeddings have two

# Module names of openai/whisper (model.py), and transformers' names of the same parameters.
RENAMES = (
    (r"^(encoder|decoder)\.blocks\.", r"model.\1.layers."),
    (r"^(encoder|decoder)\.", r"model.\1."),
    (r"\.token_embedding\.", ".embed_tokens."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.encoder\.ln_post\.", ".encoder.layer_norm."),
    (r"\.decoder\.ln\.", ".decoder.layer_norm."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
)


def read_weights(path: Path) -> tuple[Dimensions, Weights]:
    """Read a `.pt` file's weights under their Hugging Face names, in float32.

    Args:
        path: A file with `dims` and `model_state_dict`, as openai/whisper writes it.

    Raises:
        CheckpointError: The file is truncated, no checkpoint, or not openai/whisper's.
    """
    _check_not_compressed(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged content makes the unpickler raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot read {path} as a .pt checkpoint: {reason}; it may be truncated or of another"
            " format, download it again"
        ) from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path} is no openai/whisper checkpoint: it lacks 'dims' or 'model_state_dict'"
        )
    dimensions = check_json(content["dims"], Dimensions, f"{path}: dims")
    state = content["model_state_dict"]
    _check_tensors(path, state)
    _check_layers(path, dimensions, state)
    return dimensions, {_rename(name): tensor.float() for name, tensor in state.items()}


def _check_not_compressed(path: Path) -> None:
    """Refuse a compressed archive, which may expand without limit; torch.save never compresses."""
    try:
        if not zipfile.is_zipfile(path):
            return  # torch.load will name the error
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(entry.file_size for entry in archive.infolist())
        size = path.stat().st_size
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"cannot read {path} as a .pt checkpoint: {error}; it may be truncated, download it"
            " again"
        ) from error
    if unfolded > size:
        raise CheckpointError(
            f"{path} is no .pt checkpoint that PyTorch wrote: its {size} bytes unfold to {unfolded}"
        )


def _check_tensors(path: Path, state: Any) -> None:
    """Check that weights are tensors with as many stored numbers as their shapes need.

    Strides could repeat a few stored numbers to any size.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: its 'model_state_dict' is no dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: model_state_dict[{name!r}] is no tensor")
        is_plain = (
            tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            and tensor.is_floating_point()
        )
        if not is_plain:
            raise CheckpointError(
                f"{path}: {name} is no plain tensor of floating-point numbers ({tensor.dtype},"
                f" {tensor.layout}, {tensor.device})"
            )
        stored = tensor.untyped_storage().nbytes()
        if tensor.nbytes > stored:
            raise CheckpointError(
                f"{path}: {name} has the shape {tuple(tensor.shape)}, but only {stored} bytes"
            )
    n_bytes, size = sum(tensor.nbytes for tensor in state.values()), path.stat().st_size
    if n_bytes > _MOST_SHARED * size:
        raise CheckpointError(f"{path}: its {size} bytes cannot hold {n_bytes} bytes of weights")


def _check_layers(path: Path, dimensions: Dimensions, state: dict[str, torch.Tensor]) -> None:
    """Check the sizes that decide how large a model is, before the model is built."""
    for side, stated in (
        ("encoder", dimensions.n_audio_layer),
        ("decoder", dimensions.n_text_layer),
    ):
        found = {name.split(".")[2] for name in state if name.startswith(f"{side}.blocks.")}
        if len(found) != stated:
            raise CheckpointError(
                f"{path}: dims says {stated} {side} layers, model_state_dict has {len(found)}"
            )
    if dimensions.contradiction():
        raise CheckpointError(f"{path} is no whole Whisper: {dimensions.contradiction()}")


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
