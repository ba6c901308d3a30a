"""What a strategy is, and which one a recording gets: batched or sequential."""

from typing import Protocol

from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.transcription.batched import BatchedStrategy
from whisper_npu.runtime.transcription.sequential import SequentialStrategy
from whisper_npu.runtime.transcription.session import TranscriptionSession
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult


class Strategy(Protocol):
    """How the windows of a recording follow one another."""

    def next_window(self) -> WindowRequest | None:
        """The next window to be decoded; it waits for no other.

        None: no window can be planned now. If none is being decoded either, the recording has
        ended.
        """
        ...

    def prefetch(self, room: int) -> list[WindowRequest]:
        """Windows that wait for others, at most `room`: they are encoded meanwhile."""
        ...

    def accept(self, result: WindowResult) -> list[Segment]:
        """The segments that are complete, now that the next of the planned windows is decoded."""
        ...


def choose_strategy(session: TranscriptionSession) -> Strategy:
    """Return the strategy of the mode that was requested; may read a window of the recording."""
    options = session.options
    if options.mode == "batched":
        return BatchedStrategy(session, pad_to_full=True)
    if is_sequential(options):
        return SequentialStrategy(session)
    longer = session.features.available(0, session.window_frames + 1) > session.window_frames
    # Of one window, sequential decoding gives PyTorch's tokens.
    if not longer and (session.backend.is_exact or options.without_timestamps):
        return SequentialStrategy(session)
    return BatchedStrategy(session, pad_to_full=longer)


def is_sequential(options: TranscribeOptions) -> bool:
    """Whether each window of a recording waits for the one before it, whatever its length."""
    return options.mode == "sequential" or not (options.vad or options.without_timestamps)
