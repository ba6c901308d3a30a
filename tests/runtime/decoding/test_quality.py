"""What is done with a decoded window, and why: a table of cases for the judge."""

from dataclasses import replace
from math import inf

import pytest

from whisper_npu.runtime.decoding.decode import DecodedWindow
from whisper_npu.runtime.decoding.quality import (
    Action,
    Verdict,
    WindowFacts,
    find_cut,
    find_flaw,
    is_doubtful,
    judge,
    judge_rest,
    separate_hallucinations,
)
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Segment, Word

OPTIONS = TranscribeOptions()
LOOP_REASON = "compression ratio 9.00 is above 2.4"
FALLING = ", and falling: higher temperatures are not tried"

GOOD = DecodedWindow(
    tokens=(5, 6, 7),
    text="Fine text.",
    avg_logprob=-0.2,
    no_speech_prob=0.0,
    temperature=0.0,
    compression_ratio=1.0,
    reached_limit=False,
)
LOOP = replace(GOOD, compression_ratio=9.0)
PHRASES = replace(GOOD, tokens=(5, 6, 7) * 5)  # too short a loop to compress well
SILENT = replace(GOOD, no_speech_prob=0.9, avg_logprob=-1.5)
HOLE = replace(GOOD, unheard=((0.25, 3.0), (7.0, 9.5)))
HOLE_REASON = "speech in it has no text: 0.2 to 3.0, 7.0 to 9.5 s"


def unlikely(avg_logprob=-1.5):
    return replace(GOOD, avg_logprob=avg_logprob)


def too_low(avg_logprob=-1.5):
    return f"average log probability {avg_logprob:.2f} is below -1.0"


WINDOW = WindowFacts(seconds=20.0)
LADDER = replace(WINDOW, temperatures_left=5)
ALIGNED = replace(LADDER, aligned=True)
SPLITTABLE = replace(LADDER, splittable=True)
SHORT = replace(WINDOW, encoded_short=True, can_encode_whole=True)
BESIDE_SHORT = replace(WINDOW, can_encode_whole=True)  # a whole window in the same batch
PROMPTED = replace(LADDER, prompted=True)


