"""Measures every kind of decoder cache on the same window and the same tokens.

Decoding is forced: the end of text is suppressed, so that every kind decodes the same number of
tokens. Time counts from the encoded window to the last token: it includes the prompt and preparing
the cross-attention, but not encoding.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import WhisperNpuError
from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows, initial_tokens
from whisper_npu.runtime.engines.protocol import Float32Array
from whisper_npu.runtime.features.log_mel import normalize
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.transcription.model import WhisperModel
from whisper_npu.scripts.benchmarks.kv_counting import counting
from whisper_npu.scripts.benchmarks.rtf import alternate
from whisper_npu.scripts.benchmarks.spread import Spread, ratios, spread

BASELINE = "off"

_SHORT = 30  # tokens up to which a decode is so short that more runs cost little
_MORE = 3  # factor for the runs of short decodes
_PEAK_TOKENS = 8  # tokens in a row over which the peak speed is measured
_EARLY, _NEAR = 32, 8  # the early time per token is measured at token 32, plus and minus 8
_SYNTHETIC_SEED = 0


@dataclass(frozen=True, slots=True)
class Decode:
    """One forced decode.

    Attributes:
        tokens: The decoded tokens.
        seconds: Seconds from the encoded window to the last token.
        marks: Seconds at which each token was decoded.
    """

    tokens: tuple[int, ...]
    seconds: float
    marks: tuple[float, ...]

    @property
    def steps(self) -> tuple[float, ...]:
        """Seconds per token from the second token on; the first also waits for the prompt."""
        return tuple(
            after - before for before, after in zip(self.marks, self.marks[1:], strict=False)
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Counted work and memory of one decode; see `kv_counting.Counts`.

    Attributes:
        self_positions: Token positions computed.
        cross_positions: Audio positions computed.
        self_bytes: Bytes of self-attention states at the end.
        cross_bytes: Bytes of cross-attention states.
        bytes_per_token: Growth of the self-attention states per token.
        resident_per_token: Growth of the process per token; None if the system does not tell.
    """

    self_positions: int
    cross_positions: int
    self_bytes: int
    cross_bytes: int
    bytes_per_token: float
    resident_per_token: float | None


@dataclass
class Cell:
    """One kind of cache at one number of new tokens.

    Attributes:
        n_tokens: New tokens.
        decodes: Counted runs that gave all tokens.
        attempts: Number of runs.
        cost: Work and memory of one run.
    """

    n_tokens: int
    decodes: list[Decode] = field(default_factory=list)
    attempts: int = 0
    cost: Cost | None = None

    @cached_property
    def seconds(self) -> Spread:
        """Decode time."""
        return spread(decode.seconds for decode in self.decodes)

    @property
    def token_seconds(self) -> float:
        """Decode time per token, median."""
        return self.seconds.median / self.n_tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of decode time, median."""
        return self.n_tokens / self.seconds.median

    @cached_property
    def steps(self) -> npt.NDArray[np.float64]:
        """Seconds of each step, medians over the runs, `(n_tokens - 1,)`."""
        return np.median([decode.steps for decode in self.decodes], axis=0)

    @property
    def peak_tokens_per_second(self) -> float:
        """Tokens per second over the fastest tokens in a row."""
        n = min(_PEAK_TOKENS, len(self.steps))
        if not n:
            return self.tokens_per_second
        return 1 / float(np.convolve(self.steps, np.full(n, 1 / n), "valid").min())

    @property
    def success_rate(self) -> float:
        """Share of the runs that gave all tokens, 0 to 1."""
        return len(self.decodes) / self.attempts if self.attempts else 0.0


@dataclass
class Kind:
    """One kind of cache.

    Attributes:
        name: `off`, `concat`, `static` or `stateful`.
        precision: Precision of the computation.
        error: The reason why it could not be used; None if it could.
        cells: Cells by number of new tokens.
    """

    name: str
    precision: str = ""
    error: str | None = None
    cells: dict[int, Cell] = field(default_factory=dict)

    @property
    def longest(self) -> Cell | None:
        """The longest decode that worked."""
        done = [cell for cell in self.cells.values() if cell.decodes]
        return max(done, key=lambda cell: cell.n_tokens, default=None)

    @property
    def growth(self) -> tuple[float, float] | None:
        """Growth of the time per token in its longest decode.

        Returns:
            seconds by which each step is longer than the one before (slope of the least-squares
            line), and the variance of the steps around that line in seconds squared; None for
            fewer than three steps.
        """
        if self.longest is None or len(self.longest.steps) < 3:
            return None
        steps = self.longest.steps
        positions = np.arange(len(steps))
        slope, start = np.polyfit(positions, steps, 1)
        return float(slope), float(np.var(steps - (start + slope * positions)))

    @property
    def late_to_early(self) -> float | None:
        """Time per token at the end of the longest decode, divided by the time at token 32."""
        if self.longest is None or len(self.longest.steps) < 2 * (_EARLY + _NEAR):
            return None
        steps = self.longest.steps
        early = np.median(steps[_EARLY - _NEAR : _EARLY + _NEAR])
        return float(np.median(steps[-2 * _NEAR :]) / early)


def speed_up(cell: Cell, baseline: Cell) -> Spread:
    """The factor of speed against no cache, over pairs of runs."""
    pairs = list(zip(baseline.decodes, cell.decodes, strict=False))
    return ratios([off.seconds for off, _ in pairs], [mine.seconds for _, mine in pairs])


def synthetic_window(model: WhisperModel) -> Float32Array:
    """Features of a noise window, `(n_mels, frames)`; decode time does not depend on the sound."""
    shape = (model.backend.n_mels, 2 * model.backend.n_audio_ctx)
    noise = np.random.default_rng(_SYNTHETIC_SEED).standard_normal(shape, np.float32)
    return normalize(noise)


def room(model: WhisperModel, language: str) -> int:
    """Number of new tokens that the decoder's context holds after the prompt."""
    prompt, _ = initial_tokens(
        model.tokenizer, model.vocabulary, _options(model, language, 1), model.backend.n_text_ctx
    )
    return model.backend.n_text_ctx - len(prompt)


