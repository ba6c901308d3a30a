"""Channels and tracks transcribed each on its own, as one transcription: on real graphs."""

import io
import json

import numpy as np
import pytest
import soundfile
import tiny_whisper
from audio_files import Track, write_film
from pauses import PausesEverySoOften

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.output.formats import format_transcript
from whisper_npu.runtime.transcription import scheduler as scheduler_module
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.runtime.transcription.partial import Partial

OPTIONS = {
    "language": "en",
    "temperature": (0.0,),
    "sample_len": 12,
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
}
SPLIT = {**OPTIONS, "channels": "split"}


@pytest.fixture(scope="module")
def model(tiny_folder):
    from whisper_npu import load_model

    loaded = load_model(tiny_folder, precision="f32")
    return WhisperModel(loaded.folder, loaded.backend, loaded.tokenizer, PausesEverySoOften())


@pytest.fixture(scope="module")
def sides():
    """What is said on the left and right, 70 s each."""
    return [tiny_whisper.synthetic_speech(seed, 70) for seed in (0, 1)]


@pytest.fixture(scope="module")
def call(tmp_path_factory, sides):
    """Both in one file."""
    path = tmp_path_factory.mktemp("split") / "call.wav"
    soundfile.write(path, np.stack(sides, axis=1), SAMPLE_RATE, "FLOAT")
    return path


def said(segments):
    """What tells a segment from another, but for its number and place."""
    return [(each.start, each.end, each.text, each.tokens) for each in segments]


class TestTwoSpeakers:
    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["sequential", "batched"])
    def test_each_says_what_it_says_alone(self, model, sides, call, mode):
        left, right = (model.transcribe(side, **OPTIONS, mode=mode).result() for side in sides)
        result = model.transcribe(call, **SPLIT, mode=mode).result()
        for channel, alone in (("left", left), ("right", right)):
            of_channel = [each for each in result.segments if each.channel == channel]
            assert said(of_channel) == said(alone.segments)
            assert result.coverage.seconds(channel) == alone.coverage.seconds()
        assert len(left.segments) > 1
        assert len(right.segments) > 1
        starts = [segment.start for segment in result.segments]
        assert starts == sorted(starts)
        assert [segment.id for segment in result.segments] == [*range(len(starts))]
        assert result.text == "".join(segment.text for segment in result.segments).strip()
        assert (result.duration, result.coverage.channels) == (70.0, ("left", "right"))

    def test_their_windows_are_decoded_together(self, model, call, monkeypatch):
        batches = []
        decode_requests = scheduler_module.decode_requests

        def spy(requests, *rest):
            batches.append([id(request.caller) for request in requests])
            return decode_requests(requests, *rest)

        monkeypatch.setattr(scheduler_module, "decode_requests", spy)
        stream = model.transcribe(call, **SPLIT, mode="batched", batch_size=2)
        next(iter(stream))
        first = len(batches)
        assert len(set(batches[0])) == 2
        stream.result()
        assert len(batches) > first  # the first text was there long before the end

    @pytest.mark.slow
    def test_among_other_recordings(self, model, sides, call):
        alone = [model.transcribe(each, **SPLIT).result() for each in (sides[0], call, sides[1])]
        streams = model.transcribe_all([sides[0], call, sides[1]], **SPLIT)
        together = [stream.result() for stream in streams]
        assert [said(result.segments) for result in together] == [
            said(result.segments) for result in alone
        ]
        assert [bool(result.coverage.channels) for result in together] == [False, True, False]

    def test_one_that_is_silent(self, model, sides, tmp_path):
        path = tmp_path / "x.wav"
        silent = np.zeros_like(sides[0])
        soundfile.write(path, np.stack([silent, sides[1]], axis=1), SAMPLE_RATE, "FLOAT")
        real = WhisperModel(model.folder, model.backend, model.tokenizer)
        result = real.transcribe(path, **SPLIT).result()
        assert result.coverage.seconds("left")["silent"] == 70.0
        assert {segment.channel for segment in result.segments} <= {"right"}

    def test_partial_texts_name_their_channel(self, model, call):
        reported = []
        stream = model.transcribe(call, **SPLIT, on_partial=reported.append)
        updates = list(stream.updates())
        partials = [each for each in updates if isinstance(each, Partial)]
        segments = [each for each in updates if not isinstance(each, Partial)]
        assert {partial.channel for partial in partials} == {"left", "right"}
        assert sorted(map(repr, partials)) == sorted(map(repr, reported))
        assert tuple(segments) == stream.segments

    def test_left_early(self, model, call):
        stream = model.transcribe(call, **SPLIT)
        updates = stream.updates()
        next(updates)
        updates.close()
        with pytest.raises(UsageError, match="closed before its end"):
            stream.result()

    def test_a_disk_that_fails(self, model, call):
        class FailingDisk(io.BytesIO):
            name = "call.wav"

            def read(self, size=-1):
                if self.tell() > 5_000_000:
                    raise OSError(5, "Input/output error")
                return super().read(size)

        for options in (SPLIT, {**SPLIT, "mode": "sequential"}):
            stream = model.transcribe(FailingDisk(call.read_bytes()), **options)
            with pytest.raises(AudioError, match=r"call\.wav: cannot be read to its end"):
                stream.result()
            assert stream.has_ended

    def test_one_channel_alone(self, model, sides, call):
        result = model.transcribe(call, **OPTIONS, channels="right").result()
        assert said(result.segments) == said(model.transcribe(sides[1], **OPTIONS).segments)
        assert result.coverage.channels == ()
        assert {segment.channel for segment in result.segments} == {None}


