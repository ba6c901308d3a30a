"""Runs an exported graph on OpenVINO's CPU in float32, and compares its outputs."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from whisper_npu.errors import ParityError
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.graph_parts import split_graph
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.openvino.workarounds import one_thread

# Both sides compute in float32 but add in another order. The largest difference for tiny.en and
# base was 6e-5 of an output's largest value (docs/export.md); deeper models may have more. A wrong
# weight, mask or position moves an output by more than a hundredth. The tolerance lies between the
# two.
RELATIVE_TOLERANCE = 5e-4
SMALLEST_SCALE = 1.0  # the tolerance is absolute for an output whose values are all below it

ENCODER = "encoder_model"
DECODER = "decoder_model"
DECODER_WITH_PAST = "decoder_with_past_model"
ALIGNMENT = "decoder_alignment_model"

PART_BYTES = 1 << 30  # weights: a larger encoder is compiled in parts
_STATE = "state"  # the input of a part
_BLOCK = 64  # entries of the second axis that are compared at once: all logits take 100 MB
# OpenVINO keeps kernels for each length of the past: 5 MB a step for small.en. A decode does not
# need them again. Without any such cache, packed weights are no longer shared.
_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "CACHE_DIR": "",
    "CPU_RUNTIME_CACHE_CAPACITY": "1",
}

Arrays = dict[str, NDArray[Any]]
Expected = Iterable[tuple[str, NDArray[Any]]]  # outputs by name
Axes = tuple[int | None, ...]  # None: dynamic


@dataclass(frozen=True)
class Interface:
    """Names and axes of a graph's inputs and outputs."""

    inputs: dict[str, Axes]
    outputs: dict[str, Axes]


def cache_names(prefix: str, side: str, layers: int) -> list[str]:
    """Names of a cache's tensors in layer order, key before value.

    Args:
        prefix: `past_key_values` or `present`.
        side: `decoder` for self-attention, `encoder` for cross-attention.
        layers: Number of decoder layers.
    """
    return [f"{prefix}.{i}.{side}.{kind}" for i in range(layers) for kind in ("key", "value")]


def expected_interface(graph: str, dimensions: Dimensions) -> Interface:
    """The interface of optimum's three graphs; axis 2 of every cache, the sequence, is dynamic."""
    batch = sequence = None
    layers = dimensions.n_text_layer
    cache: Axes = (batch, dimensions.n_text_head, sequence, dimensions.head_dim)
    ids: Axes = (batch, sequence)
    logits: Axes = (batch, sequence, dimensions.n_vocab)
    hidden: Axes = (batch, dimensions.n_audio_ctx, dimensions.n_audio_state)

    def caches(prefix: str, *sides: str) -> dict[str, Axes]:
        return {name: cache for side in sides for name in cache_names(prefix, side, layers)}

    if graph == ENCODER:
        features: Axes = (batch, dimensions.n_mels, dimensions.n_frames)
        return Interface({"input_features": features}, {"last_hidden_state": hidden})
    if graph == DECODER:
        return Interface(
            {"input_ids": ids, "encoder_hidden_states": (batch, None, hidden[2])},
            {"logits": logits, **caches("present", "decoder", "encoder")},
        )
    return Interface(
        {"input_ids": ids, **caches("past_key_values", "decoder", "encoder")},
        {"logits": logits, **caches("present", "decoder")},
    )


def alignment_interface(dimensions: Dimensions, n_heads: int) -> Interface:
    """The interface of the alignment graph (`alignment.py`)."""
    ids: Axes = (None, None)
    return Interface(
        {"input_ids": ids, "encoder_hidden_states": (None, None, dimensions.n_audio_state)},
        {"token_probabilities": ids, "cross_attentions": (None, n_heads, None, None)},
    )


class Graph:
    """A compiled graph: called with arrays by name, it returns arrays by name.

    OpenVINO packs the weights again for each number of rows that it multiplies, and keeps them all.
    """

    def __init__(
        self, folder: Path, name: str, interface: Interface, *, sparing: bool = False
    ) -> None:
        """Read a graph, and check its interface.

        Args:
            folder: The model folder.
            name: The graph's name.
            interface: The interface that it must have.
            sparing: Compile it again after `forget`.

        Raises:
            ParityError: OpenVINO cannot read it, or its interface is another.
        """
        self._file = f"{name}.onnx"
        self._model = _read(folder, self._file, interface)
        self._sparing = sparing
        self._compiled: _Compiled | None = None

    def forget(self) -> None:
        """Return the memory of packed weights, if the graph is to be sparing."""
        if self._sparing:
            self._compiled = None

    def __call__(self, inputs: Arrays, *, keep: bool = True) -> Arrays:
        """Run the graph once.

        Args:
            inputs: The inputs by name.
            keep: Whether the outputs are needed after the next run; otherwise they are not copied.

        Raises:
            ParityError: The graph cannot be compiled, or cannot run on inputs of these shapes.
        """
        if self._compiled is None:
            self._compiled = _Compiled(self._file, self._model)
        return self._compiled(inputs, keep=keep)


