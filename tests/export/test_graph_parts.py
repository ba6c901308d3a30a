from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest

from whisper_npu.export.graph_parts import split_graph

RANDOM = np.random.default_rng(0)


def _weights(model: ov.Model) -> int:
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return sum(constant.get_byte_size() for constant in constants)


def _run(model: ov.Model, value: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([value])[0])


def test_parts_of_an_encoder_compute_what_it_computes(tiny_folder: Path) -> None:
    features = RANDOM.standard_normal((2, 80, 3000)).astype(np.float32)
    path = tiny_folder / "encoder_model.onnx"
    expected = _run(ov.Core().read_model(path), features)
    whole = _weights(ov.Core().read_model(path))
    parts = split_graph(ov.Core().read_model(path), whole // 4)
    assert len(parts) == 3  # two layers and their surroundings: no place is nearer
    assert max(_weights(part) for part in parts) < 0.7 * whole
    state = features
    for part in parts:
        assert len(part.inputs) == len(part.outputs) == 1
        state = _run(part, state)
    np.testing.assert_allclose(state, expected, atol=1e-5)


def test_a_small_graph_stays_whole(tiny_folder: Path) -> None:
    (part,) = split_graph(ov.Core().read_model(tiny_folder / "encoder_model.onnx"), 1 << 30)
    assert part.outputs[0].get_names() == {"last_hidden_state"}


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    """`a = x @ W`, `b = a + relu(a @ U)`, `y = b @ V`: no cut is possible between the terms."""
    weights = {name: RANDOM.standard_normal((8, 8)).astype(np.float32) for name in "WUV"}
    node = onnx.helper.make_node
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 8]) for name in "xy"
    ]
    graph = onnx.helper.make_graph(
        [
            node("MatMul", ["x", "W"], ["a"]),
            node("MatMul", ["a", "U"], ["m"]),
            node("Relu", ["m"], ["r"]),
            node("Add", ["a", "r"], ["b"]),
            node("MatMul", ["b", "V"], ["y"]),
        ],
        "residual",
        values[:1],
        values[1:],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    path = tmp_path / "residual.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def test_a_cut_lies_where_one_tensor_is_left(residual: Path) -> None:
    value = RANDOM.standard_normal((3, 8)).astype(np.float32)
    expected = _run(ov.Core().read_model(residual), value)
    parts = split_graph(ov.Core().read_model(residual), 1)
    state = value
    for part in parts:
        state = _run(part, state)
    kinds = [{op.get_type_name() for op in part.get_ops()} for part in parts]
    around = {"Parameter", "Constant", "Result"}
    assert [kind - around for kind in kinds] == [{"MatMul"}, {"MatMul", "Relu", "Add"}, {"MatMul"}]
    np.testing.assert_allclose(state, expected, rtol=1e-5)
