"""A segment on both sides of a left-out pause becomes two, by the times of its words."""

import pytest
import tiny_whisper

from whisper_npu.runtime.text.segments import TokenSegment
from whisper_npu.runtime.text.tokenizer import Tokenizer
from whisper_npu.runtime.timestamps.joins import reaches_over, split_at_joins
from whisper_npu.runtime.timestamps.words import WordTiming

PAD = 0.4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(tiny_whisper.build_tokenizer_json())
    return Tokenizer(path)


@pytest.fixture
def split(tokenizer):
    """Splits segments of (start, end, words with times); gives (start, end, text) of each."""
    begin = tokenizer.special.timestamp_begin

    def split(*segments, joins):
        parts, words = [], []
        for start, end, spoken in segments:
            text = tokenizer.encode("".join(word for word, *_ in spoken))
            texts, _ = tokenizer.split_to_words(text, "en")
            assert texts == [word for word, *_ in spoken]
            words += [WordTiming(*word) for word in spoken]
            stamps = [begin + round(time / 0.02) for time in (start, end)]
            parts.append(TokenSegment(start, end, (stamps[0], *text, stamps[1])))
        made = split_at_joins(parts, words, joins, PAD, tokenizer=tokenizer, language="en")
        for part in made:
            stamps = [(part.tokens[place] - begin) * 0.02 for place in (0, -1)]
            assert len(made) == len(parts) or stamps == pytest.approx(
                [part.start, part.end], abs=0.011
            )
        return [
            (round(part.start, 2), round(part.end, 2), tokenizer.decode(part.tokens))
            for part in made
        ]

    return split


ONE, TWO, THREE = (" one", 1.0, 2.0), (" two", 5.0, 6.0), (" three", 9.0, 9.5)


def test_each_side_has_its_words(split):
    """A word before a pause fades out for 0.14 s."""
    assert split((0.6, 7.0, [ONE, TWO]), joins=[3.0]) == [(0.6, 2.14, " one"), (5.0, 7.0, " two")]


def test_several_pauses(split):
    assert split((0.6, 9.9, [ONE, TWO, THREE]), joins=[3.0, 8.0]) == [
        (0.6, 2.14, " one"),
        (5.0, 6.14, " two"),
        (9.0, 9.9, " three"),
    ]


def test_segments_that_only_touch_the_padding_stay(split):
    segments = (0.6, 3.3, [ONE]), (3.3, 7.0, [TWO])
    assert split(*segments, joins=[3.0]) == [(0.6, 3.3, " one"), (3.3, 7.0, " two")]


def test_other_segments_stay(split):
    segments = (0.6, 7.0, [ONE, TWO]), (8.0, 9.9, [THREE])
    assert split(*segments, joins=[3.0])[-1] == (8.0, 9.9, " three")


def test_a_segment_is_where_its_words_are(split):
    assert split((0.6, 7.0, [TWO]), joins=[3.0]) == [(3.0, 7.0, " two")]
    assert split((0.6, 7.0, [ONE]), joins=[3.0]) == [(0.6, 3.0, " one")]


def test_a_word_over_the_pause_is_where_its_middle_is(split):
    found = split((0.6, 7.0, [(" one", 1.0, 3.5), (" two", 3.5, 6.0)]), joins=[3.0])
    assert found == [(0.6, 3.0, " one"), (3.5, 7.0, " two")]


def test_marks_stay_with_their_words(split):
    words = [ONE, (".", 3.2, 3.4), (" ", 2.9, 2.9), ('"two', 5.0, 6.0), (",", 6.0, 6.0)]
    found = split((0.6, 7.0, words), joins=[3.0])
    assert [text for *_, text in found] == [" one.", ' "two,']


def test_a_word_without_length_at_the_join_is_kept(split):
    found = split((0.6, 7.0, [ONE, (" two", 3.0, 3.0), (" three", 3.0, 6.0)]), joins=[3.0, 3.1])
    assert [text for *_, text in found] == [" one", " two", " three"]
    assert all(start < end for start, end, _ in found)


def test_unknown_words_split_nothing(tokenizer):
    text = tuple(tokenizer.encode(" one two"))
    parts = [TokenSegment(0.6, 7.0, text)]
    assert split_at_joins(parts, [], [3.0], PAD, tokenizer=tokenizer, language="en") == parts


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.0, 3.3, False), (2.7, 9.0, False), (2.5, 3.5, True), (0.0, 2.0, False)],
)
def test_reach(start, end, expected):
    assert reaches_over(TokenSegment(start, end, ()), [3.0], PAD) is expected
