"""Loads a Whisper checkpoint of any form as a float32 PyTorch model with its small files."""

import gc
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging as transformers_logging

from whisper_npu.errors import CheckpointError
from whisper_npu.export import ctranslate2, hub, openai_checkpoint
from whisper_npu.export.alignment import AlignmentSettings, read_settings
from whisper_npu.export.assets import fetch
from whisper_npu.export.checkpoint_files import (
    CONFIG,
    GENERATION_CONFIG,
    PREPROCESSOR_CONFIG,
    check_huggingface_folder,
    check_json,
    read_checked,
    read_json,
)
from whisper_npu.export.companions import (
    complete_generation_config,
    preprocessor_config,
    tokenizer_of_folder,
)
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.source import Source, SourceKind, find_source, with_digest
from whisper_npu.export.tokens import (
    CANTONESE_VOCABULARY,
    ENGLISH_VOCABULARY,
    MULTILINGUAL_VOCABULARY,
    read_special_tokens,
    with_cantonese,
)
from whisper_npu.runtime.engines.memory import release_memory
from whisper_npu.runtime.model_folder.config import GenerationConfig, ModelConfig
from whisper_npu.runtime.text.multilingual import ENGLISH_EOT

Weights = dict[str, torch.Tensor]
Progress = Callable[[str], None]
Load = Callable[[], WhisperForConditionalGeneration]
Read = Callable[[], tuple[Dimensions, Weights]]


class Checkpoint:
    """A Whisper model ready for export.

    Attributes:
        dimensions: its sizes.
        config: its configuration.
        tokenizer_json: the content of tokenizer.json.
        generation_config: the complete content of generation_config.json.
        preprocessor_config: the complete content of preprocessor_config.json.
        source: the place it was loaded from.
        parameter_count: the number of values in its weights.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        reload: Load,
        *,
        tokenizer_json: bytes,
        known_generation: dict[str, Any],
        known_preprocessor: dict[str, Any],
        source: Source,
        progress: Progress | None,
    ) -> None:
        """Complete the settings.

        Args:
            model: The model.
            reload: Loads the model again.
            tokenizer_json: The content of tokenizer.json.
            known_generation: The settings of generation_config.json that are known.
            known_preprocessor: The settings of preprocessor_config.json that are known.
            source: The place it is loaded from.
            progress: See `load_checkpoint`.
        """
        self._model: WhisperForConditionalGeneration | None = _ready(model)
        self._reload = reload
        self.config: WhisperConfig = model.config
        self.dimensions = dimensions_of(self.config)
        self.parameter_count = sum(tensor.numel() for tensor in model.parameters())
        self.tokenizer_json = tokenizer_json
        self.generation_config = complete_generation_config(
            known_generation, tokenizer_json, self.dimensions, progress
        )
        self.preprocessor_config = preprocessor_config(self.dimensions, known_preprocessor)
        self.source = source

    @property
    def model(self) -> WhisperForConditionalGeneration:
        """The model, float32, in eval mode, with eager attention; loaded again after `release`."""
        if self._model is None:
            self._model = _ready(self._reload())
        return self._model

    def release(self) -> None:
        """Return the memory of the weights to the system, until `model` is used again."""
        self._model = None
        gc.collect()  # modules and hooks refer to each other
        release_memory()

    def alignment_settings(self) -> AlignmentSettings:
        """The settings of the alignment graph, from the two configurations."""
        return read_settings(
            check_json(self.generation_config, GenerationConfig, GENERATION_CONFIG),
            check_json(self.config.to_dict(), ModelConfig, CONFIG),
        )


def load_checkpoint(
    source: str | Source,
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Load a checkpoint of any supported form.

    Args:
        source: A built-in asset's name, a Hugging Face folder, an openai/whisper `.pt` file, a
            CTranslate2 folder, or a hub id.
        revision: Branch, tag or commit of a hub id.
        token: Access token for a gated hub id; by default the one stored by `hf auth login`.
        progress: Called with one line per step.

    Raises:
        CheckpointError: The source cannot be found, read, or recognised as a Whisper model.
        AssetError: A built-in asset cannot be fetched.
        UsageError: A revision for a source that has none.
    """
    found = find_source(source, revision) if isinstance(source, str) else source
    match found.kind:
        case SourceKind.HUB:
            folder, commit = hub.download(found.argument, found.revision, token, progress)
            return _load_hf_folder(folder, replace(found, path=folder, revision=commit), progress)
        case SourceKind.ASSET:
            folder = fetch(found.argument, progress)
            return _load_ctranslate2(folder, replace(found, path=folder), progress)
    found = with_digest(found)
    path = found.path
    if path is None:
        raise CheckpointError(f"'{found.argument}' names no file or folder")
    match found.kind:
        case SourceKind.HF_FOLDER:
            return _load_hf_folder(path, found, progress)
        case SourceKind.CTRANSLATE2:
            return _load_ctranslate2(path, found, progress)
        case _:
            return _load_openai(path, found, progress)


