"""Encodes and decodes windows of one or several recordings as one batch.

Short windows are encoded short ("elastic"): the audio and a few seconds of silence after it. In a
batch of different lengths, short windows are padded with encoded silence, so that a row never
depends on its neighbours. The padded length is a property of the request, so that its text is the
same in any batch. A recording transcribed alone is padded less, which is a tenth faster: its text
may differ in a word from the same recording among others.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

import numpy as np

from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.decoding.fallback import Outcome, decode_with_fallback
from whisper_npu.runtime.decoding.quality import Action
from whisper_npu.runtime.engines.protocol import Backend, Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Stretch, Window
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Retry
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import Reports, partial_reporter
from whisper_npu.runtime.transcription.progress import Progress

# Frames of silence encoded after a window shorter than the encoder's. With 3 s the decoder knows
# where the audio ends, which is enough for tiny models. Base is a little more accurate with 4 s,
# and larger models are assumed to be like base (docs/accuracy.md).
_MARGIN, _MARGIN_OF_TINY = 4 * FRAMES_PER_SECOND, 3 * FRAMES_PER_SECOND
_TINY = 384  # elements of a tiny model's states

# The windows of many recordings are padded to a multiple of so many frames: fewer lengths make
# larger batches.
_CLASS = 10 * FRAMES_PER_SECOND

# Options that windows decoded together have in common: all except options that are in each request
# (its tokens, prompt and audio), and options that are read before or after decoding.
_NOT_IN_COMMON = {
    *("language", "languages", "multilingual", "initial_prompt", "hotwords", "prefix"),
    *("condition_on_previous_text", "batch_size", "audio_track", "channels", "mode"),
    *("vad", "vad_threshold", "vad_min_silence", "part"),
}
_IN_COMMON = [each.name for each in fields(TranscribeOptions) if each.name not in _NOT_IN_COMMON]


MakeWay = Callable[[], None]
"""Called now and then while windows are decoded, so that more urgent ones may go first."""


class Caller(Protocol):
    """The transcription that a window belongs to: the part of its session that decoding needs."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's."""
        ...

    @property
    def options(self) -> TranscribeOptions:
        """How to transcribe."""
        ...

    @property
    def reports(self) -> Reports | None:
        """Takes the text after each decoding step; None: no reports."""
        ...

    @property
    def progress(self) -> Progress:
        """Seconds of the recording encoded and decoded so far."""
        ...

    @property
    def times(self) -> StageTimes:
        """Where the time went."""
        ...

    @property
    def is_wanted(self) -> bool:
        """Whether a caller waits for its windows; once False, it stays False."""
        ...


@dataclass(eq=False)
class WindowRequest:
    """A window to be decoded.

    Attributes:
        caller: the transcription it belongs to.
        window: its place in the recording.
        features: float32 `(n_mels, frames)`, the window with silence after it.
        decoding_options: how to decode it.
        prompt: tokens of the text before it, the user's prompt included.
        min_end_time: seconds into the window that its text must reach; there is speech up to it.
        speech: where the detector finds speech in the window, in seconds from its start.
        continued: whether the rest after its text is decoded as another window.
        pad_to_full: whether it is padded to a whole window, to share a batch with other lengths.
        pad_to_class: whether it is padded to a multiple of 10 s, to share a batch with similar
            lengths.
        splittable: whether it is decoded in parts if its text is a loop or leaves out speech.
        encoded: the encoded features, if encoding ahead has started; decoding uses them up.
        encoding: stage times of encoding ahead.
    """

    caller: Caller
    window: Window
    features: Float32Array
    decoding_options: DecodingOptions
    prompt: tuple[int, ...] = ()
    min_end_time: float = 0.0
    speech: tuple[Stretch, ...] = ()
    continued: bool = False
    pad_to_full: bool = False
    pad_to_class: bool = False
    splittable: bool = False
    encoded: "Future[Float32Array] | None" = None
    encoding: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True)
class WindowResult:
    """A window that has been decoded.

    Attributes:
        window: its place in the recording.
        outcome: the decoded text and its verdict.
        audio: the encoded window, float32 `(1, n_audio_ctx, n_audio_state)`; None if words are not
            timed and no pause is left out.
    """

    window: Window
    outcome: Outcome
    audio: Float32Array | None

    def after(self, retries: Sequence[Retry]) -> "WindowResult":
        """The same result, with earlier retries before its own."""
        every = (*retries, *self.outcome.retries)
        return replace(self, outcome=replace(self.outcome, retries=every))


