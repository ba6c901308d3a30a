import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
from model_surgery import copy_folder
from onnx import TensorProto, helper, numpy_helper

from whisper_npu.errors import AudioError, ExportError, UsageError
from whisper_npu.export import accuracy, conversion, onnx_export
from whisper_npu.export.accuracy import WindowResult, verify_accuracy
from whisper_npu.export.calibration import calibration_windows
from whisper_npu.export.conversion import Conversion
from whisper_npu.export.dimensions import Dimensions
from whisper_npu.export.manifest import read_manifest, verify_files
from whisper_npu.export.onnx_export import export_model
from whisper_npu.export.quantize import (
    CONVERTED,
    convert_graphs,
    halve_weights,
    quantize_encoder,
    quantize_weights,
)
from whisper_npu.npu.devices import EMULATED
from whisper_npu.npu.load_static import load_static
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.onnxruntime import OnnxRuntimeBackend
from whisper_npu.runtime.engines.openvino import graphs
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.model_folder.folder import read_model_folder

PRECISIONS = ("fp16", "int8")
COMPANIONS = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")


def _dimensions(folder: Path) -> Dimensions:
    return Dimensions(**json.loads((folder / "export_manifest.json").read_text())["dimensions"])


@pytest.fixture(scope="module")
def windows(tiny_folder: Path, tiny_audio: list[Path]) -> tuple[np.ndarray, ...]:
    return calibration_windows(tiny_audio, _dimensions(tiny_folder)).windows


@pytest.fixture(scope="module", params=PRECISIONS)
def converted(request, tiny_folder: Path, windows, tmp_path_factory) -> tuple[str, Path]:
    """The tiny Whisper in a precision, as a model folder."""
    folder = tmp_path_factory.mktemp("converted") / request.param
    folder.mkdir()
    convert_graphs(tiny_folder, folder, request.param, windows)
    for name in COMPANIONS:
        shutil.copyfile(tiny_folder / name, folder / name)
    return request.param, folder


