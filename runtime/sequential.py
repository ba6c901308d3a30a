"""One window after the other: each begins where the timestamps of the last one end.

Radford et al. 2022, section 4.5, "Strategies for Reliable Long-form Transcription", as
openai/whisper's `transcribe.py` carries it out.
"""

from collections.abc import Iterator

from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.job import Job
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.segments import split_at_timestamps

# A window that needed a temperature above this is no good context for the next.
_CONTEXT_TEMPERATURE = 0.5


def transcribe_sequentially(job: Job) -> Iterator[Segment]:
    """Segments of the recording, in order."""
    options, tokenizer = job.options, job.tokenizer
    context = list(job.prompts.initial)
    context_from = 0
    seek = 0
    while window := job.next_window(seek, cut_at_pause=False):
        heard = job.hear([window], context[context_from:])[0]
        decoded = heard.outcome.decoded
        if heard.outcome.is_silence:
            job.skip(heard)
            seek = window.end
            continue
        parts, advance = split_at_timestamps(
            decoded.tokens, tokenizer.special.timestamp_begin, window.n_frames
        )
        seek = window.start + advance
        job.coverage.add(window.offset, seek / FRAMES_PER_SECOND, "transcribed")
        for segment in job.segments(heard, parts):
            context.extend(segment.tokens)
            yield segment
        poor_context = decoded.temperature > _CONTEXT_TEMPERATURE
        if not options.condition_on_previous_text or poor_context:
            context_from = len(context)
        job.features.forget(seek)
