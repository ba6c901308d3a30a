"""Batched decoding: which windows wait for which, and what text each is given before it.

A scripted decoder says what a test tells it to; speech has a pause in every four seconds.
"""

from itertools import pairwise

import numpy as np
import pytest
import soundfile
import tiny_whisper
from fake_backend import Say, fake_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pauses import PausesEverySoOften, SpeechAt

from whisper_npu import load_model
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.runtime.transcription.strategy import choose_strategy

SECONDS = 130.0  # five windows of 26 to 28 s
BATCHED = {
    "mode": "batched",
    "language": "en",
    "batch_size": 1,
    "unheard_speech_threshold": None,  # what is scripted is not spoken
}


@pytest.fixture
def model(tmp_path):
    fake = fake_model(tmp_path, [Say(())])
    fake.backend.n_text_ctx = 448
    return WhisperModel(fake.folder, fake.backend, fake.tokenizer, PausesEverySoOften())


@pytest.fixture
def say(model):
    """A function from a text to a window in which it is said from the start to the end."""
    begin = model.tokenizer.special.timestamp_begin

    def say_until(text, end=27.5, **changes):
        tokens = (begin, *model.tokenizer.encode(text), begin + round(end / 0.02))
        return Say(tokens, **changes)

    return say_until


def prompts(model, script, **options):
    """The tokens before `<|startoftranscript|>` of each window, and the text that came of them."""
    model.backend.script = list(script)
    model.backend.asked.clear()
    samples = tiny_whisper.synthetic_speech(0, SECONDS)
    result = model.transcribe(samples, **{**BATCHED, **options}).result()
    rows = [session.tokens[0] for session in model.backend.asked]
    sot = model.tokenizer.special.sot
    return [row[: row.index(sot)] for row in rows], result


def script(say, n=5):
    return [
        say(f" Window {chr(ord('a') + i)} says so many words that they fill it.") for i in range(n)
    ]