def _decode(backend, features: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Logits after each token, one row, from one session."""
    session = backend.start(backend.encode(features))
    try:
        steps = [session.step(np.array([[token]], np.int64)).copy()[0, -1] for token in tokens]
    finally:
        session.close()
    return np.array(steps)


def _relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_weights_are_stored_once_and_small(converted, tiny_folder: Path) -> None:
    precision, folder = converted
    share = (folder / "model.onnx_data").stat().st_size
    share /= (tiny_folder / "model.onnx_data").stat().st_size
    # The table of 1500 positions stays float32, and each tensor has a page: more in a tiny model.
    assert share < {"fp16": 0.75, "int8": 0.75}[precision]
    places: dict[str, set[int]] = {}
    for name in CONVERTED[1:]:
        graph = onnx.load(folder / name, load_external_data=False).graph
        for tensor in graph.initializer:
            if "embed_tokens" in tensor.name and tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                places.setdefault(tensor.name, set()).add(int(entries["offset"]))
    stored = {"fp16": 1, "int8": 3}[precision]  # int8: integers, their scales, their zeros
    assert len(places) == stored
    assert all(len(offsets) == 1 for offsets in places.values())


def test_interfaces_stay_float(converted, tiny_folder: Path) -> None:
    _, folder = converted
    for name in CONVERTED:
        got, expected = (
            onnx.load(path / name, load_external_data=False).graph for path in (folder, tiny_folder)
        )
        assert [value.name for value in got.output] == [value.name for value in expected.output]
        assert [value.type for value in got.input] == [value.type for value in expected.input]


def test_encoder_stays_elastic(converted) -> None:
    _, folder = converted
    encoder = ov.Core().read_model(folder / "encoder_model.onnx")
    assert graphs.make_elastic(encoder, 1500)


@pytest.mark.slow
def test_both_backends_compute_nearly_the_same(converted, tiny_folder: Path, windows) -> None:
    precision, folder = converted
    tokens = [321, 322, 328, 332]
    expected = _decode(OpenVINOBackend(read_model_folder(tiny_folder)), windows[0], tokens)
    close = {"fp16": 5e-3, "int8": 0.2}[precision]
    for backend in (OpenVINOBackend, OnnxRuntimeBackend):
        got = _decode(backend(read_model_folder(folder)), windows[0], tokens)
        assert 0 < _relative(got, expected) < close, backend


@pytest.mark.slow
def test_alignment_graph_still_runs(converted, windows) -> None:
    _, folder = converted
    backend = OpenVINOBackend(read_model_folder(folder))
    hidden = backend.encode(windows[0])
    attentions = backend.align(hidden, np.array([[321, 5, 6, 7]], np.int64))
    assert any(array.ndim == 4 for array in attentions)
    assert all(np.isfinite(array).all() for array in attentions)


@pytest.mark.slow
def test_static_graphs_can_be_made_from_it(converted, windows, tmp_path) -> None:
    precision, source = converted
    folder = read_model_folder(copy_folder(source, tmp_path / precision))
    static = load_static(folder, EMULATED, cache=CompileCache(tmp_path / "cache", 8 << 30))
    tokens = [321, 322, 328]
    expected = _decode(OpenVINOBackend(folder, precision="f32"), windows[0], tokens)
    close = {"fp16": 1e-4, "int8": 0.1}[precision]  # roundings to 8 bits fall here or there
    assert _relative(_decode(static, windows[0], tokens), expected) < close


@pytest.mark.slow
def test_step_multiplies_the_stored_integers(tiny_folder, windows, tmp_path) -> None:
    convert_graphs(tiny_folder, tmp_path, "int8", windows)
    compiled = ov.Core().compile_model(tmp_path / "decoder_with_past_model.onnx", "CPU")
    weights = [
        op.input(1).get_element_type().get_type_name()
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    ]
    assert weights == ["i8"] * 17  # 8 in each of 2 layers, and the logits


def test_failure_of_the_library_is_one_line(tiny_folder, monkeypatch) -> None:
    import nncf

    def fail(*_args, **_kwargs) -> None:
        raise nncf.errors.ValidationError("no such\nnode")

    monkeypatch.setattr(nncf, "quantize", fail)
    with pytest.raises(ExportError, match=r"could not quantize encoder_model\.onnx: no such node"):
        quantize_encoder(tiny_folder / "encoder_model.onnx", [])


def _matmul_model(weight: np.ndarray, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return y


@pytest.mark.parametrize("transposed", [False, True])
def test_scales_are_those_of_the_outputs(transposed: bool, tmp_path) -> None:
    random = np.random.default_rng(0)
    loudness = np.array([1e-4, 1.0, 1e4, 0.0], np.float32)  # lost by any coarser scale
    weight = random.standard_normal((4, 4)).astype(np.float32) * loudness
    name = "t" if transposed else "w"
    nodes = [helper.make_node("MatMul", ["x", name], ["y"])]
    if transposed:
        nodes.insert(0, helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
    model = _matmul_model(np.ascontiguousarray(weight.T) if transposed else weight, nodes)
    x = random.standard_normal((3, 4)).astype(np.float32)
    assert quantize_weights(model, tmp_path) == 1
    np.testing.assert_allclose(_run(model, x), x @ weight, rtol=0.02)
    types = {tensor.data_type for tensor in model.graph.initializer}
    assert types == {TensorProto.INT8, TensorProto.FLOAT}


def test_tables_of_positions_stay_as_they_are(tmp_path) -> None:
    model = _matmul_model(np.ones((4, 4), np.float32), [helper.make_node("Add", ["x", "w"], ["y"])])
    assert halve_weights(model, tmp_path) == 0
    with pytest.raises(ExportError, match="no matrices"):
        quantize_weights(model, tmp_path)


def test_what_half_precision_cannot_hold_stays_float(tmp_path) -> None:
    weight = np.full((4, 4), 1e6, np.float32)
    model = _matmul_model(weight, [helper.make_node("MatMul", ["x", "w"], ["y"])])
    assert halve_weights(model, tmp_path) == 0
    np.testing.assert_array_equal(_run(model, np.ones((1, 4), np.float32)), 4e6)


# ---- the certificate


@pytest.fixture
def heard(monkeypatch):
    """Says what the two folders `float` and `converted` transcribe, instead of transcribing."""

    def say(before: list[str], after: list[str]) -> None:
        texts = {"float": before, "converted": after}
        monkeypatch.setattr(
            accuracy,
            "_transcribe",
            lambda folder, _recordings: [WindowResult(text, "en") for text in texts[folder.name]],
        )

    return say


def _verify(conversion: Conversion) -> dict:
    return verify_accuracy(Path("float"), Path("converted"), conversion)


def _references(folder: Path, *texts: str) -> Path:
    file = folder / "said.tsv"
    file.write_text("".join(f"{i}.wav\t{text}\n" for i, text in enumerate(texts)))
    return file


def test_certificate_counts_words_against_references(heard, tmp_path) -> None:
    file = _references(tmp_path, "red green blue black white", "cat dog cow pig hen")
    heard(
        ["Red, green, blue, black, white!", "cat dog cow pig ten"],
        ["red green blue black white", "cat dog now pig ten"],
    )
    settings = Conversion("int8", wer_references=file, max_wer_increase=10)
    found = _verify(settings)
    assert (found["reference"], found["recordings"], found["words"]) == ("said.tsv", 2, 10)
    assert (found["fp32"], found["int8"], found["increase"]) == (10, 20, 10)
    with pytest.raises(ExportError, match=r"WER 20.00 % in int8, 10.00 % in fp32.*9.9") as caught:
        _verify(replace(settings, max_wer_increase=9.9))
    assert "\n" not in str(caught.value)


def test_few_words_prove_little(heard, tmp_path) -> None:
    file = _references(tmp_path, "red green")
    heard(["red green"], ["red green"])
    assert _verify(Conversion("fp16", wer_references=file))["caveat"] == "2 words are few"


def test_words_that_were_calibrated_on_prove_little(heard, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
    monkeypatch.setattr(accuracy, "fetch", accuracy.asset_path)
    heard(["red green"], ["red green"])
    lines: list[str] = []
    found = verify_accuracy(Path("float"), Path("converted"), Conversion("int8"), lines.append)
    assert found["caveat"] == "2 words are few, and 1 of 1 recordings were calibrated on"
    assert lines[-1].startswith(f"this proves little: {found['caveat']}; give --wer-references")


def test_enough_words_that_were_not_calibrated_on(heard, tmp_path) -> None:
    text = "red green " * 500
    heard([text], [text])
    lines: list[str] = []
    settings = Conversion(
        "int8", (tmp_path / "other.wav",), wer_references=_references(tmp_path, text)
    )
    found = verify_accuracy(Path("float"), Path("converted"), settings, lines.append)
    assert found["caveat"] is None
    assert lines[-1].startswith("WER 0.00 % in int8")


def test_lower_error_rate_is_no_failure(heard, tmp_path) -> None:
    file = _references(tmp_path, "red green")
    heard(["red clean"], ["red green"])
    assert _verify(Conversion("fp16", wer_references=file, max_wer_increase=0))["increase"] == -50


def test_without_references_the_float_text_is_the_reference(heard, monkeypatch) -> None:
    monkeypatch.setattr(accuracy, "fetch", lambda _name: Path("beckett.wav"))
    heard(["red green blue black"], ["red green blue back"])
    found = _verify(Conversion("int8", max_wer_increase=100))
    assert found["reference"] == "the text of the fp32 export"
    assert (found["fp32"], found["words"]) == (0, 4)
    with pytest.raises(ExportError, match="--wer-references"):
        _verify(Conversion("int8", max_wer_increase=1))


def test_nothing_said_is_no_certificate(heard, tmp_path) -> None:
    heard(["", ""], ["", ""])
    with pytest.raises(ExportError, match="no words"):
        _verify(Conversion("int8", wer_references=_references(tmp_path, "", "")))


# ---- the export as a whole


@pytest.fixture
def stages(monkeypatch, tiny_folder: Path):
    """Replaces the slow stages; records what was verified."""
    verified: list[str] = []

    def write_graphs(_checkpoint, folder: Path, _progress) -> None:
        for name in (*CONVERTED, "model.onnx_data"):
            shutil.copyfile(tiny_folder / name, folder / name)

    def verify(_float: Path, _folder: Path, conversion: Conversion, _progress) -> dict:
        verified.append(conversion.precision)
        if conversion.max_wer_increase == 0:
            raise ExportError("too bad")
        return {"status": "verified"}

    monkeypatch.setattr(onnx_export, "write_graphs", write_graphs)
    monkeypatch.setattr(onnx_export, "verify_parity", lambda *_: {"status": "verified"})
    monkeypatch.setattr(accuracy, "verify_accuracy", verify)
    return verified


@pytest.mark.slow
def test_export_in_another_precision(stages, tiny_checkpoint, tiny_audio, tmp_path) -> None:
    out = tmp_path / "out"
    settings = Conversion("int8", calibration_audio=tuple(tiny_audio))
    export_model(str(tiny_checkpoint), out, conversion=settings)
    verify_files(out)
    manifest = read_manifest(out)
    assert manifest["precision"] == "int8"
    assert manifest["accuracy"] == {"status": "verified"}
    assert manifest["calibration"]["windows"] == 3
    assert tiny_audio[0].name in manifest["calibration"]["audio"]
    assert "scale per output channel" in manifest["graphs"]["decoder_model.onnx"]
    OpenVINOBackend(read_model_folder(out))
    # Up to date, until anything it was made with is another.
    export_model(str(tiny_checkpoint), out, conversion=settings)
    assert stages == ["int8"]
    fewer = replace(settings, calibration_audio=tuple(tiny_audio[:2]))
    export_model(str(tiny_checkpoint), out, conversion=fewer)
    export_model(str(tiny_checkpoint), out, conversion=Conversion("fp16"))
    assert stages == ["int8", "int8", "fp16"]
    assert read_manifest(out)["precision"] == "fp16"
    export_model(str(tiny_checkpoint), out)
    assert read_manifest(out)["precision"] == "fp32"
    assert "accuracy" not in read_manifest(out)


def test_failed_certificate_leaves_nothing(stages, tiny_checkpoint, tmp_path) -> None:
    out = tmp_path / "models" / "out"
    with pytest.raises(ExportError, match="too bad"):
        export_model(str(tiny_checkpoint), out, conversion=Conversion("fp16", max_wer_increase=0))
    assert list(out.parent.iterdir()) == []


def test_unverified_says_so(stages, tiny_checkpoint, tmp_path) -> None:
    out = export_model(
        str(tiny_checkpoint), tmp_path / "out", verify=False, conversion=Conversion("fp16")
    )
    assert stages == []
    assert read_manifest(out)["accuracy"] == {"status": "not verified"}


def test_built_in_calibration_is_used_and_named(tiny_folder, beckett) -> None:
    found = calibration_windows((), _dimensions(tiny_folder))
    assert "beckett" in found.description
    shapes = {window.shape for window in found.windows}
    assert shapes == {(1, 80, 3000)}
    assert len({window.tobytes() for window in found.windows}) == len(found.windows) == 18


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "int4"}, "fp32, fp16, int8"),
        ({"precision": "fp16", "calibration_audio": (Path("a"),)}, "--calibration-audio"),
        ({"wer_references": Path("a")}, "--wer-references"),
        ({"precision": "int8", "max_wer_increase": -1}, "--max-wer-increase"),
    ],
)
def test_settings_without_use_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Conversion(**settings)


def test_missing_files_are_told_before_the_export(stages, tiny_checkpoint, tmp_path) -> None:
    for settings, error in (
        (Conversion("int8", calibration_audio=(tmp_path / "no.wav",)), AudioError),
        (Conversion("int8", wer_references=tmp_path / "no.tsv"), UsageError),
    ):
        with pytest.raises(error, match="no\\."):
            export_model(str(tiny_checkpoint), tmp_path / "out", conversion=settings)


@pytest.mark.parametrize(("library", "extra"), [("nncf", "export,ort"), ("jiwer", "eval")])
def test_missing_library_names_its_extra(monkeypatch, library: str, extra: str) -> None:
    real = conversion.version

    def version(name: str) -> str:
        if name == library:
            raise conversion.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(conversion, "version", version)
    with pytest.raises(ExportError, match=library) as caught:
        Conversion("int8").require_libraries(verify=True)
    assert f"[{extra}]" in str(caught.value)
    Conversion().require_libraries(verify=True)


def test_real_tiny_en_in_int8_still_hears_the_same(tiny_en_folder, beckett, tmp_path) -> None:
    dimensions = _dimensions(tiny_en_folder)
    windows = calibration_windows((), dimensions).windows[:6]
    convert_graphs(tiny_en_folder, tmp_path, "int8", windows)
    for name in COMPANIONS:
        shutil.copyfile(tiny_en_folder / name, tmp_path / name)
    found = verify_accuracy(tiny_en_folder, tmp_path, Conversion("int8", max_wer_increase=10))
    assert found["words"] == 12  # Ever tried. Ever failed. ...
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 0.32 * sum(path.stat().st_size for path in tiny_en_folder.glob("*.onnx*"))
