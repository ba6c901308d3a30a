"""Runs the alignment graph of a model folder on OpenVINO, for word times."""

import numpy as np
import openvino as ov

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.openvino.graphs import read_graph, require_tensors
from whisper_npu.runtime.engines.openvino.sessions import RequestPool
from whisper_npu.runtime.engines.protocol import Float32Array, Int64Array
from whisper_npu.runtime.model_folder.folder import ALIGNMENT, ModelFolder


def require_alignment_graph(folder: ModelFolder) -> None:
    """Make sure that a model folder can give word times.

    Raises:
        ModelError: it lacks the alignment graph.
    """
    if not (folder.path / ALIGNMENT).is_file():
        raise ModelError(
            f"model folder {folder.path} has no {ALIGNMENT}, which word times need; add it with "
            f"`whisper-npu export --add-alignment {folder.path}`"
        )


def read_alignment_graph(core: ov.Core, folder: ModelFolder) -> ov.Model:
    """Read the alignment graph.

    Raises:
        ModelError: the folder has none, or it is damaged.
    """
    require_alignment_graph(folder)
    model = read_graph(core, folder.path / ALIGNMENT)
    require_tensors(
        model,
        folder.path / ALIGNMENT,
        {"input_ids": 2, "encoder_hidden_states": 3},
        {"token_probabilities": 2, "cross_attentions": 4},
    )
    return model


def align(
    pool: RequestPool, request: ov.InferRequest, audio: Float32Array, tokens: Int64Array
) -> tuple[Float32Array, Float32Array]:
    """Run the alignment graph; see `Backend.align`."""
    request.set_tensor("encoder_hidden_states", ov.Tensor(np.ascontiguousarray(audio)))
    request.set_tensor("input_ids", ov.Tensor(np.ascontiguousarray(tokens)))
    pool.run(request)
    probabilities = request.get_tensor("token_probabilities").data.copy()
    attentions = request.get_tensor("cross_attentions").data.copy()
    return probabilities, attentions
