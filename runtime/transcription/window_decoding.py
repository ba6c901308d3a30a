"""Encodes and decodes windows, of one recording or of several, as one batch.

Short windows are encoded short ("elastic"): the audio and a few seconds of silence behind it. Where
windows of different lengths share a batch, what is missing to a whole window is filled with what
the encoder makes of silence, so that a row never depends on its neighbours.
A recording of one window is filled up less where it is decoded by itself, which is a tenth faster:
its text may differ in a word there.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.decoding.fallback import Outcome, decode_with_fallback
from whisper_npu.runtime.decoding.loop_detection import says_twice, spoken_length
from whisper_npu.runtime.decoding.unheard import Stretch
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.results import Retry
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import partial_reporter

if TYPE_CHECKING:
    from whisper_npu.runtime.transcription.session import Job

logger = logging.getLogger("whisper_npu")

# Frames of silence encoded behind a window shorter than the encoder's. With 3 s the decoder knows
# where the audio ends, and tiny models want no more; base hears a little better with 4, and larger
# models are taken to be like it (docs/accuracy.md).
_MARGIN, _MARGIN_OF_TINY = 4 * FRAMES_PER_SECOND, 3 * FRAMES_PER_SECOND
_TINY = 384  # elements of a tiny model's states

_HURRIED_SPEECH = 20  # letters in a second; audio books have about 15

# Frames to a multiple of which windows decoded together are filled up with silence: fewer
# lengths, larger batches.
_CLASS = 10 * FRAMES_PER_SECOND


@dataclass(eq=False)
class Task:
    """A window to be decoded.

    Attributes:
        job: the transcription it belongs to.
        window: where it is in the recording.
        features: float32 `(n_mels, frames)`, the window with silence behind it.
        wanted: how to decode it.
        prompt: tokens of the text before it, the user's prompt included.
        reach: seconds into the window that its text must reach: there is speech up to there.
        speech: where the detector hears speech in the window, in seconds from its start.
        continued: whether what is left behind its text is decoded as another window.
        shares: whether it shares its batch with windows of other lengths.
        divisible: whether it is decoded in parts where its text is a loop or leaves out speech.
        encoded: the features encoded, where that has been done, or begun, already; used up when
            the window is decoded.
        encoding: how long it took to encode them ahead.
    """

    job: "Job"
    window: Window
    features: Float32Array
    wanted: DecodingOptions
    prompt: tuple[int, ...] = ()
    reach: float = 0.0
    speech: tuple[Stretch, ...] = ()
    continued: bool = False
    shares: bool = False
    divisible: bool = False
    encoded: "Future[Float32Array] | None" = None
    encoding: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True)
class Heard:
    """A window that has been decoded.

    Attributes:
        window: where it is in the recording.
        outcome: what was decoded.
        audio: the window encoded, float32 `(1, n_audio_ctx, n_audio_state)`; None where words are
            not timed.
    """

    window: Window
    outcome: Outcome
    audio: Float32Array | None

    def after(self, retries: Sequence[Retry]) -> "Heard":
        """The same, of a window that was tried before."""
        every = (*retries, *self.outcome.retries)
        return replace(self, outcome=replace(self.outcome, retries=every))


def is_tiny(n_audio_state: int | None) -> bool:
    """Whether a model is one of the tiny ones, by the elements of its encoder's states."""
    return n_audio_state is not None and n_audio_state <= _TINY


def frames_to_encode(n_frames: int, choices: Sequence[int], n_audio_state: int | None) -> int:
    """Frames to encode of a window of `n_frames`: with silence behind them, one of `choices`.

    Args:
        n_frames: frames of audio.
        choices: what the encoder takes, the fewest first.
        n_audio_state: elements of its states, if that is known.
    """
    wanted = n_frames + (_MARGIN_OF_TINY if is_tiny(n_audio_state) else _MARGIN)
    return next((n for n in choices if n >= wanted), choices[-1])


