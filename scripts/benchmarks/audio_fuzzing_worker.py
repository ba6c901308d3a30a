"""Decodes the files that standard input names, one after the other, and writes a verdict on each.

`audio_fuzzing` starts it as a separate process, because damaged files may crash the decoders.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from unittest import mock

import numpy as np

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio import decoders, ffmpeg_child
from whisper_npu.runtime.audio.ffmpeg import FFmpegDecoder
from whisper_npu.runtime.audio.source import RefusedError, Samples, SourceFile, Warn
from whisper_npu.runtime.audio.stream import open_audio
from whisper_npu.runtime.audio_choices import TrackChoice
from whisper_npu.scripts.benchmarks.audio_fuzzing import (
    CANNOT,
    CRASHED,
    HUNG,
    ISOLATED,
    READ,
    REFUSED,
    TRACEBACK,
    WARNED,
)
from whisper_npu.scripts.common import cli


def work(*, isolated: bool) -> int:
    """Decode the files that standard input names, and write a verdict on each."""
    ffmpeg_child.limit_resources()
    answers = os.fdopen(os.dup(1), "w")  # separate from the output of C code
    os.dup2(2, 1)
    with contextlib.ExitStack() as stack:
        if not isolated:
            stack.enter_context(mock.patch.object(decoders, "open_ffmpeg", _Unprotected))
        for line in sys.stdin:
            print(json.dumps(_judge(line.rstrip("\n"))), file=answers, flush=True)
    return cli.EXIT_OK


def _judge(name: str) -> tuple[str, str]:
    """Outcome and text of decoding one file."""
    try:
        with open_audio(name) as stream:
            for block in stream:
                if not np.isfinite(block).all():
                    return TRACEBACK, "samples are not finite"
            return (WARNED, stream.warnings[0]) if stream.warnings else (READ, "")
    except AudioError as error:
        text = str(error)
        if "\n" in text or not text.startswith(f"{name}: "):
            return TRACEBACK, f"not one line with the file's name: {text!r}"
        for outcome in (CRASHED, HUNG, CANNOT):
            if outcome in text:
                return outcome, text
        return REFUSED, text
    except Exception as error:
        return TRACEBACK, "".join(traceback.format_exception(error)).replace("\n", " | ")


class _Unprotected:
    """FFmpeg in this process, so that its crashes are seen."""

    def __init__(
        self,
        file: SourceFile,
        warn: Warn,
        *,
        skip_frames: int = 0,
        track: TrackChoice = None,
    ) -> None:
        with _without_memory_error():
            self._decoder = FFmpegDecoder(file, warn, skip_frames, track)
        self.duration = self._decoder.duration
        self.n_channels = self._decoder.n_channels
        self.tracks, self.track = self._decoder.tracks, self._decoder.track
        self.close = self._decoder.close

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`."""
        with _without_memory_error():
            yield from self._decoder.chunks()


@contextlib.contextmanager
def _without_memory_error() -> Iterator[None]:
    """Turn the limit of memory into a refusal of the file, as in FFmpeg's child process."""
    try:
        yield
    except MemoryError:
        raise RefusedError("FFmpeg wants more than 2 GB of memory") from None


if __name__ == "__main__":
    sys.exit(work(isolated=ISOLATED in sys.argv[1:]))
