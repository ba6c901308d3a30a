"""A transcription under way, as its user sees it."""

import dis
import sys
from abc import abstractmethod
from collections.abc import Iterator
from types import FrameType

from whisper_npu.errors import UsageError
from whisper_npu.runtime.closing import Closing
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import Partial


class TranscriptionStream(Closing):
    """A transcription under way: an iterator over segments that becomes the whole result.

    Safe for several threads: each that iterates it is given all segments. As a context manager it
    is closed at the end of the block; a result that is complete by then stays.
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

    def __iter__(self) -> Iterator[Segment]:
        """Segments from the first on; what has been decoded already is not decoded again.

        Raises:
            UsageError: the stream was closed before its end, or is unpacked into two names.
        """
        if _unpacks_two(sys._getframe(1)):
            raise UsageError(
                "transcribe returns one stream, not (segments, info): write "
                "stream = model.transcribe(...), iterate the stream for its segments, and take "
                "stream.language and stream.duration from it"
            )
        return self._iterate()

    @abstractmethod
    def _iterate(self) -> Iterator[Segment]:
        """See `__iter__`."""

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
        """Give up what has not been decoded, and close the recording; a second call does nothing.

        Segments decoded before stay; asking for more raises a `UsageError`. Its windows leave their
        batches at the next decoding step. Called back while they are decoded, it is closed after
        that step.
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


def _unpacks_two(caller: FrameType) -> bool:
    """Whether a frame is at `first, second = ...`, the habit of faster-whisper's users.

    Two segments would land in the names without an error. Python tells an iterable nothing of who
    iterates it; the instruction that the frame is at does. A Python whose instructions are called
    otherwise is never taken to unpack.
    """
    code, place = caller.f_code.co_code, caller.f_lasti
    return dis.opname[code[place]] == "UNPACK_SEQUENCE" and code[place + 1] == 2