def run_in_parts(
    folder: Path, name: str, interface: Interface, batches: Sequence[Arrays]
) -> list[Arrays]:
    """Run a graph with one input and one output; a large graph is compiled one part at a time.

    Args:
        folder: The model folder.
        name: The graph's name.
        interface: The interface that it must have.
        batches: The inputs of each run.

    Returns:
        The outputs of each run, by name.

    Raises:
        ParityError: The graph cannot be read or compiled, has another interface, or cannot run.
    """
    file = f"{name}.onnx"
    states = list(batches)
    for part in split_graph(_read(folder, file, interface), PART_BYTES):
        (parameter,) = part.inputs
        if not parameter.get_names():
            parameter.set_names({_STATE})
        taken = parameter.get_any_name()
        compiled = _Compiled(file, part)
        states = [compiled({taken: value}) for state in states for value in state.values()]
    return states


def _read(folder: Path, file: str, interface: Interface) -> ov.Model:
    try:
        model = openvino_core().read_model(folder / file)
    except RuntimeError as error:
        raise _cannot_load(file, error) from error
    _check_interface(file, model, interface)
    return model


def _cannot_load(file: str, error: RuntimeError) -> ParityError:
    reason = " ".join(str(error).split())[:300]
    return ParityError(f"OpenVINO cannot load {file}: {reason}")


class _Compiled:
    """A model compiled for OpenVINO's CPU in float32."""

    def __init__(self, file: str, model: ov.Model) -> None:
        self._file = file
        try:
            self._compiled = openvino_core().compile_model(model, "CPU", _SETTINGS)
        except RuntimeError as error:
            raise _cannot_load(file, error) from error
        self._request = self._compiled.create_infer_request()
        self._has_run = False

    def __call__(self, inputs: Arrays, *, keep: bool = True) -> Arrays:
        try:
            with nullcontext() if self._has_run else one_thread():
                results = self._request.infer(inputs, share_inputs=True, share_outputs=not keep)
            self._has_run = True
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            reason = " ".join(str(error).split())[:300]
            raise ParityError(f"{self._file} cannot run on {shapes}: {reason}") from error
        return {name: results[port] for port in self._compiled.outputs for name in port.get_names()}


def _check_interface(file: str, model: ov.Model, expected: Interface) -> None:
    for side, ports, axes in (
        ("input", model.inputs, expected.inputs),
        ("output", model.outputs, expected.outputs),
    ):
        found = {name: port for port in ports for name in port.get_names()}
        missing = [name for name in axes if name not in found]
        extra = [min(port.get_names()) for port in ports if not port.get_names() & axes.keys()]
        if missing or extra:
            raise ParityError(
                f"{file}: expected the {side}s {list(axes)}, got {sorted(found)}"
                f" (missing {missing}, unexpected {extra})"
            )
        for name, wanted in axes.items():
            shape = found[name].get_partial_shape()
            got = tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
            if got != wanted:
                raise ParityError(
                    f"{file}: the {side} {name} has the axes {_show(got)}, expected"
                    f" {_show(wanted)} (? is dynamic)"
                )


class Differences:
    """Compares outputs with PyTorch's and keeps the largest differences.

    `largest` has absolute differences by graph and output, `cases` the compared inputs by graph.
    `largest_relative` is a share of the output's scale, to be compared with `RELATIVE_TOLERANCE`.
    """

    def __init__(self) -> None:
        self.largest: dict[str, dict[str, float]] = {}
        self.cases: dict[str, list[str]] = {}
        self.largest_relative = 0.0

    def compare(
        self,
        graph: str,
        case: str,
        outputs: Arrays,
        expected: Expected,
        *,
        smallest_scale: float = SMALLEST_SCALE,
    ) -> None:
        """Check shapes, then values, of every expected output.

        Args:
            graph: The name of the graph.
            case: A description of its inputs, for the message.
            outputs: The outputs of the graph.
            expected: The outputs of PyTorch; taken one by one.
            smallest_scale: The tolerance of an output is a share of its largest value, or of this
                number if all values are below it.

        Raises:
            ParityError: An output differs; the message has the place and both values.
        """
        cases = self.cases.setdefault(graph, [])
        if case not in cases:
            cases.append(case)
        for name, wanted in expected:
            got = outputs[name]
            if got.shape != wanted.shape:
                raise ParityError(
                    f"{graph}.onnx, {case}: {name} has the shape {got.shape}, PyTorch's has"
                    f" {wanted.shape}"
                )
            largest, worst = _largest_difference(got, wanted)
            scale = max(smallest_scale, float(wanted.max()), -float(wanted.min()))
            tolerance = RELATIVE_TOLERANCE * scale
            if not largest <= tolerance:
                place = list(worst)
                raise ParityError(
                    f"{graph}.onnx, {case}: {name}{place} is {got[worst]:.6g}, PyTorch says"
                    f" {wanted[worst]:.6g} (difference {largest:.3g}, tolerance {tolerance:.3g})"
                )
            of_graph = self.largest.setdefault(graph, {})
            of_graph[name] = max(of_graph.get(name, 0.0), largest)
            self.largest_relative = max(self.largest_relative, largest / scale)


def _largest_difference(got: NDArray[Any], wanted: NDArray[Any]) -> tuple[float, tuple[int, ...]]:
    """The largest difference of two arrays of two axes or more, and its place; NaN is largest."""
    largest, place = -1.0, (0,) * got.ndim
    for start in range(0, got.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        difference = np.abs(got[:, block] - wanted[:, block])
        first, second, *rest = np.unravel_index(int(np.argmax(difference)), difference.shape)
        value = float(difference[(first, second, *rest)])
        if not value <= largest:
            largest = value
            place = (int(first), start + int(second), *(int(index) for index in rest))
        if np.isnan(value):
            break
    return largest, place


def _show(axes: Axes) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in axes) + ")"