def is_tiny(n_audio_state: int | None) -> bool:
    """Whether a model is one of the tiny ones, by the elements of its encoder's states."""
    return n_audio_state is not None and n_audio_state <= _TINY


def frames_to_encode(n_frames: int, choices: Sequence[int], n_audio_state: int | None) -> int:
    """The length in frames to encode a window at, with silence after its audio.

    Args:
        n_frames: frames of audio in the window.
        choices: lengths that the encoder takes, the shortest first.
        n_audio_state: elements of the encoder's states, if known.
    """
    wanted = n_frames + (_MARGIN_OF_TINY if is_tiny(n_audio_state) else _MARGIN)
    return next((n for n in choices if n >= wanted), choices[-1])


def decode_requests(
    requests: Sequence[WindowRequest],
    backend: Backend,
    times: StageTimes,
    make_way: MakeWay | None = None,
) -> list[WindowResult]:
    """Decode windows together; the requests share their transcription options.

    A window that was encoded short is decoded again as a whole window if the judge wants it, before
    any higher temperature is tried.

    Args:
        requests: requests of any number of recordings.
        backend: the model.
        times: where stage times are added.
        make_way: called before each encoding and after each step; returns when this work may go on.

    Returns:
        one result per request; if its caller stopped waiting, the text may be incomplete.
    """
    results: dict[int, WindowResult] = {}
    whole = backend.window_frames[-1]
    groups: dict[int, list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(_padded(request, whole), []).append(place)
    for frames, places in groups.items():
        mine = [requests[place] for place in places]
        found = _decode_alike(mine, frames, backend, times, make_way)
        results.update(zip(places, found, strict=True))
    return [results[place] for place in range(len(requests))]


def can_share(
    requests: Sequence[WindowRequest], others: Sequence[WindowRequest], whole: int
) -> bool:
    """Whether windows of another caller may join a batch.

    They need the same padded lengths, equally long prompts and the same options.

    Args:
        requests: windows of one caller that are decoded together.
        others: windows of another caller.
        whole: frames in a whole window.
    """

    def shapes(each: Sequence[WindowRequest]) -> set[tuple[int, int, DecodingOptions]]:
        return {(_padded(one, whole), len(one.prompt), one.decoding_options) for one in each}

    options, *further = (one.caller.options for one in (*requests, *others))
    return shapes(others) <= shapes(requests) and all(
        getattr(options, name) == getattr(one, name) for one in further for name in _IN_COMMON
    )


def _padded(request: WindowRequest, whole: int) -> int:
    """The frames that a window is padded to, so that it can share a batch."""
    if request.pad_to_full:
        return whole
    frames = int(request.features.shape[1])
    return min(whole, -(-frames // _CLASS) * _CLASS) if request.pad_to_class else frames


def encode_ahead(request: WindowRequest, backend: Backend, pool: Executor) -> None:
    """Let a stream encode a request's features while others are planned, unless one does."""

    def encode() -> Float32Array:
        streams = backend.parallel()
        if not request.caller.is_wanted:
            return streams.silence()
        with request.encoding.measure("encoder"):
            encoded = streams.encode(request.features[None])
        request.caller.progress.encoded_to(request.window.end_time)
        return encoded

    if request.encoded is None:
        request.encoded = pool.submit(encode)


def _decode_alike(
    requests: Sequence[WindowRequest],
    frames: int,
    backend: Backend,
    times: StageTimes,
    make_way: MakeWay | None,
) -> list[WindowResult]:
    """Decode windows that are padded to the same number of frames."""
    whole = backend.window_frames[-1]
    temperatures = requests[0].caller.options.temperature
    is_short = [request.features.shape[1] < whole for request in requests]
    if not any(is_short):
        return _decode(requests, frames, backend, times, temperatures, make_way)
    first = temperatures[:1]
    result = _decode(requests, frames, backend, times, first, make_way, encoded_short=is_short)
    flawed = [
        place
        for place, one in enumerate(result)
        if one.outcome.verdict.action is Action.ENCODE_WHOLE
    ]
    if not flawed:
        return result
    wholes = [_as_whole(requests[place], whole) for place in flawed]
    again = _decode(wholes, whole, backend, times, temperatures, make_way)
    for place, one in zip(flawed, again, strict=True):
        # A whole window was only decoded in the same way again: its retries would appear twice.
        result[place] = one.after(result[place].outcome.retries if is_short[place] else ())
    return result


def _as_whole(request: WindowRequest, frames: int) -> WindowRequest:
    """The same window followed by silence up to `frames`."""
    missing = frames - request.features.shape[1]
    if missing == 0:
        return request
    # The silence after a short window has the lowest feature value in it.
    padded = np.pad(
        request.features, ((0, 0), (0, missing)), constant_values=request.features.min()
    )
    return replace(request, features=padded, encoded=None)


def _decode(
    requests: Sequence[WindowRequest],
    frames: int,
    backend: Backend,
    times: StageTimes,
    temperatures: Sequence[float],
    make_way: MakeWay | None,
    *,
    encoded_short: Sequence[bool] = (),
) -> list[WindowResult]:
    """Decode windows, all against encoded audio of `frames // 2` positions.

    `encoded_short` tells for each window whether it is shorter than a whole window; by default none
    is.
    """
    with times.measure("encoder"):
        audio = _encode(requests, frames, backend, make_way)
    result: dict[int, WindowResult] = {}
    kinds = [(request.decoding_options, len(request.prompt)) for request in requests]
    for kind in dict.fromkeys(kinds):
        decoding, _ = kind
        places = [place for place, one in enumerate(kinds) if one == kind]
        session = requests[places[0]].caller
        outcomes = decode_with_fallback(
            backend,
            session.tokenizer,
            session.vocabulary,
            audio if len(places) == len(requests) else audio[places],
            [requests[place].window.start for place in places],
            decoding,
            replace(session.options, temperature=temperatures),
            times,
            prompts=[requests[place].prompt for place in places],
            min_end_time=[requests[place].min_end_time for place in places],
            n_frames=[requests[place].window.n_frames for place in places],
            speech=[requests[place].speech for place in places],
            continued=[requests[place].continued for place in places],
            splittable=[requests[place].splittable for place in places],
            encoded_short=[encoded_short[place] for place in places] if encoded_short else (),
            can_encode_whole=any(encoded_short),
            on_tokens=partial_reporter(
                session.tokenizer,
                [requests[place].window for place in places],
                [requests[place].caller.reports for place in places],
            ),
            is_wanted=_is_wanted([requests[place].caller for place in places]),
            make_way=make_way,
        )
        for place, outcome in zip(places, outcomes, strict=True):
            window = requests[place].window
            is_aligned = session.options.word_timestamps or window.pauses
            kept = audio[place : place + 1] if is_aligned else None
            result[place] = WindowResult(window, outcome, kept)
    return [result[place] for place in range(len(requests))]


def _is_wanted(callers: Sequence[Caller]) -> Callable[[int], bool]:
    """A function that tells by a window's number whether its caller still waits for it."""
    return lambda number: callers[number].is_wanted


def _encode(
    requests: Sequence[WindowRequest], frames: int, backend: Backend, make_way: MakeWay | None
) -> Float32Array:
    """The encoded windows, each as long as its features and padded with silence to `frames`."""
    n_positions = frames // 2
    audio: Float32Array | None = None
    for number, request in enumerate(requests):
        if make_way is not None:
            make_way()
        if not request.caller.is_wanted:  # its text will not be read
            part, request.encoded = backend.silence()[0, :n_positions], None
        elif request.encoded is None:
            part = backend.encode(request.features[None])[0]
        else:
            part, request.encoded = request.encoded.result()[0], None
        if audio is None:
            audio = np.empty((len(requests), n_positions, part.shape[1]), np.float32)
        request.caller.progress.encoded_to(request.window.end_time)
        audio[number, : len(part)] = part
        if len(part) < n_positions:
            audio[number, len(part) :] = backend.silence()[0, len(part) : n_positions]
    if audio is None:
        raise ValueError("no window to encode")
    return audio
