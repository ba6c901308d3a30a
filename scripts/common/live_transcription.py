"""Runs a session of live speech: reads bytes, prints and saves text."""

import argparse
import sys
from collections.abc import Sequence
from typing import BinaryIO

from whisper_npu.api import load_model
from whisper_npu.runtime.audio.pcm import PcmDecoder
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, AudioStream
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.live import LiveTranscriber, LiveUpdate
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import model_options
from whisper_npu.scripts.common.live_input import Arrivals
from whisper_npu.scripts.common.live_output import JsonLines, Lines, LiveOutput, SavedFile, Session
from whisper_npu.scripts.common.signals import on_interrupt

_BLOCK_SECONDS = 0.1


def transcribe_live(
    arguments: argparse.Namespace,
    options: TranscribeOptions,
    arriving: BinaryIO,
    files: Sequence[SavedFile],
) -> tuple[str, ...]:
    """Load the model and transcribe the arriving audio; returns the warnings.

    Args:
        arguments: the command line of `whisper-npu stream`.
        options: the options of the transcription.
        arriving: the audio, as a binary stream.
        files: files that the text is saved in; it is always printed.

    Raises:
        AudioError: the input cannot be read.
        ModelError: the model does not exist, or cannot be loaded.
        DeviceError: the device cannot be used, or failed.
    """
    folder = cli.find_model(arguments.model, arguments.variant)
    name, warnings = "standard input", list[str]()
    # A buffered stream would wait until the buffer is full.
    pipe = getattr(arriving, "raw", arriving)
    decoder = PcmDecoder(
        pipe,
        name,
        warnings.append,
        sample_format=arguments.format,
        rate=arguments.rate,
        channels=arguments.n_channels,
    )
    arrivals = Arrivals(AudioStream(decoder, name, round(_BLOCK_SECONDS * SAMPLE_RATE), warnings))
    model = load_model(folder, **model_options(arguments))
    live = LiveTranscriber(model, options, min_chunk=arguments.min_chunk, pause=arguments.pause)
    printed = JsonLines(sys.stdout) if arguments.json_lines else Lines(sys.stdout)
    outputs: list[LiveOutput] = [printed, *files]

    def show(updates: Sequence[LiveUpdate]) -> None:
        for output in outputs:
            output.show(updates, live.duration)

    def session() -> Session:
        backend, told = model.backend, (*live.warnings, *warnings)
        ran = (backend.device, backend.kv_cache, backend.precision)
        return Session(live.duration, model.folder.name, *ran, told)

    for file in files:
        file.session = session
    try:
        with on_interrupt(arrivals.stop):
            for samples in arrivals:
                show(live.feed(samples))
            show(live.finish())
    finally:
        printed.end()
    return session().warnings