class TestTracks:
    def test_all_of_a_film(self, model, sides, tmp_path):
        film = write_film(tmp_path / "x.mkv", *map(Track, sides), seconds=2)
        result = model.transcribe(film, **OPTIONS, audio_track="all").result()
        assert result.coverage.channels == ("track 1", "track 2")
        assert {segment.channel for segment in result.segments} == {"track 1", "track 2"}
        assert result.warnings == ()
        (warning,) = model.transcribe(film, **OPTIONS).result().warnings
        assert warning.startswith("of 2 audio tracks only 1 is transcribed, not 2")

    def test_warnings_name_the_track_they_are_of(self, model, sides, tmp_path):
        tracks = [Track(side[: 3 * SAMPLE_RATE]) for side in sides]
        upside_down = Track(np.stack([tracks[0].samples, -tracks[0].samples], axis=1))
        film = write_film(tmp_path / "x.mkv", upside_down, tracks[1], seconds=3)
        (warning,) = model.transcribe(film, **OPTIONS, audio_track="all").result().warnings
        assert warning.startswith("track 1: left and right cancel each other")


class TestRates:
    def test_an_array_of_another_rate(self, model, sides):
        twice = np.repeat(sides[0], 2)
        result = model.transcribe(twice, **OPTIONS, sample_rate=32_000).result()
        assert result.duration == 70.0
        (result,) = model.transcribe_all([twice], **OPTIONS, sample_rate=32_000)
        assert result.duration == 70.0


def test_output_files_name_the_channel(model, call):
    result = model.transcribe(call, **SPLIT).result()
    one = result.segments[0]
    assert one.channel is not None
    text = f"[{one.channel}] {one.text.strip()}"
    assert format_transcript(result, "txt").startswith(text)
    assert format_transcript(result, "tsv").split("\n", 1)[1].split("\t", 2)[2].startswith(text)
    written = json.loads(format_transcript(result, "json"))
    assert [each["channel"] for each in written["segments"]] == [s.channel for s in result.segments]
    assert set(written["coverage"]["channels"]) == {"left", "right"}
    assert all("channel" in span for span in written["coverage"]["spans"])


def test_stopped_on_the_way(model, call):
    """What was done of each channel is kept, and the rest is accounted for."""
    stream = model.transcribe(call, **SPLIT)
    stream.stop()
    result = stream.result()
    assert stream.is_partial
    assert all(result.coverage.seconds(channel)["dropped"] > 0 for channel in ("left", "right"))
    given_up = model.transcribe(call, **SPLIT, mode="batched", batch_size=2)
    first = next(iter(given_up))
    assert given_up.partial_result().segments[0] == first
    assert 0 < given_up.seconds_done <= given_up.seconds_read
