"""The protocol of strategies, and the choice for a recording: batched or sequential."""

from typing import Protocol

from whisper_npu.errors import UsageError
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.transcription.batched import BatchedStrategy, has_context
from whisper_npu.runtime.transcription.sequential import SequentialStrategy
from whisper_npu.runtime.transcription.session import TranscriptionSession
from whisper_npu.runtime.transcription.window_decoding import WindowRequest, WindowResult


class Strategy(Protocol):
    """Plans the windows of a recording, and turns their results into segments."""

    def next_window(self) -> WindowRequest | None:
        """The next window to be decoded; it waits for no other window.

        None: no window can be planned now. If no window is being decoded either, the recording has
        ended.
        """
        ...

    def prefetch(self, room: int) -> list[WindowRequest]:
        """At most `room` windows that wait for others; they are encoded meanwhile."""
        ...

    def accept(self, result: WindowResult) -> list[Segment]:
        """Take the result of the next planned window; returns the segments that are complete."""
        ...


def choose_strategy(session: TranscriptionSession) -> Strategy:
    """Return the strategy for the requested mode; may read a window of the recording.

    Raises:
        UsageError: the recording cannot be decoded in parts.
    """
    options = session.options
    if options.part is not None and has_context(session):
        raise UsageError(
            "a part is decoded without the text before it, which f32 gives: "
            "write condition_on_previous_text=False"
        )
    if options.mode == "batched":
        return BatchedStrategy(session, pad_to_full=True)
    if is_sequential(options):
        return SequentialStrategy(session)
    longer = session.features.available(0, session.window_frames + 1) > session.window_frames
    # For a single window, sequential decoding gives PyTorch's tokens.
    if (
        not longer
        and options.part is None
        and (session.backend.is_exact or options.without_timestamps)
    ):
        return SequentialStrategy(session)
    return BatchedStrategy(session, pad_to_full=longer)


def is_sequential(options: TranscribeOptions) -> bool:
    """Whether each window of a recording of any length waits for the window before it."""
    return options.mode == "sequential" or not (options.vad or options.without_timestamps)
