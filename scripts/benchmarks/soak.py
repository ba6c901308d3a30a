"""Uses files, live speech and the server together for hours, and watches two processes.

`library` transcribes files and live speech with the Python API; `server` is `whisper-npu serve`
with callers of its own. Neither may take more memory, handles or threads at the end than after its
first part, and a recording's text must always be the same.
"""

import base64
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openai
import psutil
from websockets.sync.client import connect

from whisper_npu.errors import AudioError, DeviceError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio
from whisper_npu.scripts.benchmarks.served import PATIENCE, serving

_LIVE_BLOCK = SAMPLE_RATE // 2  # samples that live speech arrives in
_COMPLETED = "conversation.item.input_audio_transcription.completed"
_HTTP_CALLERS = 2
LIBRARY, SERVER = "library", "server"


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process and its children hold at one moment.

    Attributes:
        seconds: since the start.
        memory: resident, in bytes.
        handles: open files and sockets.
        threads: their number.
    """

    seconds: float
    memory: int
    handles: int
    threads: int


@dataclass
class Tally:
    """What was done, and what went wrong. Safe for any number of threads.

    Attributes:
        done: the number of results by kind of work.
        faults: one line each.
    """

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    _texts: dict[tuple[str, str], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, recording: str, text: str) -> None:
        """Note a result; another text than the first of its kind and recording is a fault."""
        with self._lock:
            self.done[kind] += 1
            first = self._texts.setdefault((kind, recording), text)
            if text != first:
                self.faults.append(f"{kind}: {recording}: {text!r} instead of {first!r}")

    def fail(self, kind: str, error: BaseException) -> None:
        """Note a failure."""
        with self._lock:
            self.faults.append(f"{kind}: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Growth:
    """How much more a process held in the last quarter of its samples than in the second.

    Attributes:
        memory: as a share, of the medians.
        handles: by the medians.
        threads: by the medians.
    """

    memory: float
    handles: float
    threads: float


def growth(samples: Sequence[Sample]) -> Growth:
    """Compare the last quarter of samples with the second; the first is left to warm up."""
    quarter = max(1, len(samples) // 4)
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]

    def median(part: Sequence[Sample], name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in part))

    def more(name: str) -> float:
        return median(after, name) - median(before, name)

    return Growth(more("memory") / median(before, "memory"), more("handles"), more("threads"))


def use_library(model: str, files: Sequence[str], seconds: float) -> None:
    """Transcribe files together, one by one and as live speech; runs in a process of its own.

    Prints one line of JSON for each result: kind, recording and text.
    """
    from whisper_npu import Committed, LiveTranscriber, load_model  # noqa: PLC0415 - in the watched process

    def tell(kind: str, recording: str, text: str) -> None:
        print(json.dumps([kind, recording, text]), flush=True)

    until = time.monotonic() + seconds
    with load_model(model) as loaded:
        while time.monotonic() < until:
            for file, stream in zip(files, loaded.transcribe_all(files), strict=True):
                if isinstance(stream, AudioError):
                    raise stream
                tell("files together", file, stream.text)
            for file in files:
                result = loaded.transcribe(file, word_timestamps=True).result()
                tell("words of a file", file, result.text)
            for file in files:
                audio = load_audio(Path(file))
                with LiveTranscriber(loaded) as live:
                    updates = [
                        update
                        for start in range(0, len(audio), _LIVE_BLOCK)
                        for update in live.feed(audio[start : start + _LIVE_BLOCK])
                    ]
                    updates += live.finish()
                texts = [update.text for update in updates if isinstance(update, Committed)]
                tell("live speech", file, "".join(texts))


def soak(
    model: str,
    files: Sequence[str],
    seconds: float,
    interval: float,
    show: Callable[[str, Sample], None],
) -> tuple[dict[str, list[Sample]], Tally]:
    """Use everything for some time.

    Args:
        model: a model folder.
        files: recordings.
        seconds: how long.
        interval: seconds between two samples.
        show: called with each sample and the name of its process.

    Returns:
        the samples of each process, in order, and what was done.

    Raises:
        DeviceError: a process ended early.
    """
    tally = Tally()
    samples: dict[str, list[Sample]] = {LIBRARY: [], SERVER: []}
    with ExitStack() as stack:
        server, address = stack.enter_context(serving(model))
        library = stack.enter_context(_library(model, files, seconds, tally))
        stop = stack.enter_context(_callers(address, files, tally))
        start = time.monotonic()
        while (now := time.monotonic() - start) < seconds:
            stop.wait(min(interval, seconds - now))
            for name, process in ((LIBRARY, library), (SERVER, server)):
                if process.poll() is not None and time.monotonic() - start < seconds:
                    raise DeviceError(f"the {name} ended early, with {process.returncode}")
                sample = _sample(process.pid, time.monotonic() - start)
                if sample is not None:
                    samples[name].append(sample)
                    show(name, sample)
    return samples, tally


def _sample(pid: int, seconds: float) -> Sample | None:
    """What a process and its children hold; None if it has just ended."""
    memory = handles = threads = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with each.oneshot():
                memory += each.memory_info().rss
                handles += each.num_fds() if hasattr(each, "num_fds") else each.num_handles()
                threads += each.num_threads()
    except psutil.NoSuchProcess:
        return None
    return Sample(seconds, memory, handles, threads)


@contextmanager
def _library(
    model: str, files: Sequence[str], seconds: float, tally: Tally
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `use_library`; its results go to the tally."""
    program = (
        "import json, sys; from whisper_npu.scripts.benchmarks.soak import use_library; "
        "use_library(*json.loads(sys.argv[1]))"
    )
    # Longer than needed, so that it is at work at the last sample.
    arguments = json.dumps([model, list(files), seconds + PATIENCE])
    command = [sys.executable, "-c", program, arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                tally.note(*json.loads(line))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process
        finally:
            process.kill()
            reader.join()


@contextmanager
def _callers(address: str, files: Sequence[str], tally: Tally) -> Iterator[threading.Event]:
    """Callers of the server, each in a thread, until the end of the block."""
    stop = threading.Event()

    def repeat(kind: str, call: Callable[[str], str]) -> None:
        while not stop.is_set():
            for file in files:
                if stop.is_set():
                    return
                try:
                    tally.note(kind, file, call(file))
                except Exception as error:  # a fault to count, whatever it is
                    tally.fail(kind, error)
                    stop.wait(1.0)

    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE) as client:

        def request(file: str) -> str:
            with Path(file).open("rb") as recording:
                return client.audio.transcriptions.create(file=recording, model="whisper-1").text

        work = [("request", request)] * _HTTP_CALLERS
        work.append(("live session", lambda file: _speak(address, load_audio(Path(file)))))
        threads = [threading.Thread(target=repeat, args=each) for each in work]
        for thread in threads:
            thread.start()
        try:
            yield stop
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def _speak(address: str, audio: np.ndarray) -> str:
    """Send a recording to `/v1/realtime` as one turn; returns its text."""
    pcm = (np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes()
    where = f"{address.replace('http', 'ws', 1)}/v1/realtime?intent=transcription"
    audio_settings = {
        "format": {"type": "audio/pcm", "rate": SAMPLE_RATE},
        "turn_detection": None,
    }
    session = {"type": "transcription", "audio": {"input": audio_settings}}
    with connect(where) as connection:
        for event in (
            {"type": "session.update", "session": session},
            {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()},
            {"type": "input_audio_buffer.commit"},
        ):
            connection.send(json.dumps(event))
        while True:
            event = json.loads(connection.recv(timeout=PATIENCE))
            if event["type"] == _COMPLETED:
                return str(event["transcript"])
            if event["type"] == "error" or event["type"].endswith(".failed"):
                raise DeviceError(str(event["error"]))
