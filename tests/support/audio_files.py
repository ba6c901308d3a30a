"""Writes recordings for the tests: good, odd and broken ones."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

RATE = 16_000


def voice(seconds: float, rate: int = RATE) -> np.ndarray:
    """A float32 buzz with the pitch and syllables of a voice, which lossy codecs keep well."""
    time = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 150 * k * time + k * k) / k for k in range(1, 12))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time)
    return (0.15 * buzz * syllables).astype(np.float32)


def write_with_ffmpeg(
    path: Path,
    samples: np.ndarray,
    rate: int,
    codec: str,
    *,
    video: bool = False,
    muxer: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode mono float samples `(n,)` into a container, by default that of `path`'s suffix.

    Skips the test if PyAV's FFmpeg lacks the encoder: PyAV 19 has none for AMR.
    """
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg of PyAV {av.__version__} has no encoder {codec}")
    with av.open(str(path), "w", format=muxer, options=options or {}) as container:
        pictures = add_pictures(container) if video else None
        stream = container.add_stream(codec, rate=rate, layout="mono")
        if codec.startswith("wma"):
            stream.bit_rate = 64_000  # the encoder has no default
        sample_format = stream.codec_context.codec.audio_formats[0].name
        resampler = av.AudioResampler(format=sample_format, layout="mono", rate=rate)
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate = rate
        frame.pts = 0
        frame.time_base = Fraction(1, rate)
        for converted in resampler.resample(frame) + resampler.resample(None):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
        if pictures is not None:
            write_pictures(container, pictures)
    return path


@dataclass(frozen=True)
class Track:
    """An audio track of `write_film`: float samples `(n,)`, or `(n, 2)` for stereo."""

    samples: np.ndarray
    codec: str = "pcm_s16le"
    rate: int = RATE
    begins: float = 0.0  # seconds
    language: str | None = None
    title: str | None = None
    disposition: Disposition = Disposition(0)  # noqa: RUF009 - a flag, which never changes


