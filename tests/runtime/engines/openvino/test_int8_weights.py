"""Matrices in 8 bits: how far they are off, what is rounded and what is not, and what runs."""

import shutil

import numpy as np
import onnx
import openvino as ov
import pytest
from decoding_checks import (
    HAS_AMX,
    HAS_BF16,
    HAS_VNNI,
    TOLERANCE,
    loaded,
    product_precisions,
    products_of_int8,
    stepwise_logits,
)

from whisper_npu import load_model
from whisper_npu.errors import ModelError, UsageError
from whisper_npu.export.quantize import quantize_weights
from whisper_npu.export.shared_weights import DATA_FILE
from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.runtime.engines import cpu_capabilities
from whisper_npu.runtime.engines.openvino.compile_config import Plan
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.graphs import matrix_of
from whisper_npu.runtime.engines.openvino.int8_weights import GROUP, round_matrix, round_products
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST, ENCODER, GRAPHS

ARITHMETIC = "bf16" if HAS_BF16 else "f32"
"""What is computed in beside 8 bits."""


@pytest.fixture(scope="module")
def real(tiny_en_folder):
    """tiny.en: the random model's rows are too short for groups of 128."""
    return OpenVINOBackend(read_model_folder(tiny_en_folder), precision="int8")


@pytest.fixture(scope="module")
def features(tiny_audio):
    """Three windows, `(3, 80, 3000)`."""
    windows = [FeatureStream(iter([load_audio(path)]), 80).window(0, 3000) for path in tiny_audio]
    return np.stack(windows)


def products(model):
    """The constants that a graph multiplies by."""
    found = map(matrix_of, model.get_ordered_ops())
    return [matrix for matrix in found if matrix is not None]


def read(folder, name):
    return ov.Core().read_model(folder / name)


def distance(got, want):
    """Root mean square of what is off, relative to that of what there is."""
    return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


class TestRoundMatrix:
    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_no_element_is_off_by_more_than_half_a_step(self, axis, dtype):
        rng = np.random.default_rng(1)
        values = (rng.standard_normal((40, 30)) * rng.uniform(0.01, 9, (40, 30))).astype(dtype)
        codes, scales = round_matrix(values, axis)
        assert (codes.dtype, codes.shape, scales.shape) == (np.int8, (40, 30), (40 - 10 * axis,))
        assert (np.abs(codes).max(axis=1 - axis) == 127).all()  # every scale is used in full
        step = np.expand_dims(scales, 1 - axis)
        assert (np.abs(codes * step - values) <= step * 0.501).all()

    def test_an_empty_row_stays_empty(self):
        values = np.eye(3, dtype=np.float32)
        values[1] = 0
        codes, scales = round_matrix(values, 0)
        np.testing.assert_array_equal(codes * scales[:, None], values)


class TestRoundProducts:
    def test_every_product_is_rounded_once(self, tiny_folder):
        model = read(tiny_folder, DECODER_WITH_PAST)
        n_products = len(products(model))
        assert n_products > 10
        assert round_products(model, attention=True) == n_products
        assert products(model) == []
        assert round_products(model, attention=True) == 0

    def test_attention_may_be_left_out(self, tiny_folder):
        model = read(tiny_folder, ENCODER)
        shapes = [matrix.shape for matrix in products(model)]
        n_square = sum(n_out == n_in for n_out, n_in in shapes)
        assert n_square == 2 * len(shapes) / 3  # four of six
        assert round_products(model, attention=False) == len(shapes) - n_square
        assert all(n_out == n_in for n_out, n_in in (each.shape for each in products(model)))

    def test_a_product_gives_nearly_the_same(self):
        """Transposed or not, stored in half precision or not."""
        rng = np.random.default_rng(2)
        matrix = rng.standard_normal((700, 60)).astype(np.float32)  # more rows than in one part
        x = ov.opset13.parameter([-1, 60], np.float32, name="x")
        half = ov.opset13.convert(ov.opset13.constant(matrix.astype(np.float16)), "f32")
        turned = ov.opset13.transpose(ov.opset13.constant(matrix.T.copy()), [1, 0])
        sums = [
            ov.opset13.matmul(x, ov.opset13.constant(matrix.T.copy()), False, False),
            ov.opset13.matmul(x, half, False, True),
            ov.opset13.matmul(x, turned, False, True),
        ]
        model = ov.Model([ov.opset13.result(each) for each in sums], [x], "sums")
        assert round_products(model, attention=True) == 3
        config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
        values = rng.standard_normal((5, 60)).astype(np.float32)
        want = values @ matrix.T
        for got in request.infer([values]).values():
            off = np.abs(got - want).max() / np.abs(want).max()
            assert 1e-4 < off < 0.01


