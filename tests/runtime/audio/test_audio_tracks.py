"""Films: sound that begins late, and several audio tracks."""

import io

import numpy as np
import pytest
import soundfile
from audio_files import RATE, Track, voice, write_film
from av.stream import Disposition

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, load_audio, open_audio, open_streams
from whisper_npu.runtime.audio.tracks import AudioTrack, choose_track
from whisper_npu.runtime.audio_choices import parse_track

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
    @pytest.mark.slow
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

    def test_a_start_beyond_reason_is_told_and_not_filled(self, tmp_path):
        path = write_film(tmp_path / "x.mkv", Track(voice(2.0), begins=3700), seconds=4)
        with open_audio(path) as stream:
            samples = np.concatenate(list(stream))
        assert len(samples) == 2 * RATE
        assert stream.warnings == [
            "its sound begins 3700 s after the file does: times are counted from there"
        ]


def tone(hertz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE)).astype(np.float32)


def pitch(samples: np.ndarray) -> int:
    """The loudest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples[:RATE]))
    return int(np.argmax(spectrum))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Four tracks, of 200, 300, 400 and 500 Hz; the third is marked as default."""
    return write_film(
        tmp_path_factory.mktemp("films") / "film.mkv",
        Track(np.zeros(2 * RATE, np.float32), language="eng", title="Microphone"),
        Track(tone(300), language="ger"),
        Track(tone(400), language="fre", disposition=Disposition.default),
        Track(tone(500), language="ger", title="Commentary", disposition=Disposition.comment),
        seconds=2,
    )


class TestSeveralTracks:
    def test_the_default_one_is_taken_and_the_others_are_told(self, film):
        with open_audio(film) as stream:
            assert pitch(np.concatenate(list(stream))) == 400
        assert stream.channel is None
        assert stream.warnings == [
            'of 4 audio tracks only 3 (French) is transcribed, not 1 (English, "Microphone"),'
            ' 2 (German), 4 (German, "Commentary"): choose by --audio-track (a number, a language'
            " or all)"
        ]

    @pytest.mark.parametrize(
        ("wanted", "hertz", "warnings"),
        [
            (2, 300, []),
            ("fr", 400, []),
            (
                "German",
                300,
                [
                    "of 4 audio tracks only 2 (German) is transcribed, not 4 (German,"
                    ' "Commentary"): choose by --audio-track (a number, a language or all)'
                ],
            ),
        ],
    )
    def test_one_by_number_or_language(self, film, wanted, hertz, warnings):
        with open_audio(film, audio_track=wanted) as stream:
            assert pitch(np.concatenate(list(stream))) == hertz
        assert stream.warnings == warnings

    @pytest.mark.parametrize("opened", [str, lambda path: io.BytesIO(path.read_bytes())])
    def test_all_of_them_side_by_side(self, film, opened):
        """Each reads from a position of its own, in a file that was opened once, too."""
        streams = open_streams(opened(film), audio_track="all", block_samples=4000)
        assert [stream.channel for stream in streams] == [
            "track 1",
            "track 2",
            "track 3",
            "track 4",
        ]
        turns = list(zip(*streams, strict=True))
        assert len(turns) == 8
        heard = [pitch(np.concatenate(blocks)) for blocks in zip(*turns, strict=True)]
        assert heard == [0, 300, 400, 500]
        assert [stream.warnings for stream in streams] == [[], [], [], []]
        for stream in streams:
            stream.close()

    @pytest.mark.parametrize(
        ("wanted", "told"),
        [
            (5, 'no audio track 5; it has 1 (English, "Microphone"), 2 (German), 3 (French)'),
            ("es", "no audio track is marked as Spanish; it has 1 (English"),
        ],
    )
    def test_none_of_that_kind(self, film, wanted, told):
        with pytest.raises(AudioError) as caught:
            open_audio(film, audio_track=wanted)
        assert str(caught.value).startswith(f"{film}: {told}")

    def test_a_silent_one_is_told(self, tmp_path):
        """Nothing marks the second: only silence tells that the first was the wrong one."""
        tracks = Track(np.zeros(2 * RATE, np.float32)), Track(tone(300))
        film = write_film(tmp_path / "x.mkv", *tracks, seconds=2)
        silent = "audio track 1 is silent from beginning to end"
        with open_audio(film) as stream:
            assert not np.concatenate(list(stream)).any()
        assert stream.warnings[1:] == [silent]
        for choice in (1, 2):  # whoever chose it knows
            with open_audio(film, audio_track=choice) as stream:
                assert sum(map(len, stream)) == 2 * RATE
            assert stream.warnings == []

    def test_a_file_without_tracks_has_one(self, tmp_path):
        path = tmp_path / "x.wav"
        soundfile.write(path, tone(300), RATE)
        for source in (path, tone(300)):
            assert pitch(load_audio(source, audio_track=1)) == 300
            (stream,) = open_streams(source, audio_track="all")
            assert stream.channel is None
            stream.close()
            with pytest.raises(AudioError, match="no audio track 2; it has 1"):
                load_audio(source, audio_track=2)

    def test_the_callers_file_stays_open_and_ours_is_closed(self, film):
        with film.open("rb") as file:
            for stream in open_streams(file, audio_track="all"):
                assert next(stream).shape == (2 * SAMPLE_RATE,)
                stream.close()
            assert not file.closed
            with pytest.raises(AudioError):
                open_streams(file, audio_track=9)
            assert not file.closed

    def test_one_stream_is_no_place_for_several(self, film):
        for several in ({"audio_track": "all"}, {"channels": "split"}):
            with pytest.raises(UsageError, match="make several streams"):
                open_audio(film, **several)


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([{}, {}], 1),
        ([{}, {"is_default": True}], 2),
        ([{"is_default": True}, {"is_default": True}], 1),
        ([{"is_extra": True}, {}], 2),
        ([{"is_extra": True, "is_default": True}, {}], 2),
        ([{"is_readable": False, "is_default": True}, {}], 2),
    ],
)
def test_which_track_is_the_default(marks, expected):
    tracks = [AudioTrack(number, **marks[number - 1]) for number in (1, 2)]
    assert choose_track(tracks, None).number == expected


def test_track_choices():
    assert [parse_track(text) for text in ("2", "all", " German ", "pt-BR")] == [
        *(2, "all", "german", "pt-br")
    ]
    for wrong in ("0", "-1", "Klingon", "", "1.5"):
        with pytest.raises(UsageError, match="give a track's number from 1, its language, or all"):
            parse_track(wrong)
