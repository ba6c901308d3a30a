"""Several recordings at once, on real graphs: each says what it says alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile
import tiny_whisper
from pauses import PausesEverySoOften

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.transcription.model import WhisperModel

OPTIONS = {
    "language": "en",
    "temperature": (0.0,),
    "sample_len": 12,
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
}


@pytest.fixture(scope="module")
def model(tiny_folder):
    from whisper_npu import load_model

    loaded = load_model(tiny_folder, precision="f32")
    return WhisperModel(loaded.folder, loaded.backend, loaded.tokenizer, PausesEverySoOften())


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds")
    paths = []
    for seed, seconds in enumerate((70, 5, 95, 31)):
        paths.append(folder / f"{seed}.wav")
        samples = tiny_whisper.synthetic_speech(seed, seconds)
        soundfile.write(paths[-1], samples, 16000, "FLOAT")
    return paths


class TestRealGraphs:
    """The tiny random model, in f32: what it says is no text, but the same every time."""

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["sequential", "batched"])
    def test_together_they_say_what_each_says_alone(self, model, recordings, mode):
        options = {**OPTIONS, "mode": mode}
        alone = [model.transcribe(path, **options).result() for path in recordings]
        together = [stream.result() for stream in model.transcribe_all(recordings, **options)]
        assert [result.segments for result in together] == [result.segments for result in alone]
        assert [result.coverage.spans for result in together] == [
            result.coverage.spans for result in alone
        ]
        assert any(result.segments for result in alone)

    @pytest.mark.parametrize(
        ("number", "options", "expected"),
        [(1, {}, 1), (2, {}, 3), (2, {"mode": "sequential"}, 1), (2, {"vad": False}, 1)],
    )
    def test_the_length_says_how_many_windows_there_will_be(
        self, model, recordings, number, options, expected
    ):
        """Of five and of 95 seconds. Sequential decoding has one at a time."""
        stream = model.transcribe(recordings[number], **options)
        assert stream.n_expected == expected
        stream.close()

    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [1, 16])
    def test_a_prefix_belongs_to_the_first_window_alone(self, model, recordings, batch_size):
        """Whatever shares its batch: what follows is what is said without a prefix."""
        options = {**OPTIONS, "mode": "batched", "batch_size": batch_size}
        options["condition_on_previous_text"] = False
        plain = model.transcribe(recordings[2], **options).result().segments
        prefixed = model.transcribe(recordings[2], **options, prefix="And then").result().segments
        first = plain[0].seek
        assert [s.tokens for s in prefixed if s.seek == first] != [
            s.tokens for s in plain if s.seek == first
        ]
        later = [s for s in plain if s.seek > first]
        assert later
        assert [s.tokens for s in prefixed if s.seek > first] == [s.tokens for s in later]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"sample_len": 40, "without_timestamps": True, "logprob_threshold": None},  # context
            {"compression_ratio_threshold": 0.01},  # every window is a loop, and divided
        ],
    )
    def test_what_was_heard_before_a_recording_broke_is_there(
        self, model, recordings, monkeypatch, options
    ):
        """Windows that wait for others, or are heard in parts, included: as if it ended there."""
        options = {**OPTIONS, "mode": "batched", **options}
        whole = model.transcribe(recordings[2], **options).result().segments
        stream = model.transcribe(recordings[2], **options)
        blocks = stream._audio._blocks

        def breaking():
            while stream._audio.samples_read < 65 * SAMPLE_RATE:
                yield next(blocks)
            blocks.close()
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(stream._audio, "_blocks", breaking())
        segments = []
        with pytest.raises(AudioError, match="Input/output error"):
            segments.extend(stream)
        seconds = stream._audio.samples_read / SAMPLE_RATE
        assert seconds < 95
        assert segments[-1].end == pytest.approx(seconds, abs=5)
        complete = [segment for segment in segments if segment.end < seconds - 30]
        assert complete
        assert complete == list(whole[: len(complete)])

    @pytest.mark.slow
    def test_streams_change_nothing(self, model, recordings):
        options = {**OPTIONS, "mode": "batched"}
        one = [model.transcribe(path, **options, batch_size=1).result() for path in recordings]
        many = [s.result() for s in model.transcribe_all(recordings, **options, batch_size=16)]
        assert [result.segments for result in many] == [result.segments for result in one]

    @pytest.mark.slow
    def test_nor_do_they_where_windows_have_the_text_before_them(self, model, recordings):
        """Texts are long enough to be context, and windows with and without share rounds."""
        endless = range(model.tokenizer.special.eot, model.backend.n_vocab)
        options = {**OPTIONS, "mode": "batched", "sample_len": 40, "without_timestamps": True}
        options |= {"suppress_tokens": tuple(endless), "logprob_threshold": None}
        options |= {"unheard_speech_threshold": None}  # random text has nothing to do with speech
        one = [model.transcribe(path, **options, batch_size=1).result() for path in recordings]
        for batch_size in (2, 16):
            streams = model.transcribe_all(recordings, **options, batch_size=batch_size)
            many = [stream.result() for stream in streams]
            assert [result.segments for result in many] == [result.segments for result in one]
        without = model.transcribe(recordings[2], **options, condition_on_previous_text=False)
        assert without.result().segments != one[2].segments

    def test_a_bad_recording_costs_nothing_but_itself(self, model, recordings, tmp_path):
        damaged = tmp_path / "damaged.wav"
        damaged.write_bytes(b"no audio at all")
        missing = tmp_path / "missing.wav"
        files = [recordings[1], missing, damaged, recordings[0]]
        found = list(model.transcribe_all(files, **OPTIONS))
        assert len(found) == 4
        assert isinstance(found[1], AudioError)
        assert found[0].result().duration == pytest.approx(5)
        assert found[3].result().duration == pytest.approx(70)
        assert isinstance(found[2], AudioError)

    def test_what_nobody_asked_for_is_closed(self, model, recordings):
        streams = model.transcribe_all(recordings, **OPTIONS)
        first = next(streams)
        streams.close()
        assert first.result().duration == pytest.approx(70)
        first.close()
        assert first.result().duration == pytest.approx(70)

    def test_a_stream_that_is_closed_has_no_result(self, model, recordings):
        stream = model.transcribe(recordings[0], **OPTIONS)
        stream.close()
        with pytest.raises(UsageError, match="closed before its end"):
            stream.result()

    def test_an_option_that_is_wrong_is_told_at_once(self, model, recordings):
        with pytest.raises(UsageError, match="nonsense"):
            model.transcribe_all(recordings, nonsense=1)

    @pytest.mark.slow
    def test_company_changes_no_word(self, model, recordings):
        """Of a short recording, encoded short: alone in a job, beside others, or beside a call.

        A list of one recording is no job of many, and is encoded as by itself.
        """
        options = {**OPTIONS, "elastic": True}
        (alone,) = model.transcribe_all(iter(recordings[1:2]), **options)
        among = list(model.transcribe_all(recordings, **options))[1]
        assert among.result().segments == alone.result().segments
        by_itself = model.transcribe(recordings[1], **options).result()
        (listed,) = model.transcribe_all(recordings[1:2], **options)
        assert listed.result().segments == by_itself.segments
        with ThreadPoolExecutor(3) as callers:
            every = [callers.submit(self.text_of, model, recordings[1], options) for _ in range(3)]
            assert [each.result() for each in every] == [by_itself.segments] * 3

    @staticmethod
    def text_of(model, recording, options):
        return model.transcribe(recording, **options).segments

    @pytest.mark.slow
    def test_silent_fill_does_not_depend_on_the_batch(self, model, recordings):
        """Windows of several lengths, encoded short, alone and together."""
        options = {**OPTIONS, "mode": "batched", "elastic": True}
        one = [model.transcribe(path, **options, batch_size=1).result() for path in recordings]
        many = [s.result() for s in model.transcribe_all(recordings, **options, batch_size=3)]
        assert [result.segments for result in many] == [result.segments for result in one]


@pytest.mark.parametrize("in_a_list", [True, False])
def test_one_recording_in_a_list_is_encoded_as_by_itself(tiny_folder, monkeypatch, in_a_list):
    """Not filled up for company that it has not: a start took a sixth longer."""
    from whisper_npu import load_model

    model = load_model(tiny_folder)
    silent = []
    encode = model.backend.encode

    def watched(features):
        silent.append(bool((features == features.flat[0]).all()))
        return encode(features)

    sound = tiny_whisper.synthetic_speech(0, 5)
    options = {**OPTIONS, "vad": False}
    monkeypatch.setattr(model.backend, "encode", watched)
    if in_a_list:
        (stream,) = model.transcribe_all([sound], **options)
        stream.result()
    else:
        model.transcribe(sound, **options).result()
    assert silent
    assert not any(silent)
