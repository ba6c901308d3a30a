"""Models, transcriptions and live sessions end where a `with` block or `close` says so."""

import gc
import weakref

import numpy as np
import pytest
import soundfile
from fake_backend import ENGLISH, Say, sound

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.transcription.live import LiveTranscriber

CLOSED = "this model is closed; load it again"
NO_END = "this transcription was closed before its end; begin it anew"


@pytest.fixture
def model(make, words):
    model = make(Say(()))
    at = model.stamp
    model.backend.script = [
        Say((at(0), *words(" One."), at(29))),
        Say((at(0), *words(" Two."), at(4))),
    ]
    return model


class TestStreams:
    @pytest.mark.slow
    def test_a_block_closes_a_stream_and_its_file(self, model, tmp_path):
        path = tmp_path / "x.wav"
        soundfile.write(path, sound(36), SAMPLE_RATE)
        with model.transcribe(path, **ENGLISH) as stream:
            segments = iter(stream)
            assert next(segments).text == " One."
        with pytest.raises(UsageError, match=NO_END):
            next(segments)
        with pytest.raises(UsageError, match=NO_END):
            _ = stream.text
        assert stream.partial_result().text == "One."
        path.unlink()  # Windows lets nobody delete a file that is open

    @pytest.mark.slow
    def test_what_is_complete_stays(self, model):
        with model.transcribe(sound(36), **ENGLISH) as stream:
            text = stream.text
        stream.close()
        assert stream.text == text == "One. Two."
        assert [segment.text for segment in stream] == [" One.", " Two."]

    def test_an_error_in_the_block_comes_out(self, model):
        with pytest.raises(ZeroDivisionError), model.transcribe(sound(36), **ENGLISH):
            _ = 1 / 0

    @pytest.mark.slow
    def test_channels_close_together(self, model):
        both = np.stack((sound(36), sound(36, seed=1)), axis=1)
        with model.transcribe(both, **ENGLISH, channels="split") as stream:
            next(iter(stream))
        with pytest.raises(UsageError, match=NO_END):
            _ = stream.text


class TestModels:
    def test_nothing_begins_after_its_end(self, model):
        with model:
            pass
        with pytest.raises(UsageError, match=CLOSED):
            model.transcribe(sound(1))
        with pytest.raises(UsageError, match=CLOSED):
            model.transcribe_all([sound(1)])
        with pytest.raises(UsageError, match=CLOSED):
            LiveTranscriber(model)
        with pytest.raises(UsageError, match=CLOSED):
            _ = model.backend
        model.close()

    @pytest.mark.slow
    def test_results_stay(self, model):
        with model:
            stream = model.transcribe(sound(36), **ENGLISH)
            text = stream.text
        assert stream.text == text == "One. Two."
        assert stream.result().device == "FAKE"

    @pytest.mark.slow
    def test_what_is_under_way_is_told_so(self, model):
        stream = model.transcribe(sound(36), **ENGLISH)
        segments = iter(stream)
        next(segments)
        model.close()
        with pytest.raises(UsageError, match=CLOSED):
            next(segments)
        with pytest.raises(UsageError, match=CLOSED):
            _ = stream.text
        assert stream.partial_result().text == "One."

    @pytest.mark.slow
    def test_recordings_not_yet_opened_are_not(self, model):
        streams = model.transcribe_all([sound(36)] * 40, **ENGLISH, batch_size=1)
        first = next(streams)
        model.close()
        with pytest.raises(UsageError, match=CLOSED):
            _ = first.text
        with pytest.raises(UsageError, match=CLOSED):
            _ = [each.text for each in streams]

    @pytest.mark.slow
    def test_the_engine_is_let_go_of(self, model):
        with model:
            _ = model.transcribe(sound(36), **ENGLISH).text
            engine = weakref.ref(model.backend)
        gc.collect()
        assert engine() is None

    @pytest.mark.slow
    def test_within_a_callback(self, model):
        seen = []

        def close(partial):
            seen.append(partial)
            model.close()

        with pytest.raises(UsageError, match=CLOSED):
            _ = model.transcribe(sound(36), **ENGLISH, on_partial=close).text
        assert seen


class TestLiveSessions:
    def test_a_block_ends_the_session(self, model):
        with LiveTranscriber(model, language="en", vad=False) as live:
            live.feed(sound(1))
        with pytest.raises(UsageError, match="this live session is finished"):
            live.feed(sound(1))
        assert live.finish() == []

    def test_it_ends_with_its_model(self, model):
        live = LiveTranscriber(model, language="en", vad=False)
        model.close()
        with pytest.raises(UsageError, match=CLOSED):
            live.feed(sound(1))
        with pytest.raises(UsageError, match=CLOSED):
            live.finish()


class TestTheHabitOfTwoNames:
    def test_unpacking_says_what_to_write(self, model):
        with pytest.raises(UsageError, match=r"write stream = model\.transcribe\(\.\.\.\)"):
            _segments, _info = model.transcribe(sound(36), **ENGLISH)
        assert model.backend.windows == []

    def test_also_of_channels(self, model):
        both = np.stack((sound(2), sound(2, seed=1)), axis=1)
        with pytest.raises(UsageError, match=r"not \(segments, info\)"):
            _segments, _ = model.transcribe(both, **ENGLISH, channels="split")

    def test_a_stream_is_no_dict_and_no_list(self, model):
        stream = model.transcribe(sound(36), **ENGLISH)
        for key in ("text", 0):
            with pytest.raises(UsageError, match=r"write stream\.text, stream\.segments"):
                stream[key]
        assert model.backend.windows == []

    @pytest.mark.slow
    def test_everything_else_iterates(self, model):
        stream = model.transcribe(sound(36), **ENGLISH)
        texts = [segment.text for segment in stream]
        assert texts == [" One.", " Two."]
        first, *rest = stream
        assert [first, *rest] == list(stream)
        one, two = list(stream)
        also_one, also_two = stream.segments
        assert (one, two) == (also_one, also_two) == tuple(stream)
        assert max(stream, key=lambda each: each.start) is two
        assert list(zip(*[stream] * 2, strict=True)) == [(one, one), (two, two)]
