"""One window after the other: each begins where the timestamps of the last one end.

Radford et al. 2022, section 4.5, "Strategies for Reliable Long-form Transcription", as
openai/whisper's `transcribe.py` carries it out.
"""

from dataclasses import replace

from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.features.windows import Window
from whisper_npu.runtime.results import Retry, Segment
from whisper_npu.runtime.text.segments import split_at_timestamps
from whisper_npu.runtime.timestamps.words import last_word_end
from whisper_npu.runtime.transcription.session import DIVISIBLE, Job
from whisper_npu.runtime.transcription.window_decoding import Heard, Task


class SequentialReading:
    """A recording gone through window by window; see `rounds.Reading`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._context = list(job.prompts.initial)
        self._context_from = 0
        self._language: str | None = None  # of the text before
        self._last_speech_end = 0.0
        self._seek = 0
        self._waits = False
        self._is_divisible = False  # whether the window that is decoded can be decoded in parts
        self._cut: int | None = None  # frame at which the next window ends, at the latest
        self._retries: tuple[Retry, ...] = ()  # attempts at a longer window from the same start

    def plan(self) -> Task | None:
        """The next window, once the one before it has been heard."""
        if self._waits:
            return None
        # Without timestamps, nothing tells where the text of a window cut inside a word ends.
        cut_at_pause = self._job.options.without_timestamps
        window = self._job.next_window(self._seek, cut_at_pause=cut_at_pause)
        if window is None:
            return None
        if self._cut is not None:
            window = Window(window.start, min(window.end, self._cut))
        self._waits = True
        task = self._job.task(window)
        self._is_divisible = window.n_frames >= DIVISIBLE and not task.wanted.begun
        if self._language in (None, task.wanted.language):
            task.prompt = self._job.prompts.before(self._context[self._context_from :])
        else:  # text in another language makes it translate
            task.prompt = self._job.prompts.before(self._job.prompts.initial)
        return task

    def ahead(self, room: int) -> list[Task]:
        """Nothing: where the next window begins is not known."""
        return []

    def take(self, heard: Heard) -> list[Segment]:
        """Segments of the window that was planned."""
        self._waits = False
        if self._is_divisible and not self._job.stopping and self._divide(heard):
            return []
        heard = heard.after(self._retries)
        self._cut, self._retries = None, ()
        job, window, decoded = self._job, heard.window, heard.outcome.decoded
        if job.leave_out(heard):
            self._seek = window.end
            return []
        begin = job.tokenizer.special.timestamp_begin
        parts, advance = split_at_timestamps(decoded.tokens, begin, window.n_frames)
        text = job.write(heard, parts, self._last_speech_end)
        # The reference seeks to the end of the last word where it has one. Here the text does not
        # depend on whether words are timed: they end a little early, and would be heard twice.
        self._seek = window.start + advance
        self._last_speech_end = last_word_end(text.segments) or self._last_speech_end
        job.account(heard, self._seek / FRAMES_PER_SECOND, text)
        if text.segments and heard.outcome.language != self._language:
            if self._language is not None:
                self._context, self._context_from = list(job.prompts.initial), 0
            self._language = heard.outcome.language
        for segment in text.segments:
            self._context.extend(segment.tokens)
        unwanted = job.options.condition_on_previous_text is False
        if unwanted or heard.outcome.is_doubtful:
            self._context_from = len(self._context)
        job.features.forget(self._seek)
        return text.segments

    def _divide(self, heard: Heard) -> bool:
        """Decode a window that leaves out speech again, up to a pause beside that speech.

        Returns:
            whether it does leave out speech.
        """
        window, outcome = heard.window, heard.outcome
        if not outcome.leaves_out or outcome.is_silence:
            return False
        self._cut = self._job.windows.cut_beside(window, outcome.decoded.unheard)
        *earlier, last = outcome.retries
        last = replace(last, reason=f"{last.reason}; decoded in parts")
        self._retries = (*self._retries, *earlier, last)
        self._seek = window.start
        return True
