"""The small files of a checkpoint, read and checked before torch is imported.

A checkpoint may come from anywhere. An error in its files becomes one line that names the file and
the field, before libraries are imported for ten seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from whisper_npu.errors import CheckpointError
from whisper_npu.runtime.model_folder.config import GenerationConfig, ModelConfig
from whisper_npu.runtime.model_folder.json_files import Size, checked, read_object

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
PREPROCESSOR_CONFIG = "preprocessor_config.json"
ARCHITECTURES = ("WhisperForConditionalGeneration", "WhisperModel")
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HF_INDEXES = tuple(f"{name}.index.json" for name in HF_WEIGHTS)
MEND = "mend it, or get the checkpoint again"
_LEAST_BYTES = 1  # smallest size of a number in a file of weights
_MOST_LAYERS = 1024

Schema = TypeVar("Schema")


@dataclass(frozen=True)
class LayerConfig:
    """`config.json`: the settings of PyTorch's layers besides their sizes."""

    activation_function: str | None = None
    scale_embedding: bool | None = None
    dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    encoder_layerdrop: float | None = None
    decoder_layerdrop: float | None = None


@dataclass(frozen=True)
class PreprocessorConfig:
    """`preprocessor_config.json`: the sizes, which must fit the model."""

    feature_size: Size | None = None
    nb_max_frames: Size | None = None
    n_samples: Size | None = None
    chunk_length: Size | None = None
    hop_length: Size | None = None
    n_fft: Size | None = None
    sampling_rate: Size | None = None


@dataclass(frozen=True)
class CTranslate2Settings:
    """CTranslate2's `config.json`."""

    suppress_ids: tuple[int, ...] | None = None
    suppress_ids_begin: tuple[int, ...] | None = None
    alignment_heads: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class WeightIndex:
    """`model.safetensors.index.json`: the file of each tensor."""

    weight_map: dict[str, str]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        CheckpointError: The file is not a JSON object.
    """
    return read_object(path, error=CheckpointError, advice=MEND)


def check_json(content: object, schema: type[Schema], name: Path | str) -> Schema:
    """JSON values checked by a schema; see `checked`.

    Raises:
        CheckpointError: A field has a wrong type or a value out of range.
    """
    return checked(content, schema, name, error=CheckpointError, advice=MEND)


def read_checked(path: Path, schema: type[Schema]) -> dict[str, Any]:
    """The object in a JSON file, checked by a schema.

    Raises:
        CheckpointError: The file does not fit the schema, or cannot be read.
    """
    content = read_json(path)
    check_json(content, schema, path)
    return content


def check_architecture(config_path: Path, argument: str) -> ModelConfig:
    """The configuration of a Whisper speech recogniser.

    Raises:
        CheckpointError: The configuration is of another architecture, or contradicts itself; the
            message names the architecture or the field.
    """
    content = read_checked(config_path, LayerConfig)
    config = check_json(content, ModelConfig, config_path)
    architectures = config.architectures or ARCHITECTURES[:1]
    if config.model_type != "whisper" or not any(name in ARCHITECTURES for name in architectures):
        found = ", ".join(config.architectures or [str(config.model_type)])
        raise CheckpointError(
            f"{argument} is no Whisper speech recogniser: its config says {found}"
        )
    for side in ("encoder", "decoder"):
        heads, layers = (
            getattr(config, f"{side}_{what}") for what in ("attention_heads", "layers")
        )
        if config.d_model and heads and config.d_model % heads:
            raise CheckpointError(
                f"{config_path}: d_model is {config.d_model}, which {heads}"
                f" {side}_attention_heads do not divide; {MEND}"
            )
        if layers and layers > _MOST_LAYERS:
            raise CheckpointError(
                f"{config_path}: {side}_layers is {layers}, more than {_MOST_LAYERS}; {MEND}"
            )
    return config


def read_index(path: Path) -> list[str]:
    """The files of weights in an index, each once; empty if there is no index.

    Raises:
        CheckpointError: The index is damaged, or names a file of another folder.
    """
    if not path.is_file():
        return []
    files = sorted(set(check_json(read_json(path), WeightIndex, path).weight_map.values()))
    for name in files:
        if Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{path}: weight_map names {name}, which is no file beside it")
    return files


def check_huggingface_folder(folder: Path, argument: str) -> None:
    """Check a Hugging Face folder as far as possible without reading its weights.

    Raises:
        CheckpointError: The model is no Whisper, has no weights, or weights too small for its
            sizes.
    """
    config = check_architecture(folder / CONFIG, argument)
    read_checked(folder / GENERATION_CONFIG, GenerationConfig)
    read_checked(folder / PREPROCESSOR_CONFIG, PreprocessorConfig)
    shards = [name for index in HF_INDEXES for name in read_index(folder / index)]
    weights = [folder / name for name in (*HF_WEIGHTS, *shards) if (folder / name).is_file()]
    if not weights:
        raise CheckpointError(
            f"{argument} has a config.json but no weights ({' or '.join(HF_WEIGHTS)})"
        )
    n_bytes = sum(path.stat().st_size for path in weights)
    least = _LEAST_BYTES * _n_parameters(config)
    if least > n_bytes:
        raise CheckpointError(
            f"{folder / CONFIG} describes a model of at least {least} bytes, but the weights have"
            f" {n_bytes}: they are of another model, or truncated; {MEND}"
        )


def _n_parameters(config: ModelConfig) -> int:
    """The number of values in a model's largest matrices; 0 for a matrix of unknown size."""
    width = config.d_model or 0
    tables = (config.vocab_size or 0) + (config.max_target_positions or 0)
    encoder = 4 * width + 2 * (config.encoder_ffn_dim or 0)
    decoder = 8 * width + 2 * (config.decoder_ffn_dim or 0)
    layers = (config.encoder_layers or 0) * encoder + (config.decoder_layers or 0) * decoder
    return width * (tables + layers)
