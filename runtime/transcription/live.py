"""Speech to text while it is being spoken: text that stays, as early as it is safe.

The audio since the last cut, at most one encoder window, is decoded again and again as it grows.
What two decodings in a row agree on is committed (`local_agreement.py`) and never changes: later
decodings go on from it. A pause commits the rest. Audio whose text is committed is let go of at a
pause, or at the latest when the window is full, so that neither memory nor latency grow with the
length of the session.

Text is decoded without timestamps. Near the end of what has been heard they are wrong by seconds,
beyond it even, and as timestamps never go back, one that is committed too late bars the decoder
from all speech before it.
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
# Words at the end of what two decodings agree on that wait for one more: they may be half heard.
_HELD_BACK = 1
_TAIL = round(0.2 * FRAMES_PER_SECOND)  # heard behind speech, it shows that a word has ended
_LARGEST_SAMPLE = 1e9  # more is garbage, and would overflow in the spectrogram


@dataclass(frozen=True, slots=True)
class Committed:
    """Words that will not change any more. The text of a session is all of these, joined.

    Attributes:
        start: Seconds from the start of the session; the words begin about here.
        end: Seconds from the start of the session by which they have ended.
        text: The words, their leading space included.
        language: Code of their language.
        flaw: What looks wrong with them after the last temperature; None if nothing does.
    """

    start: float
    end: float
    text: str
    language: str
    flaw: str | None = None


@dataclass(frozen=True, slots=True)
class Tentative:
    """The words behind the last committed ones, as they look now. Replaces the one before.

    Attributes:
        start: Seconds from the start of the session.
        end: Seconds from the start of the session: how far they have been heard.
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
        end: where it ends, as far as has been heard.
        paused: a pause follows.
        over: a long pause follows, or the end of the session.
    """

    start: int
    end: int
    paused: bool
    over: bool


@dataclass(frozen=True)
class _Hypothesis:
    """What the buffer was decoded to.

    Attributes:
        end: frame up to which it was heard.
        tokens: all of them, committed ones included.
        words: those behind the committed ones.
        since: for each of them, the frame up to which had been heard when it was first decoded;
            by then it had ended.
        language: code of the language.
        spoken: what is known of the language.
        temperature: it was decoded at.
        flaw: what looks wrong with it.
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

    Give `feed` all that has arrived since the last call, however much: it decodes once for it, or
    once for every full window. Decoding slower than speech thus makes for fewer decodings, not for
    a growing delay.
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
        """Hear nothing yet.

        Args:
            model: to decode with; sessions do not touch each other.
            options: how to transcribe. With `vad=False` there are no pauses.
            min_chunk: seconds of new audio between two decodings.
            pause: seconds without speech after which everything is committed.
            trim_after: seconds of audio from which on a pause lets go of all of it.
            changes: options by name, over those in `options`.

        Raises:
            UsageError: an option is unknown, out of range or means nothing for live speech.
        """
        options = model.resolve(options, **changes)
        self._model = model
        _refuse_what_is_not_live(options)
        self._capacity = model.backend.window_frames[-1]
        # Committed tokens share the decoder's context with the text before and that to come.
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
        self._settled = 0  # frame up to which all that was said is committed
        self._said = 0.0  # seconds at which the committed text ends
        self._prefix_tokens: tuple[int, ...] = ()  # committed tokens of the buffer
        # Where the buffer may be cut: behind a number of those, at a frame by which they end.
        self._pieces: list[tuple[int, int]] = []
        self._context = self._session.prompts.initial  # tokens of the text before the buffer
        self._context_language: str | None = None
        self._poor_context = False
        self._spoken = self._session.language  # of the committed text
        self._hypothesis: _Hypothesis | None = None
        self._shown = ""  # tentative text

    @property
    def duration(self) -> float:
        """Seconds of audio heard."""
        return self._features.duration

    @property
    def times(self) -> StageTimes:
        """Where the time went, so far."""
        return self._session.times

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, one line each: prompts cut, a language hardly sure."""
        return (*self._session.prompts.warnings, *self._spoken.warnings)

    def feed(self, samples: SupportsArray) -> list[LiveUpdate]:
        """Hear more, and say what can be said.

        Args:
            samples: any number of them, an array `(n_samples,)`, mono at 16 kHz: floats in [-1, 1],
                int16, int32 or uint8.

        Returns:
            in order of time: committed text, and the tentative text behind it if that changed.

        Raises:
            AudioError: values that are no finite numbers.
            AudioInputError: samples that are no array, or of another shape or dtype.
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
        """Commit what is left; afterwards nothing can be fed. A second call returns nothing."""
        if self._finished:
            return []
        self._model.check_usable()
        self._finished = True
        self._features.end()
        return [*self._listen(), *self._tentative()]

    def close(self) -> None:
        """End the session; the text that is not committed is given up. A second call does nothing.

        Afterwards nothing can be fed, and `finish` returns nothing.
        """
        self._finished = True

    def _listen(self) -> list[LiveUpdate]:
        """Decode what is due, commit what can be, let go of what need not be kept."""
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
        else:  # nothing but silence, in the end of which speech may just begin
            keep = 0 if self._finished else round(LOOK_AHEAD * FRAMES_PER_SECOND)
            self._cut(max(self._begin, self._features.n_ready - keep), len(self._prefix_tokens))
        too_long = self._features.n_ready - self._begin >= self._capacity
        if too_long or len(self._prefix_tokens) > self._most_prefix_tokens:
            updates += self._make_room()
        return updates

    def _next_speech(self) -> _Speech | None:
        """The first speech in the buffer, up to a long pause.

        Where the language is open, any pause is long: what follows is asked for its own.
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
        """Speech between two frames; all of it without a detector."""
        if self._speech is None:
            return [(start, end)] if start < end else []
        spans = self._speech.spans(start / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND)
        return [
            (round(begin * FRAMES_PER_SECOND), min(end, round(stop * FRAMES_PER_SECOND)))
            for begin, stop in spans
        ]

    def _agree(self, speech: _Speech) -> list[LiveUpdate]:
        """Decode the buffer if that is due; commit what the last two decodings have in common."""
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
        # Words that were first heard with one that waits lie before the same frame. The audio may
        # be cut behind the words before them only; how far the last of them reaches is estimated.
        waiting = since[count]
        earlier = sum(frame < waiting for frame in since[:count])
        if earlier:
            self._pieces.append((first + found.words[earlier - 1].stop, since[earlier - 1]))
        together = since.count(waiting)
        said = max(self._said * FRAMES_PER_SECOND, since[earlier - 1] if earlier else 0)
        end = said + (waiting - said) * (count - earlier) / together
        return self._commit(common, round(end))

    def _settle(self, end: int) -> list[LiveUpdate]:
        """Commit all that was said up to frame `end`, behind which nobody speaks."""
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
        """Decode the buffer up to frame `end`; a draft tries the first temperature only."""
        session = replace(self._session, language=replace(self._spoken))
        if draft:
            first = session.options.temperature[:1]
            session = replace(session, options=replace(session.options, temperature=first))
        settled = self._spoken.code if self._prefix_tokens else None
        request = session.request(Window(self._begin, end), self._prefix_tokens, language=settled)
        fits = self._context_language in (None, request.decoding_options.language)
        request.prompt = session.prompts.before(
            self._context if fits else ()
        )  # or it would translate
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
        """Let go of half of what is committed; if nothing is, commit all up to a pause."""
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
        """Begin the buffer at `frame`; its first committed tokens are now text before it."""
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
    """Float32 samples of a piece of audio."""
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
