"""Decoding windows: greedy texts, prompts, limits, rows that end, the language."""

import math

import numpy as np
import pytest
from fake_backend import N_TEXT_CTX, FakeBackend, Say, write_companions

from whisper_npu.errors import UsageError
from whisper_npu.runtime.decoding.decode import (
    DecodingOptions,
    compression_ratio,
    decode_windows,
)
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

MULTILINGUAL = Vocabulary(is_multilingual=True, suppress=(), begin_suppress=())
ENGLISH = Vocabulary(is_multilingual=False, suppress=(), begin_suppress=())
NO_AUDIO = np.zeros((1, 1500, 4), np.float32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_companions(tmp_path_factory.mktemp("tiny")) / "tokenizer.json")


def decode(tokenizer, say, vocabulary=MULTILINGUAL, audio=NO_AUDIO, prompts=(), **options):
    """What became of scripted windows, and the backend that was asked."""
    backend = FakeBackend(tokenizer, [say])
    options = DecodingOptions(**options)
    windows = decode_windows(
        backend, tokenizer, vocabulary, audio, options, StageTimes(), prompts=prompts
    )
    assert backend.open_sessions == 0
    return windows, backend


class TestGreedy:
    def test_says_what_is_likeliest_until_the_text_ends(self, tokenizer):
        words = tuple(tokenizer.encode(" hello there"))
        (window,), backend = decode(tokenizer, Say(words), without_timestamps=True)
        assert window.tokens == words
        assert window.text == "hello there"
        assert not window.reached_limit
        assert window.temperature == 0.0
        special = tokenizer.special
        prompt = [
            special.sot,
            special.languages["en"],
            special.transcribe,
            special.no_timestamps,
        ]
        assert backend.asked[0].tokens == [[*prompt, *words]]  # the end of text is never fed

    def test_average_log_probability_counts_the_end_of_text(self, tokenizer):
        words = tuple(tokenizer.encode("ab"))
        say = Say(words, logit=3.0)
        (window,), backend = decode(tokenizer, say, without_timestamps=True)
        each = 3.0 - math.log(math.exp(3.0) + backend.n_vocab - 1)
        assert window.avg_logprob == pytest.approx(each, rel=1e-5)

    def test_an_empty_text(self, tokenizer):
        (window,), _ = decode(tokenizer, Say(()), without_timestamps=True)
        assert (window.tokens, window.text, window.compression_ratio) == ((), "", 1.0)

    def test_no_speech(self, tokenizer):
        (window,), _ = decode(tokenizer, Say((5,), no_speech=30.0), without_timestamps=True)
        assert window.no_speech_prob == pytest.approx(1.0)
        (window,), _ = decode(tokenizer, Say((5,)), without_timestamps=True)
        assert window.no_speech_prob == pytest.approx(0.0, abs=1e-6)

    def test_suppressed_tokens_are_never_said(self, tokenizer):
        (window,), _ = decode(
            tokenizer, Say((5, 6, 7)), without_timestamps=True, suppress_tokens=(6,), sample_len=3
        )
        assert 6 not in window.tokens
        assert window.tokens[::2] == (5, 7)

    def test_timestamps_come_first(self, tokenizer):
        begin = tokenizer.special.timestamp_begin
        (window,), _ = decode(tokenizer, Say((begin + 5, 9, begin + 30)))
        assert window.tokens == (begin + 5, 9, begin + 30)
        (window,), _ = decode(tokenizer, Say((begin + 80, 9)), sample_len=2)
        assert begin <= window.tokens[0] <= begin + 50  # at most one second late
        (window,), _ = decode(tokenizer, Say((begin + 80, 9)), max_initial_timestamp=None)
        assert window.tokens == (begin + 80, 9)

    def test_each_step_is_reported(self, tokenizer):
        seen = []
        decode_windows(
            FakeBackend(tokenizer, [Say((5, 6))]),
            tokenizer,
            MULTILINGUAL,
            NO_AUDIO,
            DecodingOptions(without_timestamps=True),
            StageTimes(),
            on_tokens=seen.append,
        )
        eot = tokenizer.special.eot
        assert seen == [[(5,)], [(5, 6)], [(5, 6, eot)]]


