"""Several channels to one, and samples that are not what they are taken for."""

import numpy as np
import pytest
import soundfile
import soxr
from audio_files import RATE, Track, voice, write_film

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.source import CHUNK_FRAMES
from whisper_npu.runtime.audio.stream import load_audio, open_audio, open_streams


def read(source, **options) -> tuple[np.ndarray, list[str]]:
    with open_audio(source, **options) as stream:
        return np.concatenate(list(stream)), stream.warnings


def hiss(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.003, n).astype(np.float32)


@pytest.fixture
def stereo(tmp_path):
    """A function that writes two channels and gives the path."""

    def write(left, right, name="stereo.wav"):
        path = tmp_path / name
        soundfile.write(path, np.stack([left, right], axis=1), RATE, subtype="FLOAT")
        return path

    return write


class TestCancellation:
    @pytest.mark.parametrize("gain", [1.0, 0.8, 1.25])
    @pytest.mark.parametrize("offset", [0.0, 0.2])
    def test_one_channel_upside_down(self, stereo, gain, offset):
        """The noise of each line is its own, and converters add a constant."""
        sound = voice(4.0)
        left = sound + hiss(len(sound), 1) + np.float32(offset)
        right = -np.float32(gain) * sound + hiss(len(sound), 2) + np.float32(offset)
        samples, warnings = read(stereo(left, right))
        np.testing.assert_array_equal(samples, left if gain <= 1 else right)
        assert warnings == [
            "left and right cancel each other (one is upside down) for 4.0 s, first at 0.0 s:"
            " there the louder one is transcribed alone"
        ]

    def test_from_somewhere_on(self, stereo):
        sound = voice(3 * CHUNK_FRAMES / RATE)
        right = sound.copy()
        right[CHUNK_FRAMES:] *= np.float32(-0.9)
        samples, warnings = read(stereo(sound, right))
        np.testing.assert_allclose(samples, sound, atol=1e-6)
        assert "for 8.2 s, first at 4.1 s" in warnings[0]

    def test_in_a_film_and_of_several_channels(self, tmp_path):
        sound = voice(2.0)
        film = write_film(tmp_path / "x.mkv", Track(np.stack([sound, -sound], axis=1)), seconds=2)
        np.testing.assert_allclose(read(film)[0], sound, atol=1e-4)
        wide = np.stack([0.5 * sound, sound, -sound, -0.5 * sound], axis=1)
        soundfile.write(tmp_path / "x.wav", wide, RATE, subtype="FLOAT")
        samples, warnings = read(tmp_path / "x.wav")
        np.testing.assert_array_equal(samples, sound)
        assert warnings[0].startswith("its channels cancel each other")

    @pytest.mark.parametrize(
        "right",
        [voice(2.0), 0 * voice(2.0), 0.1 * voice(2.0), hiss(2 * RATE, 3), -hiss(2 * RATE, 3)],
    )
    def test_nothing_is_lost_of_other_pairs(self, stereo, right):
        left = voice(2.0)
        samples, warnings = read(stereo(left, right.astype(np.float32)))
        np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)
        assert warnings == []

    def test_silence_and_constants_cancel_nothing(self, stereo):
        zeros = np.zeros(RATE, np.float32)
        for left, right in ((zeros, zeros), (zeros + np.float32(0.5), zeros - np.float32(0.5))):
            assert read(stereo(left, right))[1] == []


class TestChoice:
    def test_left_right_and_split(self, stereo):
        left, right = voice(2.0), hiss(2 * RATE, 4)
        path = stereo(left, right)
        np.testing.assert_array_equal(load_audio(path, channels="left"), left)
        np.testing.assert_array_equal(load_audio(path, channels="right"), right)
        streams = open_streams(path, channels="split")
        assert [stream.channel for stream in streams] == ["left", "right"]
        for stream, expected in zip(streams, (left, right), strict=True):
            np.testing.assert_array_equal(np.concatenate(list(stream)), expected)
            stream.close()

    def test_more_than_two(self, tmp_path):
        wide = np.stack([hiss(RATE, seed) for seed in range(3)], axis=1)
        soundfile.write(tmp_path / "x.wav", wide, RATE, subtype="FLOAT")
        streams = open_streams(tmp_path / "x.wav", channels="split")
        assert [stream.channel for stream in streams] == ["channel 1", "channel 2", "channel 3"]
        for stream, expected in zip(streams, wide.T, strict=True):
            np.testing.assert_array_equal(np.concatenate(list(stream)), expected)
            stream.close()
        np.testing.assert_array_equal(load_audio(tmp_path / "x.wav", channels="right"), wide[:, 1])

    def test_of_one_channel_there_is_nothing_to_split(self):
        (stream,) = open_streams(voice(1.0), channels="split")
        assert stream.channel is None
        np.testing.assert_array_equal(np.concatenate(list(stream)), voice(1.0))
        for channel in ("left", "right"):
            with pytest.raises(AudioError, match=f"array: one channel only, no {channel} one"):
                open_audio(voice(1.0), channels=channel)

    def test_channels_of_every_track(self, tmp_path):
        pair = np.stack([voice(1.0), hiss(RATE, 5)], axis=1)
        film = write_film(tmp_path / "x.mkv", Track(pair), Track(hiss(RATE, 6)), seconds=1)
        streams = open_streams(film, channels="split", audio_track="all")
        assert [stream.channel for stream in streams] == [
            "track 1 left",
            "track 1 right",
            "track 2",
        ]
        for stream in streams:
            stream.close()

    def test_no_such_choice(self):
        with pytest.raises(UsageError, match="channels is 'both'; give mix, left, right, split"):
            open_audio(voice(1.0), channels="both")