class TestOneAttempt:
    @pytest.mark.parametrize(
        ("decoded", "facts", "action", "reason"),
        [
            (GOOD, WINDOW, "accept", ""),
            (GOOD, replace(SPLITTABLE, aligned=True, prompted=True), "accept", ""),
            (GOOD, SHORT, "accept", ""),
            (SILENT, LADDER, "silence", "the model hears no speech (probability 0.90)"),
            (SILENT, SHORT, "silence", "the model hears no speech (probability 0.90)"),
            # Sure of its text, the model is not believed that there is no speech.
            (replace(SILENT, avg_logprob=-0.5), LADDER, "accept", ""),
            (unlikely(), LADDER, "retry", too_low()),
            (unlikely(), SPLITTABLE, "retry", too_low()),
            (unlikely(), PROMPTED, "retry", too_low()),
            (unlikely(), WINDOW, "accept", too_low()),
            (unlikely(), SHORT, "encode whole", too_low()),
            (unlikely(), BESIDE_SHORT, "encode whole", too_low()),
            (LOOP, LADDER, "retry", LOOP_REASON),
            (PHRASES, LADDER, "retry", "a phrase is repeated over and over"),
            (LOOP, SPLITTABLE, "split", f"{LOOP_REASON}; decoded in parts"),
            (LOOP, PROMPTED, "retry without prompt", LOOP_REASON),
            (LOOP, replace(SPLITTABLE, prompted=True), "retry without prompt", LOOP_REASON),
            (LOOP, replace(SHORT, splittable=True), "encode whole", LOOP_REASON),
            (LOOP, WINDOW, "accept", LOOP_REASON),
            (HOLE, LADDER, "accept", HOLE_REASON),
            (HOLE, SPLITTABLE, "split", f"{HOLE_REASON}; decoded in parts"),
            (HOLE, SHORT, "encode whole", HOLE_REASON),
            (HOLE, replace(SHORT, splittable=True), "split", f"{HOLE_REASON}; decoded in parts"),
        ],
    )
    def test_verdict(self, decoded, facts, action, reason):
        verdict = judge([decoded], facts, OPTIONS)
        assert (verdict.action, verdict.reason) == (Action(action), reason)

    @pytest.mark.parametrize(
        ("decoded", "facts", "action", "reason"),
        [
            (unlikely(), ALIGNED, "retry", too_low()),
            (LOOP, ALIGNED, "retry", LOOP_REASON),
            (LOOP, replace(ALIGNED, splittable=True), "retry", LOOP_REASON),
            (HOLE, ALIGNED, "retry", HOLE_REASON),
            # Of a single temperature there is one attempt, unless words are missing.
            (HOLE, replace(ALIGNED, temperatures_left=0), "retry", HOLE_REASON),
            (unlikely(), replace(ALIGNED, temperatures_left=0), "accept", too_low()),
            (LOOP, replace(ALIGNED, prompted=True), "retry without prompt", LOOP_REASON),
        ],
    )
    def test_without_timestamps(self, decoded, facts, action, reason):
        """They come before higher temperatures and before parts."""
        verdict = judge([decoded], facts, OPTIONS)
        assert verdict.action is Action(action)
        assert verdict.reason == f"{reason}, without timestamps"

    @pytest.mark.parametrize(
        ("decoded", "changes"),
        [
            (unlikely(), {"logprob_threshold": None}),
            (LOOP, {"compression_ratio_threshold": None}),
            (PHRASES, {"compression_ratio_threshold": None}),
            (SILENT, {"no_speech_threshold": None, "logprob_threshold": None}),
        ],
    )
    def test_thresholds_can_be_switched_off(self, decoded, changes):
        options = replace(OPTIONS, **changes)
        assert judge([decoded], SPLITTABLE, options) == Verdict(Action.ACCEPT)

    def test_without_a_logprob_threshold_silence_is_told_by_its_probability(self):
        sure = replace(SILENT, avg_logprob=-0.1)
        options = replace(OPTIONS, logprob_threshold=None)
        assert judge([sure], LADDER, options).action is Action.SILENCE

    def test_a_flaw_that_stays_is_told(self):
        for decoded, leaves_out in ((unlikely(), False), (LOOP, False), (HOLE, True)):
            verdict = judge([decoded], WINDOW, OPTIONS)
            assert verdict.flaw == verdict.reason
            assert verdict.leaves_out == leaves_out

    def test_words_missing_from_an_unlikely_text_are_not_its_only_flaw(self):
        verdict = judge([replace(HOLE, avg_logprob=-1.5)], SPLITTABLE, OPTIONS)
        assert verdict.action is Action.RETRY
        assert verdict.reason == too_low()


ONCE = tuple(range(10, 17))
PHRASE = "I really was very much afraid."


class TestSaidTwice:
    """A window encoded short, whose decoder repeats the last sentence."""

    def verdict(self, tokens=(9, *ONCE, *ONCE, 8), *, seconds=2.0, options=OPTIONS, **changes):
        facts = replace(SHORT, seconds=seconds, text_tokens=tokens, **changes)
        decoded = replace(GOOD, text=f"{PHRASE} {PHRASE}", tokens=tokens)
        return judge([decoded], facts, options)

    def test_it_is_decoded_as_a_whole_window(self):
        verdict = self.verdict()
        assert verdict.action is Action.ENCODE_WHOLE
        assert verdict.reason == "a phrase is said twice, all of it in 2.00 s"

    @pytest.mark.parametrize(
        "changes",
        [
            {"tokens": ONCE},
            {"seconds": 4.0},  # which is time enough
            {"encoded_short": False},
            {"encoded_short": False, "tokens": ONCE * 2},
            {"tokens": (5, 6) * 2, "seconds": 4.0},  # "No, no."
            {"options": replace(OPTIONS, compression_ratio_threshold=None)},
        ],
        ids=str,
    )
    def test_else_it_is_accepted(self, changes):
        assert self.verdict(**changes) == Verdict(Action.ACCEPT)

    @pytest.mark.parametrize("phrase", [ONCE, (5, 6, 7), ONCE[:5]])
    def test_a_text_that_ends_in_the_same_twice_is_looked_at_again_at_any_speed(self, phrase):
        verdict = self.verdict(phrase * 2, seconds=8.0)
        assert verdict.action is Action.ENCODE_WHOLE
        assert verdict.reason == "its last phrase is said twice, in 8.00 s"


