"""Many windows at once: cut at pauses, encoded and decoded together.

Each window is judged on its own, as in sequential decoding. A window whose text ends early, with
speech behind its last timestamp, is continued from there, so that no word is lost.
"""

from collections.abc import Iterator

from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.job import Job
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.segments import split_at_timestamps
from whisper_npu.runtime.speech_windows import Window
from whisper_npu.runtime.word_timing import last_word_end

_UNHEARD = 1.0  # seconds of speech behind the last timestamp that are worth another window


def transcribe_in_batches(job: Job) -> Iterator[Segment]:
    """Segments of the recording, in order."""
    seek = 0
    while True:
        windows: list[Window] = []
        # A prefix belongs to the first window alone, and the rows of a batch share their prompt.
        batch_size = 1 if job.prompts.has_prefix else job.options.batch_size
        while len(windows) < batch_size:
            window = job.next_window(seek, cut_at_pause=True)
            if window is None:
                break
            windows.append(window)
            seek = window.end
        if not windows:
            return
        yield from _transcribe_batch(job, windows)
        job.features.forget(seek)


def _transcribe_batch(job: Job, windows: list[Window]) -> list[Segment]:
    """Segments of some windows and of their unheard rests, in order."""
    segments: list[list[Segment]] = [[] for _ in windows]
    unheard = dict(enumerate(windows))
    while unheard:
        batch = list(unheard.values())
        rests = {}
        for place, heard in zip(unheard, job.hear(batch, job.prompts.initial), strict=True):
            window = heard.window
            if heard.outcome.is_silence:
                job.skip(heard)
                continue
            parts, _ = split_at_timestamps(
                heard.outcome.decoded.tokens,
                job.tokenizer.special.timestamp_begin,
                window.n_frames,
                keep_open_end=True,
            )
            last_speech_end = last_word_end(segments[place]) or 0.0
            text = job.write(heard, parts, last_speech_end)
            segments[place] += text.segments
            rest = _rest(job, window, parts[-1].end)
            done = window.end if rest is None else rest.start
            job.account(window.offset, done / FRAMES_PER_SECOND, text.made_up)
            if rest is not None:
                rests[place] = rest
        unheard = rests
    return [segment for of_window in segments for segment in of_window]


def _rest(job: Job, window: Window, text_end: float) -> Window | None:
    """What is left of a window behind the end of its text, if there is speech in it.

    Args:
        job: knows where speech is.
        window: what was decoded.
        text_end: seconds into the window at which its last segment ends.
    """
    rest = Window(window.start + round(text_end * FRAMES_PER_SECOND), window.end)
    advanced = (rest.start - window.start) / FRAMES_PER_SECOND
    if advanced < _UNHEARD or rest.n_frames < _UNHEARD * FRAMES_PER_SECOND:
        return None
    unheard = job.windows.speech_seconds(rest.offset, rest.end_time)
    return rest if unheard >= _UNHEARD else None