class TestScale:
    @pytest.mark.parametrize("bits", [16, 24, 32])
    def test_floats_that_were_never_divided(self, bits):
        """The first of them silent, as many recordings begin."""
        sound = np.concatenate([np.zeros(CHUNK_FRAMES, np.float32), voice(2.0)])
        scaled = np.round(sound * 2 ** (bits - 1)).astype(np.float64)
        samples, warnings = read(scaled)
        np.testing.assert_allclose(samples, sound, atol=2e-5)
        divisor = 2 ** (bits - 1)
        assert len(warnings) == 1
        assert f"divided by {divisor}; floats should be in [-1, 1]" in warnings[0]

    def test_in_a_file(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", voice(2.0) * 32768, RATE, subtype="FLOAT")
        samples, warnings = read(tmp_path / "x.wav")
        np.testing.assert_allclose(samples, voice(2.0), atol=1e-6)
        assert len(warnings) == 1

    def test_a_quiet_beginning_has_the_scale_of_the_rest(self):
        dither = np.random.default_rng(0).integers(-2, 3, CHUNK_FRAMES).astype(np.float32)
        samples, _ = read(np.concatenate([dither, voice(2.0) * 32768]))
        assert np.abs(samples[:CHUNK_FRAMES]).max() < 1e-4

    @pytest.mark.parametrize("peak", [1.0, 3.9, -3.9])
    def test_what_goes_a_little_beyond_is_left_alone(self, peak):
        samples = voice(1.0)
        samples = samples / np.abs(samples).max() * np.float32(peak)
        got, warnings = read(samples)
        np.testing.assert_array_equal(got, samples)
        assert warnings == []

    def test_some_clicks_are_no_scale(self):
        samples = voice(1.0)
        samples[100:110] = 20_000
        np.testing.assert_array_equal(read(samples)[0], samples)


class TestSampleRate:
    @pytest.mark.parametrize("rate", [44_100, 48_000])
    @pytest.mark.parametrize("dtype", [np.float32, np.int16])
    def test_a_voice_at_a_third_of_its_speed_is_told(self, rate, dtype):
        scale = 1 if dtype is np.float32 else 32767
        samples = (voice(4.0, rate) * scale).astype(dtype)
        (warning,) = read(samples)[1]
        assert warning.endswith("if they have another rate, give it as sample_rate")
        for known in (16_000, rate):  # whoever gives one knows
            assert read(samples, sample_rate=known)[1] == []

    @pytest.mark.parametrize("gain", [1.0, 0.01])
    def test_a_voice_at_its_speed_is_not(self, gain):
        time = np.arange(4 * RATE) / RATE
        hum = (0.2 * np.sin(2 * np.pi * 50 * time)).astype(np.float32)
        for samples in (voice(4.0), hum, voice(4.0) + hum, hiss(4 * RATE, 7), np.zeros(RATE)):
            assert read(np.float32(gain) * samples)[1] == []

    def test_real_speech(self, beckett):
        samples = load_audio(beckett)
        assert read(samples)[1] == []
        assert len(read(soxr.resample(samples, 16_000, 48_000))[1]) == 1

    @pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
    def test_an_array_of_another_rate_is_resampled(self, tmp_path, rate):
        soundfile.write(tmp_path / "x.wav", voice(2.0, rate), rate, subtype="FLOAT")
        samples = load_audio(voice(2.0, rate), sample_rate=rate)
        np.testing.assert_array_equal(samples, load_audio(tmp_path / "x.wav"))
        assert open_audio(voice(2.0, rate), sample_rate=rate).duration_estimate == 2.0

    @pytest.mark.parametrize("rate", [0, -1, 16, 10**9])
    def test_out_of_range(self, rate):
        with pytest.raises(UsageError, match=f"sample_rate is {rate}; give Hz"):
            open_audio(voice(1.0), sample_rate=rate)

    def test_a_file_says_its_own(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", voice(1.0), RATE)
        with pytest.raises(UsageError, match="sample_rate is for arrays"):
            open_audio(tmp_path / "x.wav", sample_rate=44_100)
