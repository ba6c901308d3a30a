"""Transcribes live speech: commits final text as early as it is safe.

The audio since the last cut, at most one encoder window, is decoded again and again as it grows.
Words that two decodings in a row agree on are committed (`local_agreement.py`) and never change:
later decodings go on from them. A pause commits the rest. Audio with committed text is released at
a pause, or at the latest when the window is full, so that neither memory nor latency grow with the
length of the session.

Text is decoded without timestamps. Near the end of the audio, timestamps are wrong by seconds, even
beyond the end. Timestamps never go back, so a committed timestamp that is too late would exclude
all speech before it.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Unpack

import numpy as np

from whisper_npu.errors import AudioError, AudioInputError, UsageError
from whisper_npu.runtime.audio.array_audio import SupportsArray, as_array, as_floats
from whisper_npu.runtime.closing import Closing
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND, HOP_LENGTH, SILENCE
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.features.vad import SpeechMap
from whisper_npu.runtime.features.windows import (
    LONG_PAUSE,
    LOOK_AHEAD,
    PAD,
    Window,
)
from whisper_npu.runtime.options import NOT_LIVE, TranscribeKwargs, TranscribeOptions
from whisper_npu.runtime.text.prompts import CONTEXT_TEMPERATURE
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.language import SpokenLanguage
from whisper_npu.runtime.transcription.local_agreement import TimedWord, agreed, timed_words
from whisper_npu.runtime.transcription.model import WhisperModel, new_session
from whisper_npu.runtime.transcription.session import TranscriptionSession

_PADDING = round(PAD * FRAMES_PER_SECOND)
# Words at the end of an agreement that wait for another decoding: their audio may be incomplete.
_HELD_BACK = 1
_TAIL = round(0.2 * FRAMES_PER_SECOND)  # audio after speech that shows that the last word has ended
_LARGEST_SAMPLE = 1e9  # larger values are garbage, and would overflow in the spectrogram


@dataclass(frozen=True, slots=True)
class Committed:
    """Words that will not change any more. The text of a session is all committed words, joined.

    Attributes:
        start: Seconds from the start of the session; the words begin about here.
        end: Seconds from the start of the session by which the words have ended.
        text: The words, their leading space included.
        language: Code of their language.
        flaw: What looks wrong with the words after the last temperature; None if nothing does.
    """

    start: float
    end: float
    text: str
    language: str
    flaw: str | None = None


@dataclass(frozen=True, slots=True)
class Tentative:
    """The words after the last committed words, as decoded last. Replaces the last `Tentative`.

    Attributes:
        start: Seconds from the start of the session.
        end: Seconds from the start of the session up to which the audio is decoded.
        text: The words, their leading space included; empty once there are none.
    """

    start: float
    end: float
    text: str


LiveUpdate = Committed | Tentative


@dataclass(frozen=True)
class _Speech:
    """The first speech in the buffer, in frames.

    Attributes:
        start: where it begins.
        end: where it ends in the audio so far.
        paused: a pause follows.
        over: a long pause follows, or the end of the session.
    """

    start: int
    end: int
    paused: bool
    over: bool


@dataclass(frozen=True)
class _Hypothesis:
    """The result of decoding the buffer.

    Attributes:
        end: frame up to which the buffer was decoded.
        tokens: all tokens, committed tokens included.
        words: the words after the committed words.
        since: for each of `words`, the end of the audio, as a frame, when the word was first
            decoded; the word had ended by then.
        language: code of the language.
        spoken: the language state.
        temperature: temperature of the attempt.
        flaw: what looks wrong with the text.
    """

    end: int
    tokens: tuple[int, ...]
    words: tuple[TimedWord, ...]
    since: tuple[int, ...]
    language: str
    spoken: SpokenLanguage
    temperature: float
    flaw: str | None

    @property
    def text(self) -> str:
        return "".join(word.text for word in self.words)


class LiveTranscriber(Closing):
    """One session of live speech. Not for use by several threads at once.

    As a context manager it is closed at the end of the block; call `finish` before, for the text
    that is left.

    Give `feed` all audio that has arrived since the last call. It decodes the audio once, or once
    for every full window. So if decoding is slower than speech, it decodes less often, and the
    delay does not grow.
    """

    def __init__(
        self,
        model: WhisperModel,
        options: TranscribeOptions | None = None,
        *,
        min_chunk: float = 1.0,
        pause: float = 0.5,
        trim_after: float = 25.0,
        **changes: Unpack[TranscribeKwargs],
    ) -> None:
        """Decode nothing yet.

        Args:
            model: the model; sessions on the same model are independent.
            options: how to transcribe. With `vad=False` there are no pauses.
            min_chunk: seconds of new audio between two decodings.
            pause: seconds without speech after which everything is committed.
            trim_after: from this length of audio, in seconds, a pause releases all of it.
            changes: options by name, over those in `options`.

        Raises:
            UsageError: an option is unknown, out of range or means nothing for live speech, or
                `model` is no loaded model.
        """
        if not isinstance(model, WhisperModel):
            raise UsageError(
                f"model is of type {type(model).__name__}; give a loaded model: "
                'LiveTranscriber(load_model("tiny.en"))'
            )
        options = model.resolve(options, **changes)
        self._model = model
        _refuse_what_is_not_live(options)
        self._capacity = model.backend.window_frames[-1]
        # Committed tokens share the decoder's context with the text before and after them.
        self._most_prefix_tokens = model.backend.n_text_ctx // 3
        window = self._capacity / FRAMES_PER_SECOND
        self._min_chunk = _frames("min_chunk", min_chunk, 0.1, window / 2)
        self._pause = _frames("pause", pause, 0.2, LONG_PAUSE)
        self._trim_after = _frames("trim_after", trim_after, min_chunk, window)
        options = replace(options, without_timestamps=True, unheard_speech_threshold=None)
        self._tokenizer = model.tokenizer
        self._scheduler = model.scheduler
        self._speech = None
        if options.vad:
            self._speech = SpeechMap(model.voice_activity.detector(), options.vad_threshold)
        self._long_pause = round((options.vad_min_silence or LONG_PAUSE) * FRAMES_PER_SECOND)
        self._session = _new_session(model, options, self._speech)
        self._features = self._session.features
        self._finished = False

        self._begin = 0  # first frame of the buffer
        self._decoded = 0  # frame up to which it has been decoded
        self._settled = 0  # frame up to which all speech is committed
        self._said = 0.0  # seconds at which the committed text ends
        self._prefix_tokens: tuple[int, ...] = ()  # committed tokens of the buffer
        # Places to cut the buffer: a number of committed tokens, and a frame by which they end.
        self._pieces: list[tuple[int, int]] = []
        self._context = self._session.prompts.initial  # tokens of the text before the buffer
        self._context_language: str | None = None
        self._poor_context = False
        self._spoken = self._session.language  # of the committed text
        self._hypothesis: _Hypothesis | None = None
        self._shown = ""  # tentative text

    def __repr__(self) -> str:
        """How much it has heard, and whether it goes on."""
        state = "finished" if self._finished else "open"
        return (
            f"<LiveTranscriber by {self._model.folder.name}, {state}: {self.duration:.1f} s heard>"
        )

    @property
    def duration(self) -> float:
        """Seconds of audio received."""
        return self._features.duration

    @property
    def times(self) -> StageTimes:
        """Where the time went, so far."""
        return self._session.times

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user, one line each: a prompt was cut, the language is doubtful."""
        return (*self._session.prompts.warnings, *self._spoken.warnings)

    def feed(self, samples: SupportsArray) -> list[LiveUpdate]:
        """Take more audio, and return the new text.

        Args:
            samples: any number of samples, an array `(n_samples,)`, mono at 16 kHz: floats in
                [-1, 1], int16, int32 or uint8.

        Returns:
            in order of time: committed text, and the tentative text after it if that changed.

        Raises:
            AudioError: the samples are no finite numbers.
            AudioInputError: the samples are no array, or have another shape or dtype.
            UsageError: the session is finished, or the model is closed.
        """
        if self._finished:
            raise UsageError("this live session is finished; make another LiveTranscriber")
        self._model.check_usable()
        rest = _as_float(samples)
        updates: list[LiveUpdate] = []
        while len(rest):
            room = (self._begin + self._capacity - self._features.n_ready) * HOP_LENGTH
            self._features.push(rest[:room])
            rest = rest[room:]
            updates += self._listen()
        return [*updates, *self._tentative()]

    def finish(self) -> list[LiveUpdate]:
        """Commit all text that is left, and end the session. A second call returns nothing."""
        if self._finished:
            return []
        self._model.check_usable()
        self._finished = True
        self._features.end()
        return [*self._listen(), *self._tentative()]

    def close(self) -> None:
        """End the session, and drop the text that is not committed. A second call does nothing.

        Afterwards `feed` raises a `UsageError`, and `finish` returns nothing.
        """
        self._finished = True

    def _listen(self) -> list[LiveUpdate]:
        """Decode if that is due, commit text that is final, release audio that is not needed."""
        updates: list[LiveUpdate] = []
        while speech := self._next_speech():
            if not self._prefix_tokens and self._hypothesis is None:
                self._begin = max(self._begin, speech.start - _PADDING)
            if not speech.paused:
                updates += self._agree(speech)
                break
            updates += self._settle(speech.end)
            if speech.over or self._settled - self._begin > self._trim_after:
                self._cut(self._settled, len(self._prefix_tokens))
            if not speech.over:
                break
        else:  # only silence, but speech may begin at its end
            keep = 0 if self._finished else round(LOOK_AHEAD * FRAMES_PER_SECOND)
            self._cut(max(self._begin, self._features.n_ready - keep), len(self._prefix_tokens))
        too_long = self._features.n_ready - self._begin >= self._capacity
        if too_long or len(self._prefix_tokens) > self._most_prefix_tokens:
            updates += self._make_room()
        return updates

    def _next_speech(self) -> _Speech | None:
        """The first speech in the buffer, up to a long pause.

        While the language may change, every pause is long: the speech after it may be in another.
        """
        heard = self._features.n_ready
        if self._speech is None:
            if self._features.peak(self._begin, heard - self._begin) < SILENCE:
                return None
            return _Speech(self._begin, heard, self._finished, self._finished)
        spans = self._spans(self._begin, heard)
        if not spans:
            return None
        long = self._pause if self._spoken.is_open else self._long_pause
        for (_, end), (following, _) in pairwise(spans):
            if following - end >= long:
                return _Speech(spans[0][0], end, paused=True, over=True)
        silence = heard - spans[-1][1]
        over = self._finished or silence >= long
        return _Speech(spans[0][0], spans[-1][1], over or silence >= self._pause, over)

    def _spans(self, start: int, end: int) -> list[tuple[int, int]]:
        """The speech between two frames; without a detector, all the audio."""
        if self._speech is None:
            return [(start, end)] if start < end else []
        spans = self._speech.spans(start / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND)
        return [
            (round(begin * FRAMES_PER_SECOND), min(end, round(stop * FRAMES_PER_SECOND)))
            for begin, stop in spans
        ]

    def _agree(self, speech: _Speech) -> list[LiveUpdate]:
        """Decode the buffer if that is due; commit the words that the last two decodings share."""
        heard = self._features.n_ready
        if heard - max(self._begin, self._decoded) < self._min_chunk or speech.end <= self._decoded:
            return []
        before, found = self._hypothesis, self._decode(heard, draft=True)
        self._hypothesis = None if found.flaw else found
        if before is None or found.flaw or found.spoken.is_guess:
            return []
        known = agreed(before.words, found.words)
        since = before.since[:known] + found.since[known:]
        count = max(0, known - _HELD_BACK)
        self._hypothesis = replace(found, words=found.words[count:], since=since[count:])
        if not count:
            return []
        first = len(self._prefix_tokens)
        tokens = found.tokens[: first + found.words[count - 1].stop]
        common = replace(found, tokens=tokens, words=found.words[:count])
        # Words first decoded together with a waiting word end before the same frame. So the audio
        # may be cut only before these words, and the end of the committed words is estimated.
        waiting = since[count]
        earlier = sum(frame < waiting for frame in since[:count])
        if earlier:
            self._pieces.append((first + found.words[earlier - 1].stop, since[earlier - 1]))
        together = since.count(waiting)
        said = max(self._said * FRAMES_PER_SECOND, since[earlier - 1] if earlier else 0)
        end = said + (waiting - said) * (count - earlier) / together
        return self._commit(common, round(end))

    def _settle(self, end: int) -> list[LiveUpdate]:
        """Commit all speech up to frame `end`, which a pause follows."""
        if end <= self._settled:
            return []
        heard_to = min(self._features.n_ready, end + _PADDING)
        found = self._hypothesis
        if found is None or found.end < min(heard_to, end + _TAIL):
            found = self._decode(heard_to, draft=False)
        self._hypothesis = None
        self._settled = heard_to
        if found.text.strip():
            self._pieces.append((len(found.tokens), end))
        return self._commit(found, end)

    def _decode(self, end: int, *, draft: bool) -> _Hypothesis:
        """Decode the buffer up to frame `end`; with `draft`, at the first temperature only."""
        session = replace(self._session, language=replace(self._spoken))
        if draft:
            first = session.options.temperature[:1]
            session = replace(session, options=replace(session.options, temperature=first))
        settled = self._spoken.code if self._prefix_tokens else None
        request = session.request(Window(self._begin, end), self._prefix_tokens, language=settled)
        fits = self._context_language in (None, request.decoding_options.language)
        request.prompt = session.prompts.before(
            self._context if fits else ()
        )  # after text in another language, the model would translate
        outcome = self._scheduler.decode_now(request).outcome
        self._decoded = max(self._decoded, end)
        tokens = self._prefix_tokens if outcome.is_silence else outcome.decoded.tokens
        words = timed_words(self._tokenizer, tokens[len(self._prefix_tokens) :], outcome.language)
        return _Hypothesis(
            end=end,
            tokens=tokens,
            words=tuple(words),
            since=(end,) * len(words),
            language=outcome.language,
            spoken=session.language,
            temperature=outcome.decoded.temperature,
            flaw=outcome.flaw,
        )

    def _commit(self, found: _Hypothesis, end: int) -> list[LiveUpdate]:
        """Make a hypothesis' words final; they end before frame `end`."""
        if not found.text.strip():
            return []
        self._prefix_tokens = found.tokens
        self._spoken = found.spoken
        self._poor_context |= found.temperature > CONTEXT_TEMPERATURE
        spans = self._spans(round(self._said * FRAMES_PER_SECOND), end)
        start = max(self._said, spans[0][0] / FRAMES_PER_SECOND) if spans else self._said
        self._said = max(start, (spans[-1][1] if spans else end) / FRAMES_PER_SECOND)
        return [Committed(start, self._said, found.text, found.language, found.flaw)]

    def _tentative(self) -> list[LiveUpdate]:
        """The tentative text, if it has changed."""
        found = self._hypothesis
        text = "" if found is None else found.text
        if text == self._shown:
            return []
        self._shown = text
        end = self.duration if found is None else found.end / FRAMES_PER_SECOND
        return [Tentative(self._said, max(self._said, end), text)]

    def _make_room(self) -> list[LiveUpdate]:
        """Release half of the committed audio; if none is committed, commit all up to a pause."""
        if self._pieces:
            half = len(self._prefix_tokens) / 2
            n_tokens, end = next((p for p in self._pieces if p[0] >= half), self._pieces[-1])
            self._cut(max(end, self._begin + 1), n_tokens)
            return []
        end = self._session.windows.best_cut(self._begin, self._features.n_ready)
        self._hypothesis = None
        updates = self._settle(end)
        self._cut(end, len(self._prefix_tokens))
        return updates

    def _cut(self, frame: int, n_tokens: int) -> None:
        """Begin the buffer at `frame`; its first `n_tokens` tokens become context."""
        if self._poor_context or self._session.options.condition_on_previous_text is False:
            self._context = ()
        elif n_tokens:
            before = self._context
            if self._context_language not in (None, self._spoken.code):
                before = ()
            text = (*before, *self._prefix_tokens[:n_tokens])
            self._context = text[-self._session.backend.n_text_ctx :]
            self._context_language = self._spoken.code
        self._prefix_tokens = self._prefix_tokens[n_tokens:]
        self._pieces = [(n - n_tokens, end) for n, end in self._pieces if n > n_tokens]
        found = self._hypothesis
        if found is not None:
            self._hypothesis = replace(found, tokens=found.tokens[n_tokens:])
        self._begin = frame
        self._features.forget(frame)
        if not self._prefix_tokens:
            self._poor_context = False


