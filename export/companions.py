"""Completes the files beside the weights: tokenizer, generation and preprocessor settings."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import WhisperTokenizerFast

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint_files import MEND
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.tokens import (
    begin_suppressed_tokens,
    read_special_tokens,
    suppressed_tokens,
)
from whisper_npu.runtime.model_folder.config import heads_that_exist, upper_half_heads
from whisper_npu.runtime.model_folder.json_files import read_bytes

SAMPLE_RATE = 16000  # Hz
HOP_LENGTH = 160  # samples between frames: 10 ms
N_FFT = 400  # samples in a frame: 25 ms
_MULTILINGUAL_KEYS = ("is_multilingual", "lang_to_id", "task_to_id", "language", "task")
MAX_INITIAL_TIMESTAMP = 50  # in steps of 20 ms: in openai/whisper speech starts within 1 s


def tokenizer_of_folder(folder: Path) -> bytes | None:
    """A folder's tokenizer.json, or its conversion from vocab.json and merges.txt.

    Returns:
        The file's content, or None if the folder has no tokenizer.
    """
    content = read_bytes(folder / "tokenizer.json", error=CheckpointError, advice=MEND)
    if content is not None:
        return content
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = WhisperTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # damaged content makes the library raise anything
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"cannot read the tokenizer in {folder}: {reason}") from error
    return str(tokenizer.backend_tokenizer.to_str()).encode()


def complete_generation_config(
    known: dict[str, Any],
    tokenizer_json: bytes,
    dimensions: Dimensions,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Generation settings with everything that a decoder needs; the `known` settings stay.

    One exception: languages and tasks are removed from the settings of an English-only model, which
    may have been copied from a multilingual model.

    Without known alignment heads all heads of the decoder's upper half are taken. Alignment heads
    that the model does not have, which distilled models often keep from their teacher, are ignored.

    Args:
        known: The checkpoint's settings, which fit `GenerationConfig`.
        tokenizer_json: The content of tokenizer.json.
        dimensions: The model's sizes.
        progress: Called with one line if the alignment heads are another model's.

    Raises:
        CheckpointError: The tokenizer is not this model's.
    """
    heads = known.get("alignment_heads")
    n_text_layer, n_text_head = dimensions.n_text_layer, dimensions.n_text_head
    if not heads_that_exist(heads, n_text_layer, n_text_head):
        if progress:
            progress(
                f"alignment_heads are another model's (this one has {n_text_layer} decoder layers"
                f" of {n_text_head} heads): taking all heads of the upper half"
            )
        heads = None
    special = read_special_tokens(tokenizer_json, dimensions.n_vocab, known.get("is_multilingual"))
    defaults: dict[str, Any] = {
        "alignment_heads": [list(head) for head in upper_half_heads(n_text_layer, n_text_head)],
        "bos_token_id": special.eot,
        "decoder_start_token_id": special.sot,
        "eos_token_id": special.eot,
        "is_multilingual": special.is_multilingual,
        "max_initial_timestamp_index": MAX_INITIAL_TIMESTAMP,
        "max_length": dimensions.n_text_ctx,
        "no_timestamps_token_id": special.no_timestamps,
        "pad_token_id": special.eot,
        "return_timestamps": False,
    }
    if not special.is_multilingual:
        known = {key: known[key] for key in known if key not in _MULTILINGUAL_KEYS}
    else:
        defaults["lang_to_id"] = special.languages
        defaults["task_to_id"] = special.tasks
        # Without a task transformers' generate() leaves the task token out, and base then loops.
        defaults["task"] = "transcribe"
    for key, function in (
        ("suppress_tokens", suppressed_tokens),
        ("begin_suppress_tokens", begin_suppressed_tokens),
    ):
        if key not in known:
            defaults[key] = function(tokenizer_json, special)
    stated = {
        key: value for key, value in known.items() if value is not None or key not in defaults
    }
    if not heads:
        stated.pop("alignment_heads", None)
    return dict(sorted({**defaults, **stated}.items()))


def preprocessor_config(dimensions: Dimensions, known: dict[str, Any]) -> dict[str, Any]:
    """The feature extractor's settings, in the form of transformers' WhisperFeatureExtractor.

    Raises:
        CheckpointError: The known settings do not fit the model.
    """
    n_samples = dimensions.n_frames * HOP_LENGTH
    required = {
        "hop_length": HOP_LENGTH,
        "n_fft": N_FFT,
        "sampling_rate": SAMPLE_RATE,
        "feature_size": dimensions.n_mels,
        "nb_max_frames": dimensions.n_frames,
        "n_samples": n_samples,
    }
    settings: dict[str, Any] = {
        "chunk_length": n_samples // SAMPLE_RATE,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        **required,
        **{key: value for key, value in known.items() if value is not None},
    }
    settings.pop(
        "mel_filters", None
    )  # old folders hold the whole matrix, which follows from the other settings
    for key, value in required.items():
        if settings[key] != value:
            raise CheckpointError(
                f"preprocessor_config.json does not fit the model: {key} is {settings[key]},"
                f" expected {value}"
            )
    return settings
