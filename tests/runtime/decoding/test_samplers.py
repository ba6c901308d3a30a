"""Choosing tokens by chance and by beams, and the best of the candidates."""

import math

import numpy as np
import pytest
from decoding_checks import loaded
from fake_backend import FakeBackend, Say, write_companions

from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.samplers import Candidate, rank
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.text.tokenizer import Tokenizer, Vocabulary
from whisper_npu.runtime.timing import StageTimes

MULTILINGUAL = Vocabulary(is_multilingual=True, suppress=(), begin_suppress=())
NO_AUDIO = np.zeros((1, 1500, 4), np.float32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write_companions(tmp_path_factory.mktemp("tiny")) / "tokenizer.json")


class TestSampling:
    @pytest.fixture(scope="class")
    @staticmethod
    def setting(tiny_folder, tiny_audio):
        model = loaded(tiny_folder)
        windows = [
            FeatureStream(iter([load_audio(path)]), 80).window(0, 3000) for path in tiny_audio
        ]
        return model, model.backend.encode(np.stack(windows))

    def sample(self, setting, rows=slice(0, 3), seeds=(1, 2, 3), **options):
        model, audio = setting
        options = DecodingOptions(
            **{"without_timestamps": True, "sample_len": 12, "temperature": 0.7} | options
        )
        return decode_windows(
            model.backend,
            model.tokenizer,
            model.vocabulary,
            audio[rows],
            options,
            StageTimes(),
            seeds=seeds,
        )

    def test_same_seed_same_text(self, setting):
        assert self.sample(setting) == self.sample(setting)

    def test_other_seed_other_text(self, setting):
        one, other = self.sample(setting), self.sample(setting, seeds=(4, 5, 6))
        assert all(a.tokens != b.tokens for a, b in zip(one, other, strict=True))

    def test_a_window_does_not_depend_on_its_batch(self, setting):
        together = self.sample(setting)
        for place, seed in enumerate((1, 2, 3)):
            (alone,) = self.sample(setting, slice(place, place + 1), (seed,))
            assert alone.tokens == together[place].tokens

    def test_samples_follow_the_softmax(self, tokenizer):
        """Two tokens with known odds: 4 to 1 at temperature 1, 16 to 1 at a half."""
        for temperature, share in ((1.0, 0.8), (0.5, 16 / 17)):
            chosen = self.choices(tokenizer, temperature)
            assert set(chosen) == {5, 6}
            assert chosen.count(5) / len(chosen) == pytest.approx(share, abs=0.03)

    def choices(self, tokenizer, temperature):
        class Odds(FakeBackend):
            def start(self, audio, rows_per_window=1):
                session = super().start(audio, rows_per_window)
                step = session.step

                def odds(tokens):
                    logits = step(tokens)
                    logits[...] = -50.0
                    logits[:, -1, 5] = math.log(4)
                    logits[:, -1, 6] = 0.0
                    return logits

                session.step = odds
                return session

        n = 3000
        windows = decode_windows(
            Odds(tokenizer, [Say(())]),
            tokenizer,
            MULTILINGUAL,
            np.zeros((n, 1, 1), np.float32),
            DecodingOptions(
                without_timestamps=True, temperature=temperature, best_of=1, sample_len=1
            ),
            StageTimes(),
        )
        return [window.tokens[0] for window in windows]

    def test_the_likeliest_of_several_samples_is_taken(self, setting):
        one = self.sample(setting, best_of=1)
        best = self.sample(setting, best_of=5)
        assert [w.avg_logprob >= o.avg_logprob for w, o in zip(best, one, strict=True)] == [
            True
        ] * 3


class TestBeams:
    @pytest.fixture(scope="class")
    @staticmethod
    def setting(tiny_folder, tiny_audio):
        return TestSampling.setting.__wrapped__(tiny_folder, tiny_audio)

    def decode(self, setting, audio=None, **options):
        model, encoded = setting
        options = DecodingOptions(**{"without_timestamps": True, "sample_len": 16} | options)
        return decode_windows(
            model.backend,
            model.tokenizer,
            model.vocabulary,
            encoded if audio is None else audio,
            options,
            StageTimes(),
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("options", [{}, {"without_timestamps": False}, {"sample_len": 200}])
    def test_one_beam_is_greedy(self, setting, options):
        greedy = self.decode(setting, **options)
        beam = self.decode(setting, **options, beam_size=1)
        assert [window.tokens for window in beam] == [window.tokens for window in greedy]
        for one, other in zip(beam, greedy, strict=True):
            assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-5)
            assert one.reached_limit == other.reached_limit

    def test_windows_do_not_mix(self, setting):
        together = self.decode(setting, beam_size=3)
        for place in range(3):
            (alone,) = self.decode(setting, setting[1][place : place + 1], beam_size=3)
            assert alone.tokens == together[place].tokens

    def test_kinds_of_cache_agree(self, tiny_folder, setting):
        want = [window.tokens for window in self.decode(setting, beam_size=4)]
        for kind in ("static", "stateful", "off"):
            model = loaded(tiny_folder, kind)
            got = self.decode((model, setting[1]), beam_size=4)
            assert [window.tokens for window in got] == want, kind

    def test_finds_what_greedy_misses(self, tokenizer):
        """A tree: greedy takes 5 (0.6) then at best 0.3; the likelier 6 (0.4) goes on with 1."""
        log = math.log
        eot = tokenizer.special.eot
        tree = {
            (): {5: log(0.6), 6: log(0.4)},
            (5,): {7: log(0.3), 8: log(0.25), 9: log(0.2), 10: log(0.25)},
            (6,): {11: 0.0},
        }

        class Tree(FakeBackend):
            def start(self, audio, rows_per_window=1):
                session = super().start(audio, rows_per_window)
                step = session.step

                def grow(tokens):
                    logits = step(tokens)
                    logits[...] = -60.0
                    for row, history in enumerate(session.asked.tokens):
                        said = tuple(t for t in history if t < eot)
                        for token, logprob in tree.get(said, {eot: 0.0}).items():
                            logits[row, -1, token] = logprob
                    return logits

                session.step = grow
                return session

        def run(**options):
            options = DecodingOptions(without_timestamps=True, **options)
            backend = Tree(tokenizer, [Say(())])
            return decode_windows(
                backend, tokenizer, MULTILINGUAL, NO_AUDIO, options, StageTimes()
            )[0]

        assert run().tokens == (5, 7)
        assert run(beam_size=2).tokens == (6, 11)
        assert run(beam_size=2).avg_logprob == pytest.approx(log(0.4) / 3, abs=1e-4)


class TestRanking:
    def test_by_mean_log_probability(self):
        short, long = Candidate((1, 2), -2.0), Candidate((1, 2, 3, 4), -3.6)
        assert rank([short, long], None) is long

    def test_by_length_penalty(self):
        short, long = Candidate((1, 2), -2.0), Candidate((1, 2, 3, 4), -3.6)
        assert rank([short, long], 0.0) is short
        # ((5 + 2) / 6) ** 1 and ((5 + 4) / 6) ** 1: -1.714 and -2.4
        assert rank([short, long], 1.0) is short
