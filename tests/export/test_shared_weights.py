import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx.external_data_helper import uses_external_data

from whisper_npu.errors import ExportError
from whisper_npu.export.shared_weights import (
    ALIGNMENT,
    DATA_FILE,
    SharedWeights,
    check_references,
    share_weights,
)

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.standard_normal((300, 16)).astype(np.float32)
SQUARE = RANDOM.standard_normal((32, 32)).astype(np.float32)
GRAPHS = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx")


def _save(path: Path, nodes, initializers, inputs, outputs) -> Path:
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        path.stem,
        [onnx.helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [onnx.helper.make_tensor_value_info(n, float_type, s) for n, s in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.fixture
def graphs(tmp_path: Path) -> list[Path]:
    """A tied embedding (gathered here, multiplied there), and a matrix used under two names."""
    node = onnx.helper.make_node
    raw = tmp_path / "raw"
    raw.mkdir()
    tied = _save(
        raw / "tied.onnx",
        [
            # The transposed copy comes first: the gathered layout must be stored all the same.
            node("MatMul", ["x", "projection"], ["y"]),
            node("Gather", ["table", "ids"], ["z"]),
        ],
        {"projection": np.ascontiguousarray(TABLE.T), "table": TABLE},
        [("x", onnx.TensorProto.FLOAT, [1, 16]), ("ids", onnx.TensorProto.INT64, [2])],
        [("y", [1, 300]), ("z", [2, 16])],
    )
    other = _save(
        raw / "other.onnx",
        [
            node("MatMul", ["x", "projection"], ["a"]),
            node("Add", ["a", "small"], ["y"]),
            node("MatMul", ["s", "square"], ["b"]),
            node("MatMul", ["b", "square_again"], ["z"]),
        ],
        {
            "projection": np.ascontiguousarray(TABLE.T),
            "small": np.ones(1, np.float32),
            "square": SQUARE,
            "square_again": SQUARE.copy(),
        },
        [("x", onnx.TensorProto.FLOAT, [1, 16]), ("s", onnx.TensorProto.FLOAT, [1, 32])],
        [("y", [1, 300]), ("z", [1, 32])],
    )
    return [tied, other]


@pytest.fixture
def shared(graphs: list[Path], tmp_path: Path) -> Path:
    target = tmp_path / "shared"
    target.mkdir()
    share_weights(graphs, target)
    return target


def _external(path: Path) -> list[onnx.TensorProto]:
    graph = onnx.load(path, load_external_data=False).graph
    return [tensor for tensor in graph.initializer if uses_external_data(tensor)]


def test_each_weight_is_stored_once(shared: Path) -> None:
    content = (shared / DATA_FILE).read_bytes()
    assert content.count(TABLE.tobytes()) == 1
    assert TABLE.T.tobytes() not in content
    assert content.count(SQUARE.tobytes()) == 1
    assert len(content) <= TABLE.nbytes + SQUARE.nbytes + 2 * ALIGNMENT


def test_tensors_start_on_pages(shared: Path) -> None:
    for name in ("tied.onnx", "other.onnx"):
        for tensor in _external(shared / name):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert int(entries["offset"]) % ALIGNMENT == 0
            assert entries["location"] == DATA_FILE


def test_small_tensors_stay_inline(shared: Path) -> None:
    assert "small" not in {tensor.name for tensor in _external(shared / "other.onnx")}


def test_graphs_compute_the_same(graphs: list[Path], shared: Path) -> None:
    core = ov.Core()
    x, ids = RANDOM.standard_normal((1, 16)).astype(np.float32), np.array([7, 299])
    tied = core.compile_model(shared / "tied.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = tied({"x": x, "ids": ids})
    np.testing.assert_allclose(results["y"], x @ TABLE.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(results["z"], TABLE[ids])
    s = RANDOM.standard_normal((1, 32)).astype(np.float32)
    other = core.compile_model(shared / "other.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = other({"x": x, "s": s})
    np.testing.assert_allclose(results["y"], x @ TABLE.T + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(results["z"], s @ SQUARE @ SQUARE, rtol=1e-4, atol=1e-4)


def test_onnx_accepts_the_graphs(shared: Path) -> None:
    for name in ("tied.onnx", "other.onnx"):
        onnx.checker.check_model(str(shared / name), full_check=True)


def test_external_weights_are_read_where_they_lie(graphs: list[Path], tmp_path: Path) -> None:
    """Above 2 GB the exporter writes external data by itself."""
    model = onnx.load(graphs[0])
    onnx.save(model, graphs[0], save_as_external_data=True, location="raw.data", size_threshold=0)
    target = tmp_path / "target"
    target.mkdir()
    share_weights(graphs, target)
    assert (target / DATA_FILE).read_bytes().count(TABLE.tobytes()) == 1


def test_weights_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """Each is read once, and dropped before the next is read."""
    shape = (64, 64)
    taken: list[weakref.ref[np.ndarray]] = []

    class Weights(Mapping):
        def __getitem__(self, name: str) -> np.ndarray:
            assert all(array() is None for array in taken)
            array = np.full(shape, int(name), np.float32)
            taken.append(weakref.ref(array))
            return array

        def __iter__(self) -> Iterator[str]:
            return iter("0123")

        def __len__(self) -> int:
            return 4

    nodes = [onnx.helper.make_node("Sum", list("0123"), ["y"])]
    model = onnx.load(_save(tmp_path / "sum.onnx", nodes, {}, [], [("y", shape)]))
    target = tmp_path / "target"
    target.mkdir()
    with SharedWeights(target) as shared:
        shared.write("sum.onnx", model, Weights())
    assert len(taken) == 4
    total = ov.Core().compile_model(target / "sum.onnx", "CPU")([])[0]
    np.testing.assert_array_equal(total, np.full(shape, 6))


def test_transposed_views_are_stored_in_order(tmp_path: Path) -> None:
    """The exporter's matrices are transposed views; more rows than are written at once."""
    view = RANDOM.standard_normal((32, 2100)).astype(np.float32).T
    node = onnx.helper.make_node("Identity", ["view"], ["y"])
    model = onnx.load(_save(tmp_path / "view.onnx", [node], {}, [], [("y", view.shape)]))
    target = tmp_path / "target"
    target.mkdir()
    with SharedWeights(target) as shared:
        shared.write("view.onnx", model, {"view": view})
    assert (target / DATA_FILE).read_bytes()[: view.nbytes] == view.tobytes()


def test_graphs_are_not_checked_after_an_error(graphs: list[Path], tmp_path: Path) -> None:
    """The data file may be cut then; the error itself says why."""

    def write_half() -> None:
        with SharedWeights(target) as shared:
            shared.write("square.onnx", onnx.load(graphs[1]), {"square": SQUARE})
            (target / "square.onnx").unlink()
            raise OSError("disk full")

    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(OSError, match="disk full"):
        write_half()


def test_cut_data_file_is_noticed(shared: Path) -> None:
    data = shared / DATA_FILE
    data.write_bytes(data.read_bytes()[: TABLE.nbytes // 2])
    with pytest.raises(ExportError, match=r"tied\.onnx: table"):
        check_references(shared / "tied.onnx")


def test_subgraphs_are_refused(tmp_path: Path) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    path = _save(tmp_path / "if.onnx", [node], {}, [("c", onnx.TensorProto.BOOL, [])], [("y", [])])
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="graph of its own"):
        share_weights([path], tmp_path / "out")


def test_exported_trio_is_near_the_size_of_its_parameters(tiny_folder: Path) -> None:
    distinct = {
        (entry.value, tuple(tensor.dims))
        for name in GRAPHS
        for tensor in _external(tiny_folder / name)
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    stored = sum(4 * int(np.prod(shape)) for _, shape in distinct)
    padding = ALIGNMENT * len(distinct)
    assert (tiny_folder / DATA_FILE).stat().st_size <= stored + padding


def test_both_decoders_refer_to_the_same_embedding(tiny_folder: Path) -> None:
    places = []
    for name in GRAPHS[1:]:
        for tensor in _external(tiny_folder / name):
            if "embed_tokens" in tensor.name:
                places.append({entry.key: entry.value for entry in tensor.external_data})
    assert len(places) == 2
    assert places[0] == places[1]
