"""Makes subtitles from segments: breaks lines and cues, and writes times for SRT and WebVTT.

Cues are those of openai/whisper's writers (`whisper/utils.py`, release 20250625), byte for byte.
Segments are read one at a time and a cue is returned as soon as it is complete, so a recording
of any length needs the memory of one cue.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Integral

from whisper_npu.errors import UsageError
from whisper_npu.runtime.results import Segment, Word

# A pause this long starts a new cue if cues may cross segments.
LONG_PAUSE = 3.0  # seconds
# openai/whisper's value for "no limit", in characters and in words.
_NO_LIMIT = 1000

Cue = tuple[str, str, str]  # start, end, text


@dataclass(frozen=True, slots=True)
class SubtitleOptions:
    """The layout of SRT and WebVTT cues; every option needs word times.

    Attributes:
        highlight_words: One cue per word, the word underlined.
        max_line_width: Characters per line.
        max_line_count: Lines per cue; together with `max_line_width` cues may cross segments.
        max_words_per_line: Words per cue.

    Raises:
        UsageError: A limit is below 1.
    """

    highlight_words: bool = False
    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Integral) or value < 1):
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value!r}")

    def check(self, *, word_timestamps: bool) -> list[str]:
        """Find options that cannot work, like openai/whisper's command line.

        Args:
            word_timestamps: Whether the segments will have words.

        Returns:
            One line for each option that has no effect with the others.

        Raises:
            UsageError: An option needs word times and there are none.
        """
        if not word_timestamps and self != SubtitleOptions():
            names = [name for name in self.__slots__ if getattr(self, name)]
            options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise UsageError(f"{options}: add --word-timestamps, which this needs")
        notes = []
        if self.max_line_count and not self.max_line_width:
            notes.append("--max-line-count has no effect without --max-line-width")
        if self.max_words_per_line and self.max_line_width and self.max_line_count:
            notes.append(
                "--max-words-per-line has no effect with --max-line-width and --max-line-count"
            )
        return notes


def format_timestamp(
    seconds: float, *, always_include_hours: bool = False, decimal_marker: str = "."
) -> str:
    """Format a time as `[HH:]MM:SS.mmm`.

    Args:
        seconds: Not negative; rounded to milliseconds.
        always_include_hours: Write `00:` below one hour, too.
        decimal_marker: `.` in WebVTT, `,` in SRT.

    Raises:
        ValueError: `seconds` is negative.
    """
    if seconds < 0:
        raise ValueError(f"a timestamp cannot be negative: {seconds}")
    total_seconds, milliseconds = divmod(round(seconds * 1000.0), 1000)
    total_minutes, whole_seconds = divmod(total_seconds, 60)
    hours, minutes = divmod(total_minutes, 60)
    prefix = f"{hours:02d}:" if always_include_hours or hours else ""
    return f"{prefix}{minutes:02d}:{whole_seconds:02d}{decimal_marker}{milliseconds:03d}"


class CueBuilder:
    """Makes cues from segments.

    The first segment decides whether cues are made of words or of whole segments, as in
    openai/whisper. A later segment without words then counts as a single long word, so that no text
    is lost.

    Args:
        options: Line and cue limits.
        always_include_hours: See `format_timestamp`.
        decimal_marker: See `format_timestamp`.
        name_channel: Returns the beginning of a channel's cue, given the channel's name.
    """

    def __init__(
        self,
        options: SubtitleOptions,
        *,
        always_include_hours: bool,
        decimal_marker: str,
        name_channel: Callable[[str], str],
    ) -> None:
        self._highlight = options.highlight_words
        self._max_lines = options.max_line_count
        self._width = options.max_line_width or _NO_LIMIT
        self._group = options.max_words_per_line or _NO_LIMIT
        # With both limits set, lines are filled across segments; else each segment (or group of
        # words) starts its own cue.
        self._crosses_segments = bool(options.max_line_width and options.max_line_count)
        self._always_include_hours = always_include_hours
        self._decimal_marker = decimal_marker
        self._name_channel = name_channel
        self._channel: str | None = None
        self._by_word: bool | None = None
        self._cue: list[Word] = []
        self._line_length = 0
        self._lines = 1
        self._last_start: float | None = None

    def add(self, segment: Segment) -> Iterator[Cue]:
        """Take the next segment; yield the cues that are complete."""
        if segment.channel != self._channel:  # a cue holds the text of one channel
            yield from self.finish()
            self._channel, self._line_length, self._lines = segment.channel, 0, 1
        if self._by_word is None:
            self._by_word = segment.words is not None
        if not self._by_word:
            text = segment.text.strip().replace("-->", "->")
            yield self._cue_of(self._time(segment.start), self._time(segment.end), text)
            return
        words = segment.words
        if words is None:
            words = (Word(segment.start, segment.end, segment.text, 0.0),)
        for index, word in enumerate(words):
            complete = self._place(word, starts_group=index % self._group == 0)
            yield from self._render(complete)

    def finish(self) -> Iterator[Cue]:
        """Yield the remaining cues after the last segment."""
        yield from self._render(self._cue)
        self._cue = []

    def _place(self, word: Word, *, starts_group: bool) -> list[Word]:
        """Put one word on the line, on a new line or in a new cue; return the cue that it ends."""
        last_start = word.start if self._last_start is None else self._last_start
        self._last_start = word.start
        long_pause = self._crosses_segments and word.start - last_start > LONG_PAUSE
        group_break = starts_group and bool(self._cue) and not self._crosses_segments
        fits = self._line_length + len(word.word) <= self._width
        if self._line_length > 0 and fits and not long_pause and not group_break:
            self._cue.append(word)
            self._line_length += len(word.word)
            return []
        complete: list[Word] = []
        text = word.word.strip()
        length = len(text)
        is_full = self._max_lines is not None and (long_pause or self._lines >= self._max_lines)
        if group_break or (self._cue and is_full):
            complete, self._cue = self._cue, []
            self._lines = 1
        elif self._line_length > 0:
            self._lines += 1
            text = "\n" + text
        self._line_length = length
        self._cue.append(replace(word, word=text))
        return complete

    def _render(self, words: list[Word]) -> Iterator[Cue]:
        if not words:
            return
        texts = [word.word for word in words]
        plain = "".join(texts)
        last = self._time(words[0].start)
        if not self._highlight:
            yield self._cue_of(last, self._time(words[-1].end), plain)
            return
        for index, word in enumerate(words):
            start, end = self._time(word.start), self._time(word.end)
            if start != last:
                yield self._cue_of(last, start, plain)
            underlined = [*texts[:index], _underline(word.word), *texts[index + 1 :]]
            yield self._cue_of(start, end, "".join(underlined))
            last = end

    def _cue_of(self, start: str, end: str, text: str) -> Cue:
        named = "" if self._channel is None else self._name_channel(self._channel)
        return start, end, named + text

    def _time(self, seconds: float) -> str:
        return format_timestamp(
            seconds,
            always_include_hours=self._always_include_hours,
            decimal_marker=self._decimal_marker,
        )


def _underline(text: str) -> str:
    """Underline a word, but not the white space before it."""
    return re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", text)
