"""The plugin keeps the states, in one fused operation; rows are reordered and leave."""

import os

import numpy as np
import pytest
from decoding_checks import (
    TOLERANCE,
    assert_equals_full_context,
    loaded,
    pytorch,
    reference_logits,
)

from whisper_npu import load_model
from whisper_npu.runtime.engines.openvino import stateful
from whisper_npu.runtime.engines.openvino.compile_config import CompileRequest, Plan
from whisper_npu.runtime.engines.openvino.core import openvino_core
from whisper_npu.runtime.engines.openvino.stateful_session import parts_of_prompt
from whisper_npu.runtime.engines.protocol import N_LOGITS

N_TOKENS = 40


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(7).standard_normal((4, 1500, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(8).integers(0, 330, (4, N_TOKENS), dtype=np.int64)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, audio, rows):
    return reference_logits(pytorch(tiny_checkpoint), audio, rows)


def kind(node):
    return node.get_rt_info()["layerType"].astype(str)


def layers(model):
    """The operations of the compiled decoder."""
    compiled = model.backend._pools["with_past"].compiled
    return list(compiled.get_runtime_model().get_ops())


def fused(model):
    """Attentions that read their states, keys and values, themselves."""
    attentions = [node for node in layers(model) if kind(node) == "ScaledDotProductAttention"]
    sources = [
        [kind(place.get_source_output().get_node()) for place in node.inputs()]
        for node in attentions
    ]
    return sum(found.count("MemoryInput") == 2 for found in sources)


def assert_steps(session, tokens, expected, start, stop):
    """The session's rows are decoded right at the positions `[start, stop)`."""
    for place in range(start, stop):
        logits = session.step(tokens[:, place : place + 1]).copy()[:, -1]
        np.testing.assert_allclose(logits, expected[:, place], rtol=0, atol=TOLERANCE)


class TestFusing:
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_every_layer_is_fused(self, folders, contract):
        assert fused(loaded(folders[contract], "stateful")) == 2

    def test_states_are_as_exact_as_the_arithmetic(self, folders):
        compiled = loaded(folders["accumulated"], "stateful").backend._pools["with_past"].compiled
        assert str(compiled.get_property("KV_CACHE_PRECISION")) == "<Type: 'float32'>"

    def test_a_graph_that_cannot_be_fused_computes_the_same(
        self, folders, audio, rows, expected, monkeypatch
    ):
        monkeypatch.setattr(stateful, "_fuse_attention", lambda node: False)
        model = load_model(folders["accumulated"], kv_cache="stateful", precision="f32")
        assert fused(model) == 0
        assert_equals_full_context(model.backend, audio, rows, expected)


class TestRowsThatLeave:
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_the_others_go_on_as_if_alone(self, folders, audio, rows, expected, contract):
        backend = loaded(folders[contract], "stateful").backend
        session = backend.start(audio)
        try:
            session.step(rows[:, :N_LOGITS])
            assert_steps(session, rows, expected, N_LOGITS, 10)
            assert session.keep([1, 2, 3])
            assert_steps(session, rows[1:], expected[1:], 10, 20)
            assert session.keep([0, 2])
            assert_steps(session, rows[[1, 3]], expected[[1, 3]], 20, 30)
            assert session.keep([1])
            assert_steps(session, rows[[3]], expected[[3]], 30, N_TOKENS)
        finally:
            session.close()
        assert_equals_full_context(backend, audio, rows, expected)  # the next session is whole

    def test_after_being_reordered(self, folders, audio, rows, expected):
        backend = loaded(folders["accumulated"], "stateful").backend
        session = backend.start(audio[:1], 3)
        beams = rows[[0, 0, 0]]
        beams[1, 5:] += 1
        beams[2, 5:] += 2
        try:
            session.step(beams[:, :N_LOGITS])
            for place in range(N_LOGITS, 8):
                session.step(beams[:, place : place + 1])
            session.reorder([2, 0, 1])
            assert session.keep([1, 2])  # what were rows 0 and 1
            logits = session.step(rows[[0, 0], 8:9]).copy()[:, -1]
            alone = backend.start(audio[:1])
            try:
                alone.step(beams[1:2, :N_LOGITS])
                for place in range(N_LOGITS, 8):
                    alone.step(beams[1:2, place : place + 1])
                second = alone.step(rows[:1, 8:9]).copy()[0, -1]
            finally:
                alone.close()
        finally:
            session.close()
        np.testing.assert_allclose(logits[0], expected[0, 8], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(logits[1], second, rtol=0, atol=TOLERANCE)


def test_prompts_of_all_lengths_meet_few_kernels():
    """A kernel a length would be 2 MiB a length: live speech grew to 1 GiB."""
    parts = {n: parts_of_prompt(n, 128) for n in range(1, 449)}
    assert all(sum(found) == n for n, found in parts.items())
    assert all(found[-1] >= min(n, N_LOGITS) for n, found in parts.items())
    assert all(len(found) <= 2 + n // 128 for n, found in parts.items())
    assert len({part for found in parts.values() for part in found}) <= 15 + 128 // 16


def test_a_prompt_in_parts_is_the_prompt_at_once(tiny_folder, audio, rows, expected):
    backend = load_model(tiny_folder, precision="f32").backend
    for n in (15, 16, 17, 33, 40):
        session = backend.start(audio[:1])
        logits = session.step(rows[:1, :n])[:, -1]
        np.testing.assert_allclose(logits, expected[:1, n - 1], rtol=0, atol=TOLERANCE)
        session.close()


def test_kernels_of_few_shapes_are_kept():
    """A compiled graph does not tell; the growth itself is in docs/streaming.md."""
    plan = Plan(openvino_core(), CompileRequest("CPU", "stateful", "f32", 0, 1))
    assert plan.config["CPU_RUNTIME_CACHE_CAPACITY"] < 100
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
