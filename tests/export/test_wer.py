import random

import pytest

from whisper_npu.scripts.evaluation.wer import (
    Edits,
    bootstrap_difference,
    bootstrap_interval,
    compare,
    metric_for,
    total,
)

ENGLISH = metric_for("en")
GERMAN = metric_for("de")
JAPANESE = metric_for("ja")


def levenshtein(reference: list[str], hypothesis: list[str]) -> int:
    """The textbook table, as an oracle."""
    row = list(range(len(hypothesis) + 1))
    for i, said in enumerate(reference, start=1):
        above = row
        row = [i]
        for j, heard in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (said != heard)))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "edits"),
    [
        ("one two three", "one two three", Edits(0, 0, 0, 3)),
        ("one two three", "one too three", Edits(1, 0, 0, 3)),
        ("one two three", "one three", Edits(0, 1, 0, 3)),
        ("one two three", "one two two three", Edits(0, 0, 1, 3)),
        ("one two three", "", Edits(0, 3, 0, 3)),
        ("", "", Edits(0, 0, 0, 0)),
        ("", "thank you", Edits(0, 0, 2, 0)),
        ("short one here", "shoe order one", Edits(1, 1, 1, 3)),
    ],
)
def test_edits(reference, hypothesis, edits) -> None:
    assert compare(reference, hypothesis, GERMAN).edits == edits


def test_edits_are_the_fewest_possible() -> None:
    draw = random.Random(0)
    for _ in range(50):
        said, heard = (draw.choices("abcd", k=draw.randint(0, 12)) for _ in range(2))
        edits = compare(" ".join(said), " ".join(heard), GERMAN).edits
        assert edits.errors == levenshtein(said, heard)
        assert edits.words == len(said)
        assert len(said) - edits.deletions + edits.insertions == len(heard)


def test_english_normaliser() -> None:
    said = "MISTER SMITH'S COLOUR, I DON'T KNOW"
    assert compare(said, "Mr. Smith's color: (hm) I do not know!", ENGLISH).edits.errors == 0
    assert compare(said, "Mr. Smith's color: I do not know!", GERMAN).edits.errors > 0


def test_basic_normaliser_keeps_the_words_of_other_languages() -> None:
    assert compare("Schöne Grüße!", "schöne, grüße", GERMAN).edits == Edits(0, 0, 0, 2)
    assert compare("Schöne", "Schone", GERMAN).edits.errors == 1


@pytest.mark.parametrize("language", ["zh", "ja", "th", "lo", "my", "yue"])
def test_languages_without_spaces_count_characters(language) -> None:
    assert metric_for(language).name == "CER"
    assert metric_for(language).unit == "characters"


def test_characters_are_compared_one_by_one_without_spaces_and_punctuation() -> None:
    edits = compare("今日は、いい天気です。", "今日は いい天候です", JAPANESE).edits
    assert edits == Edits(1, 0, 0, 9)


def test_rate_of_a_corpus_weighs_words_not_recordings() -> None:
    corpus = total([Edits(1, 0, 0, 1), Edits(0, 0, 0, 9)])
    assert corpus == Edits(1, 0, 0, 10)
    assert corpus.rate == pytest.approx(10.0)


def test_no_rate_where_nothing_was_said() -> None:
    assert Edits(0, 0, 2, 0).rate is None


@pytest.mark.parametrize(
    ("reference", "hypothesis", "empty", "truncated"),
    [
        ("a b c d e f g h i j", "a b c d e f g h i j", False, False),
        ("a b c d e f g h i j", "", True, False),
        ("a b c d e f g h i j", "...", True, False),
        ("a b c d e f g h i j", "a b c d", False, True),
        ("a b c d e f g h i j", "a b c d e f", False, False),
        ("a b", "a", False, False),
        # A hole in the middle of a long text, and scattered losses.
        (" ".join(map(str, range(60))), " ".join(map(str, [*range(20), *range(30, 60)])), 0, 1),
        (" ".join(map(str, range(60))), " ".join(map(str, range(0, 60, 2))) + " x x", 0, 0),
        ("", "", False, False),
        ("", "thank you", False, False),
    ],
)
def test_empty_and_truncated(reference, hypothesis, empty, truncated) -> None:
    found = compare(reference, hypothesis, GERMAN)
    assert (found.empty, found.truncated) == (empty, truncated)


def test_alignment_shows_each_edit() -> None:
    lines = compare("quite a bit of it", "quite bit of it more", GERMAN).alignment.splitlines()
    assert lines == [
        "REF: quite a bit of it ****",
        "HYP: quite * bit of it more",
        "           D              I",
    ]


def test_alignment_is_cut_into_lines() -> None:
    said = " ".join(f"word{number}" for number in range(60))
    lines = compare(said, said + " more", GERMAN).alignment.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\n\n\n" not in "\n".join(lines)


COUNTS = [Edits(number % 4, number % 2, 0, 10 + number % 3) for number in range(40)]


def test_interval_holds_the_rate_and_narrows_with_more_recordings() -> None:
    low, high = bootstrap_interval(COUNTS)
    assert low < total(COUNTS).rate < high
    narrow_low, narrow_high = bootstrap_interval(COUNTS * 4)
    # Four times the recordings: half the width.
    assert (narrow_high - narrow_low) / (high - low) == pytest.approx(0.5, abs=0.05)


def test_interval_agrees_with_the_normal_approximation() -> None:
    """The delta method's standard error of a ratio, where recordings are alike in length."""
    rate = total(COUNTS).errors / total(COUNTS).words
    residuals = [edits.errors - rate * edits.words for edits in COUNTS]
    error = 100 * sum(r * r for r in residuals) ** 0.5 / total(COUNTS).words
    low, high = bootstrap_interval(COUNTS)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_interval_is_the_same_every_time() -> None:
    assert bootstrap_interval(COUNTS) == bootstrap_interval(COUNTS)


def test_interval_of_equal_recordings_is_their_rate() -> None:
    assert bootstrap_interval([Edits(1, 0, 0, 5)] * 8) == pytest.approx((20.0, 20.0))


@pytest.mark.parametrize("counts", [[], [Edits(1, 0, 0, 5)], [Edits(0, 0, 2, 0)] * 9])
def test_no_interval_without_spread(counts) -> None:
    assert bootstrap_interval(counts) is None
    assert bootstrap_difference(counts, counts) is None


def test_recordings_without_speech_do_not_break_the_interval() -> None:
    low, high = bootstrap_interval([Edits(0, 0, 1, 0), Edits(1, 0, 0, 10), Edits(2, 0, 0, 10)])
    assert 0 < low <= high


def test_difference_is_paired() -> None:
    worse = [Edits(edits.substitutions, edits.deletions, 1, edits.words) for edits in COUNTS]
    low, high = bootstrap_difference(worse, COUNTS)
    # One error more in every recording: certain, however much the recordings differ.
    assert 8 < low <= high < 10
    assert bootstrap_difference(COUNTS, COUNTS) == (0.0, 0.0)