def hear(tasks: Sequence[Task], backend: Backend, times: StageTimes) -> list[Heard]:
    """Decode windows together; the tasks share their transcription options.

    What looks wrong in a window that was encoded short is heard again as a whole window, before
    any higher temperature is tried.

    Args:
        tasks: of any number of recordings.
        backend: the model.
        times: where stage times are added.

    Returns:
        one result per task.

    Raises:
        AbandonedError: nobody wants any of them any more.
    """
    heard: list[Heard | None] = [None] * len(tasks)
    whole = backend.window_frames[-1]
    groups: dict[int, list[int]] = {}
    for place, task in enumerate(tasks):
        frames = whole if task.shares else task.features.shape[1]
        if len(tasks) > 1:
            frames = min(whole, -(-frames // _CLASS) * _CLASS)
        groups.setdefault(frames, []).append(place)
    for frames, places in groups.items():
        mine = [tasks[place] for place in places]
        for place, result in zip(places, _hear_alike(mine, frames, backend, times), strict=True):
            heard[place] = result
    return [result for result in heard if result is not None]


def encode_ahead(task: Task, backend: Backend, pool: Executor) -> None:
    """Have a stream encode a task's features while others are planned, if none does already."""

    def encode() -> Float32Array:
        streams = backend.in_streams()
        with task.encoding.measure("encoder"):
            encoded = streams.encode(task.features[None])
        task.job.progress.encoded_to(task.window.end_time)
        return encoded

    if task.encoded is None:
        task.encoded = pool.submit(encode)


def _hear_alike(
    tasks: Sequence[Task], frames: int, backend: Backend, times: StageTimes
) -> list[Heard]:
    """Decode windows that are given the same number of frames."""
    whole = backend.window_frames[-1]
    temperatures = tasks[0].job.options.temperature
    is_short = [task.features.shape[1] < whole for task in tasks]
    if not any(is_short):
        return _decode(tasks, frames, backend, times, temperatures)
    heard = _decode(tasks, frames, backend, times, temperatures[:1])
    heard = [
        _doubted(one, task) if short else one
        for one, task, short in zip(heard, tasks, is_short, strict=True)
    ]
    flawed = [
        place
        for place, one in enumerate(heard)
        if one.outcome.flaw is not None and not (one.outcome.in_parts and one.outcome.leaves_out)
    ]
    if not flawed:
        return heard
    wholes = [_as_whole(tasks[place], whole) for place in flawed]
    again = _decode(wholes, whole, backend, times, temperatures)
    for place, one in zip(flawed, again, strict=True):
        # A window that was whole has only been decoded the same way once more.
        heard[place] = one.after(heard[place].outcome.retries if is_short[place] else ())
    return heard


def _doubted(heard: Heard, task: Task) -> Heard:
    """A window that was encoded short, its text called flawed where it is twice what was said.

    Not hearing where the audio ends, the decoder at times says the last sentence again. As a whole
    window the same audio comes out right.
    """
    outcome, seconds = heard.outcome, heard.window.n_frames / FRAMES_PER_SECOND
    text = [token for token in outcome.decoded.tokens if token < task.job.tokenizer.special.eot]
    if (
        outcome.flaw is not None
        or outcome.is_silence
        or task.job.options.compression_ratio_threshold is None  # repetitions are not looked for
        or spoken_length(outcome.decoded.text) <= _HURRIED_SPEECH * seconds
        or not says_twice(text)
    ):
        return heard
    flaw = f"a phrase is said twice, all of it in {seconds:.2f} s"
    logger.debug("heard again as a whole window: %s", flaw)
    retries = (*outcome.retries, Retry(outcome.decoded.temperature, flaw))
    return replace(heard, outcome=replace(outcome, flaw=flaw, retries=retries))


def _as_whole(task: Task, frames: int) -> Task:
    """The same window followed by silence up to `frames`."""
    missing = frames - task.features.shape[1]
    if missing == 0:
        return task
    # The silence behind a short window is the quietest there is in it.
    padded = np.pad(task.features, ((0, 0), (0, missing)), constant_values=task.features.min())
    return replace(task, features=padded, encoded=None)


def _decode(
    tasks: Sequence[Task],
    frames: int,
    backend: Backend,
    times: StageTimes,
    temperatures: Sequence[float],
) -> list[Heard]:
    """Decode windows once, all against encoded audio of `frames // 2` positions."""
    with times.measure("encoder"):
        audio = _encode(tasks, frames, backend)
    heard: dict[int, Heard] = {}
    kinds = [(task.wanted, len(task.prompt)) for task in tasks]
    for kind in dict.fromkeys(kinds):
        decoding, _ = kind
        places = [place for place, one in enumerate(kinds) if one == kind]
        job = tasks[places[0]].job
        outcomes = decode_with_fallback(
            backend,
            job.tokenizer,
            job.vocabulary,
            audio if len(places) == len(tasks) else audio[places],
            [tasks[place].window.start for place in places],
            decoding,
            replace(job.options, temperature=temperatures),
            times,
            prompts=[tasks[place].prompt for place in places],
            reach=[tasks[place].reach for place in places],
            n_frames=[tasks[place].window.n_frames for place in places],
            speech=[tasks[place].speech for place in places],
            continued=[tasks[place].continued for place in places],
            divisible=[tasks[place].divisible for place in places],
            on_tokens=partial_reporter(
                job.tokenizer,
                [tasks[place].window for place in places],
                [tasks[place].job.reports for place in places],
            ),
        )
        for place, outcome in zip(places, outcomes, strict=True):
            kept = audio[place : place + 1] if job.options.word_timestamps else None
            heard[place] = Heard(tasks[place].window, outcome, kept)
    return [heard[place] for place in range(len(tasks))]


def _encode(tasks: Sequence[Task], frames: int, backend: Backend) -> Float32Array:
    """The windows encoded, each as long as its features, silence behind it up to `frames`."""
    n_positions = frames // 2
    audio: Float32Array | None = None
    for number, task in enumerate(tasks):
        if task.encoded is None:
            part = backend.encode(task.features[None])[0]
        else:
            part, task.encoded = task.encoded.result()[0], None
        if audio is None:
            audio = np.empty((len(tasks), n_positions, part.shape[1]), np.float32)
        task.job.progress.encoded_to(task.window.end_time)
        audio[number, : len(part)] = part
        if len(part) < n_positions:
            audio[number, len(part) :] = backend.silence()[0, len(part) : n_positions]
    if audio is None:
        raise ValueError("no window to encode")
    return audio
