"""What the judge decides is carried out: windows are tried again, hotter or as whole windows.

The verdicts themselves are tested in `test_quality.py`. Here a scripted decoder takes the place of
the graphs; `vad` is off, so that any sound counts as speech.
"""

import pytest
from fake_backend import ENGLISH, SURE, Say, sound

ELASTIC = {**ENGLISH, "elastic": True, "without_timestamps": True, "temperature": (0.0,)}
ONCE = " I really was very much afraid."


class TestFallback:
    def test_an_improbable_text_is_tried_at_higher_temperatures(self, make):
        model = make(Say((5,) * 3, logit=2.0))
        options = {**ENGLISH, "without_timestamps": True, "temperature": (0.0, 0.4, 0.8)}
        result = model.transcribe(sound(4), **options, best_of=3, sample_len=4).result()
        assert [session.rows for session in model.backend.asked] == [1, 3, 3]
        assert all(segment.retries for segment in result.segments)

    def test_a_good_text_is_not(self, make, words):
        model = make(Say(tuple(words(" Fine text."))))
        result = model.transcribe(sound(4), **ENGLISH, without_timestamps=True).result()
        assert len(model.backend.asked) == 1
        assert result.segments[0].temperature == 0.0
        assert result.segments[0].retries == ()

    def test_a_loop_is_tried_again(self, make, words):
        loop, good = tuple(words(" no no") * 20)[:50], tuple(words(" Fine text."))
        model = make(Say(loop), Say(good))
        options = {**ENGLISH, "without_timestamps": True, "temperature": (0.0, 0.2)}
        result = model.transcribe(sound(4), **options, best_of=2).result()
        assert result.text == "Fine text."
        assert result.segments[0].temperature == 0.2
        assert result.segments[0].flaw is None
        assert len(result.segments[0].retries) == 1

    # So little above 0, the likeliest token is drawn each time.
    BARELY_RISING = (0.0, 0.01, 0.02, 0.03)

    def test_temperatures_that_only_make_it_less_likely_are_not_gone_through(self, make):
        falling = [Say((5,) * 3, logit=logit) for logit in (3.0, 2.5, 2.0)]
        model = make(*falling, Say((5,) * 3))
        options = {**ENGLISH, "without_timestamps": True, "temperature": self.BARELY_RISING}
        (segment,) = model.transcribe(sound(4), **options, best_of=1, sample_len=4).segments
        assert [retry.temperature for retry in segment.retries] == [0.0, 0.01, 0.02]
        assert "falling" in segment.retries[-1].reason
        assert segment.temperature == 0.0
        assert segment.flaw == segment.retries[0].reason

    def test_nor_where_a_prompt_has_misled(self, make, words):
        loop = Say(tuple(words(" no no") * 20)[:50])
        falling = [Say((5,) * 3, logit=logit) for logit in (3.0, 2.5, 2.0)]
        model = make(loop, *falling, Say((5,) * 3))
        options = {**ENGLISH, "without_timestamps": True, "temperature": self.BARELY_RISING}
        stream = model.transcribe(sound(4), **options, best_of=1, initial_prompt="No, no.")
        (segment,) = stream.segments
        assert [retry.temperature for retry in segment.retries] == [0.0, 0.0, 0.01, 0.02]
        assert "falling" in segment.retries[-1].reason
        assert segment.flaw == segment.retries[1].reason

    def test_others_are(self, make):
        script = [Say((5,) * 3, logit=logit) for logit in (2.0, 2.5, 3.0)]
        model = make(*script, Say((5,) * 3))
        options = {**ENGLISH, "without_timestamps": True, "temperature": self.BARELY_RISING}
        (segment,) = model.transcribe(sound(4), **options, best_of=1, sample_len=4).segments
        assert segment.temperature == 0.03
        assert segment.flaw is None

    @pytest.mark.parametrize(
        ("threshold", "n_tokens", "flaw"),
        [(2.4, 112, "compression ratio"), (None, 444, "the text is cut off")],
    )
    def test_a_loop_is_cut_off_where_loops_are_looked_for(self, make, threshold, n_tokens, flaw):
        model = make(Say((5, 6) * 300))
        model.backend.n_text_ctx = 448
        options = {**ENGLISH, "without_timestamps": True, "temperature": (0.0,)}
        options["compression_ratio_threshold"] = threshold
        (segment,) = model.transcribe(sound(4), **options).segments
        assert len(segment.tokens) == n_tokens
        assert segment.flaw is not None
        assert segment.flaw.startswith(flaw)

    def test_thresholds_can_be_switched_off(self, make, words):
        loop = tuple(words(" no no") * 20)[:50]
        model = make(Say(loop))
        options = {**ENGLISH, "without_timestamps": True, "compression_ratio_threshold": None}
        assert model.transcribe(sound(4), **options).segments[0].compression_ratio > 2.4
        assert len(model.backend.asked) == 1


class TestSaidTwice:
    """Windows encoded short, whose decoder says the last sentence again."""

    @pytest.fixture
    def transcribe(self, make, words):
        """A function: says something twice, and then once, in some seconds of audio."""

        def run(seconds, phrase, **options):
            model = make(Say(tuple(words(phrase * 2))), Say(tuple(words(phrase))))
            model.backend.window_frames = (1200, 3000)
            result = model.transcribe(sound(seconds), **{**ELASTIC, **options}).result()
            return result, [window.shape[1] for window in model.backend.windows]

        return run

    def test_it_is_decoded_again_as_a_whole_window(self, transcribe):
        result, encoded = transcribe(2.0, ONCE)
        assert result.text == ONCE.strip()
        assert encoded == [1200, 3000]
        (retry,) = result.segments[0].retries
        assert retry.reason == "its last phrase is said twice, in 2.00 s"
        assert result.segments[0].flaw is None

    def test_timestamps_make_no_difference(self, make, words):
        """Two segments of the same, or one: the times between them differ, always."""
        model = make(Say(()))
        at, phrase = model.stamp, tuple(words(ONCE))
        for first in ((at(1.2), at(1.2)), ()):
            twice = Say((at(0), *phrase, *first, *phrase, at(2)))
            model = make(twice, Say((at(0), *phrase, at(2))))
            model.backend.window_frames = (1200, 3000)
            options = {**ELASTIC, "without_timestamps": False}
            assert model.transcribe(sound(2.0), **options).text == ONCE.strip()

    def test_what_is_taken_for_silence_is_not_decoded_again(self, make, words):
        model = make(Say(tuple(words(ONCE * 2)), logit=1.0, no_speech=SURE), Say((5,)))
        model.backend.window_frames = (1200, 3000)
        assert model.transcribe(sound(2.0), **ELASTIC).text == ""
        assert len(model.backend.windows) == 1

    def test_a_whole_window_is_left_alone(self, transcribe):
        result, encoded = transcribe(2.0, ONCE, elastic=False)
        assert result.text == (ONCE * 2).strip()
        assert encoded == [3000]

    def test_a_short_word_may_be_said_twice(self, transcribe):
        result, encoded = transcribe(0.5, " so")
        assert result.text == "so so"
        assert encoded == [1200]
