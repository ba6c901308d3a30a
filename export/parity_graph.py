"""Runs an exported graph on OpenVINO's CPU in float32, and compares its outputs."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from whisper_npu.errors import ParityError
from whisper_npu.export.dimensions import Dimensions
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

Arrays = dict[str, NDArray[Any]]
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
    """A compiled graph: called with arrays by name, it returns arrays by name."""

    def __init__(self, folder: Path, name: str, interface: Interface) -> None:
        self.file = f"{name}.onnx"
        self.name = name
        core = openvino_core()
        try:
            model = core.read_model(folder / self.file)
            self._check_interface(model, interface)
            self._compiled = core.compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""}
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ParityError(f"OpenVINO cannot load {self.file}: {reason}") from error
        self._request = self._compiled.create_infer_request()
        self._has_run = False

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run the graph once.

        Raises:
            ParityError: The graph cannot run on inputs of these shapes.
        """
        try:
            with nullcontext() if self._has_run else one_thread():
                results = self._request.infer(inputs, share_inputs=True)
            self._has_run = True
        except RuntimeError as error:
            shapes = {name: array.shape for name, array in inputs.items()}
            reason = " ".join(str(error).split())[:300]
            raise ParityError(f"{self.file} cannot run on {shapes}: {reason}") from error
        return {name: results[port] for port in self._compiled.outputs for name in port.get_names()}

    def _check_interface(self, model: ov.Model, expected: Interface) -> None:
        for side, ports, axes in (
            ("input", model.inputs, expected.inputs),
            ("output", model.outputs, expected.outputs),
        ):
            found = {name: port for port in ports for name in port.get_names()}
            missing = [name for name in axes if name not in found]
            extra = [min(port.get_names()) for port in ports if not port.get_names() & axes.keys()]
            if missing or extra:
                raise ParityError(
                    f"{self.file}: expected the {side}s {list(axes)}, got {sorted(found)}"
                    f" (missing {missing}, unexpected {extra})"
                )
            for name, wanted in axes.items():
                shape = found[name].get_partial_shape()
                got = tuple(None if axis.is_dynamic else axis.get_length() for axis in shape)
                if got != wanted:
                    raise ParityError(
                        f"{self.file}: the {side} {name} has the axes {_show(got)}, expected"
                        f" {_show(wanted)} (? is dynamic)"
                    )


class Differences:
    """Compares outputs with PyTorch's and keeps the largest differences.

    `largest` has absolute differences by graph and output. `largest_relative` is a share of the
    output's scale, to be compared with `RELATIVE_TOLERANCE`.
    """

    def __init__(self) -> None:
        self.largest: dict[str, dict[str, float]] = {}
        self.largest_relative = 0.0

    def compare(
        self,
        graph: Graph,
        case: str,
        outputs: Arrays,
        expected: Arrays,
        *,
        smallest_scale: float = SMALLEST_SCALE,
    ) -> None:
        """Check shapes, then values, of every expected output.

        Args:
            graph: The name of the graph.
            case: A description of its inputs, for the message.
            outputs: The outputs of the graph.
            expected: The outputs of PyTorch.
            smallest_scale: The tolerance of an output is a share of its largest value, or of this
                number if all values are below it.

        Raises:
            ParityError: An output differs; the message has the place and both values.
        """
        for name, wanted in expected.items():
            got = outputs[name]
            if got.shape != wanted.shape:
                raise ParityError(
                    f"{graph.file}, {case}: {name} has the shape {got.shape}, PyTorch's has"
                    f" {wanted.shape}"
                )
            difference = np.abs(got - wanted)
            worst = np.unravel_index(int(np.argmax(difference)), difference.shape)  # NaN is first
            largest = float(difference[worst])
            scale = max(smallest_scale, float(np.abs(wanted).max()))
            tolerance = RELATIVE_TOLERANCE * scale
            if not largest <= tolerance:
                place = [int(index) for index in worst]
                raise ParityError(
                    f"{graph.file}, {case}: {name}{place} is {got[worst]:.6g}, PyTorch says"
                    f" {wanted[worst]:.6g} (difference {largest:.3g}, tolerance {tolerance:.3g})"
                )
            of_graph = self.largest.setdefault(graph.name, {})
            of_graph[name] = max(of_graph.get(name, 0.0), largest)
            self.largest_relative = max(self.largest_relative, largest / scale)


def _show(axes: Axes) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in axes) + ")"
