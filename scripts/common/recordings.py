"""Recordings for commands that check models, and the lines that tell of their checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisper_npu.npu.selftest import Check
    from whisper_npu.runtime.engines.protocol import Float32Array


def read_recordings(paths: Sequence[Path]) -> "dict[str, Float32Array]":
    """Read recordings by name; by default the built-in one, and its halves.

    Returns:
        float32 samples at 16 kHz, `(samples,)`.

    Raises:
        AudioError: a recording cannot be read.
        UsageError: two recordings have the same name.
    """
    import numpy as np  # noqa: PLC0415

    from whisper_npu.errors import UsageError  # noqa: PLC0415
    from whisper_npu.runtime.audio.stream import open_audio  # noqa: PLC0415

    def read(path: Path) -> "Float32Array":
        with open_audio(path) as stream:
            return np.concatenate(list(stream))

    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two recordings are called {name}; rename one of them")
    if paths:
        return {path.name: read(path) for path in paths}
    from whisper_npu.export.assets import fetch  # noqa: PLC0415

    sample = read(fetch("beckett"))
    half = len(sample) // 2
    return {"sample": sample, "first half": sample[:half], "second half": sample[half:]}


def check_line(check: "Check") -> str:
    """The line that a command prints for a check."""
    marks = {True: "passed", False: "FAILED", None: "n/a"}
    return f"{marks[check.passed]:<7} {check.name}: {check.detail}"
