"""The requested precision of an export and its options. Imports no heavy library."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from whisper_npu.errors import AudioError, ExportError, UsageError
from whisper_npu.export.manifest import describe_file
from whisper_npu.spelling import parse_precision, require_choice

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
MAX_WER_INCREASE = 0.3  # percentage points
REVISION = 1  # raise it when the same float graphs would convert to other graphs

_FOR_WER = {"jiwer": "jiwer", "whisper-normalizer": "whisper_normalizer"}
_FOR_INT8 = ("nncf", "onnxruntime-openvino")  # NNCF calibrates by ONNX Runtime


@dataclass(frozen=True)
class Conversion:
    """How weights are stored and computed, and how the loss of accuracy is measured.

    Attributes:
        precision: `fp32`: as PyTorch; `fp16`: weights stored in half precision; `int8`: weights in
            8 bits, the encoder's arithmetic too. `f32` and `f16` are taken, too.
        calibration_audio: recordings that show `int8` the range of the encoder's values; empty for
            the built-in recording.
        wer_references: recordings with reference texts, for the word error rate; None takes the
            text of the fp32 graphs as the reference.
        max_wer_increase: percentage points by which the error rate may rise.
    """

    precision: Precision = "fp32"
    calibration_audio: tuple[Path, ...] = ()
    wer_references: Path | None = None
    max_wer_increase: float = MAX_WER_INCREASE

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            UsageError: a value is unknown, or has no use together with the others.
        """
        object.__setattr__(self, "precision", parse_precision(self.precision, PRECISIONS))
        require_choice("precision", self.precision, PRECISIONS)
        if self.calibration_audio and self.precision != "int8":
            raise UsageError("--calibration-audio has a use with --precision int8 only")
        if self.wer_references and self.precision == "fp32":
            raise UsageError("--wer-references has a use with --precision f16 or int8 only")
        if not 0 <= self.max_wer_increase <= 100:
            raise UsageError(
                f"--max-wer-increase is {self.max_wer_increase:g}; give points from 0 to 100"
            )

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result of a conversion, for the manifest.

        Raises:
            AudioError: A calibration recording cannot be read.
            UsageError: The references cannot be read.
        """
        if self.precision == "fp32":
            return {}
        identity: dict[str, Any] = {
            "revision": REVISION,
            "max_wer_increase": self.max_wer_increase,
            "wer_references": self._describe_references(),
        }
        if self.precision == "int8":
            identity["nncf"] = version("nncf")
            identity["calibration_audio"] = [_describe(path) for path in self.calibration_audio]
        return identity

    def require_libraries(self, *, verify: bool) -> None:
        """Check before minutes of work that no library is missing.

        Args:
            verify: Whether error rates will be measured.

        Raises:
            ExportError: A library is missing; the message names the extra that has it.
        """
        if self.precision == "int8":
            for name in _FOR_INT8:
                _require(name, "--precision int8", "export,ort")
        if self.precision != "fp32" and verify:
            for name in _FOR_WER:
                _require(name, "measuring the word error rate", "eval")

    def _describe_references(self) -> dict[str, str | int] | None:
        path = self.wer_references
        if path is None:
            return None
        files = sorted(path.rglob("*.trans.txt")) if path.is_dir() else [path]
        try:
            digests = [str(describe_file(file)["sha256"]) for file in files]
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
        return {"name": path.name, "sha256": " ".join(digests)}


def _describe(path: Path) -> dict[str, str | int]:
    try:
        return {"name": path.name, **describe_file(path)}
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}") from None


def _require(distribution: str, purpose: str, extras: str) -> None:
    try:
        version(distribution)
    except PackageNotFoundError:
        raise ExportError(
            f"{purpose} needs {distribution}; install it with: pip install 'whisper-npu[{extras}]'"
        ) from None
