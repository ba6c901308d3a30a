"""Timestamps put into texts: where segments begin and end, and which windows get them so."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import tiny_whisper
from fake_backend import Say, fake_model
from pauses import PausesEverySoOften

from whisper_npu import load_model
from whisper_npu.runtime.decoding import fallback
from whisper_npu.runtime.decoding.decode import DecodedWindow, DecodingOptions
from whisper_npu.runtime.decoding.fallback import decode_with_fallback
from whisper_npu.runtime.decoding.quality import Action
from whisper_npu.runtime.model_folder.config import ModelConfig
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.timestamps.sentences import with_timestamps
from whisper_npu.runtime.timestamps.words import WordTiming
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.model import WhisperModel

BEGIN = 1000  # the token of 0.00 s


def segments(spoken, seconds=30.0):
    """The segments, as texts with their times, of words given as (text, start, end)."""
    words = [WordTiming(*word) for word in spoken]
    groups = [[place] for place in range(len(words))]
    tokens = with_timestamps(words, groups, BEGIN, round(100 * seconds))
    assert [token for token in tokens if token < BEGIN] == list(range(len(words)))
    stamps = [place for place, token in enumerate(tokens) if token >= BEGIN]
    found = []
    for first, last in zip(stamps[::2], stamps[1::2], strict=True):
        text = "".join(words[token].word for token in tokens[first + 1 : last])
        start, end = (round(0.02 * (tokens[place] - BEGIN), 2) for place in (first, last))
        found.append((text, start, end))
    return found


def said(text, *, word=0.3, pauses=None):
    """Words of a text, one after the other; seconds of pause before words by their number."""
    spoken, now = [], 0.0
    for place, each in enumerate(text.split(" ")):
        now += (pauses or {}).get(place, 0.0)
        spoken.append((f" {each}", now, now + word))
        now += word
    return spoken


def texts(*args, **options):
    return [text.strip() for text, _, _ in segments(said(*args, **options))]


class TestSegments:
    def test_they_are_sentences_with_a_pause_behind_them(self):
        found = segments(said("It is. Is it? Yes!", pauses={2: 0.5, 4: 1.5}))
        assert found == [
            (" It is.", 0.0, 0.74),  # a last word fades for 0.14 s
            (" Is it?", 1.1, 1.84),
            (" Yes!", 3.2, 3.64),
        ]

    def test_sentences_without_a_pause_are_one(self):
        assert texts("It is. Is it? Yes!", pauses={2: 0.2}) == ["It is. Is it? Yes!"]

    @pytest.mark.parametrize("short", ["Mr.", "Dr.", "U.S.", "Mme."])
    def test_the_mark_of_a_short_word_needs_a_longer_pause(self, short):
        assert len(texts(f"Said {short} Hale to me", pauses={2: 0.45})) == 1
        assert len(texts(f"Said {short} Hale to me", pauses={2: 0.8})) == 2
        assert len(texts("He went home. Hale said", pauses={3: 0.45})) == 2

    def test_a_long_pause_ends_one_anywhere(self):
        assert texts("one two three", pauses={1: 1.3, 2: 0.9}) == ["one", "two three"]

    def test_marks_may_be_closed_and_may_stand_alone(self):
        assert len(texts("He said, “Go.” Then he went", pauses={3: 0.6})) == 2
        apart = [(" Go", 0.0, 0.3), (".", 0.3, 0.3), ('"', 0.3, 0.3), (" Now", 1.0, 1.3)]
        assert [text for text, _, _ in segments(apart)] == [' Go."', " Now"]

    def test_marks_may_open_what_comes_next(self):
        spoken = [(" Go", 0.0, 0.3), (".", 0.3, 0.3), (' "', 0.3, 0.8), (" Now", 1.0, 1.3)]
        spoken += [(".", 1.3, 1.3), ('"', 1.3, 1.3), (" -", 1.3, 1.3), (" Yes", 2.0, 2.3)]
        assert [text for text, _, _ in segments(spoken)] == [" Go.", ' " Now."', " - Yes"]

    def test_marks_before_the_first_word(self):
        assert segments([(' "', 0.0, 0.2), (" Go", 0.5, 0.8)]) == [(' " Go', 0.5, 0.94)]

    def test_marks_alone(self):
        assert segments([(" ...", 0.5, 0.9)]) == [(" ...", 0.5, 1.04)]

    def test_signs_that_are_written_without_spaces(self):
        spoken = [("行", 0.0, 0.2), ("く", 0.2, 0.4), ("。", 0.4, 0.4), ("何", 1.0, 1.2)]
        assert [text for text, _, _ in segments(spoken)] == ["行く。", "何"]

    def test_long_ones_end_at_their_longest_pauses(self):
        words = " ".join(["word,"] * 60)
        found = segments(said(words, pauses={12: 0.5, 20: 0.6, 33: 0.4, 45: 0.3}))
        assert [len(text.split()) for text, _, _ in found] == [20, 13, 27]
        assert all(end - start <= 10 for _, start, end in found)

    def test_without_any_pause_they_stay_long(self):
        assert len(segments(said(" ".join(["word,"] * 60)))) == 1

    def test_times_never_go_back_nor_beyond_the_window(self):
        spoken = [(" one.", 1.0, 1.0), (" two.", 1.5, 1.5), (" three.", 30.4, 31.0)]
        found = segments(spoken, seconds=20.0)
        assert [text for text, _, _ in found] == [" one.", " two.", " three."]
        times = [time for _, start, end in found for time in (start, end)]
        assert all(a <= b for a, b in pairwise(times))
        assert all(end > start for _, start, end in found)
        assert times[-1] == 20.0


BATCHED = {
    "mode": "batched",
    "language": "en",
    "batch_size": 1,
    "condition_on_previous_text": False,
    "unheard_speech_threshold": None,  # what is scripted is not spoken
}


class _Attends:
    """A decoder whose tokens attend to one stretch of the audio after the other."""

    def __init__(self, until=1.0):
        self.until = until
        self.aligned = 0

    def __call__(self, audio, tokens):
        self.aligned += 1
        n_text = tokens.shape[1] - 5  # four tokens before the text, one behind
        weights = np.full((1, 1, tokens.shape[1], audio.shape[1]), 1e-4, np.float32)
        edges = np.linspace(0, self.until * 27.0 / 0.02, n_text + 1).astype(int)
        for place, (first, stop) in enumerate(pairwise(edges)):
            weights[0, 0, 3 + place, first:stop] = 1
        weights[0, 0, 3 + n_text, edges[-1] :] = 1
        return np.zeros((1, tokens.shape[1] - 1), np.float32), weights


class TestWindows:
    """Which windows are decoded without timestamps, and what becomes of them."""

    @pytest.fixture
    def model(self, tmp_path):
        fake = fake_model(tmp_path, [Say(())])
        fake.backend.can_align = True
        fake.backend.n_text_ctx = 448
        fake.backend.align = _Attends()
        folder = replace(fake.folder, config=ModelConfig(d_model=512))
        return WhisperModel(folder, fake.backend, fake.tokenizer, PausesEverySoOften())

    @staticmethod
    def run(model, *script, seconds=52.0, **options):
        encode = model.tokenizer.encode
        model.backend.script = [
            Say(tuple(encode(one))) if isinstance(one, str) else one for one in script
        ]
        samples = tiny_whisper.synthetic_speech(0, seconds)
        result = model.transcribe(samples, **{**BATCHED, **options}).result()
        no_timestamps = model.tokenizer.special.no_timestamps
        return result, [no_timestamps in asked.tokens[0] for asked in model.backend.asked]

    def test_long_ones_are_and_get_their_times(self, model):
        result, without = self.run(model, " What is said in the first half", " And then")
        assert without == [True, True]
        assert result.text == "What is said in the first half And then"
        begin = model.tokenizer.special.timestamp_begin
        for segment in result.segments:
            assert segment.tokens[0] >= begin
            assert segment.tokens[-1] >= begin
        second = result.segments[-1].seek
        for window, end in ((0, second / 100), (second, second / 100 + 27.0)):
            times = [t for s in result.segments if s.seek == window for t in (s.start, s.end)]
            assert times == sorted(times)
            assert times[0] == pytest.approx(window / 100, abs=2.5)
            assert times[-1] == pytest.approx(end, abs=1.5)

    def test_short_ones_are_not(self, model):
        assert self.run(model, " Hello.", seconds=14.5)[1] == [False]
        assert self.run(model, " Hello.", seconds=16.0)[1][-1:] == [True]

    @pytest.mark.parametrize(
        "options", [{"task": "translate"}, {"prefix": " And", "seconds": 27.0}], ids=str
    )
    def test_nor_where_the_text_cannot_be_aligned(self, model, options):
        assert not any(self.run(model, " Hello.", **options)[1])
        assert model.backend.align.aligned == 0

    def test_nor_without_the_graph_for_it(self, model, tmp_path, caplog):
        """Which is said, as is how to get it."""
        model.backend.can_align = False
        with caplog.at_level("INFO", "whisper_npu"):
            less = WhisperModel(model.folder, model.backend, model.tokenizer, PausesEverySoOften())
        assert f"sampled, which is less exact; `whisper-npu export --add-alignment {tmp_path}`" in (
            caplog.text
        )
        assert not any(self.run(less, " Hello.")[1])

    def test_text_that_is_to_have_no_timestamps_gets_none(self, model):
        result, without = self.run(model, " Hello.", without_timestamps=True)
        assert all(without)
        begin = model.tokenizer.special.timestamp_begin
        assert all(token < begin for segment in result.segments for token in segment.tokens)

    def test_context_keeps_the_timestamps_of_larger_models(self, model):
        begin = model.tokenizer.special.timestamp_begin
        say = Say((begin, *model.tokenizer.encode(" So many words."), begin + 1350))
        assert not any(self.run(model, say, condition_on_previous_text=True)[1])

    def test_tiny_ones_are_given_context_without(self, model):
        model.folder = replace(model.folder, config=ModelConfig(d_model=384))
        words = " So many words that they are sixteen tokens."
        _, without = self.run(model, words, condition_on_previous_text=True)
        assert all(without)
        begin = model.tokenizer.special.timestamp_begin
        second = model.backend.asked[1].tokens[0]
        before = second[: second.index(model.tokenizer.special.sot)]
        assert len(before) > 16
        assert all(token < begin for token in before)

    @pytest.mark.parametrize(("until", "heard"), [(0.5, 2), (0.95, 1)])
    def test_the_rest_is_heard_where_the_text_ends_long_before_the_speech(
        self, model, until, heard
    ):
        model.backend.align.until = until
        result, without = self.run(model, " Hello you", " Rest", seconds=27.0)
        assert len(without) == heard
        if heard > 1:
            assert result.segments[-1].seek / 100 == pytest.approx(27 * until, abs=1.5)

    def test_beams_are_aligned_by_the_graph(self, model):
        result, _ = self.run(model, " Hello you.", seconds=27.0, beam_size=2)
        assert model.backend.align.aligned == 1
        assert result.segments[-1].end == pytest.approx(27.0, abs=2.0)


class TestAttempts:
    """A text without timestamps that looks wrong is decoded with them before it is sampled."""

    @staticmethod
    def attempts(monkeypatch, temperatures, n_flawed, **changes):
        tried = []

        def decode(_backend, _tokenizer, _vocabulary, _audio, options, _times, **_others):
            tried.append((options.temperature, options.aligned))
            logprob = -5.0 if len(tried) <= n_flawed else -0.1
            ratio = 9.0 if changes and len(tried) <= n_flawed else 1.0
            return [DecodedWindow((1,), "text", logprob, 0.0, options.temperature, ratio, False)]

        monkeypatch.setattr(fallback, "decode_windows", decode)
        (outcome,) = decode_with_fallback(
            None,
            None,
            None,
            np.zeros((1, 1, 1), np.float32),
            [0],
            DecodingOptions(aligned=True),
            TranscribeOptions(temperature=temperatures),
            StageTimes(),
            **changes,
        )
        return tried, outcome

    def test_a_good_text_is_tried_once(self, monkeypatch):
        tried, outcome = self.attempts(monkeypatch, (0.0, 0.2), 0)
        assert tried == [(0.0, True)]
        assert not outcome.retries

    def test_timestamps_come_before_higher_temperatures(self, monkeypatch):
        tried, outcome = self.attempts(monkeypatch, (0.0, 0.2, 0.4), 2)
        assert tried == [(0.0, True), (0.0, False), (0.2, False)]
        first, second = outcome.retries
        assert first.reason.endswith("without timestamps")
        assert "without timestamps" not in second.reason

    @pytest.mark.parametrize(("n_flawed", "loops"), [(1, False), (2, True)])
    def test_nor_is_a_window_divided_before(self, monkeypatch, n_flawed, loops):
        tried, outcome = self.attempts(monkeypatch, (0.0, 0.2), n_flawed, splittable=[True])
        assert tried == [(0.0, True), (0.0, False)]
        assert (outcome.verdict.action is Action.SPLIT) == loops

    def test_a_single_temperature_is_a_single_attempt(self, monkeypatch):
        tried, outcome = self.attempts(monkeypatch, (0.0,), 1)
        assert tried == [(0.0, True)]
        assert outcome.flaw is not None


class TestRealSpeech:
    """Three utterances with a second of silence between them, by tiny.en."""

    @pytest.fixture
    def recording(self, shared_audio):
        """Samples, and where speech may be: from and to which second each utterance lasts."""
        paths = sorted((shared_audio / "librispeech-test-other").glob("*.flac"))
        parts, bounds, now = [], [], 0.0
        for path in paths[3:10:3]:
            samples, rate = soundfile.read(path, dtype="float32")
            assert rate == 16_000
            parts += [samples, np.zeros(rate, np.float32)]
            bounds.append((now, now + len(samples) / rate))
            now = bounds[-1][1] + 1.0
        return np.concatenate(parts), bounds

    @pytest.mark.parametrize("options", [{}, {"kv_cache": "concat"}], ids=["queries", "graph"])
    def test_no_segment_is_in_the_silence(self, tiny_en_folder, recording, options):
        samples, bounds = recording
        assert 15 < len(samples) / 16_000 < 28
        model = load_model(tiny_en_folder, device="CPU", precision="f32", **options)
        result = model.transcribe(samples, mode="batched").result()
        begin = model.tokenizer.special.timestamp_begin
        assert len(result.segments) >= len(bounds)
        for segment in result.segments:
            assert segment.tokens[0] >= begin
            inside = [a - 0.3 <= segment.start < segment.end <= b + 0.3 for a, b in bounds]
            assert sum(inside) == 1, segment
        assert all(any(a <= segment.start <= b for segment in result.segments) for a, b in bounds)

    def test_rows_that_leave_the_batch_have_been_heard(self, tiny_en_folder, recording):
        """Two windows decoded together: the text of one ends before that of the other."""
        samples, bounds = recording
        both = np.concatenate((samples, samples, samples[: round(16_000 * bounds[1][1])]))
        model = load_model(tiny_en_folder, device="CPU", precision="f32")
        result = model.transcribe(
            both, mode="batched", condition_on_previous_text=False, batch_size=8
        ).result()
        begin = model.tokenizer.special.timestamp_begin
        assert len({segment.seek for segment in result.segments}) > 1
        assert len(result.segments) >= 8
        assert all(segment.tokens[0] >= begin for segment in result.segments)