class TestMoreThanCanBeSaid:
    @pytest.mark.parametrize(
        ("text", "seconds", "dropped"),
        [
            ("Thanks for watching!", 0.4, True),
            ("Yes, sir.", 0.4, False),
            ("Thanks for watching!", 0.6, False),
            ("谢谢大家观看", 0.3, True),  # six syllables
            ("Thank", 0.01, False),  # no time is too short for a syllable
            ("word " * 100, 2.0, False),
            ("word " * 100, inf, False),
        ],
    )
    def test_dropped(self, text, seconds, dropped):
        verdict = judge([replace(GOOD, text=text)], replace(WINDOW, seconds=seconds), OPTIONS)
        if dropped:
            reason = f"more than can be said in {seconds:.2f} s: {text!r}"
            assert verdict == Verdict(Action.DROP, reason)
        else:
            assert verdict == Verdict(Action.ACCEPT)

    def test_a_flawed_text_too(self):
        decoded = replace(unlikely(), text="Thanks for watching!")
        verdict = judge([decoded], replace(WINDOW, seconds=0.4), OPTIONS)
        assert verdict.action is Action.DROP
        assert verdict.flaw == too_low()

    def test_not_before_it_was_tried_otherwise(self):
        decoded = replace(unlikely(), text="Thanks for watching!")
        assert judge([decoded], replace(LADDER, seconds=0.4), OPTIONS).action is Action.RETRY
        whole = judge([decoded], replace(SHORT, seconds=0.4), OPTIONS)
        assert whole.action is Action.ENCODE_WHOLE


class TestManyAttempts:
    @pytest.mark.parametrize(
        ("attempts", "action", "reason"),
        [
            ([-1.2, -1.3, -1.4], "accept", too_low(-1.4) + FALLING),
            ([-1.2, -1.4, -1.3], "accept", too_low(-1.3) + FALLING),
            ([-1.2, -1.2, -1.2], "accept", too_low(-1.2) + FALLING),
            ([-1.2, -1.3, -1.1], "retry", too_low(-1.1)),
            ([-1.2, -1.1, -1.2], "retry", too_low(-1.2)),
            ([-1.2, -1.3], "retry", too_low(-1.3)),
            (["loop", -1.2, -1.3], "retry", too_low(-1.3)),
            ([-1.2, "loop", -1.3], "retry", too_low(-1.3)),
            ([-1.2, -1.3, "loop"], "retry", LOOP_REASON),
            (["loop", -1.2, -1.3, -1.4], "accept", too_low(-1.4) + FALLING),
            ([-1.2, -1.3, -0.9], "accept", ""),
        ],
    )
    def test_temperatures_that_only_make_it_less_likely_are_not_tried(
        self, attempts, action, reason
    ):
        """A loop says nothing about likelihood."""
        decoded = [LOOP if one == "loop" else unlikely(one) for one in attempts]
        verdict = judge(decoded, LADDER, OPTIONS)
        assert (verdict.action, verdict.reason) == (Action(action), reason)

    @pytest.mark.parametrize(
        ("attempts", "best"),
        [
            ([unlikely(-1.4), unlikely(-1.2), unlikely(-1.3)], 1),
            ([unlikely(-1.2), LOOP], 0),
            ([LOOP, unlikely(-3.0)], 1),
            ([replace(LOOP, compression_ratio=n) for n in (5.0, 3.0, 4.0)], 1),
            ([unlikely(-1.2), HOLE], 1),
            ([HOLE, unlikely(-1.2)], 0),
            ([HOLE, replace(HOLE, unheard=((7.0, 9.5),))], 1),
            ([HOLE, replace(HOLE, avg_logprob=-0.1)], 1),
        ],
    )
    def test_the_least_flawed_is_taken(self, attempts, best):
        verdict = judge(attempts, WINDOW, OPTIONS)
        assert verdict.attempt == best
        assert verdict.flaw == find_flaw(attempts[best], OPTIONS)

    def test_the_first_without_a_flaw_is_taken(self):
        assert judge([LOOP, unlikely(), GOOD], LADDER, OPTIONS) == Verdict(Action.ACCEPT, attempt=2)

    def test_a_loop_after_an_unlikely_text_is_decoded_in_parts(self):
        """Of both attempts the first is the better, but neither is any good."""
        verdict = judge([unlikely(), LOOP], SPLITTABLE, OPTIONS)
        assert verdict.action is Action.SPLIT
        assert verdict.attempt == 0

    def test_a_loop_after_a_text_with_a_hole_needs_no_whole_window(self):
        facts = replace(SHORT, splittable=True)
        assert judge([HOLE, LOOP], facts, OPTIONS).action is Action.SPLIT


