"""Compares each stage with the peak speeds of the machine.

Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model for multicore
architectures": the least time of a computation is its operations divided by the machine's peak
throughput, or the bytes that it must read divided by the memory's bandwidth, whichever is longer.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.cpu_capabilities import is_faster_whole
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.scripts.benchmarks.observed_backend import Observations, Step

ENCODER, PROJECTION = "encoder", "cross-attention projection"

_SIDE = 2048  # side of the square matrices of the timed product: large enough for the peak
_VECTOR_SIDE = 8192  # side of the matrix read for the bandwidth: 256 MiB, beyond any cache
_SECONDS = 0.5  # least duration of each measurement
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "int8": "INT8"}
_ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "int8": 1}


@dataclass(frozen=True)
class Machine:
    """The peak speeds of the processor, measured through OpenVINO.

    Attributes:
        flops: Operations per second of a matrix product by precision; an addition and a
            multiplication are two.
        bandwidth: Bytes per second read from memory.
    """

    flops: dict[str, float]
    bandwidth: float


def measure_machine(threads: int = 0) -> Machine:
    """Time large matrix products in every precision the processor has, and a large read."""
    core = openvino_core()
    has = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    flops = {}
    for precision, capability in _CAPABILITIES.items():
        if capability in has:
            model = _product(_SIDE, _SIDE, quantized=precision == "int8")
            hint = "f32" if precision == "int8" else precision
            flops[precision] = 2 * _SIDE**3 / _shortest(core, model, hint, threads)
    vector = _product(1, _VECTOR_SIDE, quantized=False)
    seconds = _shortest(core, vector, "f32", threads)
    return Machine(flops, _VECTOR_SIDE**2 * _ELEMENT_BYTES["f32"] / seconds)


def _product(rows: int, side: int, *, quantized: bool) -> ov.Model:
    """`(rows, side)` times a constant `(side, side)`."""
    random = np.random.default_rng(0)
    left = ops.parameter([rows, side], np.float32, name="left")
    right = ops.constant(random.standard_normal((side, side), np.float32))
    factors = [left, right]
    if quantized:  # OpenVINO turns this pattern into arithmetic on 8-bit integers
        low, high = ops.constant(np.float32(-4)), ops.constant(np.float32(4))
        levels = (256, 255)  # weights are symmetric around 0
        factors = [
            ops.fake_quantize(each, low, high, low, high, n)
            for each, n in zip(factors, levels, strict=True)
        ]
    return ov.Model([ops.matmul(*factors, False, False)], [left], "product")


def _shortest(core: ov.Core, model: ov.Model, precision: str, threads: int) -> float:
    """Seconds of the fastest of many runs; slower runs were disturbed by other programs."""
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(model, "CPU", config).create_infer_request()
    shape = model.inputs[0].shape
    request.set_input_tensor(ov.Tensor(np.full(shape, 0.5, np.float32)))
    request.infer()
    times: list[float] = []
    while sum(times) < _SECONDS:
        start = time.perf_counter()
        request.infer()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(frozen=True, slots=True)
class Work:
    """Operations to compute, by precision, and bytes to read."""

    flops: dict[str, float]
    n_bytes: float

    @property
    def total_flops(self) -> float:
        """Operations in all precisions."""
        return sum(self.flops.values())

    def arithmetic_seconds(self, machine: Machine) -> float:
        """The least seconds for the operations."""
        return sum(count / machine.flops[name] for name, count in self.flops.items())

    def memory_seconds(self, machine: Machine) -> float:
        """The least seconds for reading the bytes."""
        return self.n_bytes / machine.bandwidth

    def seconds(self, machine: Machine) -> float:
        """The least seconds of the work."""
        return max(self.arithmetic_seconds(machine), self.memory_seconds(machine))


@dataclass(frozen=True)
class Sizes:
    """Sizes and precisions of a Whisper model, from which its work follows.

    Attributes:
        numbers: Precision of everything except 8-bit matrices.
        matrices: Precision of products with the decoder's matrices.
        window_matrices: Precision of products that encode windows and project their states.
        encoder_attention: Precision of products in the encoder's attention.
    """

    n_mels: int
    n_state: int
    n_vocab: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn: int
    decoder_ffn: int
    numbers: str
    matrices: str
    window_matrices: str
    encoder_attention: str

    @property
    def _decoder_weights(self) -> int:
        """Weights of one layer's matrices: six of attention, without the audio's, and the MLP."""
        return 6 * self.n_state**2 + 2 * self.n_state * self.decoder_ffn

    def encoder(self, audio_ctx: int) -> Work:
        """The work of encoding a window of `2 * audio_ctx` frames; weights are read once."""
        d, ctx, layers = self.n_state, audio_ctx, self.encoder_layers
        filters = 3 * d * (self.n_mels + d)
        convolutions = 2 * (2 * ctx) * 3 * self.n_mels * d + 2 * ctx * 3 * d * d
        attention, mlp = layers * 4 * d * d, layers * 2 * d * self.encoder_ffn
        numbers, weights = filters, mlp
        flops, matrix_flops = convolutions + layers * 4 * ctx * ctx * d, 2 * ctx * mlp
        if self.encoder_attention == self.window_matrices:
            weights, matrix_flops = weights + attention, matrix_flops + 2 * ctx * attention
        else:
            numbers, flops = numbers + attention, flops + 2 * ctx * attention
        return self._work(
            flops, matrix_flops, self.window_matrices, n_numbers=numbers, n_weights=weights
        )

    def projection(self, audio_ctx: int) -> Work:
        """The work of the cross-attention's keys and values for one window."""
        weights = self.decoder_layers * 2 * self.n_state**2
        return self._work(
            0, 2 * audio_ctx * weights, self.window_matrices, n_numbers=0, n_weights=weights
        )

    def step(self, step: Step) -> Work:
        """The work of one decoder step: weights are read once, keys and values once per row.

        Self-attention has few states; they count like cross-attention's.
        """
        d = self.n_state
        tokens = step.rows * step.tokens
        table = d * self.n_vocab
        context = step.past + step.tokens + step.audio_ctx
        flops = tokens * self.decoder_layers * 4 * d * context
        weights = self.decoder_layers * self._decoder_weights
        states = self.decoder_layers * 2 * d * step.rows * context
        return self._work(
            flops,
            2 * tokens * weights + 2 * step.rows * step.projected * table,
            self.matrices,
            n_numbers=states,
            n_weights=weights + table,
        )

    def _work(
        self, flops: float, matrix_flops: float, matrices: str, *, n_numbers: int, n_weights: int
    ) -> Work:
        by_precision = {self.numbers: flops}
        by_precision[matrices] = by_precision.get(matrices, 0) + matrix_flops
        n_bytes = n_numbers * _ELEMENT_BYTES[self.numbers]
        return Work(by_precision, n_bytes + n_weights * _ELEMENT_BYTES[matrices])