class TestContext:
    def test_every_other_window_has_the_text_before_it(self, model, say):
        said = script(say)
        before, result = prompts(model, said)
        starts = sorted({segment.seek for segment in result.segments})
        assert len(starts) == 5
        previous = model.tokenizer.special.sot_prev
        assert before[0::2] == [[], [], []]
        for window in (1, 3):
            text = list(said[window - 1].tokens)
            length = max(n for n in (64, 32, 16) if n <= len(text))
            assert before[window] == [previous, *text[-length:]]
        assert [segment.text[:9] for segment in result.segments] == [
            f" Window {letter}" for letter in "abcde"
        ]

    def test_lengths_are_few_and_short_texts_are_none(self, model, say):
        letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 100)
        before, _ = prompts(
            model, [say(text) for text in (" " + "".join(letters), " No.", " Yes.")]
        )
        assert [len(prompt) for prompt in before] == [0, 1 + 64, 0, 0, 0]

    @pytest.mark.parametrize(
        "options", [{"condition_on_previous_text": False}, {"multilingual": True, "language": None}]
    )
    def test_none_if_it_is_not_wanted_or_may_be_in_another_language(self, model, say, options):
        before, result = prompts(model, script(say), **options)
        assert not any(before)
        assert result.segments

    @pytest.mark.slow
    def test_none_from_a_text_that_was_sampled_at_random(self, model, say):
        """The first window is improbable until the last temperature, which is above 0.5."""
        doubtful = say(" Something that nobody is sure to have heard at all.", logit=6.0)
        options = {"temperature": (0.0, 1.0), "best_of": 1, "logprob_threshold": -1e-9}
        before, result = prompts(model, [doubtful], **options)
        assert {segment.temperature for segment in result.segments} != {0.0}
        assert not any(before)

    @pytest.mark.slow
    def test_none_from_a_text_that_looks_wrong(self, model, say):
        doubtful = say(" Something that nobody is sure to have heard at all.", logit=6.0)
        options = {"temperature": (0.0,), "logprob_threshold": -1e-9}
        before, result = prompts(model, [doubtful], **options)
        assert all(segment.flaw is not None for segment in result.segments)
        assert not any(before)

    def test_the_users_prompt_stays_before_it(self, model, say):
        said = script(say)
        before, _ = prompts(model, said, initial_prompt="Kyiv.", hotwords="Lviv")
        special = model.tokenizer.special
        own = [
            special.sot_prev,
            *model.tokenizer.encode(" Lviv"),
            *model.tokenizer.encode(" Kyiv."),
        ]
        assert [prompt[: len(own)] for prompt in before] == [own] * 5
        assert [len(prompt) == len(own) for prompt in before] == [True, False] * 2 + [True]

    @pytest.mark.parametrize("n_own", [380 // 2, 200, 223])
    def test_it_pushes_nothing_of_the_users_prompt_out(self, model, say, n_own):
        letters = np.random.default_rng(1).choice(list("abcdefghijklmnopqrstuvwxyz"), 400)
        tokens = model.tokenizer.encode(" " + "".join(letters))[:n_own]
        own = model.tokenizer.decode(tokens).strip()
        tokens = model.tokenizer.encode(" " + own)
        before, _ = prompts(model, script(say), initial_prompt=own)
        assert len(tokens) >= n_own
        assert all(prompt[1 : 1 + len(tokens)] == tokens[-223:] for prompt in before)
        fits = [0, *(n for n in (16, 32, 64) if n <= 223 - len(tokens))]
        assert [len(prompt) - 1 - len(tokens[-223:]) for prompt in before] == [
            0,
            fits[-1],
            0,
            fits[-1],
            0,
        ]

    def test_it_waits_for_what_is_left_of_the_window_before(self, model, say):
        """A text ends early where no more tokens may be sampled; the rest is heard by itself."""
        said = say(" These are the words of the first half of it alone.", end=14.0).tokens
        half, rest = Say((*said, said[-1])), say(" And these are those of the rest.", end=13.0)
        before, result = prompts(model, [half, rest, say(" No more.")], sample_len=len(half.tokens))
        assert [segment.seek for segment in result.segments[:2]] == [0, 1400]
        assert [len(prompt) for prompt in before[:2]] == [0, 0]
        assert tuple(before[2][1:]) == (*said, *rest.tokens)[-64:]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("precision", "wanted", "given"),
        [
            ("f32", None, True),
            ("bf16", None, False),
            ("f16", None, False),
            ("bf16", True, True),
            ("f32", False, False),
        ],
    )
    def test_unless_asked_only_in_f32(self, model, say, precision, wanted, given):
        model.backend.precision = precision
        before, _ = prompts(model, script(say), condition_on_previous_text=wanted)
        assert any(before) == given


class TestLoops:
    """A window that loops is heard in parts, down to some ten seconds."""

    SECONDS = 26.0  # one window, with pauses

    @pytest.fixture
    def hear(self, model, words):
        """A function: what comes of one window if the script is said."""
        self.loop = Say(tuple(words(" no no") * 20)[:50])

        def run(*script, **options):
            model.backend.script = list(script)
            samples = tiny_whisper.synthetic_speech(0, self.SECONDS)
            options = {**BATCHED, "without_timestamps": True, "temperature": (0.0, 0.2), **options}
            return model.transcribe(samples, **options).result()

        return run

    @pytest.fixture
    def words(self, model):
        return model.tokenizer.encode

    def test_the_rest_of_it_is_heard_as_usual(self, hear, words, model):
        good = [Say(tuple(words(text))) for text in (" One.", " Two.")]
        result = hear(self.loop, *good, best_of=1)
        assert result.text == "One. Two."
        assert len(model.backend.asked) == 3
        one, two = result.segments
        assert one.seek == 0
        assert 0.3 * self.SECONDS < two.start < 0.7 * self.SECONDS
        assert one.end <= two.start
        assert two.end == pytest.approx(self.SECONDS, abs=1.5)
        for segment in result.segments:
            (retry,) = segment.retries
            assert retry.reason.endswith("decoded in parts")
            assert segment.flaw is None
        assert result.coverage.seconds()["transcribed"] == pytest.approx(self.SECONDS, abs=1.5)

    def test_parts_are_divided_again_and_small_ones_tried_hotter(self, hear, words, model):
        good = [Say(tuple(words(f" {text}."))) for text in ("One", "Two", "Three")]
        # The window, its first part, the first part of that at two temperatures, all the others.
        result = hear(self.loop, self.loop, self.loop, *good, best_of=1)
        assert result.text == "One. Two. Three."
        assert [len(segment.retries) for segment in result.segments] == [3, 2, 1]
        assert [segment.temperature for segment in result.segments] == [0.2, 0.0, 0.0]
        starts = [segment.start for segment in result.segments]
        assert starts == sorted(set(starts))
        assert len(model.backend.asked) == 6

    def test_what_is_left_of_a_part_comes_before_the_next_part(self, hear, say):
        said = say(" These are the words of the first half of a half.", end=4.0).tokens
        half = Say((*said, said[-1]))
        rest, other = say(" Its rest.", end=6.0), say(" The other half.", end=12.0)
        options = {"without_timestamps": False, "sample_len": len(half.tokens)}
        result = hear(self.loop, half, rest, other, **options)
        assert [(segment.seek, segment.text) for segment in result.segments[:2]] == [
            (0, " These are the words of the first half of a half."),
            (400, " Its rest."),
        ]
        assert result.segments[-1].text == " The other half."
        assert result.segments[-1].seek > 1000

    @pytest.mark.parametrize("options", [{"prefix": "So"}, {"compression_ratio_threshold": None}])
    def test_it_stays_whole_where_it_must(self, hear, words, options):
        result = hear(self.loop, Say(tuple(words(" One."))), best_of=1, **options)
        assert len({segment.seek for segment in result.segments}) == 1

    def test_one_behind_a_doubtful_text_is_divided_too(self, hear, words, model):
        """Of both attempts the first is the better; but neither is any good."""
        doubtful = Say(tuple(words(" Something said.")), logit=2.0)
        good = [Say(tuple(words(text))) for text in (" One.", " Two.")]
        result = hear(doubtful, self.loop, *good, temperature=(0.0, 0.01), best_of=1)
        assert result.text == "One. Two."
        assert [len(segment.retries) for segment in result.segments] == [2, 2]
        assert len(model.backend.asked) == 4

    def test_each_part_is_in_its_own_language(self, hear, words, model):
        """Where it may change: the part is asked, and what it says is no news to the next."""
        french = [
            Say(tuple(words(text)), language="fr", certainty=15.0) for text in (" Un.", " Deux.")
        ]
        english = Say(self.loop.tokens, certainty=15.0)
        options = {"language": None, "multilingual": True, "best_of": 1}
        unsure = Say(tuple(words(" Two.")), certainty=1.0)  # French would be, behind French
        result = hear(english, french[0], unsure, **options)
        assert [(s.language, s.text) for s in result.segments] == [("fr", " Un."), ("en", " Two.")]
        result = hear(english, *french, **{**options, "multilingual": False})
        assert [asked.tokens[0][1] for asked in model.backend.asked[-3:]] == [
            model.tokenizer.special.languages["en"]
        ] * 3
        assert result.language == "en"

    def test_a_doubtful_text_stays_whole(self, hear, words, model):
        doubtful = Say(tuple(words(" Something said.")), logit=2.0)
        result = hear(doubtful, Say(tuple(words(" One."))), best_of=1)
        assert result.text == "One."
        assert result.segments[0].temperature == 0.2
        assert len(model.backend.asked) == 2


class TestAccounts:
    """What a text leaves out is told."""

    @pytest.fixture
    def spans(self, model):
        def transcribe(*script, **options):
            model.backend.script = list(script)
            samples = tiny_whisper.synthetic_speech(0, 27.0)
            result = model.transcribe(samples, **{**BATCHED, **options}).result()
            return result, result.coverage.spans

        return transcribe

    def test_a_text_that_ends_at_once(self, spans, say):
        """It would say the same again where it ended."""
        result, found = spans(say(" Oh.", end=0.5))
        assert result.text == "Oh."
        (dropped,) = [span for span in found if span.fate == "dropped"]
        assert dropped.reason == "the text ends before it"
        assert dropped.start == pytest.approx(0.5, abs=0.3)
        assert sum(result.coverage.seconds().values()) == pytest.approx(27.0, abs=0.1)

    def test_one_that_goes_on_is_heard_on(self, spans, say):
        result, found = spans(say(" Oh.", end=5.0), say(" Yes.", end=21.5))
        assert result.text == "Oh. Yes."
        assert not [span for span in found if span.fate == "dropped"]

    @pytest.mark.parametrize(("n", "flawed"), [(3, True), (30, False)])
    def test_a_text_that_is_cut_off(self, spans, model, n, flawed):
        text = Say(tuple(model.tokenizer.encode(" one two")))
        result, _ = spans(text, sample_len=n, without_timestamps=True, temperature=(0.0,))
        assert [segment.flaw is not None for segment in result.segments] == [flawed]


class TestPlan:
    def strategy(self, model, **options):
        stream = model.transcribe(
            tiny_whisper.synthetic_speech(0, SECONDS), **{**BATCHED, **options}
        )
        return choose_strategy(stream._session)

    def test_windows_that_wait_are_not_planned_but_may_be_encoded(self, model):
        strategy = self.strategy(model)
        planned, waiting = list(iter(strategy.next_window, None)), strategy.prefetch(16)
        order = sorted([*planned, *waiting], key=lambda request: request.window.start)
        assert [request in planned for request in order] == [True, False, True, False, True]
        assert strategy.next_window() is None
        assert strategy.prefetch(16) == waiting  # the same requests: what is encoded stays so
        assert len(strategy.prefetch(1)) == 1

    def test_all_at_once_without_context(self, model):
        strategy = self.strategy(model, condition_on_previous_text=False)
        assert len(list(iter(strategy.next_window, None))) == 5
        assert strategy.prefetch(16) == []

    def test_it_reads_no_further_than_it_must(self, model):
        strategy = self.strategy(model)
        assert strategy.next_window()
        assert strategy.prefetch(16) == []
        assert strategy.next_window()
        assert len(strategy.prefetch(16)) == 1

    @pytest.mark.parametrize(
        ("batch_size", "places"),
        [(3, (0, 2, 1, 3, 4)), (16, (0, 2, 4, 1, 3))],  # with 3, the first round has two windows
    )
    def test_frames_are_kept_for_windows_that_wait(self, model, say, batch_size, places):
        """What the encoder hears is the same whether a window waited or not."""
        model.backend.script = [say(" Window of words that go on and on.")]
        samples = tiny_whisper.synthetic_speech(0, SECONDS)
        options = {**BATCHED, "batch_size": batch_size}
        result = model.transcribe(samples, **options).result()
        assert [segment.seek for segment in result.segments] == sorted(
            {segment.seek for segment in result.segments}
        )
        waited, model.backend.windows = model.backend.windows, []
        _ = model.transcribe(samples, **options, condition_on_previous_text=False).text
        in_order = [model.backend.windows[place] for place in places]
        np.testing.assert_array_equal(waited, in_order)


class TestLongPauses:
    """Speech after a long pause shares a window with the speech before it."""

    SPEECH = ((1, 6), (12, 18), (50, 54))

    @pytest.fixture
    def result(self, model):
        def result(*spoken, **options):
            model.voice_activity = SpeechAt(*self.SPEECH)
            begin = model.tokenizer.special.timestamp_begin
            model.backend.script = [
                Say(
                    tuple(
                        token
                        for text, start, end in texts
                        for token in (
                            begin + round(start / 0.02),
                            *model.tokenizer.encode(text),
                            begin + round(end / 0.02),
                        )
                    )
                )
                for texts in spoken
            ]
            noise = np.random.default_rng(0).normal(0, 0.1, 16_000 * 60).astype(np.float32)
            return model.transcribe(noise, **{**BATCHED, **options}).result()

        return result

    def test_times_and_coverage_are_those_of_the_recording(self, result):
        first = [(" One.", 0.4, 5.4), (" Two.", 6.2, 12.2)]
        said = result(first, [(" Three.", 0.4, 4.4)])
        assert [each.text for each in said.segments] == [" One.", " Two.", " Three."]
        times = [(each.start, each.end) for each in said.segments]
        # The last text is the only one of its window, and begins with it.
        assert np.allclose(times, [(1, 6), (12, 18), (49.6, 54)], atol=0.05)
        spans = [(span.start, span.end) for span in said.coverage.spans if span.fate == "silent"]
        expected = [(0, 0.6), (6.4, 11.6), (18.4, 49.6), (54.4, 60)]
        assert np.allclose(spans, expected, atol=0.05)
        assert sum(said.coverage.seconds().values()) == pytest.approx(60)
        assert said.coverage.seconds()["dropped"] == 0

    def test_the_rest_after_a_text_that_ends_early(self, result):
        """The text ends with the first piece: the second is decoded again by itself."""
        said = result([(" One.", 0.4, 5.4)], [(" Two.", 0.4, 6.4)], [(" Three.", 0.4, 4.4)])
        assert [each.text for each in said.segments] == [" One.", " Two.", " Three."]
        two = said.segments[1]
        assert (two.start, two.end) == (pytest.approx(12, abs=0.5), pytest.approx(18, abs=0.5))
        assert sum(said.coverage.seconds().values()) == pytest.approx(60)

    def test_a_split_at_the_pause(self, result):
        """A text leaves out most of the first piece: each piece is decoded by itself."""
        one, two = (f" {word} has so many words that they fill it." for word in ("One", "Two"))
        texts = [(" One.", 0.4, 1.0), (two, 6.2, 12.2)], [(one, 0.4, 5.4)], [(two, 0.4, 6.4)]
        last = [(" Three.", 0.4, 4.4)]
        said = result(*texts, last, unheard_speech_threshold=2.5, temperature=(0.0,))
        assert [each.text for each in said.segments] == [one, two, " Three."]
        assert "decoded in parts" in said.segments[1].retries[-1].reason
        spans = [(span.start, span.end) for span in said.coverage.spans if span.fate == "silent"]
        expected = [(0, 0.6), (6.4, 11.6), (18.4, 49.6), (54.4, 60)]
        assert np.allclose(spans, expected, atol=0.05)
        assert sum(said.coverage.seconds().values()) == pytest.approx(60)

    def test_not_if_times_are_those_of_windows(self, result):
        texts = [[(" One.", 0.4, 5.4)], [(" Two.", 0.4, 6.4)], [(" Three.", 0.4, 4.4)]]
        said = result(*texts, without_timestamps=True)
        assert [each.start for each in said.segments] == pytest.approx([0.6, 11.6, 49.6], abs=0.1)

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.lists(st.tuples(st.floats(0.3, 25), st.floats(0.2, 12)), min_size=1, max_size=6),
        st.lists(
            st.tuples(st.lists(st.integers(0, 1490), max_size=5).map(sorted), st.booleans()),
            min_size=1,
            max_size=6,
        ),
        st.sampled_from([None, 1.0, 0.3]),
        st.sampled_from([None, 0.5]),
    )
    def test_whatever_is_said_every_second_has_one_fate(
        self, tmp_path_factory, speech, said, min_silence, unheard
    ):
        """Texts begin and end anywhere: windows are split at joins, and rests begin beside them."""
        stretches, now = [], 0.0
        for pause, length in speech:
            stretches.append((now + pause, now + pause + length))
            now = stretches[-1][1]
        model = fake_model(tmp_path_factory.mktemp("fake"), [Say(())])
        model.backend.n_text_ctx = 448
        model.voice_activity = SpeechAt(*stretches)
        begin = model.tokenizer.special.timestamp_begin
        word = model.tokenizer.encode(" word")
        model.backend.script = []
        for stamps, is_open in said:
            tokens = [token for stamp in stamps for token in (begin + stamp, *word, begin + stamp)]
            end = () if is_open or not stamps else (begin + 1500,)
            model.backend.script.append(Say((*tokens[:-1], *end)))
        noise = np.random.default_rng(0).normal(0, 0.1, round(16_000 * (now + 2)))
        options = {**BATCHED, "unheard_speech_threshold": unheard, "temperature": (0.0,)}
        result = model.transcribe(
            noise.astype(np.float32), **options, vad_min_silence=min_silence
        ).result()
        assert sum(result.coverage.seconds().values()) == pytest.approx(result.duration)
        spans = result.coverage.spans
        assert all(one.end == pytest.approx(other.start) for one, other in pairwise(spans))
        assert all(0 <= each.start < each.end < result.duration + 0.01 for each in result.segments)