class Uneven(FakeBackend):
    """Every window has a script of its own; rows that have ended may leave."""

    def start(self, audio, rows_per_window=1):
        session = UnevenSession(self, len(audio))
        self.batches = session.batches
        return session


class UnevenSession:
    def __init__(self, backend, n_windows):
        self.backend = backend
        self.windows = list(range(n_windows))
        self.said = -1
        self.batches = []

    def step(self, tokens):
        assert len(tokens) == len(self.windows)
        self.batches.append(len(tokens))
        self.said += 1
        logits = np.zeros((len(tokens), tokens.shape[1], self.backend.n_vocab), np.float32)
        for row, window in enumerate(self.windows):
            said = (*self.backend.script[window].tokens, self.backend.special.eot)
            logits[row, -1, said[min(self.said, len(said) - 1)]] = 30.0
        return logits

    def keep(self, rows):
        self.windows = [self.windows[row] for row in rows]
        return True

    def close(self):
        pass


class TestRowsThatHaveEnded:
    def test_leave_when_half_have(self, tokenizer):
        scripts = [tuple(range(5, 5 + n)) for n in (2, 9, 4, 14, 3)]
        backend = Uneven(tokenizer, [Say(script) for script in scripts])
        windows = decode_windows(
            backend,
            tokenizer,
            MULTILINGUAL,
            np.zeros((5, 1500, 4), np.float32),
            DecodingOptions(without_timestamps=True),
            StageTimes(),
        )
        assert [window.tokens for window in windows] == scripts
        # Of 5, the third is the first to leave no more than half; of 2, the first.
        assert backend.batches == [5] * 5 + [2] * 5 + [1] * 5
        alone = [
            decode_windows(
                Uneven(tokenizer, [Say(script)]),
                tokenizer,
                MULTILINGUAL,
                NO_AUDIO,
                DecodingOptions(without_timestamps=True),
                StageTimes(),
            )[0]
            for script in scripts
        ]
        assert windows == alone  # log probabilities too

    def test_those_that_nobody_wants_end_where_they_are(self, tokenizer):
        scripts = [tuple(range(5, 5 + n)) for n in (12, 9, 12)]
        backend = Uneven(tokenizer, [Say(script) for script in scripts])
        steps = []

        def is_wanted():
            steps.append(len(steps))
            return [len(steps) < 3, True, len(steps) < 5]

        windows = decode_windows(
            backend,
            tokenizer,
            MULTILINGUAL,
            np.zeros((3, 1500, 4), np.float32),
            DecodingOptions(without_timestamps=True),
            StageTimes(),
            is_wanted=is_wanted,
        )
        assert [len(window.tokens) for window in windows] == [3, 9, 5]
        assert windows[1].tokens == scripts[1]
        assert backend.batches == [3] * 5 + [1] * 5  # rows leave when half have ended

    def test_a_batch_that_nobody_wants_is_not_gone_on_with(self, tokenizer):
        backend = Uneven(tokenizer, [Say(tuple(range(5, 30)))] * 2)
        decode_windows(
            backend,
            tokenizer,
            MULTILINGUAL,
            np.zeros((2, 1500, 4), np.float32),
            DecodingOptions(without_timestamps=True),
            StageTimes(),
            is_wanted=lambda: [False, False],
        )
        assert backend.batches == [2]


