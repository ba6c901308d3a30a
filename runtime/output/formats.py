"""Formats transcriptions as txt, vtt, srt, tsv and json, piece by piece.

For the same segments the text is that of openai/whisper's writers (`whisper/utils.py`, release
20250625), byte for byte; the JSON has further keys after its own. Every format writes segments as
they arrive and holds none. JSON is the exception: its text comes before its segments.

If channels or tracks were transcribed separately, each text begins with the name of its channel:
`[left] Hello.`, in WebVTT `<v left>Hello.`.
"""

import json
from collections.abc import Callable, Iterable
from typing import Protocol

from whisper_npu.errors import UsageError
from whisper_npu.runtime.output.subtitles import CueBuilder, SubtitleOptions
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.spelling import did_you_mean

DEFAULT_OPTIONS = SubtitleOptions()


class Formatter(Protocol):
    """Turns a transcription into text, piece by piece."""

    def begin(self) -> str:
        """Return the text before the first segment."""
        ...

    def segment(self, segment: Segment) -> str:
        """Return the text of the next segment."""
        ...

    def end(self, result: Transcription) -> str:
        """Return the text after the last segment."""
        ...


class _LineFormatter:
    """Writes a header and one line per segment."""

    def __init__(self, header: str, line: Callable[[Segment], str]) -> None:
        self._header = header
        self._line = line

    def begin(self) -> str:
        return self._header

    def segment(self, segment: Segment) -> str:
        return self._line(segment) + "\n"

    def end(self, result: Transcription) -> str:
        return ""


class _SubtitleFormatter:
    """Writes a header and cues, numbered or not."""

    def __init__(self, header: str, cues: CueBuilder, *, numbered: bool) -> None:
        self._header = header
        self._cues = cues
        self._numbered = numbered
        self._count = 0

    def begin(self) -> str:
        return self._header

    def segment(self, segment: Segment) -> str:
        return "".join(self._write(*cue) for cue in self._cues.add(segment))

    def end(self, result: Transcription) -> str:
        return "".join(self._write(*cue) for cue in self._cues.finish())

    def _write(self, start: str, end: str, text: str) -> str:
        self._count += 1
        number = f"{self._count}\n" if self._numbered else ""
        return f"{number}{start} --> {end}\n{text}\n\n"


class _JsonFormatter:
    """Writes `Transcription.to_dict` as a line of ASCII without line end, like openai/whisper."""

    def begin(self) -> str:
        return ""

    def segment(self, segment: Segment) -> str:
        return ""

    def end(self, result: Transcription) -> str:
        return json.dumps(result.to_dict())


def _bracketed(channel: str) -> str:
    return f"[{channel}] "


def _voice_span(channel: str) -> str:
    """Return WebVTT's mark of a speaker (https://www.w3.org/TR/webvtt1/#webvtt-cue-voice-span)."""
    return f"<v {channel}>"


def txt_line(segment: Segment) -> str:
    """Return a segment as a line of text."""
    channel = "" if segment.channel is None else _bracketed(segment.channel)
    return channel + segment.text.strip()


def _tsv_line(segment: Segment) -> str:
    text = txt_line(segment).replace("\t", " ")
    return f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{text}"


def _vtt(options: SubtitleOptions) -> Formatter:
    cues = CueBuilder(
        options, always_include_hours=False, decimal_marker=".", name_channel=_voice_span
    )
    return _SubtitleFormatter("WEBVTT\n\n", cues, numbered=False)


def _srt(options: SubtitleOptions) -> Formatter:
    cues = CueBuilder(
        options, always_include_hours=True, decimal_marker=",", name_channel=_bracketed
    )
    return _SubtitleFormatter("", cues, numbered=True)


_MAKERS: dict[str, Callable[[SubtitleOptions], Formatter]] = {
    "txt": lambda options: _LineFormatter("", txt_line),
    "vtt": _vtt,
    "srt": _srt,
    "tsv": lambda options: _LineFormatter("start\tend\ttext\n", _tsv_line),
    "json": lambda options: _JsonFormatter(),
}

FORMATS = tuple(_MAKERS)


def make_formatter(name: str, options: SubtitleOptions = DEFAULT_OPTIONS) -> Formatter:
    """Create the formatter of one of `FORMATS`; options shape subtitles only.

    Raises:
        UsageError: There is no such format.
    """
    if name not in _MAKERS:
        hint = did_you_mean(name, FORMATS)
        raise UsageError(f"unknown output format {name!r}: one of {', '.join(FORMATS)}, all{hint}")
    return _MAKERS[name](options)


def expand_formats(names: str | Iterable[str]) -> tuple[str, ...]:
    """Replace `all` by the formats, and drop repetitions.

    Args:
        names: One name, several separated by commas, or a sequence of names.

    Raises:
        UsageError: A name is unknown, or there is none.
    """
    asked = names.split(",") if isinstance(names, str) else list(names)
    expanded: list[str] = []
    for name in (part.strip().lower() for part in asked):
        expanded.extend(FORMATS if name == "all" else [name])
    for name in expanded:
        make_formatter(name)
    if not expanded:
        raise UsageError(f"no output format given: one of {', '.join(FORMATS)}, all")
    return tuple(dict.fromkeys(expanded))


def require_words(result: Transcription, options: SubtitleOptions) -> None:
    """Refuse a layout of subtitles that would have no effect.

    Raises:
        UsageError: it is made of words, and the transcription has no times of words.
    """
    has_words = any(segment.words for segment in result.segments)
    if result.segments and not has_words and options != DEFAULT_OPTIONS:
        raise UsageError("this layout needs times of words: transcribe with word_timestamps=True")


def format_transcript(
    result: Transcription, output_format: str, options: SubtitleOptions = DEFAULT_OPTIONS
) -> str:
    """Return the whole content of one output file, as the command line writes it.

    Args:
        result: A transcription: `model.transcribe(...).result()`.
        output_format: One of `txt`, `vtt`, `srt`, `tsv`, `json`.
        options: The layout of subtitles.

    Raises:
        UsageError: There is no such format, or the layout needs the times of words.
    """
    require_words(result, options)
    formatter = make_formatter(output_format.lower(), options)
    pieces = [formatter.begin()]
    pieces.extend(formatter.segment(segment) for segment in result.segments)
    pieces.append(formatter.end(result))
    return "".join(pieces)
