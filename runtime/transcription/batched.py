"""Decodes many windows at once: they are cut at pauses, encoded and decoded together.

Each window is judged on its own, as in sequential decoding. Its text should reach the end of its
speech; if it does not, the rest is decoded as another window, so that no word is lost.

With context, every other window is decoded after the text of the window before it, which makes it
more accurate (docs/accuracy.md). It waits for that window only; half of the windows wait for none.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from math import inf

from whisper_npu.runtime.decoding.quality import Action, Verdict, judge_rest
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.results import Retry, Segment
from whisper_npu.runtime.text.segments import split_at_timestamps, without_timestamps
from whisper_npu.runtime.timestamps.words import last_word_end
from whisper_npu.runtime.transcription.language import SpokenLanguage
from whisper_npu.runtime.transcription.session import SPLITTABLE, TranscriptionSession
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult

# Least frames of a window whose text is decoded without timestamps and gets them by alignment: half
# an encoder window, which mostly holds several sentences.
_ALIGNED = 15 * FRAMES_PER_SECOND
_GUESSED = 4  # windows with a guessed language that wait for a window with a certain language

# Context lengths in tokens: a window is given the largest that the text before it fills. Windows
# are decoded together only if their contexts are equally long, so the choices are few. Nearly every
# window has the first length, and more context would help little.
_CONTEXT_LENGTHS = (64, 32, 16)


@dataclass
class _Place:
    """A window's place in the text: its segments so far, and its parts that are not decoded yet.

    Attributes:
        start: the first frame that is not accounted for.
        rest: the part that waits to be planned.
        later: the parts after `rest`, the last part first, with the retries of each.
        retries: rejected attempts at larger windows that hold `rest`.
        spoken: the language state before the window, if every part may be in another language;
            None if all parts have the window's language.
        before: the place whose text is its context; None if it has no context.
        request: the request for `rest`, if it was made already; its prompt is still open.
        language: code of its language; None before the first request.
        guessed: whether the language is a guess that a later window may correct.
        planned: whether a part is being decoded.
        doubtful: whether its text so far looks wrong and must not be context.
        segments: the segments decoded so far.
    """

    start: int
    rest: Window | None
    later: list[tuple[Window, tuple[Retry, ...]]] = field(default_factory=list)
    retries: tuple[Retry, ...] = ()
    spoken: SpokenLanguage | None = None
    before: "_Place | None" = None
    request: WindowRequest | None = None
    language: str | None = None
    guessed: bool = False
    planned: bool = False
    doubtful: bool = False
    segments: list[Segment] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.rest is None and not self.planned

    @property
    def is_ready(self) -> bool:
        """Whether `rest` can be planned now."""
        waits = self.guessed or (self.before is not None and not self.before.is_complete)
        return self.rest is not None and not waits


class BatchedStrategy:
    """Decodes many windows of a recording at a time; see `Strategy`."""

    def __init__(self, session: TranscriptionSession, *, pad_to_full: bool) -> None:
        """Plan nothing yet; `pad_to_full`: see `WindowRequest`."""
        self._session = session
        self._pad_to_full = pad_to_full
        self._has_context = has_context(session)
        # Larger models lose no accuracy by sampling timestamps, and gain some if there is context.
        self._aligns = session.may_align and (session.is_tiny or not self._has_context)
        # After a pause, the language may be another one; and text without timestamps has the times
        # of its window.
        self._joins = not (session.options.multilingual or session.options.without_timestamps)
        self._seek = 0
        self._newest: _Place | None = None  # a window whose text is the context of the next window
        self._places: deque[_Place] = deque()  # in order; complete places leave at the front
        self._planned: deque[_Place] = deque()

    def next_window(self) -> WindowRequest | None:
        """The rest of a decoded window, a window whose context is decoded, or a new window."""
        place = self._ready_place()
        while place is None:
            is_last = self._next_place() is None
            self._settle_guesses(at_once=is_last)
            place = self._ready_place()
            if place is None and is_last:
                return None
        self._planned.append(place)
        return self._take_request(place)

    def prefetch(self, room: int) -> list[WindowRequest]:
        """Windows whose context is not decoded yet."""
        waiting = [p for p in self._places if p.rest is not None and not p.is_ready][:room]
        return [self._request(place) for place in waiting]

    def _ready_place(self) -> _Place | None:
        return next((place for place in self._places if place.is_ready), None)

    def _settle_guesses(self, *, at_once: bool) -> None:
        """Set the language of windows with a guess to the recording's, once it is known."""
        guessed = [place for place in self._places if place.guessed]
        language = self._session.language
        if language.is_guess and len(guessed) < _GUESSED and not at_once:
            return
        for place in guessed:
            place.guessed = False
            request = self._request(place)
            place.language = language.main or request.decoding_options.language
            request.decoding_options = replace(request.decoding_options, language=place.language)

    def _next_place(self) -> _Place | None:
        window = self._session.window_at(self._seek, cut_at_pause=True, joins=self._joins)
        if window is None:
            return None
        self._seek = window.end
        place = _Place(window.start, window, before=self._newest)
        self._newest = place if self._has_context and self._newest is None else None
        self._places.append(place)
        if self._session.language.is_open:
            self._request(place)  # now: language detection needs windows in order
            language = self._session.language
            place.guessed = language.is_guess and not language.may_change
            place.spoken = replace(language) if language.may_change else None
        return place

    def _context(self, place: _Place, *, aligned: bool) -> tuple[int, ...]:
        """The tokens before the next window of a place: the user's prompt, and its context.

        For a window decoded without timestamps, the context has none either.
        """
        before, place.before = place.before, None
        said = [] if before is None or before.language != place.language else before.segments
        behind = inf if not aligned else self._session.tokenizer.special.timestamp_begin
        tokens = [token for segment in said for token in segment.tokens if token < behind]
        prompts = self._session.prompts
        if before is not None and before.doubtful:
            return prompts.initial
        most = min(len(tokens), prompts.room)
        length = next((n for n in _CONTEXT_LENGTHS if n <= most), 0)
        return (*prompts.initial, *tokens[len(tokens) - length :])

    def _request(self, place: _Place) -> WindowRequest:
        """The request for the next window of a place, without its prompt."""
        session, window = self._session, place.rest
        if window is None:
            raise ValueError("nothing is left of this place to be decoded")
        if place.request is None:
            language = place.language
            if place.retries and place.spoken is not None:
                session, language = replace(session, language=replace(place.spoken)), None
            place.request = session.request(
                window, reaches_end=True, pad_to_full=self._pad_to_full, language=language
            )
            place.language = place.request.decoding_options.language
        return place.request

    def _take_request(self, place: _Place) -> WindowRequest:
        request, session = self._request(place), self._session
        aligned = (
            self._aligns
            and request.window.n_frames >= _ALIGNED
            and not request.decoding_options.prefix_tokens
        )
        request.prompt = session.prompts.before(self._context(place, aligned=aligned))
        if aligned:
            request.decoding_options = replace(
                request.decoding_options,
                aligned=True,
                without_timestamps=False,
                attention_delay=session.attention_delay,
            )
        request.splittable = (
            request.window.n_frames >= SPLITTABLE and not request.decoding_options.prefix_tokens
        )
        place.rest, place.request, place.planned = None, None, True
        return request

    def accept(self, result: WindowResult) -> list[Segment]:
        """Take a result; returns the segments of all windows before the first incomplete one."""
        self._take(self._planned.popleft(), result)
        segments = []
        while self._places and self._places[0].is_complete:
            segments += self._places.popleft().segments
        self._session.features.forget(min((p.start for p in self._places), default=self._seek))
        return segments

    def _take(self, place: _Place, result: WindowResult) -> None:
        session, window = self._session, result.window
        place.planned = False
        if result.outcome.verdict.action is Action.SPLIT:
            self._divide(place, result)
            return
        retries = place.retries
        result = result.after(retries)
        place.rest, place.retries = place.later.pop() if place.later else (None, ())
        if session.leave_out(result):
            return
        parts, _ = split_at_timestamps(
            result.outcome.decoded.tokens,
            session.tokenizer.special.timestamp_begin,
            window.n_frames,
            keep_open_end=True,
        )
        text_end = parts[-1].end
        if session.options.without_timestamps:
            parts = [without_timestamps(parts, session.tokenizer.special.timestamp_begin)]
        text = session.write(result, parts, last_word_end(place.segments) or 0.0)
        place.segments += text.segments
        place.doubtful |= result.outcome.is_doubtful
        rest = window.part(window.frame_at(round(text_end * FRAMES_PER_SECOND)), window.end)
        of_rest = self._judge_rest(result, rest)
        if of_rest.action is Action.DROP:
            session.account(result, rest.offset, text)
            session.cover(rest, "dropped", of_rest.reason)
            place.start = window.end
            return
        if of_rest.action is Action.SPLIT:
            if place.rest is not None:
                place.later.append((place.rest, place.retries))
            place.rest, place.retries = rest, retries
        place.start = rest.start if of_rest.action is Action.SPLIT else window.end
        session.account(result, place.start / FRAMES_PER_SECOND, text)

    def _divide(self, place: _Place, result: WindowResult) -> None:
        """Plan a window again in two parts, cut at a pause beside the speech it leaves out."""
        window, windows = result.window, self._session.windows
        unheard = result.outcome.decoded.unheard
        if unheard:
            cut = windows.cut_beside(window, unheard)
        else:
            two_thirds = window.frame_at(2 * window.n_frames // 3)
            cut = windows.best_cut(window.start, two_thirds)
        place.rest, last = window.part(window.start, cut), window.part(cut, window.end)
        place.retries = (*place.retries, *result.outcome.retries)
        place.later.append((last, place.retries))
        self._session.cover(Window(place.rest.end, last.start), "silent", "no speech")

    def _judge_rest(self, result: WindowResult, rest: Window) -> Verdict:
        """Decide whether the rest of a window, after the end of its text, is decoded."""
        speech = 0.0
        if rest.n_frames > 0:
            speech = self._session.windows.speech_seconds(rest.offset, rest.end_time)
        return judge_rest(
            result.window.n_frames - rest.n_frames,
            rest.n_frames,
            speech,
            aligned=result.outcome.decoded.aligned,
        )


def has_context(session: TranscriptionSession) -> bool:
    """Whether windows are given the text before them; see `TranscribeOptions`."""
    wanted = session.options.condition_on_previous_text
    if wanted is not None:
        return wanted
    # With `multilingual`, the text before a window may be in another language.
    return session.backend.is_exact and not session.options.multilingual
