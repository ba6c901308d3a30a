"""Decodes one window after the other: each begins where the timestamps of the last window end.

Radford et al. 2022, section 4.5, "Strategies for Reliable Long-form Transcription", as in
openai/whisper's `transcribe.py`.
"""

from dataclasses import replace

from whisper_npu.runtime.decoding.quality import split_reason
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.results import Retry, Segment
from whisper_npu.runtime.text.segments import split_at_timestamps
from whisper_npu.runtime.timestamps.words import last_word_end
from whisper_npu.runtime.transcription.session import SPLITTABLE, TranscriptionSession
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult


class SequentialStrategy:
    """Decodes a recording window by window; see `Strategy`."""

    def __init__(self, session: TranscriptionSession) -> None:
        self._session = session
        self._context = list(session.prompts.initial)
        self._context_from = 0
        self._language: str | None = None  # of the text before the window
        self._last_speech_end = 0.0
        self._seek = 0
        self._waits = False
        self._is_splittable = False  # whether the planned window can be decoded in parts
        self._cut: int | None = None  # latest end of the next window, as a frame
        self._retries: tuple[Retry, ...] = ()  # attempts at a longer window from the same start

    def next_window(self) -> WindowRequest | None:
        """The next window, after the window before it has been decoded."""
        if self._waits:
            return None
        # Without timestamps, the end of the text is unknown if a window is cut inside a word.
        cut_at_pause = self._session.options.without_timestamps
        window = self._session.window_at(self._seek, cut_at_pause=cut_at_pause)
        if window is None:
            return None
        if self._cut is not None:
            window = Window(window.start, min(window.end, self._cut))
        self._waits = True
        request = self._session.request(window)
        self._is_splittable = (
            window.n_frames >= SPLITTABLE and not request.decoding_options.prefix_tokens
        )
        if self._language in (None, request.decoding_options.language):
            request.prompt = self._session.prompts.before(self._context[self._context_from :])
        else:  # after text in another language, the model translates
            request.prompt = self._session.prompts.before(self._session.prompts.initial)
        return request

    def prefetch(self, room: int) -> list[WindowRequest]:
        """Nothing: the start of the next window is unknown."""
        return []

    def accept(self, result: WindowResult) -> list[Segment]:
        """Take the result of the planned window; returns its segments."""
        self._waits = False
        leaves_out = result.outcome.verdict.leaves_out
        if leaves_out and self._is_splittable and not self._session.stopping:
            self._divide(result)
            return []
        result = result.after(self._retries)
        self._cut, self._retries = None, ()
        session, window, decoded = self._session, result.window, result.outcome.decoded
        if session.leave_out(result):
            self._seek = window.end
            return []
        begin = session.tokenizer.special.timestamp_begin
        parts, advance = split_at_timestamps(decoded.tokens, begin, window.n_frames)
        text = session.write(result, parts, self._last_speech_end)
        # The reference seeks to the end of the last word if words are timed. Timed words end a
        # little early and would be decoded twice; here the text does not depend on word times.
        self._seek = window.start + advance
        self._last_speech_end = last_word_end(text.segments) or self._last_speech_end
        session.account(result, self._seek / FRAMES_PER_SECOND, text)
        if text.segments and result.outcome.language != self._language:
            if self._language is not None:
                self._context, self._context_from = list(session.prompts.initial), 0
            self._language = result.outcome.language
        for segment in text.segments:
            self._context.extend(segment.tokens)
        unwanted = session.options.condition_on_previous_text is False
        if unwanted or result.outcome.is_doubtful:
            self._context_from = len(self._context)
        session.features.forget(self._seek)
        return text.segments

    def _divide(self, result: WindowResult) -> None:
        """Plan a window that leaves out speech again, up to a pause beside that speech."""
        window, outcome = result.window, result.outcome
        self._cut = self._session.windows.cut_beside(window, outcome.decoded.unheard)
        *earlier, last = outcome.retries
        last = replace(last, reason=split_reason(last.reason))
        self._retries = (*self._retries, *earlier, last)
        self._seek = window.start
