"""Reduces several channels to one: mixes them without cancellation, or picks one."""

import numpy as np

from whisper_npu.runtime.audio.source import Samples
from whisper_npu.runtime.audio_choices import LEFT, MIX, RIGHT, SPLIT, require_channels

# Channels cancel when the energy of their mixture is below this ratio. Unrelated channels give 1,
# equal channels their number. Reversed wires leave only the noise of the line, far below 0.2.
_CANCELLED = 0.2
_FAINTEST = 1e-10  # mean square of full scale; 100 dB below full scale nothing can cancel


def channel_names(n_channels: int) -> tuple[str, ...]:
    """Return the names of a recording's channels."""
    if n_channels == 2:
        return (LEFT, RIGHT)
    return tuple(f"channel {number}" for number in range(1, n_channels + 1))


def picked_channels(choice: str, n_channels: int) -> list[int | None]:
    """Return the channel of each stream that is transcribed; None mixes all channels.

    Args:
        choice: One of `CHANNEL_CHOICES`. `left` and `right` are the first and second of several.
        n_channels: The number of channels in the recording.

    Raises:
        UsageError: There is no such choice.
        LookupError: The recording has no such channel.
    """
    if choice == MIX:
        return [None]
    if choice == SPLIT:
        return [*range(n_channels)] if n_channels > 1 else [None]
    wanted = (LEFT, RIGHT).index(require_channels(choice))
    if n_channels < 2:
        raise LookupError(f"one channel only, no {choice} one; leave out --channels")
    return [wanted]


class ChannelPicker:
    """Takes one channel of each chunk.

    Args:
            channel: Its index, from 0.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._missing = 0.0  # seconds

    def __call__(self, chunk: Samples, time: float, rate: int) -> Samples:
        """Return one channel of `(frames, channels)`; silence if the chunk lacks this channel."""
        if self._channel < chunk.shape[1]:
            return chunk[:, self._channel]
        self._missing += len(chunk) / rate
        return np.zeros(len(chunk), np.float32)

    def warnings(self) -> list[str]:
        """Return one line if the channel was missing anywhere."""
        if not self._missing:
            return []
        return [
            f"channel {self._channel + 1} is missing for {self._missing:.1f} s: taken as silence"
        ]


class ChannelMixer:
    """Averages all channels; where they cancel each other, returns the loudest channel instead.

    A plug wired the wrong way inverts one channel of a pair, and so does a balanced line recorded
    as stereo. The mean of such a pair is silence.
    """

    def __init__(self) -> None:
        self._cancelled = 0.0  # seconds
        self._first = 0.0
        self._n_channels = 0

    def __call__(self, chunk: Samples, time: float, rate: int) -> Samples:
        """Mix `(frames, channels)`, which begin at `time` seconds, to `(frames,)`."""
        if chunk.shape[1] == 1:
            return chunk[:, 0]
        mean: Samples = chunk.mean(axis=1, dtype=np.float32)
        # The variance ignores the constant offset of a converter, which may have either sign.
        of_channels = chunk.var(axis=0, dtype=np.float64)
        loudest = int(np.argmax(of_channels))
        alone = float(of_channels.sum()) / chunk.shape[1] ** 2  # the energy of unrelated channels
        if of_channels[loudest] < _FAINTEST or mean.var(dtype=np.float64) >= _CANCELLED * alone:
            return mean
        if not self._cancelled:
            self._first, self._n_channels = time, chunk.shape[1]
        self._cancelled += len(chunk) / rate
        return chunk[:, loudest]

    def warnings(self) -> list[str]:
        """Return one line if channels cancelled each other."""
        if not self._cancelled:
            return []
        names = " and ".join(channel_names(2)) if self._n_channels == 2 else "its channels"
        return [
            f"{names} cancel each other (one is upside down) for {self._cancelled:.1f} s, first at"
            f" {self._first:.1f} s: there the louder one is transcribed alone"
        ]