def _refuse_what_is_not_live(options: TranscribeOptions) -> None:
    usual = TranscribeOptions()
    for name in NOT_LIVE:
        if getattr(options, name) != getattr(usual, name):
            raise UsageError(f"{name} does not work with live speech; leave it out")


def _frames(name: str, seconds: float, least: float, most: float) -> int:
    if not least <= seconds <= most:
        raise UsageError(f"{name} is {seconds}; give seconds from {least:g} to {most:g}")
    return round(seconds * FRAMES_PER_SECOND)


def _new_session(
    model: WhisperModel, options: TranscribeOptions, speech: SpeechMap | None
) -> TranscriptionSession:
    times = StageTimes()
    features = FeatureStream(None, model.backend.n_mels, speech, times)
    return new_session(model, options, features, speech, times)


def _as_float(samples: SupportsArray) -> Float32Array:
    """A piece of audio as float32 samples."""
    if not isinstance(samples, SupportsArray):
        raise AudioInputError(
            f"audio of type {type(samples).__name__}; feed a numpy array, which "
            "np.frombuffer(data, np.int16) makes of raw samples of 16 bits"
        )
    array = as_array(samples)
    if array.ndim != 1:
        raise AudioInputError(
            f"audio of shape {array.shape}; feed one channel of shape (n_samples,)"
        )
    floats = as_floats(array)
    if not (np.abs(floats) < _LARGEST_SAMPLE).all():  # false for NaN as well
        raise AudioError("audio with samples that are no finite numbers; feed silence instead")
    return floats
