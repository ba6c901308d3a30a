"""Finds timestamps for text that was decoded without them: where its sentences begin and end.

Whisper writes better text for a window of several sentences if it need not write timestamps
(docs/accuracy.md), and its timestamps are sometimes off by a second. Its attention while it writes
shows more precisely when each word was spoken. From it, timestamps of whole sentences are added
afterwards, as if the model had written them.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from whisper_npu.runtime.engines.protocol import Backend, DecoderSession, Float32Array, Int64Array
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP
from whisper_npu.runtime.timestamps.alignment import TokenTimes, token_times
from whisper_npu.runtime.timestamps.words import (
    FRAMES_PER_POSITION,
    WordTiming,
    adjust_word_boundaries,
)
from whisper_npu.runtime.timing import StageTimes

# Sentences need no better resolution than 40 ms; half the positions take a third of the work.
_POOLED = 2  # audio positions
_MEDIAN_WIDTH = 3  # positions in the median filter, after pooling

# Includes those of Chinese and Japanese, Hindi, Arabic, Urdu and Armenian.
_ENDS_OF_SENTENCES = (*".?!…", "\u3002", "\uff1f", "\uff01", "\u0964", "\u061f", "\u06d4", "\u0589")
_CLOSERS = "\"'\u201d\u2019\u00bb)]\u300d\u300f"
_PAUSE = 0.1  # shortest pause after a sentence, in seconds
_PAUSE_OF_WORD = 0.5  # the same if the mark may be that of "Mr."
_ABBREVIATION = 5  # most letters of an abbreviation, marks included
_LONG_PAUSE = 1.0  # seconds that end a segment anywhere
_LONG_SEGMENT = 10.0  # seconds


class AttentionRecorder:
    """Finds out when the texts of a batch were spoken, while they are decoded or afterwards."""

    def __init__(
        self,
        session: DecoderSession,
        prompt: Sequence[int],
        sot_index: int,
        n_frames: Sequence[int],
        eot: int,
        times: StageTimes,
        *,
        follows: bool,
    ) -> None:
        """Let the session record its attention, if it can.

        Args:
            session: has decoded nothing yet.
            prompt: the prompt of the first row; all rows are alike from `sot_index` on.
            sot_index: index of `<|startoftranscript|>`.
            n_frames: frames of 10 ms of audio in each window.
            eot: end of text.
            times: receives the time of this work.
            follows: whether a window has one row, which is never reordered.
        """
        self._session = session
        self._n_prompt = len(prompt)
        self._before = [int(token) for token in prompt[sot_index:]]
        self._n_positions = [max(1, n // (_POOLED * FRAMES_PER_POSITION)) for n in n_frames]
        self._eot = eot
        self._times = times
        self._follows = follows and session.record_attention()
        self._found: dict[int, TokenTimes] = {}

    def record(self, rows: Iterable[int], places: Iterable[int], tokens: Int64Array) -> None:
        """Find the times of rows before they leave the session.

        Args:
            rows: the rows.
            places: their indices in the session now.
            tokens: int64 `(all rows, n)`, the sampled tokens.
        """
        if not self._follows:
            return
        for row, place in zip(rows, places, strict=True):
            n_text = int((tokens[row] != self._eot).sum())
            part = slice(self._n_prompt - len(self._before), self._n_prompt + n_text)
            if self._session.length < part.stop:
                continue  # cut off: its last token was not decoded
            of_heads = self._session.attention(place, self._n_positions[row], _POOLED)
            self._found[row] = self._find(row, (each[part] for each in of_heads), n_text)

    def times(
        self, window: int, text: Sequence[int], backend: Backend, audio: Float32Array
    ) -> TokenTimes | None:
        """Return when each token of a window's text was spoken; None if the text was cut off.

        Args:
            window: the window.
            text: its tokens.
            backend: the model.
            audio: the encoded batch, float32 `(windows, n_audio_ctx, n_audio_state)`.
        """
        if not text or self._follows:
            return self._found.get(window) if text else None
        tokens = [*self._before, *text, self._eot][: backend.n_text_ctx]
        with self._times.measure("alignment"):
            _, found = backend.align(audio[window : window + 1], np.array([tokens], np.int64))
        n = self._n_positions[window]
        pooled = found[0, :, :, : n * _POOLED].reshape(*found.shape[1:3], n, _POOLED)
        return self._find(window, pooled.mean(axis=-1), len(text))

    def _find(self, window: int, of_heads: Iterable[Float32Array], n_text: int) -> TokenTimes:
        n = self._n_positions[window]
        with self._times.measure("alignment"):
            found = token_times(of_heads, n_text, len(self._before), n, _MEDIAN_WIDTH)
        return TokenTimes(starts=_POOLED * found.starts, ends=_POOLED * found.ends)


def with_timestamps(
    words: Sequence[WordTiming], groups: Sequence[Sequence[int]], begin: int, n_frames: int
) -> tuple[int, ...]:
    """Add timestamps as the model writes them: `<|0.52|> ... <|3.20|><|3.84|> ...`.

    Args:
        words: the words of a window's text.
        groups: the tokens of each.
        begin: the token `<|0.00|>`.
        n_frames: frames of 10 ms of audio in the window.
    """
    seconds = n_frames / FRAMES_PER_SECOND
    (words,) = adjust_word_boundaries([words], seconds)
    latest = begin + int(seconds / TIMESTAMP_STEP)
    tokens: list[int] = []
    stamp = begin
    for first, stop in pairwise(_cuts(words)):
        spoken = [word for word in words[first:stop] if _is_spoken(word.word)]
        spoken = spoken or list(words[first:stop])
        start, end = (begin + round(t / TIMESTAMP_STEP) for t in (spoken[0].start, spoken[-1].end))
        start = min(max(start, stamp), latest - 1)
        stamp = min(max(end, start + 1), latest)
        tokens += (start, *(token for group in groups[first:stop] for token in group), stamp)
    return tuple(tokens)


def _cuts(words: Sequence[WordTiming]) -> list[int]:
    """Return the indices of the words that begin segments, and the number of words.

    A segment is a sentence with a pause after it. Long segments end at other pauses too.
    """
    pauses: dict[int, float] = {}  # seconds of the pause before a word that may begin a segment
    cuts, said = [0], ""
    last: WordTiming | None = None  # the last spoken word
    behind = 0  # index after that word and the marks that close it; other marks open the next word
    for place, word in enumerate(words):
        if not _is_spoken(word.word):
            if place == behind and not word.word.startswith(" "):
                said += word.word
                behind += 1
            continue
        if last is not None:
            pause = word.start - last.end
            ends_sentence = said.rstrip(_CLOSERS).endswith(_ENDS_OF_SENTENCES)
            needed = _PAUSE_OF_WORD if _may_be_short_for_more(said) else _PAUSE
            if pause >= (needed if ends_sentence else _LONG_PAUSE):
                cuts.append(behind)
            elif pause > 0:
                pauses[behind] = pause
        last, said, behind = word, word.word.strip(), place + 1
    return _divided([*cuts, len(words)], words, pauses)


def _divided(cuts: list[int], words: Sequence[WordTiming], pauses: dict[int, float]) -> list[int]:
    """Add cuts to long segments, at their longest pauses."""
    divided = [0]
    for first, stop in pairwise(cuts):
        begin = first
        while words[stop - 1].end - words[begin].start > _LONG_SEGMENT:
            places = [
                place
                for place in range(begin + 1, stop)
                if place in pauses and words[place].start - words[begin].start <= _LONG_SEGMENT
            ]
            if not places:
                break
            begin = max(places, key=lambda place: pauses[place])
            divided.append(begin)
        divided.append(stop)
    return divided


def _may_be_short_for_more(word: str) -> bool:
    """Whether the mark after a word may not end a sentence: "Mr.", "Dr.", "U.S."."""
    bare = word.strip().rstrip(_CLOSERS)
    return bare.endswith(".") and bare[:1].isupper() and len(bare) <= _ABBREVIATION


def _is_spoken(word: str) -> bool:
    return any(char.isalnum() for char in word)
