"""Decodes an open binary file to float32 samples at the file's own rate, chunk by chunk.

libsndfile (through `soundfile`) is tried first because it loads in a few milliseconds. FFmpeg
(through `av`, 40 ms to import) reads three kinds of input:

- files that libsndfile refuses;
- the audio after a damaged place where libsndfile stops;
- MP3 and Ogg, which libsndfile reads badly when they are damaged (tried with 1.2.2). In MP3 it
  stops at the first damaged frame, and mpg123 prints to standard error. In Ogg it skips the hole
  without a word and, when it seeks, returns one second twice.

A damaged recording is read as far as possible; `warn` reports each missing part.
"""

from collections.abc import Iterator
from typing import BinaryIO

import soundfile

from whisper_npu.errors import AudioError, AudioInputError
from whisper_npu.runtime.audio.ffmpeg_process import open_ffmpeg
from whisper_npu.runtime.audio.headers import WAV_MP3, Header, read_header
from whisper_npu.runtime.audio.source import (
    CHUNK_FRAMES,
    CHUNK_VALUES,
    RefusedError,
    Samples,
    SourceFile,
    Warn,
)
from whisper_npu.runtime.audio.tracks import (
    AudioTrack,
    TrackDecoder,
    choose_track,
)
from whisper_npu.runtime.audio_choices import TrackChoice

# FFmpeg would try for seconds to open the files that HLS, ffconcat, DASH and SMIL lists refer to.
# It would take PLS lists and the lists of old Windows players for films of text.
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<", b"[playlist]", b"[Reference]")


def open_decoder(file: BinaryIO, name: str, warn: Warn, track: TrackChoice = None) -> TrackDecoder:
    """Choose a decoder by the content of a file; the file's name plays no part.

    Args:
        file: Seekable binary file, read from its start.
        name: The name of the file in error messages.
        warn: Called with one line for everything that is missing or was replaced.
        track: See `choose_track`.

    Raises:
        AudioError: The file is empty, is not audio or video, or has no such audio track.
        OSError: The file cannot be read.
    """
    file.seek(0)
    head = file.read(16)
    if isinstance(head, str):
        raise AudioInputError(f"{name}: gives text, not bytes; open it in binary mode")
    if not head:
        raise AudioError(f"{name}: the file is empty (0 bytes); record or copy it again")
    if head.startswith(_PLAYLISTS):
        raise AudioError(f"{name}: a list of recordings, not a recording; name those it lists")
    header = read_header(SourceFile(file))
    source = header.file
    for warning in header.warnings:
        warn(warning)
    if not _is_better_with_ffmpeg(head, header):
        try:
            return SoundFileDecoder(source, warn, header, track)
        except RefusedError:
            pass  # FFmpeg decides
    if header.is_cut_off:
        warn(_cut_off(header))
    try:
        return open_ffmpeg(source, warn, track=track)
    except RefusedError as refusal:
        source.check()
        raise AudioError(f"{name}: {refusal}") from refusal


def _is_better_with_ffmpeg(head: bytes, header: Header) -> bool:
    """Whether the file is Ogg, has an ID3 tag, or is MPEG audio or ADTS (eleven set bits first).

    For MP3 in a WAV, libsndfile announces more samples than it finds.
    """
    is_mpeg_frame = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    is_mp3 = is_mpeg_frame or header.wav_format == WAV_MP3
    return is_mp3 or head.startswith((b"ID3", b"OggS"))


class SoundFileDecoder:
    """Decodes WAV, FLAC, AIFF, CAF, AU, W64 and other formats of libsndfile, of one track each."""

    tracks: tuple[AudioTrack, ...] = (AudioTrack(1),)

    def __init__(
        self, file: SourceFile, warn: Warn, header: Header, track: TrackChoice = None
    ) -> None:
        self.track = choose_track(self.tracks, track)
        self._file = file
        self._warn = warn
        file.seek(0)
        try:
            self._sound = soundfile.SoundFile(file)
        except soundfile.SoundFileError as error:
            raise RefusedError(str(error)) from error
        self._rate: int = self._sound.samplerate
        self._frames: int = self._sound.frames
        self.n_channels: int = self._sound.channels
        if self._frames == 0 and file.seek(0, 2) > 1024:
            # A killed recorder leaves a length of 0 before real audio.
            self.close()
            raise RefusedError("the header announces no samples")
        self.duration: float | None = self._frames / self._rate
        if header.is_cut_off:
            warn(f"{_cut_off(header)} ({self.duration:.1f} s)")

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        """See `Decoder.chunks`."""
        done = 0
        size = min(CHUNK_FRAMES, CHUNK_VALUES // self._sound.channels)
        while True:
            try:
                chunk = self._sound.read(size, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                break
            if not len(chunk):
                break
            done += len(chunk)
            yield self._rate, chunk
        self._file.check()
        if done >= self._frames:
            return
        self._warn(
            f"damaged after {done / self._rate:.1f} s: read on with FFmpeg as far as possible"
        )
        self.close()
        try:
            rest = open_ffmpeg(self._file, self._warn, skip_frames=done)
        except RefusedError:
            lost = (self._frames - done) / self._rate
            self._warn(f"the last {lost:.1f} s cannot be read")
            return
        try:
            yield from rest.chunks()
        finally:
            rest.close()

    def close(self) -> None:
        """See `Decoder.close`."""
        self._sound.close()


def _cut_off(header: Header) -> str:
    what = "bytes of audio" if header.wav_format is not None else "bytes"
    return (
        f"the file is cut off: {header.present} of the {header.announced} {what} its header"
        " announces are there"
    )
