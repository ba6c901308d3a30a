"""Words and their times, on a backend that attends where it is told to, and on real speech."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from whisper_npu.errors import ModelError
from whisper_npu.runtime.results import Segment, Word
from whisper_npu.runtime.text.tokenizer import Tokenizer, sot_sequence
from whisper_npu.runtime.timestamps.words import (
    APPEND_PUNCTUATIONS,
    PREPEND_PUNCTUATIONS,
    WordTiming,
    add_word_timestamps,
    adjust_word_boundaries,
    fit_to_segment,
    last_word_end,
    merge_punctuation,
    typical_duration,
)

POSITIONS_PER_TOKEN = 10  # 0.2 s


def _segment(text: str, start: float, end: float, tokens: tuple[int, ...] = ()) -> Segment:
    return Segment(0, 0, start, end, text, tokens, 0.0, -0.1, 1.0, 0.0)


def _word(text: str, start: float, end: float) -> Word:
    return Word(start=start, end=end, word=text, probability=0.9)


def _timing(text: str, start: float = 0.0, end: float = 0.2) -> WordTiming:
    return WordTiming(text, start, end, 0.5)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint / "tokenizer.json")


class SteadySpeaker:
    """A backend whose tokens are spoken one after the other, each in the same time."""

    n_text_ctx = 448

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def align(self, audio: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.tokens = tokens[0].tolist()
        n = tokens.shape[1]
        attentions = np.full((1, 2, n, audio.shape[1]), 1e-4, np.float32)
        for row in range(n):
            # The row before a token attends for it; text begins behind sot, en, task, notimestamps.
            first = max(0, row - 3) * POSITIONS_PER_TOKEN
            attentions[0, :, row, first : first + POSITIONS_PER_TOKEN] = 1
        return np.linspace(0, 1, n - 1, dtype=np.float32)[None], attentions


def _add(tokenizer: Tokenizer, texts: list[str], **changes) -> tuple[list[Segment], SteadySpeaker]:
    special = tokenizer.special
    backend = SteadySpeaker()
    segments = []
    for i, text in enumerate(texts):
        tokens = (special.timestamp_begin, *tokenizer.encode(text), special.timestamp_begin + 50)
        segments.append(_segment(text, 100.0 + i, 101.0 + i, tokens))
    options = {
        "backend": backend,
        "tokenizer": tokenizer,
        "language": "en",
        "sot_sequence": sot_sequence(
            special, is_multilingual=True, language="en", task="transcribe"
        ),
        "n_frames": 3000,
        "in_recording": lambda start, end: (100.0 + start, 100.0 + end),
        "attention_delay": 0.0,
    }
    audio = np.zeros((1, 1500, 4), np.float32)
    return add_word_timestamps(segments, audio, **(options | changes)), backend


def test_words_make_up_the_text_and_follow_each_other(tokenizer: Tokenizer) -> None:
    texts = [" One two, three.", " (Four) five?", " six"]
    segments, _ = _add(tokenizer, texts)
    assert ["".join(word.word for word in s.words) for s in segments] == texts
    assert [[word.word for word in s.words] for s in segments] == [
        [" One", " two,", " three."],
        [" (Four)", " five?"],
        [" six"],
    ]
    words = [word for s in segments for word in s.words]
    assert all(word.start <= word.end for word in words)
    assert all(a.end <= b.start for a, b in pairwise(words))
    assert all(s.start == s.words[0].start and s.end == s.words[-1].end for s in segments)
    assert words[0].start >= 100


def test_times_and_probabilities_are_those_of_the_tokens(tokenizer: Tokenizer) -> None:
    (segment,), backend = _add(tokenizer, [" a b"])
    special = tokenizer.special
    text = tokenizer.encode(" a b")
    prompt = [special.sot, special.languages["en"], special.transcribe, special.no_timestamps]
    assert backend.tokens == [*prompt, *text, special.eot]
    a, b = tokenizer.encode(" a"), tokenizer.encode(" b")
    probabilities = np.linspace(0, 1, len(backend.tokens) - 1)[3:]
    step = 0.02 * POSITIONS_PER_TOKEN
    first, second = segment.words
    # Half way to where half of the second one's attention lies; and a fading end.
    assert first.end == second.start == pytest.approx(100 + step * len(a) + 0.04)
    assert second.end == pytest.approx(100 + step * len(text) + 0.14)
    assert first.probability == pytest.approx(probabilities[: len(a)].mean())
    assert second.probability == pytest.approx(probabilities[len(a) :][: len(b)].mean())


def test_delay_of_the_attention_is_taken_off(tokenizer: Tokenizer) -> None:
    (prompt,), _ = _add(tokenizer, [" one two three"])
    (late,), _ = _add(tokenizer, [" one two three"], attention_delay=0.1)
    for word, earlier in zip(prompt.words[1:], late.words[1:], strict=True):
        assert earlier.start == pytest.approx(word.start - 0.1)
    assert late.words[0].start >= 100


def test_words_last_until_the_next_or_fade_into_a_pause() -> None:
    spoken = [
        [_timing(" a", 0.1, 0.3), _timing(" b", 0.5, 0.6)],
        [],
        [_timing(" c", 0.6, 0.7), _timing(" d", 1.0, 1.5)],
    ]
    sounding = adjust_word_boundaries(spoken, 1.6)
    assert [[t.word for t in words] for words in sounding] == [[" a", " b"], [], [" c", " d"]]
    times = [(t.start, t.end) for words in sounding for t in words]
    assert np.array(times) == pytest.approx(
        np.array([(0.1, 0.4), (0.4, 0.6), (0.6, 0.84), (1.0, 1.6)])
    )


@pytest.mark.parametrize("window_end", [0.2, 0.3])
def test_a_word_that_reaches_the_end_of_the_window_stays_there(window_end: float) -> None:
    assert adjust_word_boundaries([[_timing(" a", 0.1, 0.3)]], window_end)[0][0].end == 0.3


def test_no_word_lies_in_the_padding(tokenizer: Tokenizer) -> None:
    segments, _ = _add(tokenizer, [" one two three four five six"], n_frames=100)
    assert segments[0].words[-1].end <= 101


def test_no_word_overlaps_the_window_before(tokenizer: Tokenizer) -> None:
    segments, _ = _add(tokenizer, [" one two", " three"], not_before=101.0)
    words = [word for s in segments for word in s.words]
    assert words[0].start == 101.0
    assert all(word.start <= word.end for word in words)
    free, _ = _add(tokenizer, [" one two", " three"])
    assert free[0].words[0].start < 101.0
    assert free[1] == segments[1]  # later words stay where they are


def test_languages_without_spaces_are_timed_by_character(tokenizer: Tokenizer) -> None:
    (segment,), _ = _add(tokenizer, ["音声認識。"], language="zh")
    assert [word.word for word in segment.words] == ["音", "声", "認", "識。"]


def test_a_context_that_is_full_is_not_overrun(tokenizer: Tokenizer) -> None:
    text = " a" * ((448 - 4) // len(tokenizer.encode(" a")))
    (segment,), backend = _add(tokenizer, [text])
    assert len(backend.tokens) <= 448
    assert "".join(word.word for word in segment.words) == text


def test_segments_without_text_have_no_words(tokenizer: Tokenizer) -> None:
    segments, backend = _add(tokenizer, [""])
    assert segments[0].words == ()
    assert (segments[0].start, segments[0].end) == (100.0, 101.0)
    assert backend.tokens == []
    assert _add(tokenizer, [])[0] == []


def test_characters_cut_short_are_not_lost(tokenizer: Tokenizer) -> None:
    """A text may end amid the bytes of a character; its tokens still have a word."""
    whole = tokenizer.encode(" ab認")
    for n_missing in (1, 2):
        words, groups = tokenizer.split_to_words(whole[:-n_missing], "en")
        assert [token for group in groups for token in group] == whole[:-n_missing]
        assert "".join(words) == tokenizer.decode(whole[:-n_missing])
    words, groups = tokenizer.split_to_words(whole[-3:-2], "en")
    assert (words, groups) == (["\ufffd"], [whole[-3:-2]])


def test_words_of_the_real_tokenizer(tiny_en_folder: Path) -> None:
    """As openai/whisper's `split_to_word_tokens` splits them."""
    tokenizer = Tokenizer(tiny_en_folder / "tokenizer.json")
    text = " Mr. O'Neill's café, 3.5% (well-known)"
    words, groups = tokenizer.split_to_words([*tokenizer.encode(text), tokenizer.special.eot], "en")
    assert words == [
        *[" Mr", ".", " O", "'Neill's", " café", ",", " 3", ".5", "%"],
        *[" (well", "-known", ")", "<|endoftext|>"],
    ]
    assert [tokenizer.decode(group) for group in groups[:-1]] == words[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([" Hello", ",", " world", "!"], [" Hello,", " world!"]),
        ([" ¿", "Qué", " tal", "?"], [" ¿Qué", " tal?"]),
        ([' "', "Yes", '."', " he"], [' "Yes', '."', " he"]),
        (
            [" (", "a", ")", "."],
            [
                " (a).",
            ],
        ),
        ([" -", " a"], [" - a"]),
        (["世", "界", "。"], ["世", "界。"]),
        ([" end", " ("], [" end", " ("]),
        ([".", " a"], [".", " a"]),
    ],
)
def test_punctuation_joins_its_word(words: list[str], expected: list[str]) -> None:
    timings = [_timing(word, i, i + 1) for i, word in enumerate(words)]
    merged = merge_punctuation(timings, PREPEND_PUNCTUATIONS, APPEND_PUNCTUATIONS)
    assert [timing.word for timing in merged] == expected


