"""External weights: found in any graph, read from the model folder alone, by every reader."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_surgery import copy_folder
from onnx import TensorProto, helper, numpy_helper

from whisper_npu.errors import ModelError
from whisper_npu.export.quantize import quantize_encoder
from whisper_npu.export.shared_weights import share_weights
from whisper_npu.loading import load_backend
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.npu.graph_surgery import read_graph
from whisper_npu.runtime.model_folder import external_data
from whisper_npu.runtime.model_folder.external_data import data_file, external_files
from whisper_npu.runtime.model_folder.folder import MANIFEST, read_model_folder
from whisper_npu.runtime.model_folder.layout import ENCODER, GRAPHS
from whisper_npu.runtime.model_folder.linked_weights import without_links

DATA = "model.onnx_data"
SECRET = b"the secret of another folder, which nobody may read" * 40


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 2])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_with(*initializers: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()):
    graph = helper.make_graph(nodes, "graph", [], [], initializer=initializers)
    return helper.make_model(graph)


def save(model: onnx.ModelProto, folder: Path, *data: str) -> Path:
    """A graph, written as it is, and empty data files beside it."""
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    for name in data:
        (folder / name).write_bytes(bytes(64))
    return path


def test_every_place_a_tensor_can_be(tmp_path):
    """Initializers, attributes of nodes, subgraphs, functions, training, sparse tensors."""
    inner = helper.make_graph([], "inner", [], [], initializer=[external("a", "in a subgraph")])
    constant = helper.make_node("Constant", [], ["b"], value=external("b", "in an attribute"))
    several = helper.make_node("X", [], ["c"], ts=[external("c", "in a list")], gs=[inner])
    branch = helper.make_node("If", ["c"], ["d"], then_branch=inner)
    model = model_with(external("w", "in initializers"), nodes=(constant, several, branch))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("s", "in sparse values"))
    sparse.indices.CopyFrom(external("i", "in sparse indices"))
    function = model.functions.add()
    function.node.append(
        helper.make_node("Constant", [], ["f"], value=external("f", "in a function"))
    )
    training = model.training_info.add()
    training.algorithm.initializer.append(external("t", "in training"))
    names = [
        *("in initializers", "in an attribute", "in a list", "in a subgraph"),
        *("in sparse values", "in sparse indices", "in a function", "in training"),
    ]
    path = save(model, tmp_path, *names)
    assert {file.name for file in external_files(path)} == set(names)


def test_the_fields_are_onnx_s():
    """The numbers are ONNX's own, and none that leads to a tensor is missing."""
    messages = {
        "ModelProto": "model",
        "GraphProto": "graph",
        "TrainingInfoProto": "training",
        "FunctionProto": "function",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse tensor",
        "TensorProto": "tensor",
    }
    descriptors = onnx.ModelProto.DESCRIPTOR.file.message_types_by_name
    for message, ours in messages.items():
        fields = {
            field.number: messages[field.message_type.name]
            for field in descriptors[message].fields
            if field.message_type is not None and field.message_type.name in messages
        }
        if ours == "tensor":
            fields[descriptors[message].fields_by_name["external_data"].number] = "entry"
        assert external_data._FIELDS[ours] == fields


def test_real_graphs_name_their_data(tiny_folder):
    for name in GRAPHS:
        assert external_files(tiny_folder / name) == (tiny_folder / DATA,)


def test_weights_inside_the_graph_are_skipped(tmp_path):
    values = numpy_helper.from_array(np.arange(10**6, dtype=np.float32), "w")
    assert external_files(save(model_with(values), tmp_path)) == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"no graph", b"\x3a\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x3b", b"\x3a\x02\x0a"],
)
def test_no_onnx_file(tmp_path, content):
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot read"):
        external_files(path)


