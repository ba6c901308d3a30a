"""Streams recordings of any kind in the form Whisper reads: float32, one channel, 16 kHz.

Memory does not grow with the recording: it is decoded, mixed and resampled chunk by chunk.
`load_audio` returns the concatenation of the stream, bit for bit.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np

from whisper_npu.errors import AudioError, UsageError
from whisper_npu.runtime.audio.channels import (
    ChannelMixer,
    ChannelPicker,
    channel_names,
    picked_channels,
)
from whisper_npu.runtime.audio.recording import AudioSource, Closable, OpenedTrack, Recording
from whisper_npu.runtime.audio.sample_scale import SampleScale
from whisper_npu.runtime.audio.source import (
    HIGHEST_RATE,
    LOWEST_RATE,
    SAMPLE_RATE,
    Decoder,
    RefusedError,
    Samples,
)
from whisper_npu.runtime.audio.tracks import unheard_warnings
from whisper_npu.runtime.audio_choices import (
    ALL_TRACKS,
    MIX,
    SPLIT,
    ChannelChoice,
    TrackChoice,
)
from whisper_npu.runtime.closing import Closing

__all__ = [
    "BLOCK_SAMPLES",
    "MEDIA_SUFFIXES",
    "SAMPLE_RATE",
    "AudioSource",
    "AudioStream",
    "list_audio_files",
    "load_audio",
    "open_audio",
    "open_streams",
]

BLOCK_SAMPLES = 30 * SAMPLE_RATE

# fmt: off
_AUDIO_SUFFIXES = frozenset({
    ".3ga", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".dts",
    ".flac", ".gsm", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpga", ".oga", ".ogg", ".opus",
    ".ra", ".rf64", ".snd", ".sph", ".spx", ".tta", ".voc", ".w64", ".wav", ".wave", ".weba",
    ".wma", ".wv",
})
_VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".vob", ".webm", ".wmv",
})
# fmt: on
MEDIA_SUFFIXES = _AUDIO_SUFFIXES | _VIDEO_SUFFIXES

# A larger float sample is garbage (the samples of a file stay far below, at ±1 or ±32768), and its
# square would soon overflow float32 in the spectrogram.
_LARGEST_SAMPLE = 1e9
_SILENT = 1e-4  # of full scale: dither is below it, speech above


class AudioStream(Closing):
    """A recording as successive blocks of float32 samples `(n,)`, mono, 16 kHz, in [-1, 1].

    An iterator that goes through the recording once, and a context manager that closes it. Every
    block has `block_samples` samples except the last, which may be shorter and is never empty.

    Attributes:
        name: The name of the recording in messages.
        duration_estimate: Seconds that the header announces; None if it announces none. The true
            duration is `samples_read / SAMPLE_RATE` at the end.
        samples_read: Samples returned so far, at 16 kHz.
        warnings: One line for everything missing or replaced so far; complete at the end.
        channel: The name of this stream among those of its recording, such as `left`; None if it
            is the only stream.
    """

    def __init__(
        self,
        decoder: Decoder,
        name: str,
        block_samples: int,
        warnings: list[str],
        owned_file: Closable | None = None,
        *,
        pick: int | None = None,
        channel: str | None = None,
        scale: SampleScale | None = None,
        if_silent: str | None = None,
        may_be_empty: bool = False,
    ) -> None:
        """Decode nothing yet.

        Args:
            decoder: Decodes the recording.
            name: The name of the recording in messages.
            block_samples: Samples per block.
            warnings: Warnings so far; the stream adds more.
            owned_file: Closed with the stream.
            pick: The channel to return, from 0; None mixes all.
            channel: The name of this stream among others.
            scale: The scale of the samples, as far as it is known.
            if_silent: A warning for a recording without any sound.
            may_be_empty: Whether a recording without samples is allowed.
        """
        self.name = name
        self.channel = channel
        self.duration_estimate = decoder.duration
        self.samples_read = 0
        self.warnings = warnings
        self._decoder = decoder
        self._owned_file = owned_file
        self._to_mono = ChannelMixer() if pick is None else ChannelPicker(pick)
        self._scale = scale or SampleScale()
        self._if_silent = if_silent
        self._may_be_empty = may_be_empty
        self._blocks = _cut(self._samples(), block_samples)

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        """Decode the next block.

        Raises:
            AudioError: The recording holds no sample at all, or its disk or network fails.
            StopIteration: The recording has ended.
        """
        try:
            block = next(self._blocks)
        except OSError as error:
            raise AudioError(
                f"{self.name}: cannot be read to its end: {error.strerror or error}"
            ) from error
        except RefusedError as refusal:
            raise AudioError(f"{self.name}: {refusal}") from refusal
        self.samples_read += len(block)
        return block

    def close(self) -> None:
        """Free the decoder and the file; a second call does nothing."""
        self._blocks.close()
        self._decoder.close()
        if self._owned_file is not None:
            self._owned_file.close()

    def _samples(self) -> Iterator[Samples]:
        """Yield mono 16 kHz samples in pieces of any size."""
        cleaner = _Cleaner()
        resampler: _Resampler | None = None
        frames = produced = 0
        for rate, chunk in self._decoder.chunks():
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise AudioError(f"{self.name}: a sample rate of {rate} Hz; the header is broken")
            clean = self._scale(cleaner.clean(chunk, frames, rate))
            mono = self._to_mono(clean, frames / rate, rate)
            frames += len(mono)
            if self._if_silent is not None and np.abs(mono).max(initial=0.0) > _SILENT:
                self._if_silent = None
            if resampler is not None and resampler.rate != rate:
                # Chained Ogg files and broadcast streams may change their rate midway.
                yield resampler.push(np.empty(0, np.float32), last=True)
                resampler = None
            if resampler is None and rate != SAMPLE_RATE:
                resampler = _Resampler(rate)
            piece = mono if resampler is None else resampler.push(mono)
            produced += len(piece)
            yield piece
        if resampler is not None:
            piece = resampler.push(np.empty(0, np.float32), last=True)
            produced += len(piece)
            yield piece
        for stage in (cleaner, self._scale, self._to_mono):
            self.warnings.extend(stage.warnings())
        if self._if_silent is not None:
            self.warnings.append(self._if_silent)
        if frames == 0 and not self._may_be_empty:
            raise AudioError(f"{self.name}: no audio samples in it; record or copy it again")
        if frames and produced == 0:
            # One or two samples at 48 kHz round to none at 16 kHz, but a recording is never empty.
            yield np.zeros(1, np.float32)


def open_audio(
    source: AudioSource,
    *,
    block_samples: int = BLOCK_SAMPLES,
    sample_rate: int | None = None,
    audio_track: TrackChoice = None,
    channels: ChannelChoice = MIX,
) -> AudioStream:
    """Open a recording as a stream of float32 blocks, mono, 16 kHz.

    Args:
        source: A path; an open binary file, seekable or not (a pipe is first copied to a temporary
            file; the caller's file stays open); the bytes of a file; or an array `(n_samples,)` or
            `(n_samples, n_channels)`, of floats in [-1, 1], int16, int32 or uint8. An object that
            numpy converts to an array, such as a tensor, counts as an array.
        block_samples: Samples per block; the samples themselves do not depend on it.
        sample_rate: The rate of an array in Hz; None is 16,000. A file has its rate in its header.
        audio_track: A number from 1 or a language, to choose among several audio tracks; None takes
            the default track, and a warning names the others.
        channels: `mix`, `left` or `right`.

    Raises:
        AudioError: The source is missing, unreadable, not audio, or has no such track or channel.
        AudioInputError: The source is of another type, or an array of another shape or dtype.
        UsageError: An argument is out of range, or makes several streams: see `open_streams`.
        ValueError: `block_samples` is not positive.
    """
    if channels == SPLIT or audio_track == ALL_TRACKS:
        raise UsageError("channels='split' and audio_track='all' make several streams of one")
    (stream,) = open_streams(
        source,
        block_samples=block_samples,
        sample_rate=sample_rate,
        audio_track=audio_track,
        channels=channels,
    )
    return stream


def open_streams(
    source: AudioSource,
    *,
    block_samples: int = BLOCK_SAMPLES,
    sample_rate: int | None = None,
    audio_track: TrackChoice = None,
    channels: ChannelChoice = MIX,
) -> list[AudioStream]:
    """Open a recording as one or several streams, to be transcribed separately.

    Each stream has its own decoder, so that no stream waits for another.

    Args:
        source: See `open_audio`.
        block_samples: See `open_audio`.
        sample_rate: See `open_audio`.
        audio_track: See `open_audio`; `all` gives a stream for each track.
        channels: See `open_audio`; `split` gives a stream for each channel.

    Returns:
        One stream without a `channel`, or several streams with a `channel`. Two channels are called
        `left` and `right`, others `channel 1` and so on; several tracks put `track 1` and so on
        before it.

    Raises:
        AudioError: See `open_audio`.
        UsageError: An argument is out of range.
        ValueError: `block_samples` is not positive.
    """
    if block_samples < 1:
        raise ValueError(f"block_samples must be at least 1, not {block_samples}")
    several = channels == SPLIT or audio_track == ALL_TRACKS
    streams: list[AudioStream] = []
    with contextlib.ExitStack() as on_error:
        recording = on_error.enter_context(Recording(source, sample_rate, shared=several))
        first = recording.open(None if audio_track == ALL_TRACKS else audio_track)
        on_error.callback(first.close)
        tracks = [first.decoder.track]
        if audio_track == ALL_TRACKS:
            tracks = [track for track in first.decoder.tracks if track.is_readable]
        unheard = unheard_warnings(first.decoder.tracks, tracks, audio_track)
        first.warnings += unheard
        if_silent = f"audio track {tracks[0].number} is silent from beginning to end"
        for track in tracks:
            opened = first if track == first.decoder.track else recording.open(track.number)
            on_error.callback(opened.close)
            picks = _picks(channels, opened)
            names = channel_names(opened.decoder.n_channels) if len(picks) > 1 else ()
            for pick in picks:
                if pick != picks[0]:
                    opened = recording.open(track.number)
                    on_error.callback(opened.close)
                labels = [f"track {track.number}"] if len(tracks) > 1 else []
                labels += names[pick : pick + 1] if pick is not None else []
                streams.append(
                    AudioStream(
                        opened.decoder,
                        recording.name,
                        block_samples,
                        opened.warnings,
                        opened.file,
                        pick=pick,
                        channel=" ".join(labels) or None,
                        scale=opened.scale,
                        if_silent=if_silent if unheard else None,
                        may_be_empty=recording.is_array,
                    )
                )
        on_error.pop_all()
    return streams


def _picks(channels: str, opened: OpenedTrack) -> list[int | None]:
    try:
        return picked_channels(channels, opened.decoder.n_channels)
    except LookupError as error:
        raise AudioError(f"{opened.name}: {error}") from None


def load_audio(
    source: AudioSource,
    *,
    sample_rate: int | None = None,
    audio_track: TrackChoice = None,
    channels: ChannelChoice = MIX,
) -> Samples:
    """Read a whole recording: float32 `(n_samples,)`, mono, 16 kHz.

    The result has at least one sample, except for an empty array.

    Warnings about damaged places are lost here; `open_audio` takes the same arguments and keeps
    them.

    Raises:
        AudioError: See `open_audio`; also if the recording holds no samples.
        UsageError: See `open_audio`.
    """
    stream = open_audio(source, sample_rate=sample_rate, audio_track=audio_track, channels=channels)
    with stream:
        blocks = list(stream)
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])


def list_audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """Replace folders by the audio and video files in them, at any depth, in sorted order.

    Other paths stay as they are, even if they do not exist: opening them raises the error. Hidden
    files and folders inside a folder are left out.

    Raises:
        AudioError: A folder holds no audio file or cannot be listed.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        try:
            found = [
                item
                for item in path.rglob("*")
                if item.suffix.lower() in MEDIA_SUFFIXES
                and not any(part.startswith(".") for part in item.relative_to(path).parts)
                and item.is_file()
            ]
        except OSError as error:
            raise AudioError(f"{path}: cannot be listed: {error.strerror or error}") from error
        if not found:
            raise AudioError(
                f"{path}: no audio or video file in this folder; a file of another suffix than "
                "usual has to be named itself"
            )
        files.extend(sorted(found))
    return files


class _Cleaner:
    """Replaces samples that are no finite numbers by silence, and counts them.

    One NaN would spread over its whole 30 s window through the spectrogram's maximum. Any other
    value than zero is a click, and dropping the sample would shift all later samples.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = 0.0

    def clean(self, chunk: Samples, frames_before: int, rate: int) -> Samples:
        # A comparison with NaN is false, so this single test finds NaN, Inf and garbage.
        good = np.abs(chunk) < _LARGEST_SAMPLE
        if good.all():
            return chunk
        if not self._count:
            first_bad_frame = int(np.argmin(good.all(axis=1)))
            self._first = (frames_before + first_bad_frame) / rate
        self._count += int(good.size - np.count_nonzero(good))
        return np.where(good, chunk, np.float32(0))

    def warnings(self) -> list[str]:
        if not self._count:
            return []
        return [
            f"{self._count} samples are not finite numbers (the first at {self._first:.1f} s):"
            " taken as silence"
        ]


class _Resampler:
    """Resamples one channel from `rate` to 16 kHz; the size of the input's pieces has no effect."""

    def __init__(self, rate: int) -> None:
        # Imported late: many recordings of speech already are at 16 kHz.
        import soxr  # noqa: PLC0415

        self.rate = rate
        self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        resampled: Samples = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        return resampled


def _cut(pieces: Iterable[Samples], size: int) -> Generator[Samples, None, None]:
    """Cut pieces of any size into blocks of `size` samples; the last block may be shorter."""
    held: list[Samples] = []
    held_samples = 0
    for piece in pieces:
        start = 0
        while held_samples + len(piece) - start >= size:
            end = start + size - held_samples
            block = np.concatenate([*held, piece[start:end]])
            held, held_samples, start = [], 0, end
            yield block
        if start < len(piece):
            held.append(piece[start:])
            held_samples += len(piece) - start
    if held_samples:
        yield np.concatenate(held)
