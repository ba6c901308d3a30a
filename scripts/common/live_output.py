"""Writes live text: lines, JSON, and files that are complete at any time."""

import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.runtime.output.formats import FORMATS, make_formatter
from whisper_npu.runtime.output.subtitles import format_timestamp
from whisper_npu.runtime.output.writers import PARTIAL
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.transcription.live import Committed, LiveUpdate, Tentative
from whisper_npu.runtime.transcription.live_sentences import LiveSentences
from whisper_npu.scripts.common.console import controls, escape, note
from whisper_npu.spelling import did_you_mean

_CLEAR = "\r\x1b[K"


@dataclass(frozen=True)
class Session:
    """Facts of a session besides its text; names and units are those of `Transcription`."""

    duration: float = 0.0
    model: str = ""
    device: str = ""
    kv_cache: str = ""
    precision: str = ""
    warnings: tuple[str, ...] = ()


class LiveOutput(Protocol):
    """A destination for the text of a session."""

    def show(self, updates: Sequence[LiveUpdate], heard: float) -> None:
        """Take the new text after `heard` seconds of audio."""
        ...

    def end(self) -> None:
        """End the output; the session is over."""
        ...


class JsonLines:
    """Prints every update as one JSON object per line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        # Other encodings would escape characters as Python does, which is no JSON.
        self._ascii = (out.encoding or "utf-8").lower().replace("-", "") != "utf8"

    def show(self, updates: Sequence[LiveUpdate], heard: float) -> None:
        """Print."""
        for update in updates:
            fields = {"type": type(update).__name__.lower(), **asdict(update)}
            fields |= {key: round(fields[key], 2) for key in ("start", "end")}
            print(json.dumps(fields, ensure_ascii=self._ascii), file=self._out, flush=True)

    def end(self) -> None:
        """Do nothing: all text is printed."""


class SentenceOutput:
    """Joins committed words into sentences, and passes each sentence to `write`."""

    def __init__(self) -> None:
        self._sentences = LiveSentences()
        self._tentative = ""

    def write(self, sentence: Committed) -> None:
        """Write a sentence."""
        raise NotImplementedError

    def show(self, updates: Sequence[LiveUpdate], heard: float) -> None:
        """Write the complete sentences."""
        for update in updates:
            if isinstance(update, Tentative):
                self._tentative = update.text
                continue
            for sentence in self._sentences.add(update):
                self.write(sentence)
        if not self._tentative.strip():
            for sentence in self._sentences.silence_until(heard):
                self.write(sentence)

    def end(self) -> None:
        """Write the rest."""
        for sentence in self._sentences.end():
            self.write(sentence)


class Lines(SentenceOutput):
    """Prints one line per sentence; a terminal shows the current sentence below the lines."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._draw = controls(out)
        self._redraws = out.isatty()
        self._drawn = ""

    def write(self, sentence: Committed) -> None:
        """Print a sentence."""
        self._clear()
        start, end = format_timestamp(sentence.start), format_timestamp(sentence.end)
        print(f"[{start} --> {end}] {sentence.text}", file=self._out)

    def show(self, updates: Sequence[LiveUpdate], heard: float) -> None:
        """Print the complete sentences, and draw the text after them."""
        super().show(updates, heard)
        if self._redraws:
            text = _fit(escape((self._sentences.text + self._tentative).strip()))
            if text != self._drawn:
                self._clear()
                self._draw(text)
                self._drawn = text
        self._out.flush()

    def end(self) -> None:
        """Print the rest."""
        self._clear()
        super().end()
        self._out.flush()

    def _clear(self) -> None:
        if self._drawn:
            self._draw(_CLEAR)
            self._drawn = ""


class SavedFile(SentenceOutput):
    """A file of any output format, written sentence by sentence.

    It is called `talk.partial.srt` during the session and renamed at the end, so a file called
    `talk.srt` is complete. JSON begins with the whole text, so it is written at the end. A context
    manager.

    Attributes:
        session: returns the facts of the session; set before the first sentence.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            UsageError: the suffix is no known format, or the file cannot be written.
        """
        super().__init__()
        self.path = path
        self.partial = path.with_name(f"{path.stem}{PARTIAL}{path.suffix}")
        self._format = path.suffix.lstrip(".").lower()
        if self._format not in FORMATS:
            hint = did_you_mean(self._format, FORMATS)
            raise UsageError(f"--save {path}: the suffix is not one of {', '.join(FORMATS)}{hint}")
        if path.is_dir():
            raise UsageError(f"--save {path}: is a folder; name a file")
        self._formatter = make_formatter(self._format)
        self._in_json: list[Committed] = []  # only JSON needs all sentences at the end
        self._n_written = 0
        self.session: Callable[[], Session] = Session
        try:
            self._file = self.partial.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UsageError(f"--save {path}: cannot be written: {error.strerror}") from None
        self._append(self._formatter.begin())

    def write(self, sentence: Committed) -> None:
        """Write a sentence to the file at once."""
        self._n_written += 1
        if self._format == "json":
            self._in_json.append(sentence)
        else:
            self._append(self._formatter.segment(_segment(sentence)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._file:
            self.end()
            if exc is None or self._n_written:
                self._complete()
        if exc is None:
            self._rename()
        elif self._n_written:
            note(f"stopped: the text so far is in {self.partial}")
        else:
            self.partial.unlink()

    def _complete(self) -> None:
        """Write the end of the file, after the last sentence."""
        if self._format == "json":
            self._append(json.dumps(_document(self._in_json, self.session())))
        else:
            self._append(self._formatter.end(_NOTHING))

    def _rename(self) -> None:
        try:
            self.partial.replace(self.path)
        except OSError as error:
            raise self._failure(error) from None

    def _append(self, text: str) -> None:
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"{self.partial}: cannot be written: {error.strerror or error}")


# Formats other than JSON get this result at the end, and read nothing in it.
_NOTHING = Transcription("", "", (), 0.0, "", "", "")


def _segment(sentence: Committed) -> Segment:
    """A sentence as a segment for the formats, which read its times and its text."""
    return Segment(
        id=0,
        seek=0,
        start=sentence.start,
        end=sentence.end,
        text=sentence.text,
        tokens=(),
        temperature=0.0,
        avg_logprob=0.0,
        compression_ratio=0.0,
        no_speech_prob=0.0,
    )


def _document(sentences: Sequence[Committed], session: Session) -> dict[str, Any]:
    """A session as openai/whisper's JSON, without the figures that live text does not have."""
    languages = Counter(sentence.language for sentence in sentences)
    segments = [
        {"id": number, **{key: value for key, value in asdict(each).items() if value is not None}}
        for number, each in enumerate(sentences)
    ]
    return {
        "text": "".join(sentence.text for sentence in sentences).strip(),
        "segments": segments,
        "language": languages.most_common(1)[0][0] if languages else None,
        **asdict(session),
    }


def _fit(text: str) -> str:
    """The end of a text that fits in a line of the terminal."""
    room = shutil.get_terminal_size().columns - 1
    kept = len(text)
    while kept:
        room -= 2 if unicodedata.east_asian_width(text[kept - 1]) in "WF" else 1
        if room < 0:
            break
        kept -= 1
    return text[kept:]
