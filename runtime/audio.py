"""Recordings of any kind to what Whisper hears: float32, one channel, 16 kHz, as a stream.

Memory stays flat however long the recording is: it is decoded, mixed down and resampled chunk by
chunk. `load_audio` is the concatenation of the stream, bit for bit.
"""

import io
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import AudioError
from whisper_npu.runtime.audio_decoders import open_decoder
from whisper_npu.runtime.audio_paths import open_path, spool
from whisper_npu.runtime.audio_source import (
    CHUNK_FRAMES,
    HIGHEST_RATE,
    LOWEST_RATE,
    Decoder,
    RefusedError,
    Samples,
)

SAMPLE_RATE = 16_000  # Hz; what every Whisper model was trained on
BLOCK_SAMPLES = 30 * SAMPLE_RATE

AudioSource: TypeAlias = str | Path | BinaryIO | npt.NDArray[Any]

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

# Beyond this a float sample is garbage (a file of ±1 or even ±32768 stays far below), and its
# square would soon overflow float32 in the spectrogram.
_LARGEST_SAMPLE = 1e9


class AudioStream:
    """A recording as successive blocks of float32 samples `(n,)`, mono, 16 kHz, in [-1, 1].

    An iterator that goes through the recording once, and a context manager that closes it. Every
    block has `block_samples` samples except the last, which may be shorter and is never empty.

    Attributes:
        name: What messages call the recording.
        duration_estimate: Seconds its header announces; None where it does not say. The truth
            is `samples_read / SAMPLE_RATE` at the end.
        samples_read: Samples handed out so far, at 16 kHz.
        warnings: One line for everything missing or replaced so far; complete at the end.
    """

    def __init__(
        self,
        decoder: Decoder,
        name: str,
        block_samples: int,
        warnings: list[str],
        owned_file: BinaryIO | None = None,
    ) -> None:
        self.name = name
        self.duration_estimate = decoder.duration
        self.samples_read = 0
        self.warnings = warnings
        self._decoder = decoder
        self._owned_file = owned_file
        self._blocks = _cut(self._samples(), block_samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        """Decode the next block.

        Raises:
            AudioError: The recording turned out to hold no sample at all, or the disk or network
                it is on fails.
            StopIteration: The end is reached.
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
        """Mono 16 kHz samples in pieces of any size."""
        cleaner = _Cleaner()
        resampler: _Resampler | None = None
        frames = produced = 0
        for rate, chunk in self._decoder.chunks():
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise AudioError(f"{self.name}: a sample rate of {rate} Hz; the header is broken")
            mono = _mix_down(cleaner.clean(chunk, frames, rate))
            frames += len(mono)
            if resampler is not None and resampler.rate != rate:
                # Chained Ogg files and broadcast streams may change their rate on the way.
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
        self.warnings.extend(cleaner.warnings())
        if frames == 0:
            raise AudioError(f"{self.name}: no audio samples in it; record or copy it again")
        if produced == 0:
            # One or two samples at 48 kHz round to none at 16 kHz; a recording is never empty.
            yield np.zeros(1, np.float32)


def open_audio(source: AudioSource, *, block_samples: int = BLOCK_SAMPLES) -> AudioStream:
    """Open a recording as a stream of float32 blocks, mono, 16 kHz.

    Args:
        source: A path; an open binary file, seekable or not (a pipe is first copied to a temporary
            file; the caller's file stays open); or an array that already is mono at 16 kHz,
            `(n_samples,)`, of floats in [-1, 1] or int16.
        block_samples: Samples per block; the samples themselves do not depend on it.

    Raises:
        AudioError: The source is missing, unreadable, not audio, or an array of another kind.
        ValueError: `block_samples` is not positive.
    """
    if block_samples < 1:
        raise ValueError(f"block_samples must be at least 1, not {block_samples}")
    warnings: list[str] = []
    if isinstance(source, np.ndarray):
        return AudioStream(_ArrayDecoder(source), "array", block_samples, warnings)
    if isinstance(source, str | Path):
        name = str(source)
        file = opened = open_path(Path(source), name)
    elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        name = str(getattr(source, "name", "stream"))
        file, opened = source, None
    else:
        raise AudioError(
            f"audio of type {type(source).__name__}; pass a path, a file opened in binary mode or"
            " a numpy array"
        )
    try:
        if not (hasattr(file, "seekable") and file.seekable()):
            spooled = spool(file, name)
            if opened is not None:
                opened.close()
            file = opened = spooled
        decoder = open_decoder(file, name, warnings.append)
    except OSError as error:
        _close(opened)
        raise AudioError(f"{name}: cannot be read: {error.strerror or error}") from error
    except AudioError:
        _close(opened)
        raise
    return AudioStream(decoder, name, block_samples, warnings, opened)


def load_audio(source: AudioSource) -> Samples:
    """Read a whole recording: float32 `(n_samples,)`, mono, 16 kHz, at least one sample.

    Warnings about damaged places are lost here; use `open_audio` to see them.

    Raises:
        AudioError: See `open_audio`; also when the recording holds no samples.
    """
    with open_audio(source) as stream:
        blocks = list(stream)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def list_audio_files(paths: Iterable[str | Path]) -> list[Path]:
    """Expand folders, however deep, to the audio and video files in them, in sorted order.

    Paths that are not folders are kept as they are, whether they exist or not: opening them tells.
    Hidden files and folders inside a folder are left out.

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
            raise AudioError(f"{path}: no audio or video file in this folder")
        files.extend(sorted(found))
    return files


def _close(file: BinaryIO | None) -> None:
    if file is not None:
        file.close()


class _ArrayDecoder:
    """Samples that already are mono at 16 kHz."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        if array.ndim != 1:
            raise AudioError(
                f"audio array of shape {array.shape}; pass one channel of shape (n_samples,)"
            )
        if array.dtype.kind != "f" and array.dtype != np.int16:
            raise AudioError(f"audio array of dtype {array.dtype}; pass floats in [-1, 1] or int16")
        self._array = array
        self.duration: float | None = len(array) / SAMPLE_RATE

    def chunks(self) -> Iterator[tuple[int, Samples]]:
        for start in range(0, len(self._array), CHUNK_FRAMES):
            chunk = self._array[start : start + CHUNK_FRAMES, np.newaxis]
            if chunk.dtype == np.int16:
                yield SAMPLE_RATE, chunk.astype(np.float32) / np.float32(32_768)
            else:
                with np.errstate(over="ignore"):  # to Inf, which is replaced and told
                    narrow = chunk.astype(np.float32)
                yield SAMPLE_RATE, narrow

    def close(self) -> None:
        pass


class _Cleaner:
    """Replaces samples that are no numbers by silence, and counts them.

    One NaN would spread over its whole 30 s window through the spectrogram's maximum. Zero is the
    neutral choice: any other value is a click, and dropping the sample shifts all that follows.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first = 0.0

    def clean(self, chunk: Samples, frames_before: int, rate: int) -> Samples:
        # A comparison with NaN is false, so this one test finds NaN, Inf and garbage.
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


def _mix_down(chunk: Samples) -> Samples:
    """Mean of all channels, `(frames, channels)` to `(frames,)`."""
    if chunk.shape[1] == 1:
        return chunk[:, 0]
    mono: Samples = chunk.mean(axis=1, dtype=np.float32)
    return mono


class _Resampler:
    """One channel from `rate` to 16 kHz; the result does not depend on how the input is cut."""

    def __init__(self, rate: int) -> None:
        # Here and not above: many recordings of speech already are at 16 kHz.
        import soxr  # noqa: PLC0415

        self.rate = rate
        self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def push(self, samples: Samples, *, last: bool = False) -> Samples:
        resampled: Samples = self._stream.resample_chunk(np.ascontiguousarray(samples), last=last)
        return resampled


def _cut(pieces: Iterable[Samples], size: int) -> Generator[Samples, None, None]:
    """Cut a sequence of pieces anew into blocks of `size` samples; the last may be shorter."""
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