def test_a_truncated_graph(tiny_folder, tmp_path):
    content = (tiny_folder / ENCODER).read_bytes()
    path = tmp_path / ENCODER
    for length in range(1, len(content), len(content) // 40):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="cannot read"):
            external_files(path)


def test_deep_nesting_is_refused(tmp_path):
    def wrapped(tag: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([tag << 3 | 2]) + length + bytes([size]) + content

    content = b""
    for _ in range(200):
        content = wrapped(1, wrapped(5, wrapped(6, content)))  # node, attribute, graph
    path = tmp_path / "graph.onnx"
    path.write_bytes(wrapped(7, content))
    with pytest.raises(ModelError, match="nested too deeply"):
        external_files(path)


OUTSIDE = [
    "../secret.bin",
    "../../secret.bin",
    "weights/../../secret.bin",
    "..\\secret.bin",
    "/etc/passwd",
    "C:\\secret.bin",
    "C:secret.bin",
    "\\\\server\\share\\secret.bin",
    "",
    "a\0b",
]


@pytest.mark.parametrize("location", OUTSIDE)
def test_names_that_lead_out(tmp_path, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(SECRET)
    with pytest.raises(ModelError, match="outside the model folder"):
        data_file(folder, location)


@pytest.mark.parametrize("location", ["nothing", "*/_ORT_MEM_ADDR_/*", "folder"])
def test_names_of_no_file(tmp_path, location):
    """The second is how ONNX Runtime and OpenVINO name an address in the process's own memory."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=r"is missing|is no regular file"):
        data_file(tmp_path, location)


def test_a_folder_below_is_inside(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "data").write_bytes(b"x")
    (tmp_path / "link").symlink_to("weights/data")
    assert data_file(tmp_path, "weights/data") == tmp_path / "weights" / "data"
    assert data_file(tmp_path, "link") == tmp_path / "link"


def test_links_that_lead_out_or_nowhere(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (folder / "link").symlink_to("../secret.bin")
    (folder / "circle").symlink_to("circle")
    with pytest.raises(ModelError, match="outside the model folder"):
        data_file(folder, "link")
    with pytest.raises(ModelError, match=r"link to nothing|is missing"):
        data_file(folder, "circle")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """The tiny model, not certified: whoever changes a graph changes the certificate, too."""
    copy = copy_folder(tiny_folder, tmp_path / "models" / "tiny")
    (copy / MANIFEST).unlink()
    return copy


def point_to(folder: Path, location: str) -> None:
    """Let the encoder take its weights from elsewhere."""
    path = folder / ENCODER
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)


def by_a_name(folder: Path) -> None:
    point_to(folder, "../../secret.bin")


def by_an_absolute_name(folder: Path) -> None:
    point_to(folder, str(folder.parent.parent / "secret.bin"))


def by_a_link(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).symlink_to("../../secret.bin")


def by_a_folder_that_is_a_link(folder: Path) -> None:
    (folder / "weights").symlink_to("../..")
    point_to(folder, "weights/secret.bin")


def by_a_fifo(folder: Path) -> None:
    (folder / DATA).unlink()
    os.mkfifo(folder / DATA)


READERS: dict[str, Callable[[Path], object]] = {
    "CPU": lambda folder: load_backend(read_model_folder(folder)),
    "concat": lambda folder: load_backend(read_model_folder(folder), kv_cache="concat"),
    "ONNX Runtime": lambda folder: load_backend(read_model_folder(folder), backend="onnxruntime"),
    "static graphs": lambda folder: ensure_bundle(read_model_folder(folder)),
    "graph surgery": lambda folder: read_graph(folder / ENCODER),
    "shared weights": lambda folder: share_weights([folder / ENCODER], folder.parent),
    "quantization": lambda folder: quantize_encoder(folder / ENCODER, []),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize(
    "lead_out", [by_a_name, by_an_absolute_name, by_a_link, by_a_folder_that_is_a_link, by_a_fifo]
)
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_leaves_the_folder(folder, lead_out, reader):
    secret = folder.parent.parent / "secret.bin"
    secret.write_bytes(SECRET + (folder / DATA).read_bytes())  # long enough for every tensor
    lead_out(folder)
    with pytest.raises(ModelError, match=r"outside the model folder|is no regular file"):
        READERS[reader](folder)
    written = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert all(SECRET[:50] not in path.read_bytes() for path in written)


@pytest.fixture
def snapshot(tiny_folder, tmp_path):
    """The tiny model as a hub's cache holds it: links to blobs."""
    repository = tmp_path / "models--somebody--tiny"
    folder = repository / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(tiny_folder.iterdir()):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.copyfile(path, blob)
        (folder / path.name).symlink_to(Path("../../blobs", blob.name))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["CPU", "concat", "ONNX Runtime"])
@pytest.mark.parametrize("can_link", [True, False])
def test_a_snapshot_of_a_hub_is_a_model(snapshot, tiny_folder, reader, can_link, monkeypatch):
    if not can_link:  # as between file systems

        def refuse(*_):
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr("whisper_npu.runtime.model_folder.linked_weights.os.link", refuse)
    found, expected = (READERS[reader](folder) for folder in (snapshot, tiny_folder))
    features = np.ones((1, expected.n_mels, 3000), np.float32)
    np.testing.assert_array_equal(found.encode(features), expected.encode(features))
    linked = Path(os.environ["WHISPER_NPU_CACHE"]) / "linked"
    assert list(linked.iterdir()) == []


def test_static_graphs_of_a_snapshot(snapshot, tiny_folder):
    found = ensure_bundle(read_model_folder(snapshot))
    copy = copy_folder(tiny_folder, snapshot.parent.parent / "copy")
    expected = ensure_bundle(read_model_folder(copy))
    assert found.data_sha256 == expected.data_sha256


def test_a_snapshot_reads_nothing_but_its_own_blobs(snapshot):
    secret = snapshot.parent.parent / "secret.bin"
    secret.write_bytes(SECRET)
    (snapshot / DATA).unlink()
    (snapshot / DATA).symlink_to("../../secret.bin")
    (snapshot / MANIFEST).unlink()
    with pytest.raises(ModelError, match="outside the model folder"):
        load_backend(read_model_folder(snapshot))


def test_what_a_killed_reader_left_is_removed(snapshot, tmp_path, monkeypatch):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "cache"))
    left = tmp_path / "cache" / "linked" / "left"
    left.mkdir(parents=True)
    (left / DATA).write_bytes(b"x")
    os.utime(left, (1, 1))
    with without_links(snapshot / ENCODER) as path:
        assert not left.exists()
        assert path.parent.parent == tmp_path / "cache" / "linked"
        assert (path.parent / DATA).samefile(snapshot / DATA)
    assert not path.exists()