class TestPrompt:
    def test_english_only_models_take_neither_language_nor_task(self, tokenizer):
        _, backend = decode(tokenizer, Say((5,)), ENGLISH, without_timestamps=True)
        special = tokenizer.special
        assert backend.asked[0].tokens[0][:2] == [special.sot, special.no_timestamps]

    def test_language_and_task(self, tokenizer):
        _, backend = decode(tokenizer, Say((5,)), language="de", task="translate", sample_len=1)
        special = tokenizer.special
        assert backend.asked[0].tokens == [
            [special.sot, special.languages["de"], special.translate]
        ]

    def test_prompt_and_prefix(self, tokenizer):
        (window,), backend = decode(
            tokenizer,
            Say((5,)),
            ENGLISH,
            prompts=[(1, 2)],
            without_timestamps=True,
            prefix_tokens=(3, 4),
        )
        special = tokenizer.special
        head = [special.sot_prev, 1, 2, special.sot, special.no_timestamps, 3, 4]
        assert backend.asked[0].tokens[0][: len(head)] == head
        assert window.tokens == (3, 4, 5)

    def test_every_window_has_its_own_prompt(self, tokenizer):
        audio = np.repeat(NO_AUDIO, 2, axis=0)
        options = {"without_timestamps": True, "beam_size": 2}
        _, backend = decode(
            tokenizer, Say((5,)), ENGLISH, audio, prompts=[(1, 2), (3, 4)], **options
        )
        prompts = [row[1:3] for row in backend.asked[0].tokens]
        assert prompts == [[1, 2], [1, 2], [3, 4], [3, 4]]

    def test_prompts_of_windows_decoded_together_are_equally_long(self, tokenizer):
        audio = np.repeat(NO_AUDIO, 2, axis=0)
        with pytest.raises(ValueError, match="equally long"):
            decode(tokenizer, Say((5,)), ENGLISH, audio, prompts=[(1, 2), (3,)])

    def test_no_room(self, tokenizer):
        with pytest.raises(UsageError, match=f"context of {N_TEXT_CTX}"):
            decode(tokenizer, Say((5,)), prefix_tokens=tuple(range(1, N_TEXT_CTX)))

    @pytest.mark.parametrize("prefix_length", [0, 3, 7, 20])
    def test_no_speech_is_read_at_sot_whatever_follows_it(self, tokenizer, prefix_length):
        (window,), _ = decode(
            tokenizer,
            Say((5,), logit=10.0, no_speech=40.0),
            without_timestamps=True,
            prefix_tokens=(8,) * prefix_length,
            sample_len=1,
        )
        assert window.no_speech_prob == pytest.approx(1.0)


class TestLimit:
    @pytest.mark.parametrize("options", [{}, {"beam_size": 2}, {"temperature": 0.5, "best_of": 2}])
    def test_the_context_ends_the_text(self, tokenizer, options):
        endless = Say((5, 6) * N_TEXT_CTX)
        (window,), backend = decode(tokenizer, endless, ENGLISH, without_timestamps=True, **options)
        assert window.reached_limit
        assert window.tokens == ((5, 6) * N_TEXT_CTX)[: N_TEXT_CTX - 2]
        assert len(backend.asked[0].tokens[0]) == N_TEXT_CTX - 1  # the last one is not fed

    def test_a_limit_of_its_own(self, tokenizer):
        (window,), _ = decode(tokenizer, Say((5,) * 9), without_timestamps=True, sample_len=4)
        assert (window.tokens, window.reached_limit) == ((5, 5, 5, 5), True)

    def test_ending_just_at_the_limit(self, tokenizer):
        (window,), _ = decode(tokenizer, Say((5, 6)), without_timestamps=True, sample_len=3)
        assert (window.tokens, window.reached_limit) == ((5, 6), False)


def test_sessions_are_closed_when_decoding_fails(tokenizer):
    class Breaks(FakeBackend):
        def start(self, audio, rows_per_window=1):
            session = super().start(audio, rows_per_window)

            def fail(_tokens):
                raise RuntimeError("the device is gone")

            session.step = fail
            return session

    backend = Breaks(tokenizer, [Say(())])
    with pytest.raises(RuntimeError, match="the device is gone"):
        decode_windows(backend, tokenizer, MULTILINGUAL, NO_AUDIO, DecodingOptions(), StageTimes())
    assert backend.open_sessions == 0


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("", 1, 1), ("a", 0.05, 0.2), ("no " * 200, 20, 60), ("Ever tried. Ever failed.", 0.8, 1.3)],
)
def test_compression_ratio(text, low, high):
    assert low <= compression_ratio(text) <= high


def test_compression_ratio_is_of_bytes():
    import zlib

    text = "мир " * 9
    raw = text.encode()
    assert compression_ratio(text) == len(raw) / len(zlib.compress(raw))