def dimensions_of(config: WhisperConfig) -> Dimensions:
    """The sizes in a transformers configuration."""
    return Dimensions(
        n_mels=config.num_mel_bins,
        n_audio_ctx=config.max_source_positions,
        n_audio_state=config.d_model,
        n_audio_head=config.encoder_attention_heads,
        n_audio_layer=config.encoder_layers,
        n_vocab=config.vocab_size,
        n_text_ctx=config.max_target_positions,
        n_text_state=config.d_model,
        n_text_head=config.decoder_attention_heads,
        n_text_layer=config.decoder_layers,
    )


def _load_ctranslate2(folder: Path, source: Source, progress: Progress | None) -> Checkpoint:
    read = partial(ctranslate2.read_weights, folder)
    dimensions, weights = read()
    settings = ctranslate2.read_settings(folder)
    known = {
        ours: settings[theirs]
        for ours, theirs in (
            ("suppress_tokens", "suppress_ids"),
            ("begin_suppress_tokens", "suppress_ids_begin"),
            ("alignment_heads", "alignment_heads"),
        )
        if settings.get(theirs)
    }
    # Its lang_ids are not used: English-only models have them off by one (tiny.en's start at zh).
    tokenizer = tokenizer_of_folder(folder)
    if tokenizer is None:
        tokenizer = standard_tokenizer(dimensions.n_vocab, eot=ctranslate2.end_of_text(folder))
    return _assemble(dimensions, weights, read, tokenizer, known, source, progress)


def _load_openai(path: Path, source: Source, progress: Progress | None) -> Checkpoint:
    read = partial(openai_checkpoint.read_weights, path)
    dimensions, weights = read()
    tokenizer = standard_tokenizer(dimensions.n_vocab, progress)
    return _assemble(dimensions, weights, read, tokenizer, {}, source, progress)


def standard_tokenizer(
    n_vocab: int, progress: Progress | None = None, *, eot: int | None = None
) -> bytes:
    """The tokenizer.json that openai/whisper uses for a vocabulary of this size.

    Args:
        n_vocab: Rows of the embedding.
        progress: See `load_checkpoint`.
        eot: The end-of-text token, if a configuration states it; the vocabulary of an English-only
            model may be padded to any size.

    Raises:
        CheckpointError: No released model has a vocabulary of this size.
        AssetError: The built-in asset that holds the file cannot be fetched.
    """
    if n_vocab == ENGLISH_VOCABULARY or (eot == ENGLISH_EOT and n_vocab > ENGLISH_VOCABULARY):
        return (fetch("tiny.en", progress) / "tokenizer.json").read_bytes()
    if n_vocab in (MULTILINGUAL_VOCABULARY, CANTONESE_VOCABULARY):
        tokenizer = (fetch("base", progress) / "tokenizer.json").read_bytes()
        return with_cantonese(tokenizer) if n_vocab == CANTONESE_VOCABULARY else tokenizer
    raise CheckpointError(
        f"no tokenizer is known for a vocabulary of {n_vocab} tokens; put the model's"
        " tokenizer.json beside its weights in a Hugging Face or CTranslate2 folder"
    )


