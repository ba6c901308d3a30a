"""Splits segments at left-out pauses.

A window may leave out long pauses (`features/windows.py`). The model does not know: it may write
one segment for the speech before and after such a pause. As a subtitle it would show words half a
minute before they are spoken.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from math import inf

from whisper_npu.runtime.text.segments import TokenSegment
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP, Tokenizer
from whisper_npu.runtime.timestamps.words import WordTiming, adjust_word_boundaries


def reaches_over(part: TokenSegment, joins: Sequence[float], pad: float) -> bool:
    """Whether a segment is on both sides of a left-out pause.

    Args:
        part: the segment.
        joins: seconds into the window at which a pause is left out, in order.
        pad: seconds without speech on either side of a join; a segment that ends or begins there
            does not reach over the pause.
    """
    return any(part.start < join - pad and join + pad < part.end for join in joins)


def split_at_joins(
    parts: Sequence[TokenSegment],
    words: Sequence[WordTiming],
    joins: Sequence[float],
    pad: float,
    *,
    tokenizer: Tokenizer,
    language: str,
) -> list[TokenSegment]:
    """Split each segment that reaches over a left-out pause, by the times of its words.

    Args:
        parts: all segments of a window, in order.
        words: the words of their text, as `tokenizer.split_to_words` divides it.
        joins: see `reaches_over`.
        pad: see `reaches_over`.
        tokenizer: the model's.
        language: language code of the text; it decides where words end.

    Returns:
        segments with the same text; each split segment is between two joins. All are unchanged if
        the words are not those of the text.
    """
    eot = tokenizer.special.eot
    text = [token for part in parts for token in part.tokens if token < eot]
    groups = tokenizer.split_to_words(text, language)[1]
    if len(groups) != len(words):  # the text was cut off: its words have no times
        return list(parts)
    (words,) = adjust_word_boundaries([words], inf)  # the last word ends with its segment
    split: list[TokenSegment] = []
    place = 0
    for part in parts:
        first, n_left = place, sum(token < eot for token in part.tokens)
        while n_left > 0:
            n_left -= len(groups[place])
            place += 1
        if n_left == 0 and place > first and reaches_over(part, joins, pad):
            mine = slice(first, place)
            begin = tokenizer.special.timestamp_begin
            split += _split(part, words[mine], groups[mine], joins, begin)
        else:
            split.append(part)
    return split


def _split(
    part: TokenSegment,
    words: Sequence[WordTiming],
    groups: Sequence[Sequence[int]],
    joins: Sequence[float],
    begin: int,
) -> list[TokenSegment]:
    """One segment for each stretch between joins that has words of `part`."""
    numbers = _stretches(words, joins)
    edges = [0.0, *joins, part.end]
    made: list[TokenSegment] = []
    for number, members in groupby(range(len(words)), key=numbers.__getitem__):
        places = list(members)
        first, last = edges[number], max(edges[number], min(edges[number + 1], part.end))
        is_first, is_last = places[0] == 0, places[-1] == len(words) - 1
        start = max(first, part.start if is_first else words[places[0]].start)
        end = min(last, part.end if is_last else words[places[-1]].end)
        end = max(end, start + TIMESTAMP_STEP)
        tokens = (
            begin + round(start / TIMESTAMP_STEP),
            *(token for place in places for token in groups[place]),
            begin + round(end / TIMESTAMP_STEP),
        )
        made.append(TokenSegment(start, end, tokens))
    return made if len(made) > 1 else [replace(part, start=made[0].start, end=made[0].end)]


def _stretches(words: Sequence[WordTiming], joins: Sequence[float]) -> list[int]:
    """The number of joins before the middle of each word.

    A mark belongs to the word before it, if no space separates them, else to the word after it.
    """
    numbers: list[int] = []
    waiting = 0  # marks that open the next word
    for word in words:
        if not any(char.isalnum() for char in word.word):
            if word.word.startswith(" ") or waiting or not numbers:
                waiting += 1
            else:
                numbers.append(numbers[-1])
            continue
        middle = (word.start + word.end) / 2
        number = sum(join <= middle for join in joins)
        numbers += [number] * (waiting + 1)
        waiting = 0
    return numbers + [numbers[-1] if numbers else 0] * waiting