def precisions(precision: str) -> tuple[str, str]:
    """The precisions of matrix products and of everything else, from a backend's `precision`."""
    matrices, _, numbers = precision.partition("+")
    return matrices, numbers or matrices


def read_sizes(folder: ModelFolder, precision: str) -> Sizes:
    """Sizes of a model folder.

    Raises:
        ModelError: The folder's config.json lacks them.
    """
    names = {
        "n_mels": "num_mel_bins",
        "n_state": "d_model",
        "n_vocab": "vocab_size",
        "encoder_layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "encoder_ffn": "encoder_ffn_dim",
        "decoder_ffn": "decoder_ffn_dim",
    }
    stated = {ours: getattr(folder.config, theirs) for ours, theirs in names.items()}
    missing = [names[ours] for ours, size in stated.items() if size is None]
    if missing:
        raise ModelError(f"{folder.path / 'config.json'} lacks {', '.join(missing)}: no roofline")
    matrices, numbers = precisions(precision)
    # If matrices are rounded at load, the encoder's attention keeps its precision (`int8_weights`).
    is_stored = folder.manifest.get("precision") == "int8"
    stays_whole = matrices != numbers and not is_stored and is_faster_whole(numbers)
    return Sizes(
        **stated,
        numbers=numbers,
        matrices=matrices,
        window_matrices=numbers if stays_whole else matrices,
        encoder_attention=matrices if is_stored else numbers,
    )


@dataclass(frozen=True)
class StageRoof:
    """A stage compared with the machine's peak.

    Attributes:
        stage: Its name.
        seconds: Its time.
        share: Its share of all processing time, 0 to 1.
        flops: Its operations per second; None if its work is unknown.
        bandwidth: Bytes per second that it read at least; None if its work is unknown.
        roof_seconds: Its least time on this machine; None if its work is unknown.
        bound: The limit of the least time: `arithmetic` or `memory`.
    """

    stage: str
    seconds: float
    share: float
    flops: float | None = None
    bandwidth: float | None = None
    roof_seconds: float | None = None
    bound: str = ""

    @property
    def above(self) -> float:
        """Seconds above the least time; all seconds if the least time is unknown."""
        return self.seconds - (self.roof_seconds or 0.0)


def roofline(
    stages: dict[str, float], seen: Observations, sizes: Sizes, machine: Machine
) -> list[StageRoof]:
    """Every stage compared with the machine's peak in the stage's precisions.

    Args:
        stages: Seconds by stage of one run.
        seen: The work of that run.
        sizes: The model's sizes.
        machine: The machine's peaks.
    """
    work: dict[str, list[Work]] = {
        ENCODER: [sizes.encoder(ctx) for ctx in seen.windows],
        PROJECTION: [sizes.projection(ctx) for ctx in seen.projected],
    }
    for step in seen.steps:
        work.setdefault(step.stage, []).append(sizes.step(step))
    total = sum(stages.values())
    return [
        _roof(stage, seconds, total, work.get(stage, ()), machine)
        for stage, seconds in stages.items()
    ]


def _roof(
    stage: str, seconds: float, total: float, work: Sequence[Work], machine: Machine
) -> StageRoof:
    share = seconds / total if total else 0.0
    if not work or not seconds:
        return StageRoof(stage, seconds, share)
    arithmetic = _sum(part.arithmetic_seconds(machine) for part in work)
    memory = _sum(part.memory_seconds(machine) for part in work)
    return StageRoof(
        stage=stage,
        seconds=seconds,
        share=share,
        flops=_sum(part.total_flops for part in work) / seconds,
        bandwidth=_sum(part.n_bytes for part in work) / seconds,
        roof_seconds=_sum(part.seconds(machine) for part in work),
        bound="arithmetic" if arithmetic >= memory else "memory",
    )


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))
