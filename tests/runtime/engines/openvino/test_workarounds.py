"""What runs for the first time is kept to one thread, and only that."""

import ctypes
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from whisper_npu.errors import DeviceError
from whisper_npu.export import parity_graph
from whisper_npu.runtime.engines.openvino import compile, sessions
from whisper_npu.runtime.engines.openvino import workarounds as module
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.sessions import RequestPool
from whisper_npu.runtime.engines.openvino.workarounds import one_thread
from whisper_npu.runtime.model_folder.folder import read_model_folder

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is held")


def allowed():
    """Threads that oneTBB may use just now."""
    library = ctypes.CDLL("libtbb.so.12", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    ask = library["_ZN3tbb6detail2r127global_control_active_valueEi"]
    ask.restype = ctypes.c_size_t
    return ask(0)


@linux
class TestOneThread:
    def test_it_is_the_one_that_openvino_runs_on(self):
        """Several may be loaded; a control of another would do nothing."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        libraries = {line.split(maxsplit=5)[-1] for line in lines if "libtbb.so" in line}
        assert len(libraries) == 1
        assert "openvino" in libraries.pop()

    def test_it_holds_for_the_block(self):
        before = allowed()
        with one_thread():
            assert allowed() == 1
            with one_thread():
                assert allowed() == 1
            assert allowed() == 1
        assert allowed() == before

    def test_it_ends_with_an_error(self):
        before = allowed()
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert allowed() == before


@pytest.fixture
def not_cached():
    module._controls.cache_clear()
    yield
    module._controls.cache_clear()


@pytest.mark.usefixtures("not_cached")
class TestElsewhere:
    def test_on_other_systems(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "win32")
        with one_thread():
            assert module._controls() is None

    @pytest.mark.parametrize("name", ["_LIBRARY", "_CREATE"])
    def test_where_openvino_runs_on_something_else(self, monkeypatch, caplog, name):
        monkeypatch.setattr(module, name, "no_such_thing")
        with caplog.at_level("DEBUG", "whisper_npu"), one_thread():
            pass
        assert "first runs are not kept to one thread" in caplog.text


@pytest.fixture
def runs(monkeypatch):
    """A list that gains, at each run, the graph's input and whether one thread is to run it."""
    found, begun = [], threading.local()

    @contextmanager
    def noting():
        begun.once = True
        yield
        begun.once = False

    infer = ov.InferRequest.infer

    def note(self, *args, **kwargs):
        found.append((self.model_inputs[0].get_any_name(), getattr(begun, "once", False)))
        return infer(self, *args, **kwargs)

    monkeypatch.setattr(sessions, "one_thread", noting)
    monkeypatch.setattr(compile, "one_thread", noting)
    monkeypatch.setattr(ov.InferRequest, "infer", note)
    return found


def pool_of(n_alone):
    tensor = ops.parameter(ov.PartialShape([-1, 4]), np.float32, name="it")
    tensor.output(0).get_tensor().set_names({"it"})
    model = ov.Model([ops.result(ops.abs(tensor))], [tensor], "absolute values")
    return RequestPool(ov.Core().compile_model(model, "CPU"), n_alone=n_alone)


def run(pool):
    request = pool.take()
    request.set_input_tensor(ov.Tensor(np.ones((1, 4), np.float32)))
    pool.run(request)
    pool.give(request)


class TestPools:
    @pytest.mark.parametrize(("n_alone", "first"), [(1, True), (2, True), (0, False)])
    def test_the_first_run(self, runs, n_alone, first):
        pool = pool_of(n_alone)
        for _ in range(3):
            run(pool)
        assert [alone for _, alone in runs] == [first, False, False]

    @pytest.mark.parametrize(("n_alone", "in_others"), [(1, False), (2, True)])
    def test_each_thread_has_a_stream_of_its_own_where_there_are_several(
        self, runs, n_alone, in_others
    ):
        pool = pool_of(n_alone)
        for _ in range(2):
            thread = threading.Thread(target=lambda: [run(pool), run(pool)])
            thread.start()
            thread.join()
        assert [alone for _, alone in runs] == [True, False, in_others, False]

    def test_what_failed_is_not_prepared(self, monkeypatch):
        pool = pool_of(1)

        def fail(self, **_):
            raise RuntimeError

        with monkeypatch.context() as patched:
            patched.setattr(ov.InferRequest, "infer", fail)
            with pytest.raises(DeviceError):
                run(pool)
        assert not pool.is_prepared
        run(pool)
        assert pool.is_prepared


def wait_for_the_encoder():
    for thread in threading.enumerate():
        if thread.name == "whisper-npu-preparing":
            thread.join()


THREADS = {"threads": 2}


class TestBackend:
    def test_the_encoder_is_prepared_before_it_is_needed(self, tiny_folder, runs):
        backend = OpenVINOBackend(read_model_folder(tiny_folder), **THREADS)
        wait_for_the_encoder()
        assert runs == [("input_features", True)]
        backend.encode(np.zeros((2, backend.n_mels, 3000), np.float32))
        assert runs == [("input_features", True)] + [("input_features", False)] * 2

    def test_whoever_comes_first_waits(self, tiny_folder, runs, monkeypatch):
        begin = threading.Event()
        prepare = OpenVINOBackend._try_to_prepare
        monkeypatch.setattr(
            OpenVINOBackend, "_try_to_prepare", lambda self: (begin.wait(10), prepare(self))
        )
        backend = OpenVINOBackend(read_model_folder(tiny_folder), **THREADS)
        backend.encode(np.zeros((1, backend.n_mels, 3000), np.float32))
        begin.set()
        wait_for_the_encoder()
        assert runs == [("input_features", True), ("input_features", False)]

    def test_a_device_that_fails_is_told_of_when_it_is_needed(self, tiny_folder, monkeypatch):
        def fail(*_):
            raise DeviceError("gone")

        monkeypatch.setattr(RequestPool, "run", fail)
        backend = OpenVINOBackend(read_model_folder(tiny_folder), **THREADS)
        wait_for_the_encoder()
        with pytest.raises(DeviceError, match="gone"):
            backend.encode(np.zeros((1, backend.n_mels, 3000), np.float32))

    @pytest.mark.slow
    @pytest.mark.parametrize("kv_cache", ["stateful", "concat", "static", "off"])
    def test_every_graph_that_has_need(self, tiny_folder, runs, kv_cache):
        folder = read_model_folder(tiny_folder)
        backend = OpenVINOBackend(folder, kv_cache=kv_cache, precision="f32", **THREADS)
        audio = backend.encode(np.zeros((1, backend.n_mels, 3000), np.float32))
        session = backend.start(audio)
        for _ in range(3):
            session.step(np.ones((1, 1), np.int64))
        session.close()
        backend.align(audio, np.ones((1, 4), np.int64))
        backend.align(audio, np.ones((1, 4), np.int64))
        in_need = [name for name, pool in backend._pools.items() if has_shapes_to_look_up(pool)]
        for name, pool in backend._pools.items():
            assert (pool._n_alone == 1) == (name in in_need), name
        n_aligning = has_shapes_to_look_up(backend._alignment)
        assert sum(alone for _, alone in runs) == len(in_need) + n_aligning

    @pytest.mark.slow
    def test_one_thread_has_no_need(self, tiny_folder, runs):
        for options in ({"threads": 1}, {"threads": 2, "streams": 2}):
            backend = OpenVINOBackend(read_model_folder(tiny_folder), **options)
            wait_for_the_encoder()
            backend.encode(np.zeros((1, backend.n_mels, 3000), np.float32))
        assert runs == [("input_features", False)] * 2

    @pytest.mark.parametrize("precision", ["auto", "f32"])
    def test_real_graphs(self, tiny_en_folder, precision):
        """Should another of the fast path's graphs have such shapes one day, it has need, too."""
        backend = OpenVINOBackend(read_model_folder(tiny_en_folder), precision=precision, **THREADS)
        found = {name for name, pool in backend._pools.items() if has_shapes_to_look_up(pool)}
        assert found == {"encoder"}


def test_graphs_that_are_compared_with_pytorch(tiny_folder, monkeypatch):
    entered = []

    @contextmanager
    def noting():
        entered.append(True)
        yield

    monkeypatch.setattr(parity_graph, "one_thread", noting)
    monkeypatch.setattr(parity_graph, "_check_interface", lambda *_: None)
    graph = parity_graph.Graph(tiny_folder, "decoder_model", parity_graph.Interface({}, {}))
    d_model = graph._model.input("encoder_hidden_states").partial_shape[2].get_length()
    inputs = {
        "input_ids": np.ones((1, 3), np.int64),
        "encoder_hidden_states": np.zeros((1, 1500, d_model), np.float32),
    }
    for _ in range(2):
        graph(inputs)
    assert entered == [True]


def has_shapes_to_look_up(pool):
    """Whether kernels made of several operations have shapes that vary: those are looked up."""
    operations = pool.compiled.get_runtime_model().get_ops()
    kinds = {operation.get_rt_info()["layerType"].astype(str) for operation in operations}
    varies = any(port.partial_shape.is_dynamic for port in pool.compiled.inputs)
    return varies and "Subgraph" in kinds
