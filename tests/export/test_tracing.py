import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from whisper_npu.errors import ExportError
from whisper_npu.export import tracing
from whisper_npu.export.checkpoint import Checkpoint, load_checkpoint
from whisper_npu.export.onnx_export import write_graphs
from whisper_npu.export.shared_weights import share_weights
from whisper_npu.export.tracing import trace_graphs

GRAPHS = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint))


def test_weights_are_views_of_the_models_tensors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    parameters = [tensor.numpy() for tensor in checkpoint.model.parameters()]
    seen = []
    for traced in trace_graphs(checkpoint.model, checkpoint.dimensions, tmp_path):
        seen.append(traced.file)
        assert not traced.graph.graph.initializer
        large = [weight for weight in traced.weights.values() if weight.nbytes >= 1024]
        assert len(large) > 10
        copies = [
            weight.shape
            for weight in large
            if not any(np.may_share_memory(weight, parameter) for parameter in parameters)
        ]
        # The encoder's positions are looked up while the graph is traced.
        assert copies == ([(1500, 64)] if traced.file == GRAPHS[0] else [])
    assert tuple(seen) == GRAPHS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of other projects
def test_files_are_those_of_optimums_own_export(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Byte for byte: optimum holds all weights, and runs ONNX Runtime to find fixed axes."""
    pytest.importorskip("onnxruntime")
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import GenerationConfig

    raw, expected, folder = (tmp_path / name for name in ("raw", "expected", "folder"))
    expected.mkdir()
    folder.mkdir()
    checkpoint.model.generation_config = GenerationConfig()
    onnx_export_from_model(
        model=checkpoint.model,
        output=raw,
        task="automatic-speech-recognition-with-past",
        opset=18,
        no_post_process=True,
        do_validation=False,
    )
    decoder = onnx.load(raw / GRAPHS[2])
    logits = next(value for value in decoder.graph.output if value.name == "logits")
    assert logits.type.tensor_type.shape.dim[1].dim_param == "1"  # optimum's mistake
    logits.type.tensor_type.shape.dim[1].dim_param = "decoder_sequence_length"
    onnx.save(decoder, raw / GRAPHS[2])
    share_weights([raw / name for name in GRAPHS], expected)
    write_graphs(checkpoint, folder)
    for path in expected.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_exporter_that_keeps_its_weights_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tracing, "_weights_kept_apart", lambda: contextlib.nullcontext({}))
    with pytest.raises(ExportError, match=r"PyTorch .* exports weights in another way"):
        next(trace_graphs(checkpoint.model, checkpoint.dimensions, tmp_path))


def test_a_failed_trace_is_one_line_and_leaves_pytorch_as_it_was(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch
) -> None:
    import torch

    before = getattr(torch._C, tracing._LAST_PASS)

    def fail(*_args, **_kwargs) -> None:
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(tracing, "export", fail)
    with pytest.raises(ExportError, match="the ONNX exporter failed: no such operator"):
        next(trace_graphs(checkpoint.model, checkpoint.dimensions, tmp_path))
    assert getattr(torch._C, tracing._LAST_PASS) is before
