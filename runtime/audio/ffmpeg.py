"""Decodes audio with FFmpeg, in this process, through PyAV.

Damaged packets are skipped, holes in the timestamps become silence, and both are reported.
Importing this module is cheap; the first decoder imports `av`, which takes 40 ms.
"""

import re
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from whisper_npu.runtime.audio.source import (
    CHUNK_FRAMES,
    CHUNK_VALUES,
    RefusedError,
    Samples,
    SourceFile,
    Warn,
)
from whisper_npu.runtime.audio.tracks import AudioTrack, choose_track
from whisper_npu.runtime.audio_choices import TrackChoice

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream

# A recording may end this much before its announced end: encoders pad, headers round.
_END_TOLERANCE = 0.5  # seconds
# A smaller jump of the timestamps is jitter of the muxer; at a larger jump audio is missing.
_GAP_TOLERANCE = 0.1  # seconds
# A longer jump is a broken clock rather than a hole: it is reported and not filled.
_LONGEST_GAP = 600.0  # seconds
# The most silence before a track that begins later than its video: a file of a few kilobytes must
# not decode to days.
_LATEST_START = 3_600.0  # seconds
# The most silence in all holes together, unless the recording has more audio than this: a file of a
# few kilobytes must not decode to days.
_LONGEST_SILENCE = 3_600.0  # seconds
# These AMR decoders know pauses without data (DTX); FFmpeg's own decoders report them as damage.
_DTX_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
# `AVFrame.data` has room for one plane less than this.
_MANY_PLANES = 8
# Elementary streams carry no length: FFmpeg guesses it from the bit rate of the first frames.
_GUESSED_LENGTH = frozenset({"aac", "ac3", "amr", "dts", "eac3", "loas"})