class TestBackend:
    def test_it_is_the_default_where_it_is_fast(self, tiny_folder):
        """On other processors and for other caches, f32."""
        assert load_model(tiny_folder).backend.precision == (
            f"int8+{ARITHMETIC}" if HAS_VNNI else "f32"
        )
        assert load_model(tiny_folder, kv_cache="concat").backend.precision == "f32"

    @pytest.mark.skipif(not HAS_VNNI, reason="other processors do not multiply in 8 bits")
    def test_what_runs_is_in_8_bits(self, real):
        """Read from the compiled graphs. Whether integers are added up, rows side by side tell."""
        for pool, counts in products_of_int8(real.precision.removeprefix("int8+")).items():
            compiled = real._pools[pool].compiled
            assert product_precisions(compiled) == counts, pool
            if "i8" in counts:
                assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == GROUP
        decoder = real._pools["with_past"].compiled
        assert decoder.get_property("INFERENCE_PRECISION_HINT") == ov.Type.f32

    @pytest.mark.slow
    @pytest.mark.parametrize("flags", [("avx512_vnni",), ("avx512_vnni", "amx_bf16")])
    @pytest.mark.parametrize("beside", ["f32", *(["bf16"] if HAS_BF16 else [])])
    def test_what_is_left_whole_where_tiles_are_multiplied(
        self, tiny_folder, monkeypatch, flags, beside
    ):
        monkeypatch.setattr(cpu_capabilities, "processor_flags", lambda: flags)
        monkeypatch.setattr(Plan, "_pick_compute_precision", lambda _self: beside)
        backend = OpenVINOBackend(read_model_folder(tiny_folder), precision="int8")
        whole = "amx_bf16" in flags and beside == "bf16"
        rounded = {
            name
            for name, pool in backend._pools.items()
            if pool.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == GROUP
        }
        assert rounded == {"with_past"} | (set() if whole else {"encoder", "cross"})
        assert backend.precision == f"int8+{beside}"

    def test_it_is_near_to_f32_but_rounded(self, tiny_folder, features, monkeypatch):
        """All else in f32, so that what is off is due to 8 bits."""
        monkeypatch.setattr(Plan, "_pick_compute_precision", lambda _self: "f32")
        backend = OpenVINOBackend(read_model_folder(tiny_folder), precision="int8")
        assert backend.precision == "int8+f32"
        exact = loaded(tiny_folder, "stateful").backend
        audio = exact.encode(features)
        assert 1e-3 < distance(backend.encode(features), audio) < 0.05
        rows = np.random.default_rng(3).integers(0, 330, (3, 24), dtype=np.int64)
        got, want = (stepwise_logits(each, audio, rows) for each in (backend, exact))
        assert 1e-3 < distance(got, want) < 0.1

    def test_a_row_does_not_depend_on_the_others(self, real, features):
        """To the bit where integers are added up; elsewhere in another order."""
        tolerance = 0 if HAS_VNNI else TOLERANCE
        audio = real.encode(features)
        rows = np.random.default_rng(4).integers(0, 50000, (3, 12), dtype=np.int64)
        together = stepwise_logits(real, audio, rows)
        for i in range(3):
            alone = stepwise_logits(real, audio[i : i + 1], rows[i : i + 1])
            np.testing.assert_allclose(together[i : i + 1], alone, rtol=0, atol=tolerance)

    def test_streams_compute_in_it_too(self, tiny_folder):
        backend = OpenVINOBackend(read_model_folder(tiny_folder), precision="int8", threads=2)
        streams = backend.parallel()
        assert streams is not backend
        assert streams.precision == backend.precision
        for name, pool in streams._pools.items():
            group = pool.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
            assert (group == GROUP) is (name == "with_past" or not HAS_AMX)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["concat", "static", "off"])
    def test_any_cache_can_be_asked_for_in_it(self, tiny_folder, features, kind):
        backend = OpenVINOBackend(read_model_folder(tiny_folder), kv_cache=kind, precision="int8")
        assert backend.precision.startswith("int8+")
        exact = loaded(tiny_folder).backend
        audio = exact.encode(features[:1])
        rows = np.random.default_rng(5).integers(0, 330, (1, 8), dtype=np.int64)
        got, want = (stepwise_logits(each, audio, rows) for each in (backend, exact))
        assert 1e-3 < distance(got, want) < 0.1

    def test_a_folder_in_8_bits_is_taken_as_it_is(self, tiny_folder, tmp_path):
        """Its activations are rounded in the groups that its certificate is about."""
        source = read_model_folder(tiny_folder).path
        for name in GRAPHS:
            graph = onnx.load(source / name, load_external_data=False)
            quantize_weights(graph, source)
            onnx.save(graph, tmp_path / name)
        for name in ("config.json", "generation_config.json", "tokenizer.json", DATA_FILE):
            shutil.copy(source / name, tmp_path)
        backend = OpenVINOBackend(read_model_folder(tmp_path), precision="auto")
        expected = f"int8+{ARITHMETIC}" if HAS_VNNI else f"{ARITHMETIC} (int8 weights)"
        assert backend.precision == expected
        for pool in backend._pools.values():
            assert pool.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") != GROUP

    def test_nothing_is_called_int8_that_is_not(self, tiny_folder, monkeypatch, caplog):
        monkeypatch.setattr(
            "whisper_npu.runtime.engines.openvino.int8_weights.matrix_of", lambda _node: None
        )
        folder = read_model_folder(tiny_folder)
        with pytest.raises(ModelError, match=r"no matrices that can be rounded.*give --precision"):
            OpenVINOBackend(folder, precision="int8")
        assert OpenVINOBackend(folder, precision="auto").precision == ARITHMETIC
        assert ("no matrices that can be rounded" in caplog.text) == HAS_VNNI

    def test_it_is_for_processors(self, tiny_folder, monkeypatch):
        monkeypatch.setattr(Plan, "_check_device", lambda _self: None)
        with pytest.raises(UsageError, match=r"for GPU export with PRECISION=int8"):
            OpenVINOBackend(read_model_folder(tiny_folder), device="GPU", precision="int8")
        with pytest.raises(UsageError, match="precision is 'int8'"):
            load_model(tiny_folder, device="NPU_EMULATED", precision="int8")
