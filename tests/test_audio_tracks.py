"""Films: sound that begins late, and several audio tracks."""

import numpy as np
import pytest
from audio_files import RATE, Track, voice, write_film

from whisper_npu.runtime import ffmpeg_decoder
from whisper_npu.runtime.audio import SAMPLE_RATE, open_audio

# Video and audio codecs that a container takes, and the rate of its sound.
CONTAINERS = [
    ("mp4", "mpeg4", "aac", 44_100),
    ("mov", "mpeg4", "aac", 48_000),
    ("mkv", "mpeg4", "pcm_s16le", 16_000),
    ("mkv", "mpeg4", "aac", 44_100),
    ("webm", "libvpx", "libopus", 48_000),
    ("flv", "flv", "aac", 44_100),
    ("ts", "mpeg2video", "aac", 48_000),
    ("mpg", "mpeg2video", "mp2", 48_000),
]
_ENCODERS_DELAY = 0.03  # seconds; some containers do not tell it


def sound_begins(samples: np.ndarray) -> float:
    """Seconds at which `voice(2.0)` is."""
    return float(np.argmax(np.correlate(samples, voice(2.0), "valid")) / SAMPLE_RATE)


class TestSoundThatBeginsLate:
    @pytest.mark.parametrize("late", [0.0, 1.7])
    @pytest.mark.parametrize("clock", [0.0, 5.0])
    @pytest.mark.parametrize(("suffix", "video", "codec", "rate"), CONTAINERS)
    def test_times_are_the_files_clock(self, tmp_path, suffix, video, codec, rate, clock, late):
        """Whatever that starts with: a broadcast has been going on for hours."""
        track = Track(voice(2.0, rate), codec, rate, begins=late)
        path = write_film(tmp_path / f"x.{suffix}", track, seconds=4, codec=video, begins=clock)
        with open_audio(path) as stream:
            samples = np.concatenate(list(stream))
        assert stream.warnings == []
        assert sound_begins(samples) == pytest.approx(late, abs=_ENCODERS_DELAY)
        assert not samples[: round((late - 0.1) * SAMPLE_RATE)].any() or late == 0
        # What is announced counts it, too; containers that give no track's length give the video's.
        assert stream.duration_estimate >= late + 1.9

    def test_a_start_beyond_reason_is_told_and_not_filled(self, tmp_path, monkeypatch):
        monkeypatch.setattr(ffmpeg_decoder, "_LATEST_START", 1.0)
        path = write_film(tmp_path / "x.mkv", Track(voice(2.0), begins=1.7), seconds=4)
        with open_audio(path) as stream:
            samples = np.concatenate(list(stream))
        assert len(samples) == 2 * RATE
        assert stream.warnings == [
            "its sound begins 2 s after the file does: times are counted from there"
        ]
