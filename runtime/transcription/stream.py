"""The public interface of a transcription under way."""

import dis
import sys
from abc import abstractmethod
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from whisper_npu.errors import UsageError
from whisper_npu.runtime.closing import Closing
from whisper_npu.runtime.results import Segment, Transcription
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.partial import Partial


class TranscriptionStream(Closing):
    """A transcription under way: an iterator over segments that becomes the whole result.

    Safe for several threads: each thread that iterates it gets all segments. As a context manager
    it is closed at the end of the block; a complete result stays.
    """

    @property
    @abstractmethod
    def duration_estimate(self) -> float | None:
        """Seconds of audio according to the recording's header; None if it does not say."""

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
        """Whether the result is only of a part: `stop` was called before the recording's end."""

    @property
    @abstractmethod
    def times(self) -> StageTimes:
        """Where the time went, so far."""

    @property
    @abstractmethod
    def _state(self) -> str:
        """Its state in a word or two, and the model's name."""

    def __repr__(self) -> str:
        """How far it is; decodes nothing."""
        length = self.duration_estimate
        whole = "" if length is None else f" of about {length:.1f} s"
        return f"<TranscriptionStream by {self._state}: {self.seconds_done:.1f} s{whole} done>"

    def __iter__(self) -> Iterator[Segment]:
        """Segments from the first on; nothing is decoded twice.

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

    if not TYPE_CHECKING:  # type checkers know the mistake without it

        def __getitem__(self, key: object) -> NoReturn:
            """Refuse `stream["text"]`, which is openai/whisper's way.

            Raises:
                UsageError: always; it says what to write.
            """
            raise UsageError(
                "transcribe returns a stream, not a dict or a list: write stream.text, "
                "stream.segments or stream.language; stream.result().to_dict() is the dict of "
                "openai/whisper"
            )

    @abstractmethod
    def _iterate(self) -> Iterator[Segment]:
        """See `__iter__`."""

    @abstractmethod
    def updates(self) -> Iterator[Partial | Segment]:
        """The text during decoding: partial texts after each decoding step, and finished segments.

        Decoding runs in its own thread, at most one round of windows ahead. Leaving the loop early
        closes the transcription: the thread ends after its decoding step, or after the windows of
        other recordings that it decodes. Segments that were decoded before come first.

        Raises:
            UsageError: another loop over its updates is under way.
        """

    @abstractmethod
    def result(self) -> Transcription:
        """The whole transcription; decodes the rest.

        Raises:
            AudioError: the recording turned out to be empty.
        """

    @abstractmethod
    def partial_result(self) -> Transcription:
        """The result so far, also of a recording that failed or was closed.

        It decodes nothing, and closes the transcription.
        """

    @abstractmethod
    def stop(self) -> None:
        """Plan no further window: the stream ends after the planned windows.

        A signal handler or another thread may call it. See `is_partial`.
        """

    @abstractmethod
    def close(self) -> None:
        """Cancel the windows that are not decoded, and close the recording.

        Decoded segments stay; asking for more raises a `UsageError`. Cancelled windows leave their
        batches at the next decoding step. If a callback from decoding calls it, the recording is
        closed after that step. A second call does nothing.
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
        """The language's code, detected or requested."""
        return self.result().language

    @property
    def duration(self) -> float:
        """Seconds of audio, known at the end of the recording."""
        return self.result().duration


def _unpacks_two(caller: FrameType) -> bool:
    """Whether a frame is at `first, second = ...`, the habit of faster-whisper's users.

    Without this check, two segments would land in the names without an error. Python does not tell
    an iterable how it is used, but the frame's current instruction does. In a Python with other
    instruction names, the answer is always False.
    """
    code, place = caller.f_code.co_code, caller.f_lasti
    return dis.opname[code[place]] == "UNPACK_SEQUENCE" and code[place + 1] == 2
