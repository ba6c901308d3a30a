"""Turns transcriptions into answers: every response format, headers, and events of a stream."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.responses import Response

from whisper_npu import LANGUAGES, Segment, Transcription, WhisperModel, format_transcript
from whisper_npu.server import schemas
from whisper_npu.server.errors import ApiError
from whisper_npu.server.fields import Wanted
from whisper_npu.server.transcribing import Finished, Progress

_PREFIX = "x-whisper-npu-"
_POSITIONS_PER_SECOND = 50  # of the encoder
_CONTENT_TYPES = {
    "text": "text/plain",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}
_LEAST_PROBABILITY = 1e-10
STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy passes each event on at once
}
LAST_EVENT = b"data: [DONE]\n\n"


def answer(finished: Finished, wanted: Wanted, seconds: Mapping[str, float]) -> Response:
    """The answer to a request without a stream.

    Args:
        finished: the transcription.
        wanted: the request.
        seconds: seconds of upload and wait.
    """
    result = finished.result
    headers = {**model_headers(result), **_result_headers(result)}
    chosen = wanted.response_format
    if chosen == "json":
        return _json(transcript(finished, wanted, seconds), headers)
    if chosen == "verbose_json":
        return _json(verbose_transcript(finished, wanted, seconds), headers)
    text = result.text + "\n" if chosen == "text" else format_transcript(result, chosen)
    content_type = f"{_CONTENT_TYPES[chosen]}; charset=utf-8"
    return Response(text, headers={**headers, "Content-Type": content_type})


def transcript(
    finished: Finished, wanted: Wanted, seconds: Mapping[str, float]
) -> schemas.Transcript:
    """The answer in the format json."""
    result = finished.result
    return schemas.Transcript(
        text=result.text,
        languages=_languages(result),
        logprobs=_logprobs(result.segments) if wanted.has_logprobs else None,
        usage=schemas.Usage(seconds=result.duration),
        whisper_npu=_details(finished, seconds),
    )


def verbose_transcript(
    finished: Finished, wanted: Wanted, seconds: Mapping[str, float]
) -> schemas.VerboseTranscript:
    """The answer in the format verbose_json."""
    result = finished.result
    return schemas.VerboseTranscript(
        task=wanted.task,
        language=_language_name(result, wanted),
        duration=result.duration,
        text=result.text,
        segments=list(map(_segment, result.segments)) if wanted.has_segments else None,
        words=_words(result.segments) if wanted.has_words else None,
        logprobs=_logprobs(result.segments) if wanted.has_logprobs else None,
        usage=schemas.Usage(seconds=result.duration),
        whisper_npu=_details(finished, seconds),
    )


@dataclass
class EventWriter:
    """Writes the events of a stream. The deltas, joined, are the whole text.

    Attributes:
        wanted: the request.
    """

    wanted: Wanted
    _held: str = field(default="", init=False)  # white space that may be the end of the text
    _has_begun: bool = field(default=False, init=False)

    def delta(self, segment: Segment) -> bytes:
        """A segment as an event; nothing if it has no text."""
        text = self._held + segment.text
        if not self._has_begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        if not kept:
            return b""
        self._has_begun = True
        wanted = self.wanted
        details = None
        if wanted.response_format == "verbose_json":
            words = _words([segment]) if wanted.has_words else None
            details = schemas.SegmentDetails(segment=_segment(segment), words=words)
        logprobs = _logprobs([segment]) if wanted.has_logprobs else None
        return _event(schemas.TextDelta(delta=kept, logprobs=logprobs, whisper_npu=details))

    def progress(self, progress: Progress) -> bytes:
        """A comment with the progress, which also keeps the connection open; clients skip it."""
        duration = "null" if progress.duration is None else f"{progress.duration:.2f}"
        done = f"{progress.seconds_done:.2f}"
        return f': {{"seconds_done": {done}, "duration": {duration}}}\n\n'.encode()

    def done(self, finished: Finished, seconds: Mapping[str, float]) -> bytes:
        """The last event with text."""
        result, wanted = finished.result, self.wanted
        n_input = math.ceil(result.duration * _POSITIONS_PER_SECOND)
        n_output = sum(len(segment.tokens) for segment in result.segments)
        event = schemas.TextDone(
            text=result.text,
            languages=_languages(result),
            usage=schemas.TokenUsage(
                input_tokens=n_input, output_tokens=n_output, total_tokens=n_input + n_output
            ),
            logprobs=_logprobs(result.segments) if wanted.has_logprobs else None,
            whisper_npu=_details(finished, seconds),
        )
        if wanted.response_format == "verbose_json":
            verbose = verbose_transcript(finished, wanted, seconds)
            event.task, event.language = verbose.task, verbose.language
            event.duration, event.segments = verbose.duration, verbose.segments
            event.words = verbose.words
        return _event(event)


def model_headers(ran: Transcription | WhisperModel) -> dict[str, str]:
    """Headers that say what computes."""
    by = ran.backend if isinstance(ran, WhisperModel) else ran
    return {f"{_PREFIX}device": by.device, f"{_PREFIX}precision": by.precision}


def _result_headers(result: Transcription) -> dict[str, str]:
    seconds = result.coverage.seconds()
    coverage = ";".join(f"{fate}={total:.2f}" for fate, total in seconds.items())
    return {
        f"{_PREFIX}coverage": coverage,
        f"{_PREFIX}warnings": str(len(result.warnings)),
    }


def _json(body: BaseModel, headers: Mapping[str, str]) -> Response:
    content = body.model_dump_json(exclude_none=True)
    return Response(content, headers=headers, media_type="application/json")


def _event(body: BaseModel) -> bytes:
    return f"data: {body.model_dump_json(exclude_none=True)}\n\n".encode()


def _details(finished: Finished, seconds: Mapping[str, float]) -> schemas.Details:
    result = finished.result
    return schemas.Details(
        model=result.model,
        device=result.device,
        precision=result.precision,
        kv_cache=result.kv_cache,
        coverage=result.coverage.to_dict(),
        warnings=list(result.warnings),
        seconds={name: round(each, 4) for name, each in {**seconds, **finished.stages}.items()},
    )


def _languages(result: Transcription) -> list[schemas.Language]:
    spoken = [segment.language for segment in result.segments if segment.language]
    codes = dict.fromkeys(spoken) or {result.language: None}
    return [schemas.Language(code=code) for code in codes]


def _language_name(result: Transcription, wanted: Wanted) -> str:
    """The language of the text, as OpenAI's API names it."""
    code = "en" if wanted.task == "translate" else result.language
    return LANGUAGES.get(code, code)


def _segment(segment: Segment) -> schemas.Segment:
    fields = segment.to_dict()
    return schemas.Segment(**{name: fields[name] for name in schemas.Segment.model_fields})


def _words(segments: Iterable[Segment]) -> list[schemas.Word]:
    return [
        schemas.Word(word=word.word.strip(), start=word.start, end=word.end)
        for segment in segments
        for word in segment.words or ()
    ]


def _logprobs(segments: Iterable[Segment]) -> list[schemas.Logprob]:
    return list(_each_logprob(segments))


def _each_logprob(segments: Iterable[Segment]) -> Iterator[schemas.Logprob]:
    for segment in segments:
        for word in segment.words or ():
            yield schemas.Logprob(
                token=word.word,
                bytes=list(word.word.encode()),
                logprob=math.log(max(word.probability, _LEAST_PROBABILITY)),
            )


def error_event(error: ApiError) -> bytes:
    """An error as the last event of a stream."""
    return f"data: {json.dumps(error.body())}\n\n".encode()