def _assemble(
    dimensions: Dimensions,
    weights: Weights,
    read: Read,
    tokenizer_json: bytes,
    known_generation: dict[str, Any],
    source: Source,
    progress: Progress | None,
) -> Checkpoint:
    """A checkpoint from weights alone; their sizes give its transformers configuration.

    Args:
        dimensions: The sizes of the model.
        weights: The result of the first `read`.
        read: Reads dimensions and weights.
        tokenizer_json: The content of tokenizer.json.
        known_generation: The settings of generation_config.json that are known.
        source: The place of the weights.
        progress: See `load_checkpoint`.
    """
    special = read_special_tokens(tokenizer_json, dimensions.n_vocab)
    config = WhisperConfig(  # type: ignore[no-untyped-call]
        vocab_size=dimensions.n_vocab,
        num_mel_bins=dimensions.n_mels,
        d_model=dimensions.n_audio_state,
        encoder_layers=dimensions.n_audio_layer,
        decoder_layers=dimensions.n_text_layer,
        encoder_attention_heads=dimensions.n_audio_head,
        decoder_attention_heads=dimensions.n_text_head,
        encoder_ffn_dim=_rows(weights, "model.encoder.layers.0.fc1.weight", source),
        decoder_ffn_dim=_rows(weights, "model.decoder.layers.0.fc1.weight", source),
        max_source_positions=dimensions.n_audio_ctx,
        max_target_positions=dimensions.n_text_ctx,
        decoder_start_token_id=special.sot,
        bos_token_id=special.eot,
        eos_token_id=special.eot,
        pad_token_id=special.eot,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return Checkpoint(
        _build_model(config, weights, source),
        lambda: _build_model(config, read()[1], source),
        tokenizer_json=tokenizer_json,
        known_generation=known_generation,
        known_preprocessor={},
        source=source,
        progress=progress,
    )


def _rows(weights: Weights, name: str, source: Source) -> int:
    if name not in weights:
        raise CheckpointError(f"{source.argument} is incomplete: it lacks {name}")
    return len(weights[name])


def _build_model(
    config: WhisperConfig, weights: Weights, source: Source
) -> WhisperForConditionalGeneration:
    """A model with the given tensors as its parameters; the tensors are not copied."""
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    _check_names_and_shapes(model, weights, source)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()  # type: ignore[no-untyped-call]
    return model


def _check_names_and_shapes(
    model: WhisperForConditionalGeneration, weights: Weights, source: Source
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    del expected["proj_out.weight"]  # tied to the token embedding
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    if missing or unexpected:
        kind, names = ("lacks", missing) if missing else ("has unknown", unexpected)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(f"{source.argument} is no whole Whisper: it {kind} {names[0]}{more}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{source.argument}: {name} has the shape {tuple(weights[name].shape)}, expected"
                f" {shape}"
            )


def _load_hf_folder(folder: Path, source: Source, progress: Progress | None) -> Checkpoint:
    check_huggingface_folder(folder, source.argument)
    model = _load_pretrained(folder, source)
    tokenizer = tokenizer_of_folder(folder)
    if tokenizer is None:
        tokenizer = standard_tokenizer(model.config.vocab_size, eot=model.config.eos_token_id)
    generation = read_json(folder / GENERATION_CONFIG)
    if not generation:
        # Before transformers 4.26 these lists were part of config.json.
        config = read_checked(folder / CONFIG, GenerationConfig)
        generation = {
            key: config[key]
            for key in ("suppress_tokens", "begin_suppress_tokens")
            if config.get(key)
        }
    preprocessor = read_json(folder / PREPROCESSOR_CONFIG)
    return Checkpoint(
        model,
        partial(_load_pretrained, folder, source),
        tokenizer_json=tokenizer,
        known_generation=generation,
        known_preprocessor=preprocessor,
        source=source,
        progress=progress,
    )


def _load_pretrained(folder: Path, source: Source) -> WhisperForConditionalGeneration:
    verbosity = transformers_logging.get_verbosity()
    # The warnings that transformers would print are errors below.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: WhisperForConditionalGeneration
            model, info = WhisperForConditionalGeneration.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                ignore_mismatched_sizes=True,  # lists them, so that they are refused below
                output_loading_info=True,
            )
    except Exception as error:  # damaged files make the libraries raise anything
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"cannot load the weights of {source.argument}: {reason}; a truncated file or a damaged"
            " config.json is the usual cause, download it again"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    wrong = {
        "lacks": [name for name in sorted(info["missing_keys"]) if name != "proj_out.weight"],
        "has unknown": sorted(info["unexpected_keys"]),
        "has a wrong shape for": sorted(_name(key) for key in info["mismatched_keys"]),
    }
    for kind, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{source.argument} is no whole Whisper: it {kind} {names[0]}{more}"
            )
    return model


def _name(mismatched: str | tuple[str, object, object]) -> str:
    """The name of a mismatched tensor; some loaders of transformers list it with both shapes."""
    return mismatched if isinstance(mismatched, str) else mismatched[0]


def _ready(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False)
    return model
