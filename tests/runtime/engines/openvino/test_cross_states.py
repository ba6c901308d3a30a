"""Cross-attention states as they are read fastest: turned, multiplied in a type of their own."""

import numpy as np
import openvino as ov
import pytest
from decoding_checks import HAS_BF16
from openvino import opset13 as ops

from whisper_npu.runtime.engines.openvino import cross_states, graphs
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST

HEADS, POSITIONS, HEAD_DIM = 2, 7, 4
TURN = [0, 1, 3, 2]


def attention(spelling):
    """A model of one cross-attention that also tells how many positions its keys have."""
    sizes = [-1, HEADS, -1, HEAD_DIM]
    queries = ops.parameter(sizes, np.float32, name="queries")
    keys, values = (
        ops.parameter(sizes, np.float32, name=f"past_key_values.0.encoder.{kind}")
        for kind in ("key", "value")
    )
    for parameter in (queries, keys, values):
        parameter.output(0).get_tensor().set_names({parameter.get_friendly_name()})
    if spelling == "half":  # computed in another type than the states are handed over in
        half = ops.convert(ops.transpose(keys, TURN), "f16")
        product = ops.matmul(ops.convert(queries, "f16"), half, False, False)
        scores = ops.convert(ops.multiply(product, ops.constant(np.float16(1))), "f32")
    elif spelling == "transposed":
        scores = ops.matmul(queries, ops.transpose(keys, TURN), False, False)
    elif spelling == "flag":
        scores = ops.matmul(queries, keys, False, True)
    else:  # on the other side, where it is no product that is looked for
        scores = ops.transpose(ops.matmul(keys, queries, False, True), TURN)
    attended = ops.matmul(ops.softmax(scores, -1), values, False, False)
    length = ops.gather(ops.shape_of(keys), ops.constant([2]), ops.constant(0))
    return ov.Model([attended, length], [queries, keys, values])


def run(model, queries, keys, values):
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    for tensor, value in zip(model.inputs, (queries, keys, values), strict=True):
        given = value if isinstance(value, ov.Tensor) else ov.Tensor(value)
        request.set_tensor(tensor, given)
    request.infer()
    return [request.get_output_tensor(i).data.copy() for i in range(2)]


def as_bf16(values):
    """Numbers that bf16 has, in f32, and the same as a tensor of bf16."""
    bits = values.view(np.uint32) & np.uint32(0xFFFF0000)
    tensor = ov.Tensor(ov.Type.bf16, ov.Shape(values.shape))
    tensor.data.view(np.uint16)[:] = bits >> 16
    return bits.view(np.float32), tensor


@pytest.mark.slow
@pytest.mark.parametrize("spelling", ["transposed", "flag", "other side", "half"])
@pytest.mark.parametrize(
    ("element_type", "multiply_in_it", "tolerance"),
    [
        (ov.Type.f32, False, 1e-5),
        (ov.Type.f32, True, 1e-5),
        (ov.Type.bf16, False, 1e-5),
        (ov.Type.bf16, True, 0.03),
    ],
)
def test_turned_states_give_the_same(spelling, element_type, multiply_in_it, tolerance):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((3, HEADS, 1, HEAD_DIM)).astype(np.float32)
    states = rng.standard_normal((2, 3, HEADS, POSITIONS, HEAD_DIM)).astype(np.float32)
    states, _ = as_bf16(states)
    want = run(attention(spelling), queries, *states)
    model = attention(spelling)
    cross_states.transpose_cross_states(model, element_type, multiply_in_it=multiply_in_it)
    turned = [np.ascontiguousarray(each.transpose(TURN)) for each in states]
    if element_type == ov.Type.bf16:
        turned = [as_bf16(each)[1] for each in turned]
    got = run(model, queries, *turned)
    np.testing.assert_allclose(got[0], want[0], rtol=0, atol=tolerance)
    assert got[1] == want[1] == POSITIONS


def precisions(nodes, layer):
    """What the layers of a kind run in, in a compiled graph."""
    infos = [node.get_rt_info() for node in nodes]
    return [
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) == layer
    ]


@pytest.mark.parametrize("multiply_in_it", [False, True])
def test_what_they_are_multiplied_in(tiny_en_folder, multiply_in_it):
    """Both products of each cross-attention; in the graph's own type otherwise."""
    model = ov.Core().read_model(tiny_en_folder / DECODER_WITH_PAST)
    cross_states.transpose_cross_states(model, ov.Type.bf16, multiply_in_it=multiply_in_it)
    for tensor in model.inputs:
        if ".encoder." in tensor.get_any_name():
            assert tensor.element_type == ov.Type.bf16
            assert tensor.partial_shape[2] == 64
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    in_bf16 = [node for node in products if node.get_element_type() == ov.Type.bf16]
    assert len(in_bf16) == (8 if multiply_in_it else 0)
    inputs = {node.input_value(1).get_node().get_friendly_name() for node in in_bf16}
    assert all(".encoder." in name for name in inputs)


@pytest.mark.skipif(not HAS_BF16, reason="other processors do not compute in bf16")
def test_the_plugin_follows():
    """A product in bf16 within a graph in f32."""
    model = attention("transposed")
    cross_states.transpose_cross_states(model, ov.Type.bf16, multiply_in_it=True)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    nodes = ov.Core().compile_model(model, "CPU", config).get_runtime_model().get_ordered_ops()
    assert precisions(nodes, "MatMul") == ["bf16", "bf16"]
    assert precisions(nodes, "Softmax") == ["f32"]


