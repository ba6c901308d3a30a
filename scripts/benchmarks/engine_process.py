"""Drives `engine_runner.py`, which runs one recogniser in a separate process."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_npu.errors import DeviceError
from whisper_npu.runtime.closing import Closing

START_CLIP = 11.0  # seconds of audio that a started program is given
RUNNER = Path(__file__).with_name("engine_runner.py")


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for a list of recordings.

    Attributes:
        texts: Texts, in order.
        seconds: Seconds from a file to its text, per recording.
        peak_bytes: Peak memory of the process so far; None if the system does not tell.
    """

    texts: tuple[str, ...]
    seconds: tuple[float, ...]
    peak_bytes: int | None


class EngineProcess(Closing):
    """A recogniser loaded in a separate process. A context manager that ends it.

    Attributes:
        versions: Versions of its packages.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        *,
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process and wait until the model is loaded.

        Args:
            job: The job of `engine_runner.py`.
            python: The Python that has the recogniser.
            environment: Environment variables in addition to those of this process.

        Raises:
            DeviceError: The process did not start; the message has its last output.
        """
        self._name = str(job["engine"])
        self.started = time.perf_counter()
        self._complaints = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            # -P: the recogniser must not import the files beside the runner.
            [str(python), "-P", str(RUNNER), json.dumps(dict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            encoding="utf-8",
            env={**os.environ, **(environment or {})},
        )
        try:
            self.versions: dict[str, str] = self._answer()["versions"]
        except BaseException:
            self.close()
            raise

    def transcribe(self, files: Sequence[str | Path]) -> Answer:
        """Transcribe 16 kHz mono WAV files, given all at once.

        Raises:
            DeviceError: The recogniser failed.
        """
        if self._process.stdin is None:
            raise ValueError("standard input is a pipe")
        with contextlib.suppress(BrokenPipeError):  # the process has ended: its answer says why
            self._process.stdin.write(json.dumps([str(file) for file in files]) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        return Answer(tuple(answer["texts"]), tuple(answer["seconds"]), answer["peak_bytes"])

    def _answer(self) -> dict[str, Any]:
        if self._process.stdout is None:
            raise ValueError("standard output is a pipe")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._complaints.seek(0)
            said = [text.strip() for text in self._complaints.read().splitlines() if text.strip()]
            reason = said[-1] if said else "it said nothing"
            raise DeviceError(f"{self._name} ended with code {code}: {reason}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process; a second call does nothing."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # the process has ended already
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()


@dataclass(frozen=True, slots=True)
class Start:
    """A start of a recogniser for one recording.

    Attributes:
        seconds: Seconds from the start of its process to the text.
        peak_bytes: Its peak memory; None if the system does not tell.
    """

    seconds: float
    peak_bytes: int | None


def start_once(
    job: Mapping[str, Any],
    files: Sequence[str | Path],
    *,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Start:
    """Start a recogniser, transcribe `files`, and end it.

    Raises:
        DeviceError: The recogniser failed.
    """
    with EngineProcess(job, python=python, environment=environment) as process:
        answer = process.transcribe(files)
        return Start(time.perf_counter() - process.started, answer.peak_bytes)
