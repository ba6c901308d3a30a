"""Live text in whole sentences: committed words are joined until a sentence or a pause ends."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from whisper_npu.runtime.transcription.live import Committed

# The end of a sentence, quotation marks included. Marks of Chinese, Japanese, Hindi, Arabic, Urdu
# and Armenian, too; of these the first need no space behind them.
_END = re.compile(
    "(?:[.?!\u2026\u0964\u061f\u06d4\u0589]+[\"'\u201d\u2019\u00bb)\\]]*(?=\\s|$)"
    "|[\u3002\uff1f\uff01]+[\u300d\u300f\u201d]*)"
)
# Of names: one sentence more on the line is better than half a name.
_ABBREVIATION = re.compile(r"(?:^|\s)(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof)\.$")
_PAUSE = 1.0  # seconds without speech that end a line, whatever its words
_LONGEST = 15.0  # seconds of a line; then it ends where words were committed


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
        """Take words in; yields the sentences that are complete with them."""
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
        """Nobody has spoken up to `seconds`, behind the last words; yields what that completes."""
        if self.pieces and seconds - self.pieces[-1].end >= _PAUSE:
            yield from self.end()

    def end(self) -> Iterator[Committed]:
        """Yields what is there, complete or not."""
        if self.text.strip():
            first, last = self.pieces[0], self.pieces[-1]
            flaw = next((piece.flaw for piece in self.pieces if piece.flaw), None)
            yield replace(first, end=last.end, text=self.text, flaw=flaw)
        self.pieces = []


def _at_ends(piece: Committed) -> Iterator[Committed]:
    """Words cut behind the ends of sentences, their time shared by their letters."""
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
