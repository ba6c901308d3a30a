"""Live text in whole sentences: joins committed words until a sentence ends or a pause follows."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from whisper_npu.runtime.transcription.live import Committed

# The end of a sentence, quotation marks included. It knows the marks of Chinese, Japanese, Hindi,
# Arabic, Urdu and Armenian, too; Chinese and Japanese marks need no space after them.
_END = re.compile(
    "(?:[.?!\u2026\u0964\u061f\u06d4\u0589]+[\"'\u201d\u2019\u00bb)\\]]*(?=\\s|$)"
    "|[\u3002\uff1f\uff01]+[\u300d\u300f\u201d]*)"
)
# Abbreviations in names: joining two sentences is better than cutting a name.
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof)\.$")
_PAUSE = 1.0  # seconds without speech that end any line
_LONGEST = 15.0  # seconds of a line from which it ends after any committed words


@dataclass
class LiveSentences:
    """Joins the committed text of a session into sentences, with their times.

    Attributes:
        pieces: the words of the sentence that is not complete yet, in order.
    """

    pieces: list[Committed] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The sentence that is not complete yet."""
        return "".join(piece.text for piece in self.pieces)

    def add(self, piece: Committed) -> Iterator[Committed]:
        """Add words; yields the sentences that they complete."""
        if self.pieces:
            last = self.pieces[-1]
            if piece.start - last.end >= _PAUSE or piece.language != last.language:
                yield from self.end()
        for part in _at_ends(piece):
            self.pieces.append(part)
            last_word = self.text.rstrip()
            is_end = bool(_END.search(part.text)) and not _ABBREVIATION.search(last_word)
            if is_end or part.end - self.pieces[0].start >= _LONGEST:
                yield from self.end()

    def silence_until(self, seconds: float) -> Iterator[Committed]:
        """Note silence from the last words to `seconds`; yields the line if that ends it."""
        if self.pieces and seconds - self.pieces[-1].end >= _PAUSE:
            yield from self.end()

    def end(self) -> Iterator[Committed]:
        """Yields the current sentence, complete or not."""
        if self.text.strip():
            first, last = self.pieces[0], self.pieces[-1]
            flaw = next((piece.flaw for piece in self.pieces if piece.flaw), None)
            yield replace(first, end=last.end, text=self.text, flaw=flaw)
        self.pieces = []


def _at_ends(piece: Committed) -> Iterator[Committed]:
    """Words cut after the ends of sentences, with times in proportion to their letters."""
    seconds = (piece.end - piece.start) / max(1, len(piece.text))
    start = 0
    for end in [*(match.end() for match in _END.finditer(piece.text)), len(piece.text)]:
        if end > start:
            yield replace(
                piece,
                start=piece.start + start * seconds,
                end=piece.start + end * seconds,
                text=piece.text[start:end],
            )
        start = end