class FFmpegDecoder:
    """Decodes all that FFmpeg reads: MP3, AAC, MP4, WebM, Matroska, AMR, WMA, video of any kind.

    Args:
        file: Seekable binary file. An object, because FFmpeg could take a name for one of its
            protocols.
        warn: See `decoders.open_decoder`.
        skip_frames: The number of frames to leave out at the start.
        track: See `choose_track`.

    Raises:
        RefusedError: The file is no recording, or has no such audio track.
    """

    def __init__(
        self, file: SourceFile, warn: Warn, skip_frames: int = 0, track: TrackChoice = None
    ) -> None:
        import av  # noqa: PLC0415 - 40 ms that WAV and FLAC need not pay

        self._file = file
        self._warn = warn
        self._skip = skip_frames
        file.seek(0)
        self._ogg = _OggTail(file) if file.read(4) == b"OggS" else None
        self._last_packet = 0  # the highest position of a packet in the file
        announces_length = _mp3_announces_length(file)
        file.seek(0)
        try:
            # Playlists must not open other files or addresses.
            self._container = av.open(file, "r", options={"protocol_whitelist": "none"})
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise RefusedError(
                "not a recording that libsndfile or FFmpeg can read; convert it to WAV or FLAC"
            ) from error
        if not self._container.streams.audio:
            self.close()
            raise RefusedError("the file has no audio track; nothing can be transcribed")
        self.tracks = tuple(map(_audio_track, self._container.streams.audio, count(1)))
        try:
            self.track = choose_track(self.tracks, track)
        except RefusedError:
            self.close()
            raise
        self._stream = self._container.streams.audio[self.track.number - 1]
        self._codec = _choose_codec(self._stream)
        self.n_channels = self._codec.channels
        # Times follow the file's clock, as players show it. The clock begins with the file's first
        # track, which may be hours into a broadcast; the chosen track may begin later.
        start = self._container.start_time
        self._start = None if start is None else start / av.time_base
        self.duration: float | None = None
        if self._stream.duration is not None and self._stream.time_base is not None:
            late = 0.0
            if self._start is not None and self._stream.start_time is not None:
                late = float(self._stream.start_time * self._stream.time_base) - self._start
            self.duration = float(self._stream.duration * self._stream.time_base) + max(0.0, late)
        elif self._container.duration is not None:
            self.duration = self._container.duration / 1_000_000
        format_names = set(self._container.format.name.split(","))
        self._length_is_known = (
            announces_length
            if "mp3" in format_names
            else not format_names & _GUESSED_LENGTH
            # If a track has no length of its own, it may be shorter than its video.
            and (self._stream.duration is not None or len(self._container.streams) == 1)
        )

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`. Holes in the timestamps become silence."""
        pending: list[Samples] = []
        pending_rate = pending_frames = 0
        for rate, samples in self._timed_frames():
            changed = bool(pending) and (
                rate != pending_rate or samples.shape[1] != pending[0].shape[1]
            )
            enough = min(CHUNK_FRAMES, CHUNK_VALUES // samples.shape[1])
            if pending and (changed or pending_frames >= enough):
                yield pending_rate, np.concatenate(pending)
                pending, pending_frames = [], 0
            pending.append(samples)
            pending_rate = rate
            pending_frames += len(samples)
        if pending:
            yield pending_rate, np.concatenate(pending)

    def _timed_frames(self) -> Iterator[tuple[int, Samples]]:
        """Yield the frames in order, with holes filled and without the skipped start."""
        origin: float | None = None
        position = 0.0  # seconds since `origin`
        gaps = _Gaps()
        skip = self._skip
        for frame in self._frames():
            samples = frame_samples(frame)
            rate = frame.sample_rate
            pieces = [samples]
            if frame.pts is not None and frame.time_base is not None:
                time = float(frame.pts * frame.time_base)
                late = self._late_start(time) if origin is None else 0.0
                origin = time - late if origin is None else origin
                pieces = [*_silence(round(late * rate), samples.shape[1]), samples]
                gap = time - late - origin - position
                if _GAP_TOLERANCE < gap <= gaps.longest_to_fill(position):
                    gaps.fill(gap, position)
                    pieces = [*_silence(round(gap * rate), samples.shape[1]), samples]
                elif abs(gap) > _GAP_TOLERANCE:
                    origin = time - position  # the clock was reset; count from here
                    if gap > 0:
                        self._length_is_known = False  # the announced length includes the jump
                        gaps.ignore(gap, position)
            for piece in pieces:
                position += len(piece) / rate
                dropped = min(skip, len(piece))
                skip -= dropped
                if dropped < len(piece):
                    yield rate, piece[dropped:]
        self._file.check()
        for warning in gaps.warnings():
            self._warn(warning)
        if (
            self._length_is_known
            and self.duration is not None
            and position < self.duration - _END_TOLERANCE
        ):
            self._warn(
                f"the recording ends at {position:.1f} s, its header announces"
                f" {self.duration:.1f} s: cut off or damaged"
            )
        elif self._ogg is not None and not self._ogg.has_end:
            self._warn(f"the recording is cut off at {position:.1f} s: it has no end mark")
        elif (
            self._ogg is not None
            and len(self._container.streams) == 1
            # The last page may hold the end of a packet, or only the end mark.
            and sum(page > self._last_packet for page in self._ogg.pages) > 1
        ):
            self._warn(f"damaged: nothing behind {position:.1f} s can be read")

    def _late_start(self, first_time: float) -> float:
        """Return the seconds of silence before a track whose first frame has this time."""
        late = 0.0 if self._start is None else first_time - self._start
        if late > _LATEST_START:
            self._length_is_known = False  # the announced length includes them
            self._warn(
                f"its sound begins {late:.0f} s after the file does: times are counted from there"
            )
            return 0.0
        return late if late > _GAP_TOLERANCE else 0.0  # a shorter delay comes from the encoder

    def _frames(self) -> "Iterator[AudioFrame]":
        """Decode packet by packet and skip damaged packets."""
        import av  # noqa: PLC0415

        damaged, reason, first_time = 0, "", 0.0
        time = 0.0
        decoded_any = False
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except IndexError:
                # PyAV 18 cannot place a packet of a stream that began midway; it is not our stream.
                packets = self._container.demux(self._stream)
                continue
            except av.FFmpegError as error:
                self._warn(f"decoding stopped at {time:.1f} s: {error.strerror}")
                break
            if packet is None:
                break
            if packet.pos is not None:
                self._last_packet = max(self._last_packet, packet.pos)
            try:
                frames = self._codec.decode(packet)
            except av.FFmpegError as error:
                if isinstance(error, EOFError):
                    continue
                if not damaged:
                    reason, first_time = error.strerror or "", time
                damaged += 1
                continue
            for frame in frames:
                decoded_any = True
                time += frame.samples / frame.sample_rate
                yield frame
        if damaged and not decoded_any:
            raise RefusedError(
                f"damaged: none of its {damaged} packets can be decoded ({reason}); copy it again"
            )
        if damaged:
            self._warn(
                f"{damaged} damaged packets were skipped, the first at {first_time:.1f} s: {reason}"
            )

    def close(self) -> None:
        """See `Decoder.close`."""
        self._container.close()


def _audio_track(stream: "AudioStream", number: int) -> AudioTrack:
    """Read the description of a track from the container."""
    disposition = stream.disposition
    return AudioTrack(
        number,
        language=stream.language if stream.language != "und" else None,
        title=stream.metadata.get("title"),
        is_default=bool(disposition & disposition.default),
        is_extra=bool(disposition & (disposition.comment | disposition.visual_impaired)),
        is_readable=stream.codec_context is not None,
    )


def _mp3_announces_length(file: SourceFile) -> bool:
    """Whether an MP3's first frame has a Xing, Info or VBRI header; else its length is a guess.

    The position of `file` is undefined afterwards.
    """
    file.seek(0)
    head = file.read(10)
    if head.startswith(b"ID3") and len(head) == 10:
        # Four bytes of seven bits (id3.org, ID3v2.4 section 3.1).
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte & 0x7F
        file.seek(10 + size)
    else:
        file.seek(0)
    frame = file.read(2048)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


class _Gaps:
    """Counts the gaps in the timestamps."""

    def __init__(self) -> None:
        self._holes = self._jumps = 0
        self._missing = self._first_hole = 0.0
        self._first_jump = self._jumped_at = 0.0

    def longest_to_fill(self, position: float) -> float:
        """Return the longest gap in seconds that may be filled with silence at `position`."""
        audio = position - self._missing
        return min(_LONGEST_GAP, max(_LONGEST_SILENCE, audio) - self._missing)

    def fill(self, gap: float, position: float) -> None:
        """Count a gap that was filled."""
        self._first_hole = self._first_hole if self._holes else position
        self._holes += 1
        self._missing += gap

    def ignore(self, gap: float, position: float) -> None:
        """Count a gap that was not filled."""
        if not self._jumps:
            self._first_jump, self._jumped_at = gap, position
        self._jumps += 1

    def warnings(self) -> Iterator[str]:
        """Yield one line for each kind of gap."""
        if self._holes:
            yield (
                f"{self._missing:.2f} s of audio are missing in {self._holes} places, the first at"
                f" {self._first_hole:.1f} s: taken as silence"
            )
        if self._jumps:
            more = f" and {self._jumps - 1} times behind it" if self._jumps > 1 else ""
            yield (
                f"the timestamps jump by {self._first_jump:.0f} s at {self._jumped_at:.1f} s{more}:"
                " ignored"
            )


class _OggTail:
    """The last pages of an Ogg file (RFC 3533, section 6); FFmpeg does not report missing pages.

    Attributes:
        pages: Their positions in the file.
        has_end: Whether the last page carries the end-of-stream flag.
    """

    def __init__(self, file: SourceFile) -> None:
        start = max(0, file.seek(0, 2) - 2 * 65_307)  # two pages of the largest size
        file.seek(start)
        tail = file.read()
        self.pages = [start + page.start() for page in re.finditer(rb"OggS\0", tail)]
        flags = tail[self.pages[-1] - start + 5 :][:1] if self.pages else b""
        self.has_end = bool(flags) and bool(flags[0] & 0x04)


def _silence(frames: int, channels: int) -> list[Samples]:
    """Return zeros `(frames, channels)` in pieces that share one small array."""
    piece = np.zeros((min(frames, CHUNK_FRAMES), channels), np.float32)
    whole, rest = divmod(frames, CHUNK_FRAMES)
    return [piece] * whole + ([piece[:rest]] if rest else [])


def _choose_codec(stream: "AudioStream") -> "AudioCodecContext":
    """Return the decoder of a stream, or a better decoder for its codec."""
    import av  # noqa: PLC0415

    own = stream.codec_context
    better = _DTX_DECODERS.get(own.name)
    if better is None or better not in av.codecs_available:
        return own
    codec = cast("AudioCodecContext", av.CodecContext.create(better, "r"))
    codec.sample_rate, codec.layout = own.sample_rate, own.layout
    return codec


def frame_samples(frame: "AudioFrame") -> Samples:
    """Convert a decoded frame of any sample format to float32 `(frames, channels)` in [-1, 1]."""
    # PyAV 18 looks for the end of the planes after the eighth pointer, where there is none, and
    # returns memory outside the frame. A packed frame has one plane.
    many_planes = frame.format.is_planar and frame.layout.nb_channels >= _MANY_PLANES
    if many_planes or frame.format.name in {"s64", "s64p"}:  # `to_ndarray` does not know s64p
        import av  # noqa: PLC0415

        wanted = "dbl" if frame.format.bits >= 32 else "flt"
        frame = av.AudioResampler(format=wanted).resample(frame)[0]
    raw: npt.NDArray[Any] = frame.to_ndarray()
    # Planar formats arrive as (channels, frames), packed formats as (1, frames * channels).
    shaped = raw.T if frame.format.is_planar else raw.reshape(frame.samples, -1)
    if shaped.dtype.kind == "f":
        return np.ascontiguousarray(shaped, np.float32)
    if shaped.dtype.kind == "u":  # the only unsigned format is u8
        return (shaped.astype(np.float32) - 128.0) / 128.0
    scale = 2.0 ** (8 * shaped.dtype.itemsize - 1)
    return (shaped / scale).astype(np.float32)
