"""The fields we read of a model folder's configurations, under Hugging Face's names.

Every field may be missing or null, because other exporters leave out fields they do not need.
"""

from dataclasses import dataclass, field
from typing import Literal

from whisper_npu.runtime.model_folder.json_files import Index, Size

VERIFIED = "verified"  # the states of a manifest's comparison with the checkpoint
NOT_VERIFIED = "not verified"

Heads = tuple[tuple[int, int], ...]
KVContract = Literal["accumulated", "delta"]
"""The content of `present.*` of the decoder with past; see `kv_cache`."""


@dataclass(frozen=True)
class ModelConfig:
    """`config.json`: the sizes of the model."""

    model_type: str | None = None
    architectures: tuple[str, ...] | None = None
    vocab_size: Size | None = None
    num_mel_bins: Size | None = None
    d_model: Size | None = None
    encoder_layers: Size | None = None
    decoder_layers: Size | None = None
    encoder_attention_heads: Size | None = None
    decoder_attention_heads: Size | None = None
    encoder_ffn_dim: Size | None = None
    decoder_ffn_dim: Size | None = None
    max_source_positions: Size | None = None
    max_target_positions: Size | None = None
    n_text_ctx: Size | None = None  # openai/whisper's name for max_target_positions
    decoder_start_token_id: Index | None = None
    eos_token_id: Index | tuple[Index, ...] | None = None


@dataclass(frozen=True)
class GenerationConfig:
    """`generation_config.json`: how to decode with the model.

    A suppression list may hold -1, which openai/whisper writes for "the usual ones".
    """

    alignment_heads: tuple[tuple[Index, Index], ...] | None = None
    suppress_tokens: tuple[int, ...] | None = None
    begin_suppress_tokens: tuple[int, ...] | None = None
    is_multilingual: bool | None = None
    lang_to_id: dict[str, Index] | None = None
    task_to_id: dict[str, Index] | None = None
    decoder_start_token_id: Index | None = None
    eos_token_id: Index | tuple[Index, ...] | None = None
    no_timestamps_token_id: Index | None = None
    max_length: Size | None = None


@dataclass(frozen=True)
class FileRecord:
    """A manifest's entry for a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class ManifestSource:
    """A manifest's description of the checkpoint."""

    argument: str | None = None
    kind: str | None = None
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ManifestParity:
    """A manifest's comparison with the checkpoint.

    Attributes:
        status: `VERIFIED` or `NOT_VERIFIED`.
        tokens_equal: number of tokens equal to PyTorch's, of an export.
        tokens_compared: number of compared tokens, of an export.
        variants: the checkpoint that each variant was compared with, by `whisper-npu verify`; None
            for an export, whose graphs are the variant `plain`.
    """

    status: str | None = None
    tokens_equal: Index | None = None
    tokens_compared: Index | None = None
    variants: dict[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """`export_manifest.json`: the fields we rely on."""

    export_revision: int | None = None  # only an export has it
    kv_contract: str | None = None
    precision: str | None = None
    parity: ManifestParity = field(default_factory=ManifestParity)
    source: ManifestSource = field(default_factory=ManifestSource)
    files: dict[str, FileRecord] = field(default_factory=dict)


def tokens(stated: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Return a field that is one token or several as several tokens."""
    if stated is None:
        return ()
    return (stated,) if isinstance(stated, int) else stated


def upper_half_heads(n_text_layer: int, n_text_head: int) -> Heads:
    """Return the alignment heads of a model whose own heads are unknown.

    These are all heads of the decoder's upper half, as in openai/whisper (model.py,
    `Whisper.__init__`).
    """
    layers = range(n_text_layer // 2, n_text_layer)
    return tuple((layer, head) for layer in layers for head in range(n_text_head))


def heads_that_exist(
    heads: Heads | None, n_text_layer: int | None, n_text_head: int | None
) -> bool:
    """Whether alignment heads can belong to this model.

    Distilled models often keep the heads of their teacher.

    Args:
        heads: decoder layer and attention head of each; None if unknown.
        n_text_layer: decoder layers; None if unknown.
        n_text_head: attention heads of a layer; None if unknown.
    """
    return all(
        (n_text_layer is None or layer < n_text_layer)
        and (n_text_head is None or head < n_text_head)
        for layer, head in heads or ()
    )
