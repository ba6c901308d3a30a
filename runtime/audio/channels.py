"""Several channels to one: mixed without cancelling each other, or one of them picked."""

import numpy as np

from whisper_npu.runtime.audio.source import Samples
from whisper_npu.runtime.audio_choices import LEFT, MIX, RIGHT, SPLIT, require_channels

# The energy of a mixture, beside that of as many channels with nothing in common (which is 1, and
# of equal ones their number). One wire the wrong way round leaves the noise of the line, far below.
_CANCELLED = 0.2
_FAINTEST = 1e-10  # mean square, of full scale: 100 dB below it there is nothing to cancel


def channel_names(n_channels: int) -> tuple[str, ...]:
    """What the channels of a recording are called."""
    if n_channels == 2:
        return (LEFT, RIGHT)
    return tuple(f"channel {number}" for number in range(1, n_channels + 1))


def picked_channels(choice: str, n_channels: int) -> list[int | None]:
    """Which channel each of the streams takes that a recording is transcribed as; None mixes.

    Args:
        choice: One of `CHANNEL_CHOICES`. `left` and `right` are the first and second of several.
        n_channels: Those the recording has.

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
        channel: Its place, from 0.
    """

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._missing = 0.0  # seconds

    def __call__(self, chunk: Samples, time: float, rate: int) -> Samples:
        """One channel of `(frames, channels)`; a stretch that lacks it is silent."""
        if self._channel < chunk.shape[1]:
            return chunk[:, self._channel]
        self._missing += len(chunk) / rate
        return np.zeros(len(chunk), np.float32)

    def warnings(self) -> list[str]:
        """One line where the channel was not there all along."""
        if not self._missing:
            return []
        return [
            f"channel {self._channel + 1} is missing for {self._missing:.1f} s: taken as silence"
        ]


class ChannelMixer:
    """The mean of all channels; where they cancel each other, the loudest of them instead.

    One channel of a pair is upside down where a plug is wired the wrong way, or in a balanced line
    that was recorded as stereo: the mean of both is silence.
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
        # Variances: converters add a constant, of either sign.
        of_channels = chunk.var(axis=0, dtype=np.float64)
        loudest = int(np.argmax(of_channels))
        alone = float(of_channels.sum()) / chunk.shape[1] ** 2  # of a mixture of unlike channels
        if of_channels[loudest] < _FAINTEST or mean.var(dtype=np.float64) >= _CANCELLED * alone:
            return mean
        if not self._cancelled:
            self._first, self._n_channels = time, chunk.shape[1]
        self._cancelled += len(chunk) / rate
        return chunk[:, loudest]

    def warnings(self) -> list[str]:
        """One line where channels cancelled each other."""
        if not self._cancelled:
            return []
        names = " and ".join(channel_names(2)) if self._n_channels == 2 else "its channels"
        return [
            f"{names} cancel each other (one is upside down) for {self._cancelled:.1f} s, first at"
            f" {self._first:.1f} s: there the louder one is transcribed alone"
        ]
