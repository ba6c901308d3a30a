"""Computes PyTorch's side of the comparison, and keeps it in files.

All of it is computed before the first graph is compiled, so that the weights of a large model are
not in memory twice. Arrays are mapped from their files one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from whisper_npu.export.checkpoint import Checkpoint
from whisper_npu.export.parity_audio import Window
from whisper_npu.export.parity_graph import cache_names

BATCH = 2  # rows of the reference; a case uses the first ones
ALIGNED_TOKENS = 64  # PyTorch returns the attention of every head: 500 MB for the largest model
SEED = 0

Progress = Callable[[str], None]


class StoredArrays:
    """Arrays in the files of a folder; each look-up maps a file anew."""

    def __init__(self, folder: Path) -> None:
        """Use an existing, empty folder."""
        self._folder = folder

    def __setitem__(self, name: str, array: NDArray[Any]) -> None:
        np.save(self._folder / f"{name}.npy", array)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.asarray(np.load(self._folder / f"{name}.npy", mmap_mode="r"))


@dataclass(frozen=True)
class Reference:
    """PyTorch's results for all windows, and for one pass over `n_text_ctx` random tokens.

    Attention is causal, so a slice of the pass is the reference for any shorter past.

    Attributes:
        ids: the random tokens `(BATCH, n_text_ctx)`.
        aligned_ids: the text tokens of the alignment `(BATCH, ALIGNED_TOKENS or fewer)`.
        arrays: `logits` `(BATCH, n_text_ctx, n_vocab)`; the caches `present...` `(BATCH, heads,
            length, head_dim)`; of the alignment `token_probabilities` `(BATCH, n - 1)` and
            `cross_attentions` `(BATCH, alignment heads, n, n_audio_ctx)`.
    """

    ids: NDArray[np.int64]
    aligned_ids: NDArray[np.int64]
    arrays: StoredArrays

    def hidden(self, windows: Sequence[int]) -> NDArray[np.float32]:
        """The encoder's output of some windows, `(len(windows), n_audio_ctx, n_audio_state)`."""
        return np.concatenate([self.arrays[_hidden(window)] for window in windows])


def compute_reference(
    checkpoint: Checkpoint, windows: Sequence[Window], folder: Path, report: Progress
) -> Reference:
    """Run PyTorch's model.

    Args:
        checkpoint: The model.
        windows: At least `BATCH` windows of audio; the decoder listens to the first ones.
        folder: An existing, empty folder for the results.
        report: Called with one line per step.
    """
    dimensions = checkpoint.dimensions
    random = np.random.default_rng(SEED)
    ids = random.integers(0, dimensions.n_vocab, (BATCH, dimensions.n_text_ctx), dtype=np.int64)
    length = min(ALIGNED_TOKENS, dimensions.n_text_ctx)
    aligned_ids = ids[:, :length] % checkpoint.alignment_settings().eot  # text tokens only
    reference = Reference(ids, aligned_ids, StoredArrays(folder))
    # The graphs were traced with eager attention: this is PyTorch's other, quicker implementation.
    checkpoint.model.set_attn_implementation("sdpa")
    encoder = checkpoint.model.model.encoder
    for index, window in enumerate(windows):
        hidden = encoder(torch.from_numpy(window.features)).last_hidden_state
        reference.arrays[_hidden(index)] = hidden.numpy()
    report(f"PyTorch encoded {len(windows)} windows")
    rows = _encoded(reference.hidden(range(BATCH)))
    _decode(checkpoint, rows, reference)
    _align(checkpoint, rows, reference)
    report(f"PyTorch decoded {ids.size} random tokens")
    return reference


def expected_logits(
    checkpoint: Checkpoint, hidden: NDArray[np.float32], ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """PyTorch's logits after each prefix of some tokens, computed in one pass without a cache.

    Args:
        checkpoint: The model.
        hidden: The encoder's output `(rows, n_audio_ctx, n_audio_state)`.
        ids: The tokens `(rows, n)`.

    Returns:
        float32 `(rows, n, n_vocab)`.
    """
    output = checkpoint.model(
        encoder_outputs=_encoded(hidden),
        decoder_input_ids=torch.from_numpy(ids),
        use_cache=False,
    )
    logits: NDArray[np.float32] = output.logits.numpy()
    return logits


def _decode(checkpoint: Checkpoint, hidden: BaseModelOutput, reference: Reference) -> None:
    output = checkpoint.model(
        encoder_outputs=hidden,
        decoder_input_ids=torch.from_numpy(reference.ids),
        use_cache=True,
    )
    reference.arrays["logits"] = output.logits.numpy()
    cache = output.past_key_values
    sides: dict[str, DynamicCache] = {
        "decoder": cache.self_attention_cache,
        "encoder": cache.cross_attention_cache,
    }
    for side, states in sides.items():
        pairs = [tensor for layer in states.layers for tensor in (layer.keys, layer.values)]
        tensors = [tensor.numpy() for tensor in pairs if tensor is not None]
        names = cache_names("present", side, checkpoint.dimensions.n_text_layer)
        for name, array in zip(names, tensors, strict=True):
            reference.arrays[name] = array


def _align(checkpoint: Checkpoint, hidden: BaseModelOutput, reference: Reference) -> None:
    settings = checkpoint.alignment_settings()
    checkpoint.model.set_attn_implementation("eager")  # the other one returns no attentions
    ids = reference.aligned_ids
    output = checkpoint.model(
        encoder_outputs=hidden,
        decoder_input_ids=torch.from_numpy(ids),
        use_cache=False,
        output_attentions=True,
    )
    reference.arrays["cross_attentions"] = np.stack(
        [output.cross_attentions[layer][:, head].numpy() for layer, head in settings.heads], axis=1
    )
    of_text = output.logits[:, :-1, : settings.eot].softmax(dim=-1).numpy()
    probabilities = np.take_along_axis(of_text, ids[:, 1:, None], axis=2)[..., 0]
    reference.arrays["token_probabilities"] = probabilities


def _encoded(hidden: NDArray[np.float32]) -> BaseModelOutput:
    state: Any = torch.from_numpy(hidden)
    return BaseModelOutput(last_hidden_state=state)


def _hidden(window: int) -> str:
    return f"hidden.{window}"
