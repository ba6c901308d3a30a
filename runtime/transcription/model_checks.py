"""Checks that the files of a model folder belong to one model.

A folder with files of two models runs, and writes nonsense or nothing. So the files are compared
before the first recording.
"""

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.protocol import Backend
from whisper_npu.runtime.model_folder.config import tokens
from whisper_npu.runtime.model_folder.folder import (
    CONFIG,
    GENERATION_CONFIG,
    ModelFolder,
    contradiction,
)
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN
from whisper_npu.runtime.text.tokenizer import Tokenizer


def check_model(folder: ModelFolder, tokenizer: Tokenizer, backend: Backend) -> None:
    """Compare configurations, tokenizer and graphs.

    Raises:
        ModelError: two of the files contradict each other; the message names both.
    """
    _check_sizes(folder, backend)
    _check_tokenizer(folder, tokenizer, backend.n_vocab)
    _check_suppression(folder, backend.n_vocab)


def _check_sizes(folder: ModelFolder, backend: Backend) -> None:
    config = folder.config
    for name, stated, found in (
        ("num_mel_bins", config.num_mel_bins, backend.n_mels),
        ("max_source_positions", config.max_source_positions, backend.n_audio_ctx),
        ("vocab_size", config.vocab_size, backend.n_vocab),
    ):
        if stated is not None and stated != found:
            raise contradiction(folder.path / CONFIG, name, stated, f"the graphs have {found}")


def _check_tokenizer(folder: ModelFolder, tokenizer: Tokenizer, n_vocab: int) -> None:
    if tokenizer.n_vocab > n_vocab:
        raise ModelError(
            f"{folder.tokenizer} is of another model: it has the token {tokenizer.n_vocab - 1}, "
            f"the decoder {n_vocab} tokens; {EXPORT_AGAIN}"
        )
    special = tokenizer.special
    generation, config = folder.generation_config, folder.config
    known = {f"<|{code}|>": token for code, token in special.languages.items()}
    known |= {"transcribe": special.transcribe, "translate": special.translate}
    stated: list[tuple[str, str, tuple[int, ...], int]] = [
        (GENERATION_CONFIG, "eos_token_id", tokens(generation.eos_token_id), special.eot),
        (
            GENERATION_CONFIG,
            "decoder_start_token_id",
            tokens(generation.decoder_start_token_id),
            special.sot,
        ),
        (
            GENERATION_CONFIG,
            "no_timestamps_token_id",
            tokens(generation.no_timestamps_token_id),
            special.no_timestamps,
        ),
        (CONFIG, "eos_token_id", tokens(config.eos_token_id), special.eot),
        (CONFIG, "decoder_start_token_id", tokens(config.decoder_start_token_id), special.sot),
    ]
    for field in ("lang_to_id", "task_to_id"):
        for name, token in (getattr(generation, field) or {}).items():
            stated.append((GENERATION_CONFIG, f"{field}[{name}]", (token,), known.get(name, token)))
    for file, name, values, found in stated:
        if values and found not in values:
            raise contradiction(
                folder.path / file, name, values[0], f"{folder.tokenizer.name} says {found}"
            )


def _check_suppression(folder: ModelFolder, n_vocab: int) -> None:
    generation = folder.generation_config
    for name, values in (
        ("suppress_tokens", generation.suppress_tokens),
        ("begin_suppress_tokens", generation.begin_suppress_tokens),
    ):
        for token in values or ():
            if not -1 <= token < n_vocab:
                raise ModelError(
                    f"{folder.path / GENERATION_CONFIG}: {name} has {token}; the model's tokens "
                    f"are 0 to {n_vocab - 1}; {EXPORT_AGAIN}"
                )
