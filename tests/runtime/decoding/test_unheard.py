"""Speech that a text does not account for is found, decoded again, and told if it stays unheard."""

import numpy as np
import pytest
import soundfile
import tiny_whisper
from fake_backend import Say, fake_model
from pauses import PausesEverySoOften

from whisper_npu.errors import UsageError
from whisper_npu.runtime.decoding.unheard import unheard_by_segments, unheard_by_words
from whisper_npu.runtime.text.segments import TokenSegment
from whisper_npu.runtime.timestamps.words import WordTiming
from whisper_npu.runtime.transcription.model import WhisperModel

SPEECH = ((0.5, 4.0), (4.5, 9.0))


def words(*timed):
    return [WordTiming(word, start, end) for word, start, end in timed]


SPOKEN = [(f" word{i}", 0.5 + 0.5 * i, 0.9 + 0.5 * i) for i in range(17)]


class TestWords:
    def test_speech_with_words_all_through_is_accounted_for(self):
        assert unheard_by_words(words(*SPOKEN), SPEECH, 1.0) == ()

    def test_a_missing_beginning(self):
        assert unheard_by_words(words(*SPOKEN[4:]), SPEECH, 1.0) == ((0.5, 2.25),)

    def test_a_hole_and_a_missing_end(self):
        gaps = unheard_by_words(words(*SPOKEN[:3], *SPOKEN[8:13]), SPEECH, 1.0)
        assert gaps == (pytest.approx((2.15, 4.25), abs=0.3), pytest.approx((7.15, 9.0), abs=0.1))

    def test_a_pause_is_no_hole(self):
        assert unheard_by_words(words(*SPOKEN[:4]), ((0.5, 2.5),), 1.0) == ()

    def test_a_word_does_not_last_for_seconds(self):
        """As alignment has it where a speaker was left out: the words share all of the time."""
        stretched = words((" But", 0.5, 3.0), (" she", 3.0, 6.0), (" said", 6.0, 9.0))
        gaps = unheard_by_words(stretched, SPEECH, 1.0)
        assert gaps
        assert sum(stop - start for start, stop in gaps) > 2.5

    def test_marks_are_no_words(self):
        assert unheard_by_words(words((" ...", 0.5, 9.0)), SPEECH, 1.0) == ((0.5, 9.0),)

    def test_without_any_word_it_is_all_of_the_speech(self):
        assert unheard_by_words([], SPEECH, 1.0) == ((0.5, 9.0),)

    def test_without_speech_there_is_nothing_to_hear(self):
        assert unheard_by_words([], (), 1.0) == ()

    def test_the_threshold_is_what_counts(self):
        assert unheard_by_words(words(*SPOKEN[4:]), SPEECH, 2.0) == ()


class TestSegments:
    @pytest.fixture
    def segment(self, tokenizer):
        def make(text, start, end):
            return TokenSegment(start, end, tuple(tokenizer.encode(text)))

        return make

    @pytest.fixture
    def tokenizer(self, tmp_path):
        return fake_model(tmp_path, [Say(())]).tokenizer

    def test_segments_all_through(self, segment, tokenizer):
        text = " " + "word " * 16
        assert unheard_by_segments([segment(text, 0.4, 9.0)], tokenizer, SPEECH, 9.0, 1.0) == ()

    def test_half_a_word_a_second(self, segment, tokenizer):
        gaps = unheard_by_segments(
            [segment(" But she said.", 0.0, 9.0)], tokenizer, SPEECH, 9.0, 1.0
        )
        assert len(gaps) == 1
        assert gaps[0][1] == 9.0

    def test_a_missing_beginning(self, segment, tokenizer):
        text = " " + "word " * 10
        assert unheard_by_segments([segment(text, 4.4, 9.0)], tokenizer, SPEECH, 9.0, 1.0) == (
            (0.5, 4.0),
        )

    def test_it_is_judged_as_far_as_it_is_decoded(self, segment, tokenizer):
        said = [segment(" " + "word " * 8, 0.4, 4.0)]
        assert unheard_by_segments(said, tokenizer, SPEECH, 4.0, 1.0) == ()
        assert unheard_by_segments(said, tokenizer, SPEECH, 9.0, 1.0) == ((4.5, 9.0),)

    def test_pauses_take_no_time_from_the_words(self, segment, tokenizer):
        speech = tuple((3.0 * i, 3.0 * i + 0.8) for i in range(9))
        said = [segment(" Yes, sir." * 9, 0.0, 25.0)]
        assert unheard_by_segments(said, tokenizer, speech, 25.0, 1.0) == ()

    def test_digits_take_as_long_as_words(self, segment, tokenizer):
        said = [segment(" Call 0800 555 0123.", 0.5, 7.0)]
        assert unheard_by_segments(said, tokenizer, ((0.5, 7.0),), 7.0, 1.0) == ()

    def test_marks_are_no_text(self, segment, tokenizer):
        assert unheard_by_segments([segment(" !", 0.0, 9.0)], tokenizer, SPEECH, 9.0, 1.0) == (
            (0.5, 9.0),
        )

    def test_signs_take_as_long_as_syllables(self, segment, tokenizer):
        assert (
            unheard_by_segments([segment("日本語" * 10, 0.4, 9.0)], tokenizer, SPEECH, 9.0, 1.0)
            == ()
        )


