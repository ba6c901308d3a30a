"""Measures the errors and the speed of one configuration over many recordings."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from whisper_npu.errors import AudioError
from whisper_npu.export.references import Reference
from whisper_npu.runtime.audio.stream import SAMPLE_RATE, open_audio
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.scripts.evaluation import wer

_WARM_UP_SAMPLES = 45 * SAMPLE_RATE  # longer than a window, to warm up batches as well


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of one recording.

    Attributes:
        reference: The recording and its reference text.
        text: The decoded text.
        language: Code of the language, given or detected.
        audio_seconds: Length of the recording.
        seconds: Work for the recording, reading included, with its share of shared batches. With
            several streams this is more than the elapsed time.
        warnings: Warnings of the transcription.
    """

    reference: Reference
    text: str
    language: str
    audio_seconds: float
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that could not be transcribed, and the reason."""

    reference: Reference
    error: str


@dataclass(frozen=True)
class Run:
    """All recordings transcribed in one configuration.

    Attributes:
        settings: The settings that really ran: model, device, kv_cache, precision, decode mode.
        options: The options of the transcriptions.
        transcripts: In the order of the references.
        failures: Recordings that could not be transcribed.
        seconds: Time from the first file to the last text.
    """

    settings: dict[str, str]
    options: TranscribeOptions
    transcripts: tuple[Transcript, ...]
    failures: tuple[Failure, ...]
    seconds: float

    def main_language(self) -> str:
        """The language of most recordings."""
        languages = Counter(transcript.language for transcript in self.transcripts)
        return languages.most_common(1)[0][0]


def transcribe_all(
    model: WhisperModel,
    options: TranscribeOptions,
    settings: dict[str, str],
    references: Sequence[Reference],
    on_result: Callable[[Transcript | Failure], None],
) -> Run:
    """Transcribe every recording, with windows of several decoded together, and measure the time.

    Args:
        model: A loaded model; times do not include loading.
        options: The options of the transcription.
        settings: See `Run`.
        references: The recordings to transcribe.
        on_result: Called after each recording.

    Raises:
        UsageError: An option does not fit the model.
        DeviceError: The device failed.
    """
    options = model.resolve(options)
    _warm_up(model, options, references)
    transcripts: list[Transcript] = []
    failures: list[Failure] = []
    streams = model.transcribe_all((reference.audio for reference in references), options)
    start = time.perf_counter()
    for reference, stream in zip(references, streams, strict=True):
        try:
            if isinstance(stream, AudioError):
                raise stream
            result = stream.result()
        except AudioError as error:
            failures.append(Failure(reference, str(error)))
            on_result(failures[-1])
            continue
        # Recordings are decoded together, so most texts come at once, and the time between two
        # texts has no meaning.
        seconds = sum(stream.times.seconds.values())
        transcripts.append(
            Transcript(
                reference, result.text, result.language, result.duration, seconds, result.warnings
            )
        )
        on_result(transcripts[-1])
    elapsed = time.perf_counter() - start
    return Run(settings, options, tuple(transcripts), tuple(failures), elapsed)


def _warm_up(
    model: WhisperModel, options: TranscribeOptions, references: Sequence[Reference]
) -> None:
    """Transcribe the start of the first readable recording, because first runs are slower."""
    for reference in references:
        try:
            with open_audio(reference.audio, block_samples=_WARM_UP_SAMPLES) as audio:
                block = next(iter(audio))
        except AudioError:
            continue  # reported later, when it is transcribed
        model.transcribe(block, options).result()
        return


@dataclass(frozen=True)
class Evaluation:
    """A run measured against its references."""

    run: Run
    metric: wer.Metric
    comparisons: tuple[wer.Comparison, ...]

    def _counts(self) -> list[wer.Edits]:
        return [comparison.edits for comparison in self.comparisons]

    @cached_property
    def edits(self) -> wer.Edits:
        """The edits of all recordings together."""
        return wer.total(self._counts())

    @property
    def rate(self) -> float | None:
        """The corpus error rate in percent; None if the references have no words."""
        return self.edits.rate

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the corpus error rate, in percent."""
        return wer.bootstrap_interval(self._counts())

    def difference(self, baseline: "Evaluation") -> tuple[float, float] | None:
        """The interval of its rate minus that of `baseline`; None if their recordings differ."""
        if self._references() != baseline._references():
            return None
        return wer.bootstrap_difference(self._counts(), baseline._counts())

    def _references(self) -> list[Reference]:
        return [transcript.reference for transcript in self.run.transcripts]

    @property
    def empty(self) -> int:
        """Number of outputs without words for references with words."""
        return sum(comparison.empty for comparison in self.comparisons)

    @property
    def truncated(self) -> int:
        """Number of outputs that lack a part of their reference."""
        return sum(comparison.truncated for comparison in self.comparisons)

    @property
    def audio_seconds(self) -> float:
        """Length of all recordings transcribed."""
        return sum(transcript.audio_seconds for transcript in self.run.transcripts)

    @property
    def seconds(self) -> float:
        """Seconds of transcribing them."""
        return self.run.seconds

    @property
    def rtf(self) -> float:
        """Seconds of processing per second of audio."""
        return self.seconds / self.audio_seconds

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of processing."""
        return self.audio_seconds / self.seconds

    def worst(self, n: int) -> list[tuple[Transcript, wer.Comparison]]:
        """The `n` recordings with the highest error rates; insertions into silence count most."""
        pairs = zip(self.run.transcripts, self.comparisons, strict=True)
        wrong = [pair for pair in pairs if pair[1].edits.errors]
        return sorted(wrong, key=_badness, reverse=True)[:n]


def _badness(pair: tuple[Transcript, wer.Comparison]) -> tuple[float, int]:
    edits = pair[1].edits
    return (float("inf") if edits.rate is None else edits.rate, edits.errors)


def evaluate(run: Run, metric: wer.Metric) -> Evaluation:
    """Compare the run's transcripts with their references."""
    comparisons = tuple(
        wer.compare(transcript.reference.text, transcript.text, metric)
        for transcript in run.transcripts
    )
    return Evaluation(run, metric, comparisons)