def write_film(
    path: Path, *tracks: Track, seconds: float, codec: str = "mpeg4", begins: float = 0.0
) -> Path:
    """A video whose clock starts at `begins` seconds, with audio tracks that may start later."""
    with av.open(str(path), "w") as container:
        pictures = add_pictures(container, codec)
        streams = [_add_track(container, track) for track in tracks]
        packets = []
        for index in range(round(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index + round(10 * begins), Fraction(1, 10)
            packets += pictures.encode(frame)
        packets += pictures.encode(None)
        for stream, track in zip(streams, tracks, strict=True):
            packets += _encoded(stream, track, begins)
        timed = (packet for packet in packets if packet.dts is not None)
        for packet in sorted(timed, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _add_track(container, track: Track):
    layout = "mono" if track.samples.ndim == 1 else "stereo"
    stream = container.add_stream(track.codec, rate=track.rate, layout=layout)
    for key in ("language", "title"):
        if getattr(track, key) is not None:
            stream.metadata[key] = getattr(track, key)
    stream.disposition = track.disposition
    return stream


def _encoded(stream, track: Track, begins: float):
    layout = stream.codec_context.layout
    sample_format = stream.codec_context.codec.audio_formats[0].name
    resampler = av.AudioResampler(format=sample_format, layout=layout, rate=track.rate)
    planes = np.ascontiguousarray(np.atleast_2d(track.samples.T), np.float32)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
    frame.sample_rate, frame.time_base = track.rate, Fraction(1, track.rate)
    frame.pts = round((begins + track.begins) * track.rate)
    converted = resampler.resample(frame) + resampler.resample(None)
    return [packet for each in (*converted, None) for packet in stream.encode(each)]


def write_many_channels(
    path: Path, samples: np.ndarray, rate: int, codec: str, *, layout: str | None = None
) -> Path:
    """Encode float samples `(n, channels)`, channels of unknown places unless `layout` says."""
    layout = layout or f"{samples.shape[1]}C"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        context = stream.codec_context
        if context.codec.audio_formats:
            offered = [each.name for each in context.codec.audio_formats]
            context.format = "s16p" if "s16p" in offered else offered[0]
        sample_format = context.format.name
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        frame.pts = 0
        frame.time_base = Fraction(1, rate)
        for converted in resampler.resample(frame) + resampler.resample(None):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def add_pictures(container, codec: str = "mpeg4"):
    stream = container.add_stream(codec, rate=10)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    return stream


def write_pictures(container, stream) -> None:
    """One second of flat grey."""
    for index in range(10):
        picture = np.full((64, 64, 3), 25 * index, np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = index, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_silent_film(path: Path) -> Path:
    """A video without audio track."""
    with av.open(str(path), "w") as container:
        write_pictures(container, add_pictures(container))
    return path


def write_with_hole(path: Path, samples: np.ndarray, hole: float) -> Path:
    """Matroska with PCM whose timestamps jump by `hole` seconds in the middle."""
    half = len(samples) // 3_200
    return _write_with_jumps(path, samples, lambda index: hole if index >= half else 0)


def _write_with_jumps(path: Path, samples: np.ndarray, late) -> Path:
    """Pieces of 0.1 s, each as many seconds late as `late(index)` says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        pcm = np.round(samples * 32_767).astype(np.int16)
        for start in range(0, len(pcm), 1600):
            frame = av.AudioFrame.from_ndarray(
                pcm[np.newaxis, start : start + 1600], format="s16", layout="mono"
            )
            frame.sample_rate = RATE
            frame.time_base = Fraction(1, RATE)
            frame.pts = start + round(late(start // 1600) * RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_with_holes(path: Path, samples: np.ndarray, hole: float, number: int) -> Path:
    """The same with a hole of `hole` seconds after each of the first `number` pieces of 0.1 s."""
    return _write_with_jumps(path, samples, lambda index: hole * min(index, number))


def amr_frames(content: bytes) -> list[bytes]:
    """The frames of AMR-NB (RFC 4867, section 5.3)."""
    sizes = (12, 13, 15, 17, 19, 20, 26, 31, 5)
    frames = []
    while content:
        size = 1 + sizes[content[0] >> 3 & 15]
        frames.append(content[:size])
        content = content[size:]
    return frames


def cut(source: Path, target: Path, share: float) -> Path:
    """The first `share` of a file's bytes."""
    content = source.read_bytes()
    target.write_bytes(content[: round(len(content) * share)])
    return target


def spoil(source: Path, target: Path, size: int) -> Path:
    """A copy in which noise overwrites `size` bytes in the middle."""
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + size] = np.random.default_rng(0).bytes(size)
    target.write_bytes(content)
    return target


def wav_with_length(path: Path, samples: np.ndarray, announced: int) -> Path:
    """A 16-bit WAV whose header announces any number of bytes, as recorders and pipes do."""
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", min(announced + 36, 2**32 - 1))
    content[40:44] = struct.pack("<I", announced)
    path.write_bytes(content)
    return path


def bad_files(folder):
    """Recordings that cannot be transcribed, and a word of the error of each."""
    good = folder / "good.mp4"
    write_with_ffmpeg(good, voice(2.0), RATE, "aac")
    made = {"missing.wav": "no such file"}
    (folder / "empty.wav").touch()
    made["empty.wav"] = "empty"
    soundfile.write(folder / "header.wav", np.zeros(0), RATE)
    made["header.wav"] = "no audio samples"
    (folder / "text.wav").write_text("words, not sounds\n" * 100)
    made["text.wav"] = "not a recording"
    write_silent_film(folder / "film.mp4")
    made["film.mp4"] = "no audio track"
    cut(good, folder / "cut.mp4", 0.5)
    made["cut.mp4"] = "not a recording"
    (folder / "no audio here").mkdir()
    made["no audio here"] = "no audio or video file"
    good.unlink()
    return {folder / name: reason for name, reason in made.items()}
