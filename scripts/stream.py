"""Transcribes live audio from standard input: `whisper-npu stream`, `python scripts/stream.py`."""

import argparse
import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, TextIO

from whisper_npu.errors import UsageError
from whisper_npu.scripts import cli, console
from whisper_npu.scripts.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
)
from whisper_npu.scripts.signals import on_interrupt

if TYPE_CHECKING:
    from whisper_npu.runtime.audio_source import Samples
    from whisper_npu.runtime.live import LiveUpdate

# Spelt out, so that `--help` loads no engine.
SAMPLE_FORMATS = ("s16le", "s32le", "f32le")
_BLOCK_SECONDS = 0.1
_READ_AHEAD = 300  # blocks; a source that is no microphone waits

EPILOG = """\
examples:
  arecord -q -f S16_LE -r 16000 -c 1 -t raw | whisper-npu stream
  arecord -q -f cd -t wav | whisper-npu stream --model base --language German
  ffmpeg -loglevel error -i rtsp://camera/1 -f wav - | whisper-npu stream --json-lines
  ffmpeg -loglevel error -f dshow -i audio=Microphone -f s16le -ar 16000 -ac 1 - | \\
    whisper-npu stream

Text is printed once it is certain not to change; on a terminal, what may still change stands
below it. The end of the input or Ctrl-C ends the session: the rest is transcribed, the exit code
is 0. Ctrl-C once more stops at once.

exit codes:
  0    the input was transcribed to its end
  1    the input cannot be read
  2    the command line is wrong
  3    the model or the device cannot be used
  130  stopped at once
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "stream",
        description="Transcribe speech from standard input while it is being spoken.",
        epilog=EPILOG,
        allow_abbrev=False,  # --mode of `transcribe` would be taken for --model
    )
    audio = parser.add_argument_group(
        "input", "raw samples, or a WAV stream, which speaks for itself"
    )
    audio.add_argument("--format", choices=SAMPLE_FORMATS, help="of samples (default: s16le)")
    audio.add_argument("--rate", type=_positive, metavar="HZ", help="default: 16000")
    audio.add_argument("--channels", type=_positive, metavar="N", help="default: 1")
    audio.add_argument(
        "--min-chunk",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="new audio between two decodings: less is sooner, and more work (default: 1)",
    )
    audio.add_argument(
        "--pause",
        type=float,
        default=0.5,
        metavar="SECONDS",
        help="silence after which everything is certain (default: %(default)s)",
    )
    audio.add_argument(
        "--json-lines",
        action="store_true",
        help="print an object per line: committed text, and tentative text, which may change",
    )
    add_model_options(parser)
    add_decoding_options(parser, live=True)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def stream(arguments: argparse.Namespace) -> int:
    """Transcribe standard input as it comes; returns the exit code."""
    # Heavy imports wait until the command line is known to be right.
    from whisper_npu.api import load_model  # noqa: PLC0415
    from whisper_npu.runtime.audio import SAMPLE_RATE, AudioStream  # noqa: PLC0415
    from whisper_npu.runtime.live import LiveTranscriber  # noqa: PLC0415
    from whisper_npu.runtime.pcm import PcmDecoder  # noqa: PLC0415

    options = decoding_options(arguments)
    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe audio into it; see --help")
    arriving = cli.standard_input()
    folder = cli.find_model(arguments.model)
    name, warnings = "standard input", list[str]()
    # Buffered, it would wait until the buffer is full.
    pipe = getattr(arriving, "raw", arriving)
    decoder = PcmDecoder(
        pipe,
        name,
        warnings.append,
        sample_format=arguments.format,
        rate=arguments.rate,
        channels=arguments.channels,
    )
    arrivals = Arrivals(AudioStream(decoder, name, round(_BLOCK_SECONDS * SAMPLE_RATE), warnings))
    model = load_model(
        folder,
        device=arguments.device,
        backend=arguments.backend,
        kv_cache=arguments.kv_cache,
        precision=arguments.precision,
        threads=arguments.threads,
    )
    live = LiveTranscriber(model, options, min_chunk=arguments.min_chunk, pause=arguments.pause)
    show = JsonLines(sys.stdout) if arguments.json_lines else Lines(sys.stdout)
    with on_interrupt(arrivals.stop):
        for samples in arrivals:
            show(live.feed(samples))
        show(live.finish())
    for warning in (*live.warnings, *warnings):
        console.warning(warning)
    return cli.EXIT_OK


class Arrivals:
    """Audio read ahead by a thread, so that no recorder has to wait for a decoding.

    An iterator over all that has arrived since the last time.
    """

    def __init__(self, blocks: "Iterator[Samples]") -> None:
        """Begin to read."""
        self._blocks = blocks
        self._queue: SimpleQueue[Samples | Exception | None] = SimpleQueue()
        self._room = Semaphore(_READ_AHEAD)
        # Nothing ends a read from a pipe into which nobody writes: the program must not wait.
        Thread(target=self._read, name="stream-input", daemon=True).start()

    def _read(self) -> None:
        try:
            for block in self._blocks:
                self._room.acquire()
                self._queue.put(block)
        except Exception as error:  # whatever it is, the other thread raises it
            self._queue.put(error)
        self._queue.put(None)

    def stop(self) -> None:
        """End behind what has been read; may be called by a signal handler."""
        self._queue.put(None)

    def __iter__(self) -> "Iterator[Samples]":
        """Successive samples, `(n,)`.

        Raises:
            AudioError: the input cannot be read.
        """
        import numpy as np  # noqa: PLC0415

        item = self._queue.get()
        while item is not None:
            held = []
            while item is not None and not isinstance(item, Exception):
                self._room.release()
                held.append(item)
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
            if held:
                yield np.concatenate(held)
            if isinstance(item, Exception):
                raise item
            if item is not None:
                item = self._queue.get()


class JsonLines:
    """Prints every update as an object on a line of its own."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, updates: "Sequence[LiveUpdate]") -> None:
        """Print."""
        for update in updates:
            fields = {"type": type(update).__name__.lower(), **asdict(update)}
            fields |= {key: round(fields[key], 2) for key in ("start", "end")}
            print(json.dumps(fields, ensure_ascii=False), file=self._out, flush=True)


class Lines:
    """Prints committed text line by line; on a terminal, the tentative text below it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._redraws = out.isatty()

    def __call__(self, updates: "Sequence[LiveUpdate]") -> None:
        """Print."""
        from whisper_npu.runtime.live import Committed  # noqa: PLC0415
        from whisper_npu.runtime.subtitles import format_timestamp  # noqa: PLC0415

        for update in updates:
            if isinstance(update, Committed):
                start, end = format_timestamp(update.start), format_timestamp(update.end)
                self._clear()
                print(f"[{start} --> {end}] {update.text}", file=self._out)
            elif self._redraws:
                self._clear()
                print(_fit(update.text.strip()), end="", file=self._out)
        self._out.flush()

    def _clear(self) -> None:
        if self._redraws:
            print("\r\x1b[K", end="", file=self._out)


def _fit(text: str) -> str:
    """The end of a text, as much as a line of the terminal holds."""
    room = shutil.get_terminal_size().columns - 1
    kept = len(text)
    while kept:
        room -= 2 if unicodedata.east_asian_width(text[kept - 1]) in "WF" else 1
        if room < 0:
            break
        kept -= 1
    return text[kept:]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(stream, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