def test_punctuation_leaves_its_word_its_time() -> None:
    timings = [_timing(" (", 0, 1), _timing("a", 1, 2), _timing(")", 2, 3)]
    assert merge_punctuation(timings, "(", ")") == [_timing(" (a)", 1, 2)]


def test_typical_duration_ignores_words_without_one_and_has_a_limit() -> None:
    timings = [[_timing("a", 0, 0.2), _timing("b", 0.2, 0.2)], [], [_timing("c", 0.2, 0.6)]]
    assert typical_duration(timings) == pytest.approx(0.3)
    assert typical_duration([[_timing("a", 0, 9)]]) == 0.7
    assert typical_duration([[]]) == 0


@pytest.mark.parametrize(
    ("segment_times", "word_times", "expected"),
    [
        ((1.0, 2.0), (1.1, 1.9), (1.1, 1.9)),  # the words know better
        ((1.0, 2.0), (0.6, 2.4), (0.6, 2.4)),
        ((1.0, 2.0), (0.2, 1.9), (1.0, 1.9)),  # the first begins far too early
        ((1.0, 2.0), (1.1, 3.0), (1.1, 2.0)),  # the last ends far too late
        ((5.0, 6.0), (1.0, 2.0), (1.0, 2.0)),  # no overlap: nothing to believe
    ],
)
def test_segment_and_words_agree(segment_times, word_times, expected) -> None:
    words = [_word(" a", word_times[0], 1.5), _word(" b", 1.6, word_times[1])]
    fitted = fit_to_segment(_segment(" a b", *segment_times), words, 0.3)
    assert (fitted.start, fitted.end) == expected
    assert (fitted.words[0].start, fitted.words[-1].end) == expected
    assert fitted.text == " a b"