class TestRealSpeech:
    """A sentence with a long pause in it, by tiny.en."""

    @pytest.fixture
    def recording(self, shared_audio):
        """Makes a recording of so many utterances; gives it, and the pause in the last of them."""

        def recording(n):
            paths = sorted((shared_audio / "librispeech-test-other").glob("2033-*.flac"))[6 : 6 + n]
            last, *before = (soundfile.read(path, dtype="float32")[0] for path in paths)
            third = len(last) // 3
            frames = last[third : third + third // 1600 * 1600].reshape(-1, 1600)
            cut = third + 1600 * int(np.square(frames).sum(axis=1).argmin()) + 800
            parts = [*before, last[:cut], np.zeros(16_000 * 8, np.float32), last[cut:]]
            start = sum(map(len, parts[:-2])) / 16_000
            return np.concatenate(parts), start, start + 8

        return recording

    @pytest.mark.parametrize("n", [1, 2], ids=["timestamps are sampled", "aligned"])
    @pytest.mark.parametrize("words", [False, True])
    def test_no_segment_or_word_lasts_over_a_pause(self, tiny_en_folder, recording, n, words):
        samples, start, end = recording(n)
        model = load_model(tiny_en_folder, device="CPU", precision="f32")
        result = model.transcribe(samples, mode="batched", word_timestamps=words).result()
        assert len({segment.seek for segment in result.segments}) == 1  # one window has all of it
        found = [each for segment in result.segments for each in (segment, *(segment.words or ()))]
        assert all(each.end < start + 0.5 or each.start > end - 0.5 for each in found), found
        assert any(each.end < start + 0.5 for each in found)
        assert any(each.start > end - 0.5 for each in found)
        assert sum(result.coverage.seconds().values()) == pytest.approx(len(samples) / 16_000)
