"""One window after the other: each begins where the timestamps of the last one end.

Radford et al. 2022, section 4.5, "Strategies for Reliable Long-form Transcription", as
openai/whisper's `transcribe.py` carries it out.
"""

from collections.abc import Iterator

from whisper_npu.runtime.features import FRAMES_PER_SECOND
from whisper_npu.runtime.job import Job
from whisper_npu.runtime.results import Segment
from whisper_npu.runtime.segments import split_at_timestamps
from whisper_npu.runtime.word_timing import last_word_end

# A window that needed a temperature above this is no good context for the next.
_CONTEXT_TEMPERATURE = 0.5


def transcribe_sequentially(job: Job) -> Iterator[Segment]:
    """Segments of the recording, in order."""
    options, timestamp_begin = job.options, job.tokenizer.special.timestamp_begin
    context = list(job.prompts.initial)
    context_from = 0
    last_speech_end = 0.0
    seek = 0
    while window := job.next_window(seek, cut_at_pause=False):
        heard = job.hear([window], context[context_from:])[0]
        decoded = heard.outcome.decoded
        if heard.outcome.is_silence:
            job.skip(heard)
            seek = window.end
            continue
        parts, advance = split_at_timestamps(decoded.tokens, timestamp_begin, window.n_frames)
        text = job.write(heard, parts, last_speech_end)
        # The reference seeks to the end of the last word where it has one. Here the text does not
        # depend on whether words are timed: they end a little early, and would be heard twice.
        seek = window.start + advance
        last_speech_end = last_word_end(text.segments) or last_speech_end
        job.account(window.offset, seek / FRAMES_PER_SECOND, text.made_up)
        for segment in text.segments:
            context.extend(segment.tokens)
            yield segment
        if not options.condition_on_previous_text or decoded.temperature > _CONTEXT_TEMPERATURE:
            context_from = len(context)
        job.features.forget(seek)
