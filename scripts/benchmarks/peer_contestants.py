"""Prepares the recognisers of a command line, and compares them in turns."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from whisper_npu.errors import WhisperNpuError
from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.scripts.benchmarks.peer_comparison import (
    OURS,
    Contestant,
    Result,
    compare,
    n_runs,
)
from whisper_npu.scripts.benchmarks.peer_environment import PeerEnvironment
from whisper_npu.scripts.benchmarks.peer_models import PeerModels
from whisper_npu.scripts.benchmarks.peers import PEERS
from whisper_npu.scripts.benchmarks.recordings import Recording
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.console import one_line


def make_ours(arguments: argparse.Namespace) -> Contestant:
    """whisper-npu as a contestant.

    Raises:
        ModelError: The model folder does not exist.
    """
    job = {
        "engine": "whisper-npu",
        "model": str(cli.find_model(arguments.model).resolve()),
        "language": arguments.language,
        "threads": arguments.threads,
        "one_by_one": arguments.one_by_one,
    }
    return Contestant(OURS, sys.executable, job)


def make_contestants(
    arguments: argparse.Namespace, names: Sequence[str]
) -> tuple[list[Contestant], bool]:
    """whisper-npu and every peer as contestants, and whether a peer was left out.

    Raises:
        AssetError: The environment cannot be made.
        UsageError: The checkpoint is not known.
    """

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    folder = read_model_folder(cli.find_model(arguments.model).resolve())
    environment = PeerEnvironment(
        (arguments.environment or cache_folder() / "peers").resolve(), progress
    )
    models = PeerModels(environment, folder, arguments.checkpoint, progress)
    shared: dict[str, Any] = {"language": arguments.language, "threads": arguments.threads}
    contestants = [make_ours(arguments)]
    failed = False
    for name in names:
        peer = PEERS[name]
        try:
            path = models.path(peer.form)
        except WhisperNpuError as error:
            console.error(f"{name} is left out: {error}")
            failed = True
            continue
        job = {"engine": peer.engine, "model": str(path), **shared, **peer.settings}
        if peer.engine == "openvino-genai":
            job["cache"] = str(environment.folder / "cache" / f"{folder.name}-{peer.form}")
        contestants.append(Contestant(name, str(environment.python), job))
    return contestants, failed


def compare_with_progress(
    contestants: Sequence[Contestant],
    sets: dict[str, list[Recording]],
    arguments: argparse.Namespace,
    folder: Path,
) -> Result:
    """Run `compare` with a progress bar; a recogniser that fails is a line on standard error.

    Args:
        contestants: The contestants, whisper-npu first.
        sets: Recordings by the name of their set.
        arguments: The command line; `repeats` and `language` are read.
        folder: A folder for temporary files.

    Raises:
        DeviceError: whisper-npu failed.
    """
    total = n_runs(len(contestants), len(sets), arguments.repeats)
    with tqdm(total=total, unit="run", disable=None) as bar:

        def failed(name: str, error: WhisperNpuError) -> None:
            tqdm.write(f"error: {one_line(f'{name} is left out: {error}')}", file=sys.stderr)

        return compare(
            contestants,
            sets,
            arguments.repeats,
            arguments.language,
            folder,
            on_run=bar.update,
            on_failure=failed,
        )
