"""Measures a server on loopback: what HTTP adds, and what callers at the same time get.

The server is `whisper-npu serve` in a process of its own; the callers use OpenAI's client. In each
round the same clips are sent one after another, all at once, and beside a long recording, so that
the machine is the same for what is compared.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openai
import psutil

from whisper_npu.errors import DeviceError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.runtime.engines.choices import Precision
from whisper_npu.scripts.benchmarks.recordings import Samples, of_length, write_wav
from whisper_npu.scripts.benchmarks.served import PATIENCE, serving

ALONE, TOGETHER, BESIDE = "one after another", "at once", "beside a long recording"
_SETTLED = 2.0  # seconds after which the long recording is being decoded
_PERCENTILE = 95
_MODEL = "whisper-1"  # the server's first


@dataclass(frozen=True)
class Wanted:
    """What is measured.

    Attributes:
        model: a model folder.
        clip_seconds: length of a clip.
        clients: callers at the same time.
        requests: clips of a round in each situation.
        rounds: how often all is measured.
        long_seconds: length of the long recording.
        device: see `load_model`.
        precision: see `load_model`.
    """

    model: str
    clip_seconds: float = 8.0
    clients: int = 16
    requests: int = 48
    rounds: int = 3
    long_seconds: float = 3600.0
    device: str = "CPU"
    precision: Precision = "auto"


@dataclass
class Round:
    """Seconds from request to text in each situation, in the order of the clips.

    Attributes:
        latencies: by situation.
        elapsed: seconds that all requests of a situation took.
    """

    latencies: dict[str, list[float]] = field(default_factory=dict)
    elapsed: dict[str, float] = field(default_factory=dict)

    def slowdowns(self, situation: str) -> list[float]:
        """For each clip, its time in a situation, times its time alone."""
        pairs = zip(self.latencies[situation], self.latencies[ALONE], strict=True)
        return [seconds / alone for seconds, alone in pairs]


def late(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return float(np.percentile(values, _PERCENTILE))


@dataclass
class Load:
    """What was measured.

    Attributes:
        audio_seconds: seconds of audio that each situation sends in a round.
        rounds: the rounds, in order.
        library: seconds that each clip takes in the Python API, in a process without a server.
        over_http: seconds that it takes over HTTP, measured in turn with `library`.
        memory: bytes that the server holds after each round.
        differing: texts that are not the text of the same clip sent alone.
    """

    audio_seconds: float
    rounds: list[Round] = field(default_factory=list)
    library: list[float] = field(default_factory=list)
    over_http: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    @property
    def http_seconds(self) -> float:
        """The median of what HTTP adds to a clip, in seconds."""
        pairs = zip(self.over_http, self.library, strict=True)
        return statistics.median(served - alone for served, alone in pairs)


def make_clips(speech: Samples, seconds: float, folder: Path, most: int) -> list[Path]:
    """Cut speech into WAV files of `seconds`, one after the other; the rest is left out."""
    length = round(seconds * SAMPLE_RATE)
    n_clips = min(most, max(1, len(speech) // length))
    return [
        write_wav(folder / f"clip-{number}.wav", speech[number * length : (number + 1) * length])
        for number in range(n_clips)
    ]


def _speech(recordings: Sequence[Path], seconds: float) -> Samples:
    """The samples of the recordings, one after the other, up to `seconds`."""
    pieces: list[Samples] = []
    missing = round(seconds * SAMPLE_RATE)
    for recording in recordings:
        pieces.append(load_audio(recording)[:missing])
        missing -= len(pieces[-1])
        if not missing:
            break
    return np.concatenate(pieces)


def measure(
    wanted: Wanted,
    recordings: Sequence[Path],
    folder: Path,
    show: Callable[[str], None],
) -> Load:
    """Measure a server.

    Args:
        wanted: what is measured.
        recordings: speech; clips and the long recording are made of it.
        folder: for these, which are WAV files.
        show: called with each step's description.

    Raises:
        AudioError: a recording cannot be read.
        DeviceError: the server does not start, or a request fails.
    """
    speech = _speech(recordings, wanted.long_seconds)
    clips = make_clips(speech, wanted.clip_seconds, folder, wanted.requests)
    sent = [clips[number % len(clips)] for number in range(wanted.requests)]
    long = write_wav(folder / "long.wav", of_length(speech, wanted.long_seconds))
    load = Load(wanted.clip_seconds * len(sent))
    options = ("--device", wanted.device, "--precision", wanted.precision)
    with serving(wanted.model, options) as (process, address):
        show("what HTTP adds")
        _compare_with_library(load, wanted, address, clips)
        for number in range(wanted.rounds):
            one = Round()
            load.rounds.append(one)
            texts = _send(one, ALONE, address, sent, 1, show, number)
            again = _send(one, TOGETHER, address, sent, wanted.clients, show, number)
            with _long_work(address, long):
                beside = _send(one, BESIDE, address, sent, 1, show, number)
            load.differing += [
                f"{clip.name}: {other!r} instead of {text!r}"
                for others in (again, beside)
                for clip, text, other in zip(sent, texts, others, strict=True)
                if other != text
            ]
            load.memory.append(psutil.Process(process.pid).memory_info().rss)
    return load


def _compare_with_library(load: Load, wanted: Wanted, address: str, clips: Sequence[Path]) -> None:
    from whisper_npu import load_model  # noqa: PLC0415 - after the server, which loads for itself

    with (
        load_model(wanted.model, device=wanted.device, precision=wanted.precision) as loaded,
        _client(address) as client,
    ):
        for is_measured in (False, True):
            for clip in clips:
                began = time.monotonic()
                _ = loaded.transcribe(clip).text
                middle = time.monotonic()
                _text(client, clip)
                if is_measured:
                    load.library.append(middle - began)
                    load.over_http.append(time.monotonic() - middle)


def _send(
    one: Round,
    situation: str,
    address: str,
    sent: Sequence[Path],
    clients: int,
    show: Callable[[str], None],
    number: int,
) -> list[str]:
    """Send clips from so many callers, and note how long they take; returns their texts."""
    show(f"round {number + 1}: {situation}")
    with _client(address) as client, ThreadPoolExecutor(clients) as callers:

        def send(clip: Path) -> tuple[str, float]:
            began = time.monotonic()
            text = _text(client, clip)
            return text, time.monotonic() - began

        began = time.monotonic()
        answers = list(callers.map(send, sent))
        one.elapsed[situation] = time.monotonic() - began
    one.latencies[situation] = [seconds for _, seconds in answers]
    return [text for text, _ in answers]


def _client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE, max_retries=0)


def _text(client: openai.OpenAI, clip: Path) -> str:
    try:
        with clip.open("rb") as file:
            return client.audio.transcriptions.create(file=file, model=_MODEL).text
    except openai.OpenAIError as error:
        raise DeviceError(f"the server refused {clip.name}: {error}") from error


@contextmanager
def _long_work(address: str, long: Path) -> Iterator[None]:
    """Let the server transcribe a long recording during a block, whose caller then leaves."""
    with _client(address) as client, long.open("rb") as file:
        answer = client.audio.transcriptions.create(file=file, model=_MODEL, stream=True)
        failures: list[BaseException] = []

        def read() -> None:
            try:
                for _ in answer:
                    pass
            except Exception as error:  # the end of the block closes the connection
                failures.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        time.sleep(_SETTLED)
        if failures or not reader.is_alive():
            raise DeviceError(f"the long recording ended early: {failures or 'it is too short'}")
        try:
            yield
            if not reader.is_alive():
                raise DeviceError("the long recording ended before the others: give a longer one")
        finally:
            answer.close()
            reader.join(PATIENCE)
