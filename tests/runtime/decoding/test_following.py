"""What a session tells of attention is what the graph made for that says."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from model_surgery import edit_manifest
from other_threads import TASKS, run_program

from whisper_npu import load_model
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.protocol import NoAttention
from whisper_npu.runtime.model_folder.folder import read_model_folder


@pytest.fixture(scope="module")
def backend(tiny_folder):
    return load_model(tiny_folder, device="CPU", precision="f32").backend


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(7).standard_normal((4, 700, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(8).integers(0, 330, (4, 12), dtype=np.int64)


@pytest.fixture(scope="module")
def expected(backend, audio, tokens):
    return backend.align(audio, tokens)[1]


SPINNING = """
import numpy as np
import openvino as ov
from other_threads import seconds_of_other_threads
from whisper_npu.runtime.engines.openvino.alignment_queries import attention_weights
keys = {"past_key_values.0.encoder.key": ov.Tensor(np.zeros((1, 1, 64, 1500), np.float32))}
queries = np.zeros((1, 85, 64), np.float32)
before = seconds_of_other_threads()
for _ in range(50):
    list(attention_weights(queries, keys, [(0, 0)], 0, 675, 2))
print(seconds_of_other_threads() - before)
"""


class TestFollowing:
    @staticmethod
    def weights(session, row, n_positions=700, pooled=1):
        found = np.stack(list(session.attention(row, n_positions, pooled)))
        return found / found.sum(axis=-1, keepdims=True)

    def test_it_is_that_of_the_alignment_graph(self, backend, audio, tokens, expected):
        session = backend.start(audio)
        assert session.record_attention()
        session.step(tokens[:, :4])
        for place in range(4, 12):
            session.step(tokens[:, place : place + 1])
        for row in range(4):
            found = self.weights(session, row)
            np.testing.assert_allclose(found, expected[row], rtol=1e-3, atol=1e-6)
        session.close()

    def test_rows_that_stay_are_followed_on(self, backend, audio, tokens, expected):
        session = backend.start(audio)
        session.record_attention()
        session.step(tokens[:, :6])
        assert session.keep([1, 3])
        session.step(tokens[[1, 3], 6:])
        for place, row in enumerate((1, 3)):
            found = self.weights(session, place)
            np.testing.assert_allclose(found, expected[row], rtol=1e-3, atol=1e-6)
        session.close()

    def test_positions_are_pooled_and_those_behind_do_not_count(
        self, backend, audio, tokens, expected
    ):
        session = backend.start(audio)
        session.record_attention()
        session.step(tokens)
        found = self.weights(session, 2, n_positions=300, pooled=2)
        pairs = np.log(expected[2][:, :, :600]).reshape(-1, 12, 300, 2).mean(axis=-1)
        pooled = np.exp(pairs) / np.exp(pairs).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(found, pooled, rtol=1e-3, atol=1e-6)
        session.close()

    @pytest.mark.skipif(not TASKS.is_dir(), reason="only Linux tells what threads do")
    def test_it_is_computed_in_the_thread_that_asks(self):
        """Threads of BLAS would wait for processor cores that decode, and spin on them."""
        assert run_program(SPINNING) < 0.005  # not at all; spinning, they take 0.1

    def test_a_compiled_graph_from_the_disk_follows_too(
        self, tiny_folder, tmp_path, audio, tokens, expected
    ):
        cache = CompileCache(tmp_path / "compiled", 1 << 30)
        folder = read_model_folder(tiny_folder)
        for _ in range(2):
            session = OpenVINOBackend(folder, precision="f32", cache=cache).start(audio)
            assert session.record_attention()
            session.step(tokens)
            found = self.weights(session, 1)
            np.testing.assert_allclose(found, expected[1], rtol=1e-3, atol=1e-6)
            session.close()

    def test_other_caches_do_not_follow(self, tiny_folder, audio):
        session = load_model(tiny_folder, device="CPU", kv_cache="concat").backend.start(audio)
        assert isinstance(session, NoAttention)
        assert not session.record_attention()
        session.close()

    def test_nor_does_a_model_whose_heads_are_not_there(self, tiny_folder, tmp_path, audio):
        folder = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
        path = folder / "generation_config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"alignment_heads": [[0, 0], [1, 99]]}))
        edit_manifest(folder)
        session = load_model(folder, device="CPU").backend.start(audio)
        assert not session.record_attention()
        session.close()

    def test_nor_what_is_not_asked_to(self, backend, audio, tokens):
        session = backend.start(audio)
        session.step(tokens)
        assert not session.record_attention()
        with pytest.raises(RuntimeError, match="recorded no attention"):
            session.attention(0, 10, 1)
        session.close()
