"""From audio to segments: what is decoded when, with which prompt, and what becomes of it.

A scripted decoder takes the place of the graphs; `vad` is off, so that any sound counts as speech.
"""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from fake_backend import ENGLISH, SEQUENTIAL, SURE, Say, fake_model, sound

from whisper_npu.errors import AudioError, AudioInputError, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.batched import BatchedStrategy
from whisper_npu.runtime.transcription.sequential import SequentialStrategy
from whisper_npu.runtime.transcription.strategy import choose_strategy


class TestSegments:
    def test_segments_carry_times_text_and_tokens(self, make, words):
        model = make(Say(()))
        at = model.stamp
        one, two = words(" One."), words(" Two two.")
        tokens = (at(0.5), *one, at(2), at(3), *two, at(4.5))
        model.backend.script = [Say(tokens)]
        result = model.transcribe(sound(6), **ENGLISH).result()
        assert result.text == "One. Two two."
        assert [(s.id, s.seek, s.start, s.end, s.text) for s in result.segments] == [
            (0, 0, 0.5, 2.0, " One."),
            (1, 0, 3.0, 4.5, " Two two."),
        ]
        assert result.segments[0].tokens == (at(0.5), *one, at(2))
        assert result.segments[1].tokens == (at(3), *two, at(4.5))
        assert result.duration == 6.0
        assert (result.language, result.device, result.kv_cache) == ("en", "FAKE", "none")
        assert result.model == model.folder.name
        assert result.warnings == ()

    def test_without_timestamps_a_segment_is_a_window(self, make, words):
        model = make(Say(tuple(words(" Hello."))))
        (segment,) = model.transcribe(sound(3.2), **ENGLISH, without_timestamps=True).segments
        assert (segment.start, segment.end, segment.text) == (0.0, 3.2, " Hello.")

    def test_times_stay_within_the_recording(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [Say((at(0.0), *words(" Late."), at(29)))]
        (segment,) = model.transcribe(sound(2.5), **ENGLISH).segments
        assert segment.end == 2.5

    def test_segments_without_text_or_length_are_left_out(self, make, words):
        model = make(Say(()))
        at = model.stamp
        tokens = (at(0), *words(" A."), at(1), at(1), *words(" "), at(2), at(2.6), *words(" B."))
        model.backend.script = [Say((*tokens, at(4)))]
        result = model.transcribe(sound(3), **ENGLISH).result()
        assert [segment.text for segment in result.segments] == [" A.", " B."]
        assert [segment.id for segment in result.segments] == [0, 1]

    @pytest.mark.slow
    def test_iterating_streams_and_iterating_again_repeats(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [
            Say((at(0), *words(" One."), at(29))),
            Say((at(0), *words(" Two."), at(4))),
        ]
        stream = model.transcribe(sound(36), **ENGLISH)
        assert model.backend.windows == []  # nothing is done before it is asked for
        segments = iter(stream)
        assert next(segments).text == " One."
        assert len(model.backend.windows) == 1
        assert next(segments).text == " Two."
        assert [segment.text for segment in stream] == [" One.", " Two."]
        assert stream.text == "One. Two."
        assert len(model.backend.windows) == 2


class TestSeeking:
    @pytest.mark.slow
    def test_unfinished_text_is_heard_again(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [
            Say((at(0), *words(" One."), at(20), at(20), *words(" cut"))),
            Say((at(0), *words(" Two."), at(15))),
        ]
        result = model.transcribe(sound(35), **ENGLISH).result()
        assert [(s.seek, s.start, s.end, s.text) for s in result.segments] == [
            (0, 0.0, 20.0, " One."),
            (2000, 20.0, 35.0, " Two."),
        ]
        assert len(model.backend.windows) == 2

    @pytest.mark.slow
    def test_a_closed_window_is_followed_by_the_next(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [Say((at(0), *words(" Some."), at(5)))]
        result = model.transcribe(sound(65), **ENGLISH).result()
        assert [s.seek for s in result.segments] == [0, 3000, 6000]

    @pytest.mark.slow
    def test_every_second_is_accounted_for(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [Say((at(0), *words(" Some."), at(5)))]
        result = model.transcribe(sound(61.2345), **ENGLISH).result()
        assert result.duration == pytest.approx(61.2345, abs=1e-4)
        seconds = result.coverage.seconds()
        assert seconds["transcribed"] == pytest.approx(result.duration, abs=0.01)
        assert sum(seconds.values()) == pytest.approx(result.duration)

    @pytest.mark.slow
    def test_the_window_before_is_the_context_of_the_next(self, make, words):
        model = make(Say(()))
        at, special = model.stamp, model.tokenizer.special
        first = (at(0), *words(" One."), at(29))
        model.backend.script = [Say(first), Say((at(0), *words(" Two."), at(5)))]
        _ = model.transcribe(sound(40), **ENGLISH).text
        asked = [session.tokens[0] for session in model.backend.asked]
        sot = [special.sot, special.languages["en"], special.transcribe]
        assert asked[0][:3] == sot
        assert asked[1][: 1 + len(first) + 3] == [special.sot_prev, *first, *sot]

    @pytest.mark.slow
    def test_no_context_if_it_is_not_wanted(self, make, words):
        model = make(Say(()))
        at, special = model.stamp, model.tokenizer.special
        model.backend.script = [Say((at(0), *words(" One."), at(29)))]
        _ = model.transcribe(sound(40), **ENGLISH, condition_on_previous_text=False).text
        assert all(session.tokens[0][0] == special.sot for session in model.backend.asked)

    @pytest.mark.slow
    def test_no_context_from_a_text_that_looks_wrong(self, make, words):
        model = make(Say(()))
        at, special = model.stamp, model.tokenizer.special
        model.backend.script = [Say((at(0), *words(" One."), at(29)), logit=8.0)]
        options = {**ENGLISH, "temperature": (0.0,), "logprob_threshold": -1e-9}
        result = model.transcribe(sound(40), **options, initial_prompt="Kyiv.").result()
        assert all(segment.flaw is not None for segment in result.segments)
        asked = [session.tokens[0] for session in model.backend.asked]
        assert len(asked) == 2
        assert asked[0][0] == special.sot_prev
        assert asked[1][0] == special.sot

    def test_the_initial_prompt_comes_first(self, make, words):
        model = make(Say(tuple(words(" Hello."))))
        special = model.tokenizer.special
        _ = model.transcribe(sound(2), **ENGLISH, initial_prompt="Kyiv. ").text
        prompt = [special.sot_prev, *words(" Kyiv."), special.sot]
        assert model.backend.asked[0].tokens[0][: len(prompt)] == prompt

    def test_a_long_context_keeps_its_end(self, make, words):
        model = make(Say(tuple(words(" Hello."))))
        special = model.tokenizer.special
        prompt = "abcdefghijklmnopqrstuvwxyz" * 3
        _ = model.transcribe(sound(2), **ENGLISH, initial_prompt=prompt).text
        asked = model.backend.asked[0].tokens[0]
        at_sot = asked.index(special.sot)
        assert at_sot == 64 // 2  # half of the context, <|startofprev|> included
        assert asked[1:at_sot] == words(" " + prompt)[-31:]


class TestSilence:
    @pytest.mark.slow
    def test_digital_silence_is_never_decoded(self, make):
        model = make(Say((5, 6)))
        result = model.transcribe(np.zeros(70 * SAMPLE_RATE, np.float32), **ENGLISH).result()
        assert (result.text, result.segments, result.duration) == ("", (), 70.0)
        assert model.backend.windows == []
        assert result.coverage.seconds()["silent"] == pytest.approx(70.0)

    @pytest.mark.parametrize("n_samples", [1, 100, 159])
    def test_less_than_a_frame_is_silence(self, make, n_samples):
        model = make(Say((5, 6)))
        result = model.transcribe(np.full(n_samples, 0.5, np.float32), **ENGLISH).result()
        assert (result.text, result.segments) == ("", ())
        assert result.duration == n_samples / SAMPLE_RATE

    def test_the_model_says_there_is_no_speech(self, make):
        model = make(Say((5,), logit=1.0, no_speech=SURE))
        result = model.transcribe(sound(5), **ENGLISH).result()
        assert (result.text, result.segments) == ("", ())
        assert result.coverage.seconds()["skipped"] == pytest.approx(5.0)

    def test_unless_its_text_is_probable(self, make, words):
        model = make(Say(tuple(words(" Yes.")), no_speech=SURE))
        assert model.transcribe(sound(5), **ENGLISH, without_timestamps=True).text == "Yes."

    @pytest.mark.parametrize(("seconds", "fits"), [(0.5, False), (1.5, True), (3.0, True)])
    @pytest.mark.parametrize("text", ["I'll see you next time.", "谢谢大家的观看。"])
    def test_more_than_can_be_said(self, make, words, seconds, fits, text):
        model = make(Say(tuple(words(" " + text))))
        result = model.transcribe(sound(seconds), **ENGLISH, without_timestamps=True).result()
        assert result.text == (text if fits else "")
        dropped = [span for span in result.coverage.spans if span.fate == "dropped"]
        assert bool(dropped) != fits
        assert all(text in span.reason for span in dropped)

    def test_or_the_threshold_is_off(self, make, words):
        model = make(Say(tuple(words(" Yes.")), logit=9.0, no_speech=SURE))
        options = {**ENGLISH, "without_timestamps": True, "temperature": (0.0,)}
        assert model.transcribe(sound(5), **options, no_speech_threshold=None).text == "Yes."


class TestLanguage:
    @pytest.mark.slow
    def test_detected_once(self, make, words, caplog):
        model = make(Say(tuple(words(" Hallo.")), language="de"))
        with caplog.at_level(logging.INFO, "whisper_npu"):
            result = model.transcribe(sound(70), **SEQUENTIAL, without_timestamps=True).result()
        assert result.language == "de"
        assert caplog.messages.count("language: german") == 1
        special = model.tokenizer.special
        detections = [s for s in model.backend.asked if s.tokens[0] == [special.sot]]
        assert len(detections) == 1
        assert len(model.backend.asked) == 4
        for session in model.backend.asked[1:]:
            start = session.tokens[0].index(special.sot)
            assert session.tokens[0][start + 1] == special.languages["de"]

    def test_given(self, make, words):
        model = make(Say(tuple(words(" Hola."))))
        result = model.transcribe(sound(2), **SEQUENTIAL, language="Spanish").result()
        assert result.language == "es"
        assert len(model.backend.asked) == 1

    def test_auto_is_detected_as_none_is(self, make, words):
        model = make(Say(tuple(words(" Hola.")), language="es"))
        stream = model.transcribe(sound(2), **SEQUENTIAL, language="Auto")
        assert (stream.result().language, len(model.backend.asked)) == ("es", 2)
        assert TranscribeOptions(language="auto", multilingual=True).language is None

    def test_english_only(self, make, words):
        model = make(Say(tuple(words(" Hi."))), is_multilingual=False)
        assert model.transcribe(sound(2), **SEQUENTIAL).result().language == "en"
        result = model.transcribe(sound(2), **SEQUENTIAL, languages=["English"]).result()
        assert (result.language, result.language_probabilities) == ("en", {})
        for wrong in ({"language": "de"}, {"languages": ["de"]}, {"task": "translate"}):
            with pytest.raises(UsageError, match="English-only"):
                model.transcribe(sound(2), **SEQUENTIAL, **wrong)

    def test_silence_has_no_language_to_detect(self, make):
        model = make(Say((), language="de"))
        result = model.transcribe(np.zeros(16_000, np.float32), **SEQUENTIAL).result()
        assert result.language == "en"
        assert model.backend.asked == []


class TestErrors:
    def test_a_missing_file_is_told_at_once(self, make, tmp_path):
        with pytest.raises(AudioError, match="no such file"):
            make(Say(())).transcribe(tmp_path / "missing.wav")

    def test_an_unknown_option(self, make):
        with pytest.raises(UsageError, match="beem_size"):
            make(Say(())).transcribe(sound(1), beem_size=5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "sing"}, "task is 'sing'"),
            ({"temperature": ()}, "temperature"),
            ({"temperature": (0.0, -0.2)}, "temperature"),
            ({"beam_size": 0}, "beam_size is 0"),
            ({"best_of": 0}, "best_of is 0"),
            ({"sample_len": -1}, "sample_len is -1"),
            ({"patience": 0.0}, "patience is 0"),
            ({"length_penalty": 1.5}, r"length_penalty is 1\.5"),
            ({"max_initial_timestamp": -1.0}, "max_initial_timestamp is -1"),
            ({"max_initial_timestamp": float("nan")}, "max_initial_timestamp is nan"),
            ({"patience": float("inf")}, "patience is inf"),
            ({"temperature": (float("nan"),)}, "temperature"),
            ({"beam_size": 5, "patience": 0.1}, r"waits for none of 5 beams; give 0\.2 or more"),
            ({"logprob_threshold": float("nan")}, "logprob_threshold is no number"),
            ({"no_speech_threshold": float("nan")}, "no_speech_threshold is no number"),
            ({"channels": "both"}, "channels is 'both'; give mix, left, right, split"),
            ({"audio_track": 0}, "audio_track is '0'; give a track's number from 1"),
            ({"audio_track": "Klingon"}, "audio_track is 'Klingon'"),
            ({"language": " "}, "language is empty; give one, or auto"),
            ({"language": "Germn"}, "unknown language 'Germn'; did you mean german"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(UsageError, match=message):
            TranscribeOptions(**options)

    def test_a_recording_without_samples(self, make, words, tmp_path):
        model = make(Say(tuple(words(" One."))))
        path = tmp_path / "empty.wav"
        soundfile.write(path, np.empty(0, np.float32), SAMPLE_RATE)
        with pytest.raises(AudioError, match="no audio samples"):
            _ = model.transcribe(path, **ENGLISH).text
        assert model.backend.asked == []

    @pytest.mark.parametrize("mode", ["auto", "sequential", "batched"])
    def test_an_empty_array_has_an_empty_result(self, make, mode):
        model = make(Say((5, 6)))
        result = model.transcribe(np.zeros(0, np.float32), mode=mode).result()
        assert (result.text, result.segments, result.duration) == ("", (), 0.0)
        assert result.coverage.spans == ()
        assert result.warnings == ()
        assert model.backend.asked == []

    def test_empty_arrays_among_others(self, make, words):
        model = make(Say(tuple(words(" Yes."))))
        recordings = [sound(2), np.zeros(0, np.float32), sound(2)]
        streams = list(model.transcribe_all(recordings, **ENGLISH, without_timestamps=True))
        assert [stream.text for stream in streams] == ["Yes.", "", "Yes."]
        both = model.transcribe(np.zeros((0, 2), np.int16), channels="split", language="en")
        assert (both.text, both.segments, both.duration) == ("", (), 0.0)

    def test_a_wrong_array_fails_alone(self, make, words):
        model = make(Say(tuple(words(" Yes."))))
        recordings = [sound(2), np.zeros((2, 16_000), np.float32), sound(2)]
        one, wrong, two = model.transcribe_all(recordings, **ENGLISH, without_timestamps=True)
        assert isinstance(wrong, AudioInputError)
        assert one.text == two.text == "Yes."

    @pytest.mark.slow
    def test_after_an_error_there_is_no_half_result(self, make, words):
        model = make(Say(()))
        at = model.stamp
        model.backend.script = [Say((at(0), *words(" One."), at(29)))]
        encode, calls = model.backend.encode, []

        def fail_later(features):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("the device is gone")
            return encode(features)

        model.backend.encode = fail_later
        stream = model.transcribe(sound(65), **ENGLISH)
        with pytest.raises(RuntimeError, match="the device is gone"):
            list(stream)
        with pytest.raises(RuntimeError):
            stream.result()


class TestSources:
    def test_array_file_and_open_file_are_the_same(self, make, words, tmp_path):
        samples = sound(3.3)
        path = tmp_path / "recording.wav"
        soundfile.write(path, samples, SAMPLE_RATE, "FLOAT")
        model = make(Say(tuple(words(" Hello."))))
        options = {**ENGLISH, "without_timestamps": True}
        results = [model.transcribe(source, **options).result() for source in (samples, path)]
        results.append(model.transcribe(str(path), **options).result())
        with path.open("rb") as file:
            results.append(model.transcribe(file, **options).result())
            assert not file.closed
        assert results == [results[0]] * 4
        first, *others = model.backend.windows
        for window in others:
            np.testing.assert_array_equal(window, first)

    def test_the_encoder_hears_what_pytorch_would(self, make, words):
        from transformers import WhisperFeatureExtractor

        model = make(Say(tuple(words(" Hello."))))
        samples = sound(7.7)
        _ = model.transcribe(samples, **ENGLISH).text
        want = WhisperFeatureExtractor()(samples, sampling_rate=SAMPLE_RATE, return_tensors="np")
        np.testing.assert_allclose(
            model.backend.windows[0], want["input_features"][0], rtol=0, atol=1e-4
        )

    def test_warnings_of_the_audio_reach_the_result(self, make, words):
        samples = sound(2)
        samples[100] = np.nan
        model = make(Say(tuple(words(" Hello."))))
        (warning,) = model.transcribe(samples, **ENGLISH).result().warnings
        assert warning.startswith("1 samples are not finite")
        assert np.isfinite(model.backend.windows[0]).all()


class TestSuppressedTokens:
    @pytest.mark.parametrize(
        ("wanted", "expected"),
        [(None, (3, 7)), ((), ()), ((5,), (5,)), ((-1,), (3, 7)), ((5, -1, 7), (3, 5, 7))],
    )
    def test_minus_one_means_the_list_of_the_model(self, tmp_path, wanted, expected):
        model = fake_model(tmp_path, [Say(())], suppress_tokens=[3, 7])
        stream = model.transcribe(sound(1), suppress_tokens=wanted, **ENGLISH)
        assert stream._session._suppressed().suppress_tokens == expected

    @pytest.mark.parametrize("token", [-2, 10**8])
    def test_one_that_there_is_not(self, tmp_path, token):
        model = fake_model(tmp_path, [Say(())])
        with pytest.raises(UsageError, match=f"suppress_tokens has {token}; the model's tokens"):
            model.transcribe(sound(1), suppress_tokens=(token,), **ENGLISH)


class TestMode:
    """What `auto` makes of a recording; only a full window's worth of frames is looked for."""

    @pytest.mark.parametrize(
        ("frames", "is_exact", "changes", "expected", "pad_to_full"),
        [
            (500, False, {}, BatchedStrategy, False),
            (3000, False, {}, BatchedStrategy, False),
            (3001, False, {}, BatchedStrategy, True),
            (3000, True, {}, SequentialStrategy, None),
            (3001, True, {}, BatchedStrategy, True),
            (500, False, {"without_timestamps": True}, SequentialStrategy, None),
            (500, False, {"vad": False}, SequentialStrategy, None),
            (9000, False, {"vad": False}, SequentialStrategy, None),
            (500, False, {"mode": "sequential"}, SequentialStrategy, None),
            (500, True, {"mode": "batched"}, BatchedStrategy, True),
        ],
    )
    def test_which_way_a_recording_goes(self, frames, is_exact, changes, expected, pad_to_full):
        session = SimpleNamespace(
            options=TranscribeOptions(**changes),
            backend=SimpleNamespace(is_exact=is_exact),
            features=SimpleNamespace(available=lambda seek, n: min(n, frames - seek)),
            window_frames=3000,
            prompts=SimpleNamespace(initial=()),
            may_align=False,
        )
        strategy = choose_strategy(session)
        assert type(strategy) is expected
        assert getattr(strategy, "_pad_to_full", None) == pad_to_full
