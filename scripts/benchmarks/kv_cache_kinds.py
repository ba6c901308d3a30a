"""Loads the model with every kind of cache, and measures each on the same window."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_npu import api
from whisper_npu.errors import ModelError, UsageError, WhisperNpuError
from whisper_npu.runtime.audio.stream import open_audio
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.scripts.benchmarks.kv_cache_figures import (
    Kind,
    measure,
    n_decodes,
    room,
    synthetic_window,
)
from whisper_npu.scripts.common.decoding_options import model_options


def measure_kinds(
    arguments: argparse.Namespace, folder: Path, names: Sequence[str], new_tokens: Sequence[int]
) -> tuple[list[Kind], str]:
    """The figures of every kind, and the kind that `auto` takes.

    A kind that cannot be used has its `error`.

    Args:
        arguments: The command line: how to load the model, and what to decode.
        folder: The model folder.
        names: Kinds of cache.
        new_tokens: Numbers of tokens to decode.

    Raises:
        AudioError: The recording cannot be read.
        ModelError: No kind can be used.
        UsageError: The tokens do not fit in the decoder's context.
    """

    def load(kind: Any) -> WhisperModel:  # argparse has checked it
        return api.load_model(folder, **model_options(arguments), kv_cache=kind)

    automatic = load("auto")
    auto = automatic.backend.kv_cache
    language = automatic.resolve(language=arguments.language).language or "en"
    limit = room(automatic, language)
    if max(new_tokens) > limit:
        raise UsageError(
            f"--new-tokens: {max(new_tokens)} do not fit; the decoder's context holds {limit} "
            "behind its prompt"
        )
    kinds = {name: Kind(name) for name in names}
    models: dict[str, WhisperModel] = {}
    encoded: dict[str, Float32Array] = {}
    features = _window(automatic, arguments.file)
    for name, kind in kinds.items():
        try:
            model = automatic if name == auto else load(name)
            encoded[name] = model.backend.encode(features[None])
        except WhisperNpuError as error:
            kind.error = str(error)
            continue
        models[name] = model
        kind.precision = model.backend.precision
    if not models:
        raise ModelError(f"no kind of cache can be used: {kinds[names[0]].error}")
    total = n_decodes(len(models), new_tokens, arguments.repeats)
    with tqdm(total=total, desc=folder.name, unit="decode", disable=None) as bar:
        measure(
            models,
            encoded,
            kinds,
            language,
            new_tokens,
            arguments.repeats,
            bar.update,
        )
    return list(kinds.values()), auto


def _window(model: WhisperModel, file: str | None) -> Float32Array:
    """Features of the window to decode, `(n_mels, frames)`.

    Raises:
        AudioError: The recording cannot be read.
    """
    if file is None:
        return synthetic_window(model)
    with open_audio(file) as audio:
        features = FeatureStream(iter(audio), model.backend.n_mels)
        return features.window(0, 2 * model.backend.n_audio_ctx)
