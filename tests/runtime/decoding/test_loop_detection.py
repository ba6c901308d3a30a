"""Text that says one phrase over and over: when it is called a loop, and when it is cut off."""

import numpy as np
import pytest
from fake_backend import FakeBackend, Say, write_companions

from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.loop_detection import (
    ends_twice,
    is_endless,
    is_loop,
    says_twice,
    spoken_length,
)
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

ENGLISH = Vocabulary(is_multilingual=False, suppress=(), begin_suppress=())
NOTHING = np.zeros((2, 1500, 4), np.float32)


@pytest.mark.parametrize(
    ("tokens", "endless"),
    [
        ((5,) * 97, True),
        ((5,) * 96, False),  # its first says nothing again
        ((*range(30), *(5, 6, 7) * 33), True),
        ((*(5, 6, 7) * 33, 8), False),  # it goes on
        (tuple(range(5, 29)) * 5, True),
        (tuple(range(5, 30)) * 6, False),  # not often enough
        (tuple(range(200)), False),
    ],
)
def test_endless(tokens, endless):
    assert is_endless(np.array([tokens])).tolist() == [endless]
    assert is_loop(tokens) or not endless


def test_rows_are_told_apart():
    rows = np.array([(5,) * 120, range(120), (6, 7) * 60])
    assert is_endless(rows).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.01, "best_of": 2}, {"beam_size": 2}], ids=str
)
def test_loops_are_cut_off(tmp_path, options):
    tokenizer = Tokenizer(write_companions(tmp_path) / "tokenizer.json")

    def decode(cut_loops):
        backend = FakeBackend(tokenizer, [Say((7, 8, *(5, 6) * 300))])
        backend.n_text_ctx = 448
        wanted = DecodingOptions(without_timestamps=True, cut_loops=cut_loops, **options)
        windows = decode_windows(backend, tokenizer, ENGLISH, NOTHING, wanted, StageTimes())
        return windows[0].tokens, len(backend.asked[0].tokens[0])

    tokens, _ = decode(cut_loops=False)
    cut, n_fed = decode(cut_loops=True)
    assert len(tokens) == 446
    assert len(cut) == 112
    assert cut == tokens[:112]
    assert n_fed == 113


@pytest.mark.parametrize(
    ("tokens", "twice"),
    [
        ([1, 2, 3, 4, 5] * 2, True),
        ([9, 8, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 7], True),
        ([1, 2, 3, 4] * 2, False),
        ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5], False),
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6], False),
        ([], False),
    ],
)
def test_a_phrase_of_five_tokens_said_twice(tokens, twice):
    assert says_twice(tokens) is twice


@pytest.mark.parametrize(
    ("tokens", "twice"),
    [
        ([1, 2, 3, 1, 2, 3], True),
        ([1, 2, 1, 2], False),
        ([1, 2, 3, 1, 2], False),
        ([1, 2, 3, 1, 2, 3, 1, 2, 3], False),
        ([9, 1, 2, 3, 1, 2, 3], False),
        ([9, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5], True),
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 9], False),
        ([], False),
    ],
)
def test_a_text_that_ends_in_the_same_twice(tokens, twice):
    assert ends_twice(tokens) is twice


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("", 0),
        ("Übermut", 7),
        ("谢谢。", 7),
        ("ありがとう", 15),
        ("감사", 6),
        ("Ja, 谢", 7),
        ("спасибо", 7),
    ],
)
def test_signs_for_syllables_take_as_long_as_three_letters(text, length):
    assert spoken_length(text) == length