class TestGibberish:
    CHANCE = replace(GOOD, avg_logprob=-9.0, reached_limit=True)

    @pytest.mark.parametrize(
        ("attempts", "options", "is_gibberish"),
        [
            ([LOOP, LOOP], OPTIONS, True),
            ([LOOP, unlikely()], OPTIONS, False),
            ([LOOP, GOOD], OPTIONS, False),
            ([CHANCE], OPTIONS, True),
            ([replace(CHANCE, reached_limit=False)], OPTIONS, False),
            ([replace(CHANCE, avg_logprob=-2.0)], OPTIONS, False),
            ([CHANCE], replace(OPTIONS, sample_len=20), False),
            ([CHANCE], replace(OPTIONS, logprob_threshold=None), False),
        ],
    )
    def test_every_attempt_is(self, attempts, options, is_gibberish):
        assert judge(attempts, WINDOW, options).is_gibberish == is_gibberish


@pytest.mark.parametrize(
    ("start", "n_frames", "speech", "aligned", "action", "reason"),
    [
        (1400, 0, 0.0, False, "accept", ""),
        (1400, 99, 0.99, False, "accept", ""),
        (1400, 800, 0.9, False, "accept", ""),
        (1400, 100, 1.0, False, "split", ""),
        (1400, 190, 1.9, True, "accept", ""),  # nothing, or a whole sentence
        (1400, 800, 1.9, True, "accept", ""),
        (1400, 800, 2.0, True, "split", ""),
        (99, 2000, 15.0, False, "drop", "the text ends before it"),
        (100, 2000, 15.0, False, "split", ""),
        (99, 2000, 0.5, False, "accept", ""),
    ],
)
def test_the_rest_after_a_text(start, n_frames, speech, aligned, action, reason):
    verdict = judge_rest(start, n_frames, speech, aligned=aligned)
    assert verdict == Verdict(Action(action), reason)


@pytest.mark.parametrize(
    ("decoded", "temperature", "doubtful"),
    [
        (GOOD, 0.0, False),
        (GOOD, 0.4, False),
        (GOOD, 0.6, True),
        (HOLE, 0.0, False),  # it is right as far as it goes
        (unlikely(), 0.0, True),
        (LOOP, 0.0, True),
    ],
)
def test_doubtful_texts_are_no_context(decoded, temperature, doubtful):
    hot = replace(decoded, temperature=temperature)
    assert is_doubtful(hot, judge([hot], WINDOW, OPTIONS)) == doubtful


@pytest.mark.parametrize(
    ("tokens", "reached_limit", "cut"),
    [
        ((5, 6), False, False),
        ((5, 6), True, True),
        ((100, 5, 6), True, False),  # decoding goes on where the timestamps end
    ],
)
def test_a_text_that_is_cut_off(tokens, reached_limit, cut):
    decoded = replace(GOOD, tokens=tokens, reached_limit=reached_limit)
    reason = "the text is cut off: the decoder takes no more tokens"
    assert find_cut(decoded, timestamp_begin=100) == (reason if cut else None)


class TestHallucinations:
    """Which segments are is tested in `test_hallucinations.py`."""

    @staticmethod
    def segment(start, *, odd):
        length, probability = (0.02, 0.1) if odd else (0.4, 0.9)
        words = tuple(
            Word(start + i, start + i + length, f" word{i}", probability) for i in range(3)
        )
        text = "".join(word.word for word in words)
        return Segment(0, 0, start, words[-1].end, text, (), 0.0, -0.1, 1.0, 0.0, words)

    def separate(self, segments, threshold=2.0):
        return separate_hallucinations(
            segments, threshold, window_start=10.0, window_end=40.0, last_speech_end=10.0
        )

    def test_all_of_them_are_found(self):
        speech, first, second = (
            self.segment(13, odd=False),
            self.segment(20, odd=True),
            self.segment(30, odd=True),
        )
        assert self.separate([speech, first, second]) == ([speech], [first, second])

    def test_without_a_threshold_all_are_believed(self):
        segments = [self.segment(13, odd=False), self.segment(20, odd=True)]
        assert self.separate(segments, None) == (segments, [])
        assert self.separate([], 2.0) == ([], [])
