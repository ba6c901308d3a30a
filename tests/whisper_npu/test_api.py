"""The public names, and what `load_model` accepts and refuses."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from decoding_checks import KINDS, PLAIN, loaded

import whisper_npu
from whisper_npu import Segment, TranscribeOptions, Transcription, load_model, model_languages
from whisper_npu.errors import AudioError, DeviceError, ModelError, UsageError
from whisper_npu.runtime.audio.stream import load_audio


def test_public_names():
    assert sorted(whisper_npu.__all__) == sorted(set(whisper_npu.__all__))
    for name in whisper_npu.__all__:
        assert getattr(whisper_npu, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        _ = whisper_npu.load_modle
    assert set(whisper_npu.__all__) <= set(dir(whisper_npu))


def test_every_error_and_result_is_public():
    from whisper_npu import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert {each.__name__ for each in classes} <= set(whisper_npu.__all__)
    for name in ("Coverage", "Span", "Retry", "Word", "Partial", "Committed", "Tentative"):
        assert getattr(whisper_npu, name).__name__ == name


def test_errors_form_one_tree():
    from whisper_npu import errors

    for name in ("UsageError", "AudioError", "ModelError", "DeviceError", "ParityError"):
        assert issubclass(getattr(errors, name), whisper_npu.WhisperNpuError)
    codes = {
        name: getattr(errors, name).exit_code
        for name in ("UsageError", "AudioError", "ModelError", "DeviceError", "AssetError")
    }
    assert codes == {
        "UsageError": 2,
        "AudioError": 1,
        "ModelError": 3,
        "DeviceError": 3,
        "AssetError": 3,
    }


class TestLoadModel:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kv_cache": "fast"}, "kv_cache is 'fast'"),
            ({"precision": "int4"}, "precision is 'int4'"),
            ({"threads": -1}, "threads is -1"),
        ],
    )
    def test_refuses_what_it_does_not_know(self, tiny_folder, arguments, message):
        with pytest.raises(UsageError, match=message):
            load_model(tiny_folder, **arguments)

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(ModelError, match="does not exist"):
            load_model(tmp_path / "none")

    def test_a_device_that_is_not_here(self, tiny_folder):
        with pytest.raises(DeviceError, match="GPU"):
            load_model(tiny_folder, device="GPU.7")

    def test_a_device_in_small_letters(self, tiny_folder):
        with load_model(tiny_folder, device="cpu", kv_cache="concat") as model:
            assert model.backend.device == "CPU"

    def test_a_precision_in_the_spelling_of_files(self, tiny_folder):
        with load_model(tiny_folder, precision="fp32", kv_cache="concat") as model:
            assert model.backend.precision == "f32"

    def test_a_mistyped_device(self, tiny_folder):
        with pytest.raises(UsageError, match=r"no device CPUU; did you mean CPU\?"):
            load_model(tiny_folder, device="cpuu")

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_results_name_the_cache_and_the_precision(self, tiny_folder, tiny_audio, kind):
        result = loaded(tiny_folder, kind).transcribe(tiny_audio[0], **PLAIN).result()
        assert (result.kv_cache, result.precision, result.device) == (kind, "f32", "CPU")

    def test_auto_takes_the_stateful_cache(self, tiny_folder):
        assert load_model(tiny_folder).backend.kv_cache == "stateful"

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["concat", "static", "off"])
    def test_caches_for_comparison_are_exact(self, tiny_folder, kind):
        assert load_model(tiny_folder, kv_cache=kind).backend.precision == "f32"

    def test_a_relative_path(self, tiny_folder, monkeypatch):
        monkeypatch.chdir(tiny_folder.parent)
        assert load_model(tiny_folder.name, kv_cache="concat").folder.path == tiny_folder.resolve()


class TestTranscribe:
    def test_result(self, tiny_folder, tiny_audio):
        model = loaded(tiny_folder)
        stream = model.transcribe(tiny_audio[1], **PLAIN)
        streamed = list(stream)
        result = stream.result()
        assert isinstance(result, Transcription)
        assert all(isinstance(segment, Segment) for segment in streamed)
        assert tuple(streamed) == result.segments == stream.segments
        assert stream.text == result.text == "".join(s.text for s in streamed).strip() != ""
        assert stream.duration == result.duration == 11.0
        assert stream.language == result.language == "en"
        assert result.model == "tiny"
        for segment in streamed:
            assert segment.tokens
            assert 0 <= segment.start < segment.end <= 11.0
            assert segment.avg_logprob < 0
            assert 0 <= segment.no_speech_prob <= 1
            assert segment.compression_ratio > 0
            assert segment.temperature == 0.0

    def test_results_cannot_be_changed(self, tiny_folder, tiny_audio):
        result = loaded(tiny_folder).transcribe(tiny_audio[0], **PLAIN).result()
        for value, name in ((result, "text"), (result.segments[0], "start")):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, name, "other")

    def test_options_as_an_object_or_by_name(self, tiny_folder, tiny_audio):
        model = loaded(tiny_folder)
        options = TranscribeOptions(**PLAIN, sample_len=7)
        by_object = model.transcribe(tiny_audio[1], options).result()
        by_name = model.transcribe(tiny_audio[1], **PLAIN, sample_len=7).result()
        changed = model.transcribe(tiny_audio[1], options, sample_len=3).result()
        assert by_object == by_name
        assert len(changed.segments[0].tokens) == 3

    def test_an_array_is_left_alone(self, tiny_folder):
        samples = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
        before = samples.copy()
        _ = loaded(tiny_folder).transcribe(samples, **PLAIN, sample_len=3).text
        np.testing.assert_array_equal(samples, before)

    @pytest.mark.slow
    def test_two_transcriptions_interleaved(self, tiny_folder, tiny_audio):
        """Segments taken in turns from two streams of one model are those of each alone."""
        model = loaded(tiny_folder, "stateful")
        one, two, three = (load_audio(path) for path in tiny_audio)
        recordings = [np.concatenate((three, one, two)), np.concatenate((three[::-1], two, one))]
        options = {**PLAIN, "sample_len": 12}
        alone = [list(model.transcribe(samples, **options)) for samples in recordings]
        assert len(alone[0]) == len(alone[1]) == 2
        assert alone[0] != alone[1]
        streams = [iter(model.transcribe(samples, **options)) for samples in recordings]
        turns = [[next(stream) for stream in streams] for _ in range(2)]
        assert [list(segments) for segments in zip(*turns, strict=True)] == alone


@pytest.mark.parametrize("path", [None, 5, b"tiny.en", ""])
def test_what_is_no_name_of_a_model(path):
    for call in (load_model, model_languages):
        with pytest.raises(UsageError, match=r"^the model is .*; give a name such as tiny\.en"):
            call(path)


@pytest.mark.parametrize("threads", ["two", 1.5, -1])
def test_threads_are_a_whole_number(tiny_folder, threads):
    with pytest.raises(UsageError, match=r"^threads is .*; give 0 for one per core, or more$"):
        load_model(tiny_folder, threads=threads)


@pytest.mark.parametrize("recordings", ["a.mp3", Path("a.mp3"), b"RIFF", None])
def test_one_recording_is_no_list(tiny_folder, recordings):
    with (
        load_model(tiny_folder) as model,
        pytest.raises(UsageError, match=r"^recordings is .*; give a list of recordings$"),
    ):
        model.transcribe_all(recordings)


def test_a_recording_without_a_name(tiny_folder):
    with (
        load_model(tiny_folder) as model,
        pytest.raises(AudioError, match=r"^the name of the recording is empty$"),
    ):
        model.transcribe("").result()
