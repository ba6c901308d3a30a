"""Other exporters' inputs, types and operations are replaced by this project's."""

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.openvino.graphs import port
from whisper_npu.runtime.engines.openvino.uniform import make_uniform


def parameter(name, shape, dtype):
    made = ops.parameter(shape, dtype)
    made.output(0).get_tensor().set_names({name})
    return made


def model(results, parameters):
    made = []
    for name, value in results.items():
        computed = ops.convert(value, "f32")  # else a result would give an input a second name
        result = ops.result(computed)
        result.output(0).get_tensor().set_names({name})
        made.append(result)
    return ov.Model(made, parameters, "graph")


def run(graph, **inputs):
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    found = ov.Core().compile_model(graph, "CPU", config)(inputs)
    return {next(iter(tensor.get_names())): values for tensor, values in found.items()}


def test_half_precision_becomes_float32():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((8, 8)).astype(np.float16)
    given = parameter("encoder_hidden_states", [1, 3, 8], np.float16)
    product = ops.matmul(given, ops.constant(matrix), False, False)
    there_and_back = ops.convert(ops.convert(product, "f32"), "f16")
    graph = make_uniform(model({"states": there_and_back}, [given]))
    assert [tensor.element_type for tensor in (*graph.inputs, *graph.outputs)] == [ov.Type.f32] * 2
    stored = [node for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert ov.Type.f16 in {node.get_element_type() for node in stored}
    values = random.standard_normal((1, 3, 8)).astype(np.float32)
    got = run(graph, encoder_hidden_states=values)["states"]
    np.testing.assert_allclose(got, values @ matrix.astype(np.float32), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "values"),
    [
        ("cache_position", [-1], [4, 5, 6]),
        ("position_ids", [-1, -1], [[4, 5, 6], [4, 5, 6]]),
        ("decoder_attention_mask", [-1, -1], [[1] * 7, [1] * 7]),
    ],
)
def test_inputs_that_follow_from_the_others(name, shape, values):
    tokens = parameter("input_ids", [-1, -1], np.int32)
    past = parameter("past_key_values.0.decoder.key", [-1, 2, -1, 4], np.float32)
    odd = parameter(name, shape, np.int64)
    unread = parameter("encoder_hidden_states", [-1, -1, 8], np.float32)
    results = {"odd": odd, "tokens": tokens, "present.0.decoder.key": past}
    graph = make_uniform(model(results, [tokens, past, odd, unread]))
    assert {n for tensor in graph.inputs for n in tensor.get_names()} == {
        "input_ids",
        "past_key_values.0.decoder.key",
    }
    assert port(graph.inputs, "input_ids").get_element_type() == ov.Type.i64
    given = {"past_key_values.0.decoder.key": np.zeros((2, 2, 4, 4), np.float32)}
    got = run(graph, input_ids=np.zeros((2, 3), np.int64), **given)["odd"]
    np.testing.assert_array_equal(got, values)


def test_an_input_that_nobody_knows():
    tokens = parameter("input_ids", [-1, -1], np.int64)
    other = parameter("speaker", [-1, 8], np.float32)
    with pytest.raises(ModelError, match="needs an input speaker, which is not known"):
        make_uniform(model({"a": tokens, "b": other}, [tokens, other]))


def test_cross_attention_is_taken_apart_and_self_attention_is_not():
    random = np.random.default_rng(0)
    tokens = parameter("input_ids", [-1, -1], np.int64)
    queries = parameter("past_key_values.0.decoder.key", [1, 2, 3, 4], np.float32)
    states = ops.constant(random.standard_normal((1, 2, 5, 4)).astype(np.float32))
    cross = ops.scaled_dot_product_attention(queries, states, states, causal=False)
    causal = ops.scaled_dot_product_attention(queries, queries, queries, causal=True)
    results = {"tokens": tokens, "cross": cross, "causal": causal}
    before = model(results, [tokens, queries])
    feed = {
        "input_ids": np.zeros((1, 1), np.int64),
        "past_key_values.0.decoder.key": random.standard_normal((1, 2, 3, 4)).astype(np.float32),
    }
    expected = run(before.clone(), **feed)
    graph = make_uniform(before)
    kinds = [node.get_type_name() for node in graph.get_ops()]
    assert (kinds.count("ScaledDotProductAttention"), kinds.count("Softmax")) == (1, 1)
    got = run(graph, **feed)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-5)


def test_mel_bands_are_read_from_the_convolution():
    features = parameter("input_features", [-1, -1, 30], np.float32)
    filters = ops.constant(np.zeros((4, 80, 3), np.float32))
    after = ops.convolution(features, filters, [1], [1], [1], [1])
    graph = make_uniform(model({"states": after}, [features]))
    assert port(graph.inputs, "input_features").get_partial_shape()[1] == 80
