"""A transcription under way, as its user sees it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import Partial


class TranscriptionStream(ABC):
    """A transcription under way: an iterator over segments that becomes the whole result.

    Safe for several threads: each that iterates it is given all segments.
    """

    @property
    @abstractmethod
    def duration_estimate(self) -> float | None:
        """Seconds of audio the recording's header announces; None if it does not."""

    @property
    @abstractmethod
    def seconds_read(self) -> float:
        """Seconds of audio read so far; may be read by any thread."""

    @property
    @abstractmethod
    def seconds_done(self) -> float:
        """Seconds of audio that the work so far amounts to; may be read by any thread."""

    @property
    @abstractmethod
    def is_partial(self) -> bool:
        """Whether the result is not of the whole recording: `stop` came before its end."""

    @property
    @abstractmethod
    def times(self) -> StageTimes:
        """Where the time went, so far."""

    @abstractmethod
    def __iter__(self) -> Iterator[Segment]:
        """Segments from the first on; what has been decoded already is not decoded again."""

    @abstractmethod
    def updates(self) -> Iterator[Partial | Segment]:
        """The text as it comes: partial texts after each decoding step, and finished segments.

        Decoding runs in a thread of its own, at most the windows of a round ahead. A loop that is
        left early gives the transcription up: the thread ends with its decoding step, or with the
        windows of other recordings that it decodes, which go on, and the recording is closed.
        Segments decoded before it come first.

        Raises:
            UsageError: another loop over its updates is under way.
        """

    @abstractmethod
    def result(self) -> Transcription:
        """The whole transcription; decodes what is left.

        Raises:
            AudioError: the recording turned out to be empty.
        """

    @abstractmethod
    def partial_result(self) -> Transcription:
        """What has been transcribed so far, also of a recording that failed or was given up.

        Decodes nothing, and gives up what is not decoded.
        """

    @abstractmethod
    def stop(self) -> None:
        """Begin no further window: the stream ends behind those that are begun.

        May be called by a signal handler, or by another thread. See `is_partial`.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what has not been decoded, and close the recording.

        Its windows leave their batches at the next decoding step. Called back while they are
        decoded, the recording is closed after that step.
        """

    @property
    def text(self) -> str:
        """The whole text."""
        return self.result().text

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments."""
        return self.result().segments

    @property
    def language(self) -> str:
        """The language's code, as detected or as asked for."""
        return self.result().language

    @property
    def duration(self) -> float:
        """Seconds of audio, known at its end."""
        return self.result().duration