@pytest.mark.skipif(not HAS_BF16, reason="other processors do not compute in bf16")
def test_so_it_is_in_the_decoder(tiny_en_folder):
    """Products with states in bf16, all else in f32 or 8 bits."""
    backend = OpenVINOBackend(read_model_folder(tiny_en_folder), precision="int8")
    nodes = backend._pools["with_past"].compiled.get_runtime_model().get_ordered_ops()
    assert precisions(nodes, "MatMul") == ["bf16"] * 8
    assert set(precisions(nodes, "Softmax")) == {"f32"}
    assert backend._pools["cross"].compiled.output(0).element_type == ov.Type.bf16


WIDTH = 6


def projection(spelling):
    """A decoder's graph, as far as it makes states; and what it makes of audio, in numpy."""
    rng = np.random.default_rng(1)
    sides = {"key": "no bias", "value": spelling}
    audio = ops.parameter([-1, -1, WIDTH], np.float32, name="encoder_hidden_states")
    tokens = ops.parameter([-1, -1], np.int64, name="input_ids")
    for parameter in (audio, tokens):
        parameter.output(0).get_tensor().set_names({parameter.get_friendly_name()})
    results, made = [], []
    for kind, way in sides.items():
        matrix = rng.standard_normal((WIDTH, HEADS * HEAD_DIM)).astype(np.float32)
        bias = np.zeros(HEADS * HEAD_DIM, np.float32)
        heard = ops.relu(audio) if way == "other audio" else audio
        if way == "flag":
            state = ops.matmul(heard, np.ascontiguousarray(matrix.T), False, True)
        else:
            state = ops.matmul(heard, matrix, False, False)
        if way in {"bias", "bias first", "flag"}:
            bias = rng.standard_normal(HEADS * HEAD_DIM).astype(np.float32)
            both = (ops.constant(bias), state)
            state = ops.add(*(both if way == "bias first" else reversed(both)))
        elif way == "scaled":
            matrix, state = matrix * 2, ops.multiply(state, np.float32(2))
        if way == "one head":
            state = ops.reshape(state, ops.constant([0, -1, 1, HEADS * HEAD_DIM]), True)
        else:
            state = ops.reshape(state, ops.constant([0, -1, HEADS, HEAD_DIM]), True)
        result = ops.result(ops.transpose(state, ops.constant([0, 2, 1, 3])))
        result.output(0).get_tensor().set_names({f"present.0.encoder.{kind}"})
        results.append(result)
        n_heads = 1 if way == "one head" else HEADS

        def make(values, *, relu=way == "other audio", matrix=matrix, bias=bias, n_heads=n_heads):
            found = np.maximum(values, 0) @ matrix if relu else values @ matrix + bias
            return found.reshape(*values.shape[:2], n_heads, -1).transpose(0, 2, 3, 1)

        made.append(make)
    return ov.Model(results, [audio, tokens]), made


@pytest.mark.parametrize(
    ("spelling", "n_turned"),
    [
        ("no bias", 0),
        ("bias", 0),
        ("bias first", 0),
        ("flag", 0),
        ("one head", 0),
        ("other audio", 1),
        ("scaled", 1),
    ],
)
@pytest.mark.parametrize("element_type", [ov.Type.f32, ov.Type.bf16])
def test_states_come_out_as_they_are_read(spelling, n_turned, element_type):
    """By a product in that order; where it is spelled in a way not known, turned afterwards."""
    decoder, made = projection(spelling)
    model = cross_states.cross_attention_projection(decoder, element_type, multiply_in_it=True)
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    assert kinds.count("Transpose") == 2 * n_turned  # the exporter's, and ours
    assert kinds.count("MatMul") == 2
    audio = np.random.default_rng(2).standard_normal((3, POSITIONS, WIDTH)).astype(np.float32)
    audio, _ = as_bf16(audio)
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    request.infer({"encoder_hidden_states": audio})
    for kind, make in zip(("key", "value"), made, strict=True):
        found = request.get_tensor(f"past_key_values.0.encoder.{kind}")
        assert found.element_type == element_type
        values = found.data
        if element_type == ov.Type.bf16:
            values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        tolerance = 1e-5 if element_type == ov.Type.f32 else 0.1
        np.testing.assert_allclose(values, make(audio), rtol=0, atol=tolerance)


@pytest.mark.skipif(not HAS_BF16, reason="other processors do not compute in bf16")
def test_so_they_are_made_in_bf16(tiny_en_folder):
    """Nothing is turned, and nothing is multiplied in f32, which a constant on the left might."""
    backend = OpenVINOBackend(read_model_folder(tiny_en_folder), precision="bf16")
    nodes = backend._pools["cross"].compiled.get_runtime_model().get_ordered_ops()
    assert precisions(nodes, "MatMul") == ["bf16"] * 8
    assert precisions(nodes, "Transpose") == []


def test_the_nearest_bf16():
    """As numpy would round it: half way to the even one, which OpenVINO's constants do not."""
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 3 * 2**-9], np.float32)
    bits = graphs.to_bfloat16(values).data.view(np.uint16).astype(np.uint32) << 16
    want = [1, 1, 1 + 2**-6, 1 + 2**-7, -1 - 2**-7]
    assert bits.view(np.float32).tolist() == want
