"""Certifies a converted export: measures how far the conversion raises the word error rate."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_npu.errors import AssetError, ExportError
from whisper_npu.export.assets import asset_path, fetch
from whisper_npu.export.calibration import RECORDING
from whisper_npu.export.conversion import Conversion
from whisper_npu.export.references import read_references
from whisper_npu.runtime.engines.choices import Precision as InferencePrecision
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.model_folder.config import VERIFIED
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.options import TranscribeOptions
from whisper_npu.runtime.transcription.model import WhisperModel

# Greedy decoding, without random samples: the two sides differ only in their weights.
OPTIONS = TranscribeOptions(temperature=(0.0,))
INFERENCE_PRECISION: InferencePrecision = "f32"
ENOUGH_WORDS = 1000  # one changed word is then a tenth of a percentage point
OWN_TEXT = "the text of the fp32 export"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WindowResult:
    """The text of a recording, and the code of its language."""

    text: str
    language: str


def verify_accuracy(
    float_folder: Path, folder: Path, conversion: Conversion, progress: Progress | None = None
) -> dict[str, Any]:
    """Transcribe the same recordings with the float32 graphs and the converted ones.

    Both run in this program's runtime, in float32 except for the 8-bit parts.

    Args:
        float_folder: The model folder that was converted.
        folder: The converted model folder, complete with tokenizer and configurations.
        conversion: The requested conversion.
        progress: Called with one line per step.

    Returns:
        The certificate, for the manifest.

    Raises:
        ExportError: The error rate rises by more than is allowed, or there is nothing to measure.
        AudioError: A recording cannot be read.
        UsageError: The references cannot be read.
    """
    # The normalisers read large tables when imported.
    from whisper_npu.export.wer import align, metric_for, total  # noqa: PLC0415

    report = progress or (lambda _line: None)
    recordings, texts, name = _recordings(conversion)
    before = _transcribe(float_folder, recordings)
    report(f"transcribed {len(recordings)} recordings with the fp32 graphs")
    after = _transcribe(folder, recordings)
    metric = metric_for(Counter(heard.language for heard in before).most_common(1)[0][0])
    spoken = texts or [heard.text for heard in before]

    def measure(results: Sequence[WindowResult]) -> tuple[float | None, int]:
        pairs = zip(spoken, results, strict=True)
        edits = total([align(text, heard.text, metric)[0] for text, heard in pairs])
        return edits.rate, edits.words

    before_rate, words = measure(before)
    after_rate, _ = measure(after)
    if before_rate is None or after_rate is None:
        raise ExportError(
            f"no {metric.name} can be measured: {name} has no words; give other --wer-references"
        )
    increase = after_rate - before_rate
    summary = (
        f"{metric.name} {after_rate:.2f} % in {conversion.precision}, {before_rate:.2f} % in fp32"
        f" ({words} {metric.unit}; reference: {name})"
    )
    if round(increase, 2) > conversion.max_wer_increase:
        hint = "" if texts else "; --wer-references measures against what was really said"
        raise ExportError(
            f"{summary}: {increase:+.2f} points, more than --max-wer-increase"
            f" {conversion.max_wer_increase:g} allows{hint}"
        )
    report(summary)
    caveat = _caveat(conversion, recordings, words)
    if caveat:
        report(
            f"this proves little: {caveat}; give --wer-references with {ENOUGH_WORDS} words or more"
            " that were not calibrated on"
        )
    return {
        "status": VERIFIED,
        "metric": metric.name,
        "language": metric.language,
        "normalizer": metric.normalizer,
        "reference": name,
        "recordings": len(recordings),
        metric.unit: words,
        "fp32": round(before_rate, 3),
        conversion.precision: round(after_rate, 3),
        "increase": round(increase, 3),
        "max_increase": conversion.max_wer_increase,
        "caveat": caveat,
        "texts_equal": sum(a.text == b.text for a, b in zip(before, after, strict=True)),
        "device": "CPU",
        "inference_precision": INFERENCE_PRECISION,
    }


def _caveat(conversion: Conversion, recordings: Sequence[Path], words: int) -> str | None:
    """The reason why a measurement tells little about other speech, or None."""
    seen = set()
    if conversion.precision == "int8":
        calibrated = conversion.calibration_audio or (asset_path(RECORDING),)
        seen = {path.resolve() for path in calibrated} & {path.resolve() for path in recordings}
    caveats = []
    if words < ENOUGH_WORDS:
        caveats.append(f"{words} words are few")
    if seen:
        caveats.append(f"{len(seen)} of {len(recordings)} recordings were calibrated on")
    return ", and ".join(caveats) or None


def _recordings(conversion: Conversion) -> tuple[list[Path], list[str] | None, str]:
    """Recordings, their reference texts if they are known, and the name of the reference."""
    if conversion.wer_references is not None:
        references = read_references(conversion.wer_references)
        files = [reference.audio for reference in references]
        return files, [reference.text for reference in references], conversion.wer_references.name
    files = list(conversion.calibration_audio)
    try:
        files.append(fetch(RECORDING))
    except AssetError as error:
        if not files:
            raise ExportError(
                f"no speech to compare on: {error}; or give --wer-references"
            ) from error
    return files, None, OWN_TEXT


def _transcribe(folder: Path, recordings: Sequence[Path]) -> list[WindowResult]:
    model_folder = read_model_folder(folder)
    model = WhisperModel(model_folder, OpenVINOBackend(model_folder, precision=INFERENCE_PRECISION))
    results = []
    for recording in recordings:
        stream = model.transcribe(recording, OPTIONS)
        results.append(WindowResult(stream.text, stream.language))
    return results
