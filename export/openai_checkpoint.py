"""Reads openai/whisper's own `.pt` files into Hugging Face weights."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from whisper_npu.errors import CheckpointError
from whisper_npu.export.dimensions import Dimensions

Weights = dict[str, torch.Tensor]

# openai/whisper's module names (model.py) and transformers' for the same parameters.
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
        path: A file with `dims` and `model_state_dict`, as openai/whisper publishes and saves them.

    Raises:
        CheckpointError: Truncated, not a checkpoint, or not openai/whisper's.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"cannot read {path} as a .pt checkpoint: {reason}; it may be truncated or of another"
            " format, download it again"
        ) from error
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= content.keys():
        raise CheckpointError(
            f"{path} is no openai/whisper checkpoint: it lacks 'dims' or 'model_state_dict'"
        )
    try:
        dimensions = Dimensions(**content["dims"])
    except TypeError as error:
        raise CheckpointError(f"{path}: its 'dims' are not Whisper's: {error}") from error
    state = content["model_state_dict"]
    return dimensions, {_rename(name): tensor.float() for name, tensor in state.items()}


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
