"""Traces a Whisper model into optimum's three ONNX graphs, one at a time, without their weights.

The exporter would put every weight into the graph's protobuf, and copy the protobuf several times:
a decoder then needs four times its weights. Here the weights are taken away just before it writes
the protobuf. All large ones are views of the model's tensors and cost no memory of their own.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from optimum.exporters.onnx import export
from optimum.exporters.onnx.model_configs import WhisperOnnxConfig
from optimum.exporters.utils import get_encoder_decoder_models_for_export
from optimum.utils import DEFAULT_DUMMY_SHAPES
from transformers import WhisperForConditionalGeneration
from transformers.utils import logging as transformers_logging

from whisper_npu.errors import ExportError
from whisper_npu.export.dimensions import Dimensions

OPSET = 18
TASK = "automatic-speech-recognition"
# The trace does not depend on the number of rows, but takes time for each.
_SHAPES = {**DEFAULT_DUMMY_SHAPES, "batch_size": 1}

# The exporter calls this function with all weights, after its last change to them.
_LAST_PASS = "_jit_pass_onnx_deduplicate_initializers"

Weights = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TracedGraph:
    """A graph whose initializers are not part of it.

    Attributes:
        file: the graph's file name.
        graph: its nodes, inputs and outputs.
        weights: its initializers by name, in the order of the trace.
    """

    file: str
    graph: onnx.ModelProto
    weights: Weights


def trace_graphs(
    model: WhisperForConditionalGeneration, dimensions: Dimensions, scratch: Path
) -> Iterator[TracedGraph]:
    """Trace the encoder, the decoder without a past, and the decoder with a past.

    Args:
        model: The model, float32, with eager attention.
        dimensions: Its sizes.
        scratch: An existing folder for the exporter's files.

    Raises:
        ExportError: The exporter failed.
    """
    config = WhisperOnnxConfig(model.config, task=TASK, use_past=True)
    for name, (part, behavior) in get_encoder_decoder_models_for_export(model, config).items():
        raw = scratch / f"{name}.onnx"
        try:
            with _quiet(), _weights_kept_apart() as weights:
                # The axes are fixed below: optimum would load the graph into ONNX Runtime for it.
                export(
                    part,
                    behavior,
                    raw,
                    opset=OPSET,
                    input_shapes=_SHAPES,
                    disable_dynamic_axes_fix=True,
                )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(f"the ONNX exporter failed: {reason}") from error
        graph = onnx.load(raw)
        ordered = _split_inputs(graph, weights)
        _fix_axes(graph, dimensions)
        yield TracedGraph(raw.name, graph, ordered)


@contextlib.contextmanager
def _weights_kept_apart() -> Iterator[Weights]:
    """Take the weights from the exporter; the dictionary is filled when it has run."""
    weights: Weights = {}
    original = getattr(torch._C, _LAST_PASS)

    def take(
        graph: torch._C.Graph, parameters: dict[str, torch.Tensor], training: bool
    ) -> dict[str, torch.Tensor]:
        last = original(graph, parameters, training)
        weights.update({name: tensor.detach().numpy() for name, tensor in last.items()})
        return {}

    setattr(torch._C, _LAST_PASS, take)
    try:
        yield weights
    finally:
        setattr(torch._C, _LAST_PASS, original)


def _split_inputs(model: onnx.ModelProto, weights: Weights) -> Weights:
    """Remove the inputs that stand for weights; return the weights in the order of these inputs.

    Raises:
        ExportError: The exporter did not hand over its weights.
    """
    if not weights or model.graph.initializer:
        raise ExportError(
            f"PyTorch {torch.__version__} exports weights in another way than this program knows;"
            " install a PyTorch that the extra [export] allows"
        )
    inputs = list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(value for value in inputs if value.name not in weights)
    return {value.name: weights[value.name] for value in inputs if value.name in weights}


def _fix_axes(model: onnx.ModelProto, dimensions: Dimensions) -> None:
    """State the axes of the outputs that the exporter could not infer.

    It traces the cached decoder with one token and names the axis of its logits "1", although
    several tokens may be fed. Heads and their size are known of every cache.
    """
    inputs = {value.name: value for value in model.graph.input}
    for value in model.graph.output:
        axes = value.type.tensor_type.shape.dim
        if value.name == "logits":
            axes[1].CopyFrom(inputs["input_ids"].type.tensor_type.shape.dim[1])
        elif value.name.startswith("present."):
            axes[1].dim_value = dimensions.n_text_head
            axes[3].dim_value = dimensions.head_dim


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's warnings about Python branches."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        transformers_logging.set_verbosity(verbosity)
