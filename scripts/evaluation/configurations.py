"""Loads every configuration of a command line, and runs it over all recordings."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_npu import api
from whisper_npu.errors import UsageError, WhisperNpuError
from whisper_npu.export.references import Reference
from whisper_npu.runtime.engines.choices import BACKENDS, KV_CACHES, PRECISIONS
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.console import one_line
from whisper_npu.scripts.common.decoding_options import (
    decoding_options,
)
from whisper_npu.scripts.evaluation.word_errors import Failure, Run, Transcript, transcribe_all


@dataclass(frozen=True)
class Setup:
    """The settings with which a model is loaded."""

    model: str
    device: str
    backend: str
    kv_cache: str
    precision: str
    variant: str | None

    def __str__(self) -> str:
        settings = f"{self.backend}, kv_cache {self.kv_cache}, precision {self.precision}"
        return f"{_with_variant(self.model, self.variant)} on {self.device}, {settings}"


def measure(
    arguments: argparse.Namespace, references: Sequence[Reference]
) -> tuple[list[Run], int]:
    """Transcribe all recordings in every configuration; returns the runs and the exit code.

    A configuration that fails is one line on standard error; the others go on.

    Raises:
        ModelError: A model does not exist.
        UsageError: The decoding options are wrong.
    """
    modes = list(dict.fromkeys(arguments.mode or [TranscribeOptions.mode]))
    options = {mode: _options(arguments, mode) for mode in modes}  # wrong options fail at once
    if arguments.max_wer is not None and not arguments.max_wer >= 0:  # refuses NaN, too
        raise UsageError("--max-wer takes a percentage, 0 or more")
    setups = _setups(arguments)
    # A missing model fails before the first measurement.
    folders = {setup.model: cli.find_model(setup.model, setup.variant) for setup in setups}
    names = _model_names(folders)
    runs: list[Run] = []
    exit_code = cli.EXIT_OK
    for setup in setups:
        model = None
        for mode in modes:
            try:
                model = model or _load(setup, folders[setup.model], arguments.threads)
                settings = {  # the settings that really run, not the requested ones
                    "model": _with_variant(names[setup.model], setup.variant),
                    "backend": setup.backend,
                    "device": model.backend.device,
                    "kv_cache": model.backend.kv_cache,
                    "precision": model.backend.precision,
                    "mode": mode,
                }
                with _progress(f"{names[setup.model]} {mode}", len(references)) as show:
                    run = transcribe_all(model, options[mode], settings, references, show)
            except WhisperNpuError as error:
                console.error(f"{setup}, mode {mode}: {error}")
                exit_code = max(exit_code, error.exit_code)
                if model is None:
                    break  # it would not load for the other modes either
                continue
            if run.failures:
                exit_code = max(exit_code, cli.EXIT_SOME_FAILED)
            if run.transcripts:
                runs.append(run)
            else:
                console.error(f"{setup}, mode {mode}: no recording could be read")
    return runs, exit_code


def _setups(arguments: argparse.Namespace) -> list[Setup]:
    """Every combination of the repeated options."""
    return [
        Setup(*choice)
        for choice in itertools.product(
            dict.fromkeys(arguments.model or [cli.DEFAULT_MODEL]),
            dict.fromkeys(arguments.device or ["CPU"]),
            dict.fromkeys(arguments.backend or BACKENDS[:1]),
            dict.fromkeys(arguments.kv_cache or KV_CACHES[:1]),
            dict.fromkeys(arguments.precision or PRECISIONS[:1]),
            dict.fromkeys(arguments.variant or [None]),
        )
    ]


def _load(setup: Setup, folder: Path, threads: int) -> WhisperModel:
    choices: dict[str, Any] = {  # argparse has checked them
        "backend": setup.backend,
        "kv_cache": setup.kv_cache,
        "precision": setup.precision,
        "variant": setup.variant,
    }
    return api.load_model(folder, device=setup.device, threads=threads, **choices)


def _model_names(folders: dict[str, Path]) -> dict[str, str]:
    """Names of the models in reports: the folder's name, or the whole argument if two are equal."""
    names = {model: folder.resolve().name for model, folder in folders.items()}
    return names if len(set(names.values())) == len(names) else {model: model for model in names}


def _with_variant(name: str, variant: str | None) -> str:
    return f"{name} ({variant})" if variant else name


def _options(arguments: argparse.Namespace, mode: str) -> TranscribeOptions:
    return decoding_options(argparse.Namespace(**{**vars(arguments), "mode": mode}))


def common_language(runs: Sequence[Run]) -> str:
    """The language of the normaliser for all runs: the given one, or the most frequent one.

    All runs have the same normaliser, so that they are measured against the same words.
    """
    first = runs[0]
    if first.options.task == "translate":
        return "en"
    # An English-only model has a language, even if no language was given.
    given = [run.options.language for run in runs if run.options.language is not None]
    return given[0] if given else first.main_language()


@contextmanager
def _progress(
    description: str, n_recordings: int
) -> Iterator[Callable[[Transcript | Failure], None]]:
    """Show a progress bar if standard error is a terminal, and print a line for each failure."""
    with tqdm(total=n_recordings, desc=description, unit="file", disable=None) as bar:

        def show(result: Transcript | Failure) -> None:
            if isinstance(result, Failure):
                tqdm.write(f"error: {one_line(result.error)}", file=sys.stderr)
            bar.update()

        yield show