def test_words_stay_within_what_was_aligned() -> None:
    first, last = _word(" a", 9.4, 10.0), _word(" b", 9.95, 10.5)
    late = fit_to_segment(_segment(" a", 9.95, 10.4), [first], 0.7)
    assert late.words[0].start == 9.4
    early = fit_to_segment(_segment(" b", 9.0, 9.98), [last], 0.7)
    assert early.words[0].end == 10.5


def test_last_word_end() -> None:
    with_words = fit_to_segment(_segment(" a", 0, 1), [_word(" a", 0.2, 0.8)], 0.3)
    assert last_word_end([with_words, _segment("", 1, 2)]) == 0.8
    assert last_word_end([_segment("", 1, 2)]) == 2
    assert last_word_end([]) is None


def test_openvino_needs_no_graph_for_it(tiny_folder: Path, tmp_path: Path) -> None:
    """It is made of the decoder, with the same results."""
    from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
    from whisper_npu.runtime.model_folder.folder import read_model_folder

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "without"))
    (folder / "decoder_alignment_model.onnx").unlink()
    random = np.random.default_rng(0)
    audio = random.standard_normal((2, 1500, 64)).astype(np.float32)
    tokens = random.integers(0, 300, (2, 7))
    found = []
    for path in (tiny_folder, folder):
        backend = OpenVINOBackend(read_model_folder(path), precision="f32")
        assert backend.can_align
        found.append(backend.align(audio, tokens))
    eot = read_model_folder(folder).eot
    assert eot is not None
    is_text = tokens[:, 1:] < eot
    np.testing.assert_allclose(found[1][0][is_text], found[0][0][is_text], atol=1e-5)
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-5)


def test_a_model_without_an_end_token_has_no_word_times(tiny_folder: Path, tmp_path: Path) -> None:
    from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
    from whisper_npu.runtime.model_folder.folder import read_model_folder

    folder = Path(shutil.copytree(tiny_folder, tmp_path / "without"))
    for name in ("decoder_alignment_model.onnx", "generation_config.json", "export_manifest.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    backend = OpenVINOBackend(read_model_folder(folder))
    assert not backend.can_align
    with pytest.raises(ModelError, match="whisper-npu export") as caught:
        backend.align(np.zeros((1, 1500, 64), np.float32), np.zeros((1, 4), np.int64))
    assert str(folder) in str(caught.value)


def test_backend_aligns_any_length_and_several_windows(tiny_folder: Path) -> None:
    from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
    from whisper_npu.runtime.model_folder.folder import read_model_folder

    backend = OpenVINOBackend(read_model_folder(tiny_folder), precision="f32")
    random = np.random.default_rng(0)
    audio = random.standard_normal((2, 1500, 64)).astype(np.float32)
    tokens = random.integers(0, 200, (2, 11))
    probabilities, attentions = backend.align(audio, tokens)
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(attentions.sum(-1), 1, rtol=1e-4)
    for window in range(2):
        alone = backend.align(audio[window : window + 1], tokens[window : window + 1, :7])
        np.testing.assert_allclose(alone[0], probabilities[window : window + 1, :6], rtol=1e-3)
        np.testing.assert_allclose(
            alone[1], attentions[window : window + 1, :, :7], rtol=1e-3, atol=1e-7
        )
