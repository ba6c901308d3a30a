"""Makes small valid recordings of every available container and codec, for `fuzz_audio`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.audio.stream import AudioStream

_SECONDS = 0.7

# libsndfile's kinds: suffix, format, subtype.
_SOUNDFILE = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "PCM_U8"),
    ("wav", "WAV", "PCM_24"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("wav", "WAV", "MS_ADPCM"),
    ("wav", "WAV", "GSM610"),
    ("wav", "WAVEX", "PCM_16"),
    ("rf64", "RF64", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("aiff", "AIFF", "PCM_16"),
    ("aiff", "AIFF", "FLOAT"),
    ("au", "AU", "PCM_16"),
    ("caf", "CAF", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("voc", "VOC", "PCM_16"),
    ("sph", "NIST", "PCM_16"),
    ("svx", "SVX", "PCM_16"),
    ("sf", "IRCAM", "PCM_16"),
)


@dataclass(frozen=True)
class _Encoding:
    """A kind that FFmpeg writes, by FFmpeg's names of the container and the codec."""

    suffix: str
    muxer: str
    codec: str
    rate: int = 16_000
    layout: str = "mono"
    options: dict[str, str] = field(default_factory=dict)
    bit_rate: int | None = None


_MANY_CHANNELS = tuple(
    _Encoding(suffix, muxer, codec, 16_000, f"{channels}C")
    for suffix, muxer, codec in (("wv", "wv", "wavpack"), ("nut", "nut", "pcm_s16le_planar"))
    for channels in (1, 2, 7, 8, 9, 12, 16, 24, 33, 64)
)
_ENCODINGS = (
    _Encoding("m4a", "ipod", "aac"),
    _Encoding("m4a", "ipod", "aac", 48_000, "7.1"),
    _Encoding("m4a", "ipod", "alac", 44_100, "stereo"),
    _Encoding("mp4", "mp4", "aac", 48_000, "stereo", {"movflags": "frag_keyframe+empty_moov"}),
    _Encoding("mp4", "mp4", "ac3", 48_000, "stereo"),
    _Encoding("mov", "mov", "pcm_s16be"),
    _Encoding("3gp", "3gp", "libopencore_amrnb", 8_000),
    _Encoding("amr", "amr", "libopencore_amrnb", 8_000),
    _Encoding("aac", "adts", "aac", 44_100, "stereo"),
    _Encoding("mp3", "mp3", "libmp3lame", 44_100, "stereo"),
    _Encoding("mp3", "mp3", "libmp3lame", 8_000, "mono", {"id3v2_version": "0", "write_xing": "0"}),
    _Encoding("mp2", "mp2", "mp2", 48_000),
    _Encoding("ac3", "ac3", "ac3", 48_000),
    _Encoding("webm", "webm", "libopus", 48_000),
    _Encoding("webm", "webm", "libopus", 48_000, "7.1"),
    _Encoding("opus", "ogg", "libopus", 48_000, "stereo"),
    _Encoding("mka", "matroska", "pcm_s24le"),
    _Encoding("mka", "matroska", "flac", 48_000, "stereo"),
    _Encoding("mkv", "matroska", "aac", 48_000, "stereo"),
    _Encoding("ogg", "ogg", "flac"),
    _Encoding("ts", "mpegts", "aac", 48_000),
    _Encoding("m2ts", "mpegts", "mp2", 48_000, "mono", {"mpegts_m2ts_mode": "1"}),
    _Encoding("flv", "flv", "aac", 44_100),
    _Encoding("flv", "flv", "libmp3lame", 44_100),
    _Encoding("avi", "avi", "libmp3lame", 44_100),
    _Encoding("avi", "avi", "pcm_s16le"),
    _Encoding("wma", "asf", "wmav2", 44_100, "stereo", {}, 64_000),
    _Encoding("wma", "asf", "wmav1", 44_100, "mono", {}, 64_000),
    _Encoding("wav", "wav", "libmp3lame"),
    _Encoding("wav", "wav", "adpcm_ima_wav"),
    _Encoding("wav", "wav", "g722"),
    _Encoding("wav", "wav", "pcm_s16le", 16_000, "mono", {"rf64": "always"}),
    _Encoding("wav", "wav", "pcm_s32le", 16_000, "7.1"),
    _Encoding("caf", "caf", "pcm_mulaw", 8_000),
    _Encoding("aiff", "aiff", "pcm_s24be", 44_100, "stereo"),
    _Encoding("au", "au", "pcm_alaw", 8_000),
    _Encoding("w64", "w64", "pcm_f32le"),
    _Encoding("tta", "tta", "tta"),
    _Encoding("voc", "voc", "pcm_u8"),
    _Encoding("sox", "sox", "pcm_s32le"),
    _Encoding("spdif", "spdif", "ac3", 48_000),
    *_MANY_CHANNELS,
)


def write_seeds(folder: Path) -> list[Path]:
    """Write every kind of recording that this machine's libraries encode; return the paths."""
    return [*_write_with_soundfile(folder), *_write_with_ffmpeg(folder)]


def _buzz(rate: int) -> npt.NDArray[np.float32]:
    """A buzz with the pitch and syllables of a voice."""
    time = np.arange(round(_SECONDS * rate)) / rate
    harmonics = [np.sin(2 * np.pi * 150 * k * time + k * k) / k for k in range(1, 12)]
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time)
    samples: npt.NDArray[np.float64] = 0.15 * np.sum(harmonics, axis=0) * syllables
    return samples.astype(np.float32)


def _write_with_soundfile(folder: Path) -> Iterator[Path]:
    for number, (suffix, container, subtype) in enumerate(_SOUNDFILE):
        path = folder / f"soundfile-{number:02d}-{subtype.lower()}.{suffix}"
        rate = 8_000 if subtype in {"ULAW", "GSM610"} else 16_000
        soundfile.write(path, _buzz(rate), rate, format=container, subtype=subtype)
        yield path


def _write_with_ffmpeg(folder: Path) -> Iterator[Path]:
    for number, encoding in enumerate(_ENCODINGS):
        path = folder / f"ffmpeg-{number:02d}-{encoding.codec}.{encoding.suffix}"
        if encoding.codec in av.codecs_available:
            _encode(path, encoding)
            yield path


def _encode(path: Path, encoding: _Encoding) -> None:
    layout = av.AudioLayout(encoding.layout)
    mono = _buzz(encoding.rate)
    samples = np.repeat(mono[:, np.newaxis], layout.nb_channels, axis=1).reshape(1, -1)
    with av.open(str(path), "w", format=encoding.muxer, options=encoding.options) as container:
        stream = cast(
            AudioStream,
            container.add_stream(encoding.codec, rate=encoding.rate, layout=encoding.layout),
        )
        if encoding.bit_rate is not None:
            stream.bit_rate = encoding.bit_rate
        context = stream.codec_context
        offered = [each.name for each in context.codec.audio_formats or ()]
        if offered:
            context.format = "s16p" if "s16p" in offered else offered[0]
        resampler = av.AudioResampler(context.format, encoding.layout, encoding.rate)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=encoding.layout)
        frame.sample_rate = encoding.rate
        frame.pts, frame.time_base = 0, Fraction(1, encoding.rate)
        for converted in resampler.resample(frame) + resampler.resample(None):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
