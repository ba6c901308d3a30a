"""Words of hypotheses, and how many two of them have in common."""

import pytest
import tiny_whisper

from whisper_npu.runtime.text.tokenizer import Tokenizer
from whisper_npu.runtime.transcription.local_agreement import TimedWord, agreed, timed_words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(tiny_whisper.build_tokenizer_json())
    return Tokenizer(path)


def words(tokenizer, text, language="en"):
    return timed_words(tokenizer, tokenizer.encode(text), language)


class TestHeardWords:
    def test_punctuation_belongs_to_the_word_before(self, tokenizer):
        found = words(tokenizer, ' Well, "Yes" -- said I.')
        assert "".join(word.text for word in found) == ' Well, "Yes" -- said I.'
        assert [word.key for word in found] == ["well", "yes", "said", "i"]

    def test_punctuation_at_the_start_belongs_to_the_first_word(self, tokenizer):
        (found,) = words(tokenizer, ", then")
        assert (found.text, found.key) == (", then", "then")

    def test_nothing_but_punctuation(self, tokenizer):
        (found,) = words(tokenizer, "...")
        assert (found.text, found.key) == ("...", "")

    def test_no_tokens(self, tokenizer):
        assert timed_words(tokenizer, (), "en") == []

    def test_stops_count_timestamps(self, tokenizer):
        begin = tokenizer.special.timestamp_begin
        one, two = tokenizer.encode(" One."), tokenizer.encode(" Two")
        tokens = (begin, *one, begin + 50, begin + 60, *two, begin + 90)
        found = timed_words(tokenizer, tokens, "en")
        assert [word.stop for word in found] == [1 + len(one), 3 + len(one) + len(two)]
        assert tokenizer.decode(tokens[: found[0].stop]) == " One."

    def test_languages_without_spaces_go_by_character(self, tokenizer):
        found = words(tokenizer, "你好。吗", "zh")
        assert [word.text for word in found] == ["你", "好。", "吗"]

    def test_marks_of_vowels_are_part_of_a_word(self, tokenizer):
        assert words(tokenizer, " की", "hi")[0].key != words(tokenizer, " का", "hi")[0].key


class TestAgreed:
    @pytest.mark.parametrize(
        ("one", "other", "count"),
        [
            ("", "", 0),
            (" a", "", 0),
            (" a b c", " a b d", 2),
            (" a b", " a b c", 2),
            (" Mr. Hale", " mr Hale, as", 2),
            (" b a", " a b", 0),
        ],
    )
    def test_common_start(self, tokenizer, one, other, count):
        assert agreed(words(tokenizer, one), words(tokenizer, other)) == count
        assert agreed(words(tokenizer, other), words(tokenizer, one)) == count

    def test_only_keys_are_compared(self):
        assert agreed([TimedWord(" A", "a", 1)], [TimedWord(" a.", "a", 9)]) == 1