class TestWindows:
    """A scripted decoder; speech with a pause of a quarter of a second in every four."""

    TEXT = (
        " There once was a miller who had three sons and a mill, a donkey and a cat; the sons had "
        "to grind, the donkey had to fetch corn and carry flour, and the cat had to catch mice."
    )

    @pytest.fixture
    def model(self, tmp_path):
        fake = fake_model(tmp_path, [Say(())])
        fake.backend.n_text_ctx = 448
        return WhisperModel(fake.folder, fake.backend, fake.tokenizer, PausesEverySoOften())

    @pytest.fixture
    def hear(self, model):
        """A function: what comes of 26 s of speech if texts are said from when to when."""
        begin = model.tokenizer.special.timestamp_begin

        def say(text, start, end):
            if not text:
                return Say(())
            stamps = (begin + round(start / 0.02), begin + round(end / 0.02))
            return Say((stamps[0], *model.tokenizer.encode(text), stamps[1]))

        def run(*script, **options):
            model.backend.script = [say(*each) for each in script]
            samples = tiny_whisper.synthetic_speech(0, 26.0)
            return model.transcribe(samples, language="en", best_of=1, **options).result()

        return run

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_a_window_that_leaves_out_speech_is_decoded_in_parts(self, hear, model, mode):
        late = (self.TEXT, 13.0, 25.9)
        parts = [(self.TEXT, 0.3, 12.0), (self.TEXT, 0.3, 13.8)]
        result = hear(late, *parts, mode=mode, max_initial_timestamp=None)
        assert len(model.backend.asked) == 3
        first, second = result.segments
        assert first.seek == 0
        assert second.seek == pytest.approx(1250, abs=150)
        assert "no text: 0.3 to 13" in first.retries[0].reason
        assert first.retries[0].reason.endswith("in parts")
        assert result.coverage.seconds()["dropped"] == 0

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_what_stays_unheard_is_dropped(self, hear, mode):
        """In parts too small to be divided, whatever is tried."""
        late = (self.TEXT[:60], 6.0, 9.0)
        result = hear(late, mode=mode, max_initial_timestamp=None)
        dropped = [span for span in result.coverage.spans if span.fate == "dropped"]
        assert dropped
        assert all("without text" in span.reason for span in dropped)
        assert result.coverage.seconds()["dropped"] > 6.0

    @pytest.mark.parametrize(
        "options", [{"mode": "batched", "without_timestamps": True}, {"mode": "sequential"}]
    )
    def test_a_window_without_any_text_is_not_transcribed(self, hear, options):
        result = hear(("", 0.0, 25.9), **options)
        assert result.text == ""
        assert result.coverage.seconds()["transcribed"] == 0
        assert result.coverage.seconds()["dropped"] > 20

    def test_nothing_is_looked_for_where_it_is_not_wanted(self, hear, model):
        late = (self.TEXT, 13.0, 25.9)
        hear(late, mode="batched", unheard_speech_threshold=None, max_initial_timestamp=None)
        assert len(model.backend.asked) == 1

    def test_what_is_left_out_at_the_end_is_decoded_too(self, hear, model):
        """In sequential mode, where a single timestamp at the end says that nothing follows."""
        result = hear((self.TEXT[:60], 0.3, 4.0), (self.TEXT, 0.3, 13.0), mode="sequential")
        assert len(model.backend.asked) > 1
        assert result.segments[0].retries[0].reason.endswith("in parts")

    def test_a_window_that_is_stopped_is_not_divided(self, model):
        begin = model.tokenizer.special.timestamp_begin
        text = model.tokenizer.encode(self.TEXT[:60])
        model.backend.script = [Say((begin, *text, begin + 200))]
        samples = tiny_whisper.synthetic_speech(0, 26.0)
        stream = model.transcribe(
            samples, mode="sequential", language="en", on_partial=lambda _: stream.stop()
        )
        assert list(stream)
        assert stream.partial_result().text

    def test_a_begun_window_is_not_divided(self, hear, model):
        result = hear((self.TEXT[:60], 0.3, 4.0), mode="sequential", prefix="Well,")
        assert result.text.startswith("Well,")
        assert len(model.backend.asked) == 1

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_the_prefix_is_part_of_the_text(self, hear, model, mode):
        model.backend.script = [Say(tuple(model.tokenizer.encode(self.TEXT)))]
        samples = tiny_whisper.synthetic_speech(0, 26.0)
        result = model.transcribe(
            samples, mode=mode, prefix="Well,", language="en", unheard_speech_threshold=None
        ).result()
        assert result.text.startswith("Well,")
        fed = model.backend.asked[0].tokens[0]
        begin = model.tokenizer.special.timestamp_begin
        prefix = [begin, *model.tokenizer.encode(" Well,")]
        at = fed.index(begin)
        assert fed[at : at + len(prefix)] == prefix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vad_threshold": 0.0}, "vad_threshold is 0.0"),
        ({"vad_threshold": 1.0}, "vad_threshold is 1.0"),
        ({"vad_threshold": float("nan")}, "vad_threshold is nan"),
        ({"vad_min_silence": 0.0}, "vad_min_silence is 0.0"),
        ({"vad_min_silence": float("inf")}, "vad_min_silence is inf"),
        ({"vad": False, "vad_min_silence": 1.0}, "it needs vad"),
        ({"unheard_speech_threshold": float("nan")}, "unheard_speech_threshold is nan"),
        ({"unheard_speech_threshold": 0.0}, "unheard_speech_threshold is 0.0"),
    ],
)
def test_thresholds_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        fake_model(tmp_path, [Say(())]).resolve(**options)


