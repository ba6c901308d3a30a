"""One configuration of a model over many recordings: what it heard, how wrong, how fast."""

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

_WARM_UP_SAMPLES = 45 * SAMPLE_RATE  # longer than a window: decoding them together is warm too


@dataclass(frozen=True, slots=True)
class Transcript:
    """What came out for one recording.

    Attributes:
        reference: The recording and its words.
        text: The words that came out.
        language: Code of the language, given or detected.
        audio_seconds: Length of the recording.
        seconds: Work that it took, reading included; of what was decoded together, its share. With
            several streams at work that is more than the time that went by.
        warnings: What the transcription warned of.
    """

    reference: Reference
    text: str
    language: str
    audio_seconds: float
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A recording that could not be transcribed, and why."""

    reference: Reference
    error: str


@dataclass(frozen=True)
class Run:
    """All recordings transcribed in one configuration.

    Attributes:
        settings: What really ran: model, device, kv_cache, precision, and the decode mode.
        options: The options of the transcriptions.
        transcripts: In the order of the references.
        failures: Recordings that are not among them.
        seconds: Time from the first file to the last text.
    """

    settings: dict[str, str]
    options: TranscribeOptions
    transcripts: tuple[Transcript, ...]
    failures: tuple[Failure, ...]
    seconds: float

    def main_language(self) -> str:
        """The language most recordings are in."""
        languages = Counter(transcript.language for transcript in self.transcripts)
        return languages.most_common(1)[0][0]


def transcribe_all(
    model: WhisperModel,
    options: TranscribeOptions,
    settings: dict[str, str],
    references: Sequence[Reference],
    on_result: Callable[[Transcript | Failure], None],
) -> Run:
    """Transcribe every recording, windows of several of them decoded together, and time it.

    Args:
        model: A loaded model; loading is not in the times.
        options: How to transcribe.
        settings: See `Run`.
        references: What to transcribe.
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
        # Recordings are decoded together: most texts come at once, and the time between two of them
        # says nothing.
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
    """Transcribe the start of the first recording that can be read: first runs are slower."""
    for reference in references:
        try:
            with open_audio(reference.audio, block_samples=_WARM_UP_SAMPLES) as audio:
                block = next(iter(audio))
        except AudioError:
            continue  # told when its turn comes
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
        """The corpus error rate in percent; None where no word was to be said."""
        return self.edits.rate

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Where the corpus error rate lies with 95 % confidence."""
        return wer.bootstrap_interval(self._counts())

    def difference(self, baseline: "Evaluation") -> tuple[float, float] | None:
        """Where its rate minus that of `baseline` lies; None if they read other recordings."""
        if self._references() != baseline._references():
            return None
        return wer.bootstrap_difference(self._counts(), baseline._counts())

    def _references(self) -> list[Reference]:
        return [transcript.reference for transcript in self.run.transcripts]

    @property
    def empty(self) -> int:
        """Outputs without a word where words were said."""
        return sum(comparison.empty for comparison in self.comparisons)

    @property
    def truncated(self) -> int:
        """Outputs that miss a stretch of what was said."""
        return sum(comparison.truncated for comparison in self.comparisons)

    @property
    def audio_seconds(self) -> float:
        """Length of all recordings transcribed."""
        return sum(transcript.audio_seconds for transcript in self.run.transcripts)

    @property
    def seconds(self) -> float:
        """Time that transcribing them took."""
        return self.run.seconds

    @property
    def rtf(self) -> float:
        """Processing time by audio time."""
        return self.seconds / self.audio_seconds

    @property
    def rtfx(self) -> float:
        """Audio time by processing time."""
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