def _options(model: WhisperModel, language: str, n_tokens: int) -> DecodingOptions:
    return DecodingOptions(
        language=language,
        without_timestamps=True,
        suppress_tokens=(*model.vocabulary.suppress, model.tokenizer.special.eot),
        suppress_first=model.vocabulary.begin_suppress,
        sample_len=n_tokens,
    )


def decode(model: WhisperModel, audio: Float32Array, language: str, n_tokens: int) -> Decode:
    """Decode exactly `n_tokens` from an encoded window `(1, n_audio_ctx, n_audio_state)`."""
    marks: list[float] = []
    start = time.perf_counter()
    windows = decode_windows(
        model.backend,
        model.tokenizer,
        model.vocabulary,
        audio,
        _options(model, language, n_tokens),
        StageTimes(),
        on_tokens=lambda _: marks.append(time.perf_counter() - start),
    )
    return Decode(windows[0].tokens, time.perf_counter() - start, tuple(marks))


def count(model: WhisperModel, audio: Float32Array, language: str, n_tokens: int) -> Cost:
    """Decode once more, and count its work and memory."""
    with counting() as counts:
        decode(model, audio, language, n_tokens)
    return Cost(
        self_positions=counts.self_positions,
        cross_positions=counts.cross_positions,
        self_bytes=counts.self_bytes[-1] if counts.self_bytes else 0,
        cross_bytes=counts.cross_bytes,
        bytes_per_token=_slope(counts.self_bytes) or 0.0,
        resident_per_token=_slope(counts.resident),
    )


def _slope(values: Sequence[int]) -> float | None:
    if len(values) < 2:
        return None
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def measure(
    models: dict[str, WhisperModel],
    encoded: dict[str, Float32Array],
    kinds: dict[str, Kind],
    language: str,
    new_tokens: Sequence[int],
    repeats: int,
    on_decode: Callable[[], None],
) -> None:
    """Fill the cells of every kind, the kinds alternating run by run.

    Args:
        models: Loaded models by kind of cache.
        encoded: The encoded window by kind.
        kinds: Receive the figures.
        language: Code of the language.
        new_tokens: Numbers of tokens.
        repeats: Counted runs of long decodes; short ones run more often.
        on_decode: Called after each decode.
    """
    names = list(models)
    for name in names:  # a warm-up, because the first decodes of a program are slower
        decode(models[name], encoded[name], language, min(new_tokens))
        decode(models[name], encoded[name], language, min(new_tokens))
    for n_tokens in new_tokens:
        for name in names:
            kinds[name].cells[n_tokens] = Cell(n_tokens)
        for place in alternate(len(names), runs_of(n_tokens, repeats)):
            name = names[place]
            cell, kind = kinds[name].cells[n_tokens], kinds[name]
            cell.attempts += 1
            try:
                decoded = decode(models[name], encoded[name], language, n_tokens)
            except WhisperNpuError as error:
                kind.error = str(error)
            else:
                if len(decoded.tokens) == n_tokens:
                    cell.decodes.append(decoded)
            on_decode()
        for name in names:
            if kinds[name].cells[n_tokens].decodes:
                cost = count(models[name], encoded[name], language, n_tokens)
                kinds[name].cells[n_tokens].cost = cost
            on_decode()


def runs_of(n_tokens: int, repeats: int) -> int:
    """Number of measured runs of a decode of that length."""
    return repeats * (_MORE if n_tokens <= _SHORT else 1)


def n_decodes(n_kinds: int, new_tokens: Sequence[int], repeats: int) -> int:
    """Number of times that `measure` calls `on_decode`."""
    return n_kinds * sum(runs_of(n, repeats) + 1 for n in new_tokens)


@dataclass(frozen=True)
class Difference:
    """Two kinds that decoded different tokens.

    Attributes:
        n_tokens: Length of the decode.
        kind: The kind that differs from the first kind.
        position: Position of the first different token, from 0.
    """

    n_tokens: int
    kind: str
    position: int


def find_difference(kinds: Sequence[Kind]) -> Difference | None:
    """The first difference between runs of any kinds; None if all agree."""
    oracle: dict[int, tuple[int, ...]] = {}
    for kind in kinds:
        for n_tokens, cell in kind.cells.items():
            for decoded in cell.decodes:
                expected = oracle.setdefault(n_tokens, decoded.tokens)
                if decoded.tokens != expected:
                    pairs = enumerate(zip(expected, decoded.tokens, strict=True))
                    position = next(i for i, (a, b) in pairs if a != b)
                    return Difference(n_tokens, kind.name, position)
    return None