class TestRealSpeech:
    """tiny.en on recordings that lost words."""

    @pytest.fixture
    def model(self, tiny_en_folder):
        from whisper_npu import load_model

        return load_model(tiny_en_folder)

    @pytest.fixture
    def utterance(self, shared_audio):
        def read(name):
            samples, rate = soundfile.read(
                shared_audio / "librispeech-test-other" / f"{name}.flac", dtype="float32"
            )
            assert rate == 16_000
            return samples

        return read

    @pytest.mark.parametrize(
        ("quiet", "decibels", "loud", "said"),
        [
            ("1998-15444-0004", -12, "2033-164914-0001", 28),  # of 32 words
            ("2414-128291-0005", -20, "1688-142285-0003", 32),  # of 38 words
        ],
    )
    def test_a_quiet_speaker_before_a_loud_one(self, model, utterance, quiet, decibels, loud, said):
        gap = np.zeros(4000, np.float32)
        samples = np.concatenate((10 ** (decibels / 20) * utterance(quiet), gap, utterance(loud)))
        result = model.transcribe(samples, language="en").result()
        assert len(result.text.split()) >= said

    @pytest.mark.parametrize("mode", ["auto", "sequential"])
    @pytest.mark.parametrize("spoilt", ["quiet", "offset"])
    def test_what_the_detector_did_not_hear(self, model, utterance, mode, spoilt):
        names = [f"2414-128291-000{i}" for i in range(1, 6)]
        speech = np.concatenate([utterance(name) for name in names])
        plain = model.transcribe(speech, mode=mode).result()
        if spoilt == "quiet":
            speech = np.rint(speech / np.abs(speech).max() * 10 ** (-50 / 20) * 32768) / 32768
        else:
            speech = 0.02 * speech / np.abs(speech).max() + 0.06
        result = model.transcribe(speech.astype(np.float32), mode=mode).result()
        assert len(result.text.split()) >= 0.9 * len(plain.text.split())

    def test_without_timestamps_nor_passing_over_silence(self, model, utterance):
        names = [f"1998-15444-000{i}" for i in range(6)]
        speech = np.concatenate([utterance(name) for name in names])
        plain = model.transcribe(speech).result()
        result = model.transcribe(speech, without_timestamps=True, vad=False).result()
        assert len(result.text.split()) >= 0.95 * len(plain.text.split())
        begin = model.tokenizer.special.timestamp_begin
        assert all(token < begin for segment in result.segments for token in segment.tokens)

    @pytest.mark.parametrize("mode", ["batched", "sequential"])
    def test_a_prefix(self, model, utterance, mode):
        plain = model.transcribe(utterance("1688-142285-0000"), mode=mode).result()
        prefix = " ".join(plain.text.split()[:3])
        result = model.transcribe(utterance("1688-142285-0000"), mode=mode, prefix=prefix).result()
        assert result.text.startswith(prefix)
        assert len(result.text.split()) == pytest.approx(len(plain.text.split()), abs=3)
