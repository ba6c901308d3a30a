"""Which language a window is in: the model's guess, and the text in each of the likeliest."""

import math

import numpy as np
import pytest
import tiny_whisper
from fake_backend import FakeBackend, Say, write_companions

from whisper_npu.runtime.decoding.decode import DecodingOptions
from whisper_npu.runtime.decoding.language_detection import detect_language, try_languages
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

MULTILINGUAL = Vocabulary(is_multilingual=True, suppress=(), begin_suppress=())
WORDS = tuple(range(5, 11))
LOOP = (5, 6) * 12
PROBABLE, IMPROBABLE = 30.0, 8.0  # logits
GUESSES = {"fr": 0.5, "en": 0.4, "de": 0.095, "es": 0.005}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_companions(tmp_path_factory.mktemp("tiny")) / "tokenizer.json")


def probabilities(tokenizer, script, guesses=GUESSES, **options):
    """What is made of guesses by the texts of a script, and the languages that were tried."""
    backend = FakeBackend(tokenizer, script)
    found = try_languages(
        backend,
        tokenizer,
        MULTILINGUAL,
        np.zeros((1, 1500, 4), np.float32),
        DecodingOptions(without_timestamps=True),
        TranscribeOptions(**options),
        StageTimes(),
        guesses,
    )
    assert backend.open_sessions == 0
    codes = {token: code for code, token in tokenizer.special.languages.items()}
    return found, [codes[asked.tokens[0][1]] for asked in backend.asked]


class TestLanguageDetection:
    def test_probabilities_in_order(self, tokenizer):
        backend = FakeBackend(tokenizer, [Say((), language="fr")])
        found = detect_language(backend, tokenizer, np.zeros((2, 1, 1), np.float32), StageTimes())
        assert len(found) == 2
        for probabilities in found:
            assert next(iter(probabilities)) == "fr"
            assert set(probabilities) == set(tiny_whisper.LANGUAGES)
            assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
            assert sum(probabilities.values()) == pytest.approx(1.0)
            assert probabilities["fr"] == pytest.approx(math.exp(5) / (math.exp(5) + 4), rel=1e-5)
        assert backend.asked[0].tokens == [[tokenizer.special.sot]] * 2
        assert backend.open_sessions == 0


class TestTrials:
    def test_a_language_whose_text_is_improbable_loses(self, tokenizer):
        found, tried = probabilities(tokenizer, [Say(WORDS, IMPROBABLE), Say(WORDS, PROBABLE)])
        assert tried == ["fr", "en", "de"]
        assert list(found) == ["en", "de", "fr", "es"]
        assert found["en"] / found["de"] == pytest.approx(0.4 / 0.095)
        assert sum(found.values()) == pytest.approx(1.0)

    def test_texts_alike_change_nothing(self, tokenizer):
        found, _ = probabilities(tokenizer, [Say(WORDS)])
        assert found == pytest.approx(GUESSES)
        assert list(found) == list(GUESSES)

    def test_half_of_what_a_text_says_counts(self, tokenizer):
        improbable, probable = (
            [Say(WORDS, logit) for logit in logits]
            for logits in ((IMPROBABLE, PROBABLE), (PROBABLE, PROBABLE))
        )
        less, _ = probabilities(tokenizer, improbable, {"fr": 0.5, "en": 0.5})
        same, _ = probabilities(tokenizer, probable, {"fr": 0.5, "en": 0.5})
        n_vocab = FakeBackend(tokenizer, [Say(())]).n_vocab
        lost = (len(WORDS) + 1) * (math.log(math.exp(IMPROBABLE) + n_vocab) - IMPROBABLE)
        assert math.log(less["fr"] / less["en"]) == pytest.approx(-lost / 2, rel=0.02)
        assert same["fr"] == pytest.approx(0.5)

    def test_a_loop_tells_no_language(self, tokenizer):
        found, _ = probabilities(tokenizer, [Say(LOOP), Say(WORDS, IMPROBABLE)])
        assert next(iter(found)) == "en"
        assert found["fr"] == 0.0

    def test_but_it_does_where_all_are_loops_or_nobody_looks_for_them(self, tokenizer):
        assert probabilities(tokenizer, [Say(LOOP)])[0] == pytest.approx(GUESSES)
        script = [Say(LOOP), Say(WORDS, IMPROBABLE)]
        found, _ = probabilities(tokenizer, script, compression_ratio_threshold=None)
        assert next(iter(found)) == "fr"

    def test_three_are_tried_on_a_little_text(self, tokenizer):
        guesses = dict.fromkeys(("fr", "en", "de", "es"), 0.25)
        backend = FakeBackend(tokenizer, [Say(tuple(range(5, 205)))])
        backend.n_text_ctx = 448
        plain = DecodingOptions(without_timestamps=True)
        audio = np.zeros((1, 1500, 4), np.float32)
        heard = (TranscribeOptions(), StageTimes(), guesses)
        try_languages(backend, tokenizer, MULTILINGUAL, audio, plain, *heard)
        n_prompt = 4
        assert [len(asked.tokens[0]) for asked in backend.asked] == [n_prompt + 64 - 1] * 3

    def test_one_language_alone_is_not_tried(self, tokenizer):
        guesses = {"fr": 0.995, "en": 0.005}
        assert probabilities(tokenizer, [Say(WORDS)], guesses) == (guesses, [])
