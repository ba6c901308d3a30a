"""Memory given back: less of it is held, and nothing of its content is lost."""

import gc
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
from model_surgery import copy_folder

from whisper_npu import load_model
from whisper_npu.runtime.engines import memory
from whisper_npu.runtime.engines.openvino import compile, graphs, sessions
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.sessions import RequestPool
from whisper_npu.runtime.model_folder.folder import ENCODER
from whisper_npu.runtime.transcription import scheduler

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is held")
SIZE = 4 << 20


def held(path):
    """Bytes of a file's mappings that are in memory."""
    total, ours = 0, False
    for line in os.fsdecode(Path("/proc/self/smaps").read_bytes()).split("\n"):
        first = line.partition(" ")[0]
        if "-" in first and not first.endswith(":"):
            ours = line.endswith(str(path))
        elif ours and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


@pytest.fixture
def file(tmp_path):
    path = (tmp_path / "weights").resolve()
    path.write_bytes(np.arange(SIZE // 4, dtype=np.int32).tobytes())
    return path


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A model folder that nobody else has mapped."""
    return copy_folder(tiny_folder, tmp_path / "tiny")


def map_to_read(path, access=mmap.ACCESS_READ):
    """A file's content where it is mapped, all of it read."""
    with path.open("rb") as opened:
        content = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=access), np.int32)
    assert content.sum() == np.arange(SIZE // 4).sum()
    return content


@linux
class TestForgetFiles:
    def test_pages_go_and_come_back(self, file):
        content = map_to_read(file)
        assert held(file) == SIZE
        memory.forget_files_of([content[100:]])
        assert held(file) == 0
        assert (content == np.arange(SIZE // 4)).all()

    def test_what_may_have_been_written_is_kept(self, file):
        content = map_to_read(file, mmap.ACCESS_COPY)
        content[0] = 7
        memory.forget_files_of([content])
        assert content[0] == 7

    def test_memory_that_is_no_file_is_kept(self):
        content = np.arange(SIZE // 4)  # as large as this it has a mapping of its own
        memory.forget_files_of([content, np.empty(0)])
        assert (content == np.arange(SIZE // 4)).all()

    def test_other_mappings_are_left_alone(self, file):
        """Whoever has them may let go of them at any time, and their place be taken by others."""
        ours, of_another = map_to_read(file), map_to_read(file)
        assert held(file) == 2 * SIZE
        memory.forget_files_of([ours])
        assert held(file) == SIZE
        assert (of_another == ours).all()

    def test_a_mapped_file_with_a_name_in_no_encoding(self, file):
        odd = file.with_name(os.fsdecode(b"w\xffights\xe2\x80\xa8"))
        odd.write_bytes(file.read_bytes())
        contents = map_to_read(odd), map_to_read(file)
        memory.forget_files_of([contents[1]])
        assert held(file) == 0

    def test_a_loaded_model_holds_little_of_its_files(self, folder, monkeypatch):
        weights = (folder / "model.onnx_data").resolve()
        monkeypatch.setattr(OpenVINOBackend, "_try_to_prepare", lambda self: None)  # it reads some
        with monkeypatch.context() as patched:
            patched.setattr(compile, "forget_files_of", lambda arrays: None)
            keeping = load_model(folder, precision="f32")
        much = held(weights)
        del keeping
        gc.collect()
        forgetting = load_model(folder, precision="f32")
        assert held(weights) < much / 2
        assert forgetting.backend.n_text_ctx == 448  # it is in use

    def test_what_is_told_of_a_graph_keeps_its_file_mapped(self, folder):
        weights = (folder / "model.onnx_data").resolve()
        (array,) = graphs.largest_constants([ov.Core().read_model(folder / ENCODER)])
        gc.collect()
        total = array.sum()  # the graph itself is gone
        assert held(weights) > 0
        memory.forget_files_of([array])
        assert held(weights) == 0
        assert array.sum() == total


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def begun():
    """The forgetting threads that were begun in a test and go on."""
    before = set(threading.enumerate())

    def begun():
        new = set(threading.enumerate()) - before
        return [each for each in new if each.name == "whisper-npu-forgetting"]

    return begun


@linux
class TestForgetting:
    """What is read once from mapped files is let go of meanwhile."""

    @pytest.fixture
    def mapped(self, file, monkeypatch):
        monkeypatch.setattr(memory, "_mapped", {})
        with file.open("rb") as opened:
            return np.frombuffer(memory.map_file(opened, "its digest"), np.int32)

    def test_pages_go_for_as_long_as_a_block_runs(self, file, mapped, begun):
        with memory.forgetting_mapped():
            assert begun()
            for _ in range(2):
                assert mapped.sum() == np.arange(SIZE // 4).sum()
                wait_for(lambda: held(file) == 0)
        assert not begun()
        assert mapped.sum() == np.arange(SIZE // 4).sum()
        time.sleep(0.05)
        assert held(file) == SIZE

    def test_it_ends_where_the_block_fails(self, mapped, begun):
        with pytest.raises(KeyError), memory.forgetting_mapped():
            raise KeyError
        assert not begun()
        assert len(mapped) == SIZE // 4

    def test_no_thread_where_nothing_is_mapped(self, monkeypatch, begun):
        monkeypatch.setattr(memory, "_mapped", {})
        with memory.forgetting_mapped():
            assert not begun()

    def test_the_first_runs_of_a_graph_alone(self, tiny_folder, tmp_path, monkeypatch, begun):
        """Those behind them are not, though its request is still in use."""
        monkeypatch.setattr(memory, "_mapped", {"": mmap.mmap(-1, 4096)})
        backend = load_model(tiny_folder).backend
        backend.encode(np.zeros((0, backend.n_mels, 3000), np.float32))  # its own first run
        runs = []

        class Watched:
            def infer(self, *, share_outputs):
                runs.append((share_outputs, len(begun())))

        pool = RequestPool(backend._pools["encoder"].compiled)
        for _ in range(4):
            pool.run(Watched())
        assert runs == [(True, 1), (True, 1), (True, 0), (True, 0)]

    def test_what_runs_look_up_is_let_go_of(self, monkeypatch):
        dropped = []
        monkeypatch.setattr(memory, "_mapped", {})
        monkeypatch.setattr(sessions, "forget_mapped", lambda: dropped.append(True))

        class Ready:
            def infer(self, *, share_outputs):
                pass

        pool = RequestPool(None)
        for n_runs in range(1, 33):
            pool.run(Ready())
            assert len(dropped) == n_runs // 8


class TestPools:
    """Memory is given back where weights have been read for the first times."""

    @pytest.mark.parametrize(
        ("n_runs", "given"),
        [
            ([0, 0, 0], [1, 0, 0]),  # whoever runs its requests otherwise, as static graphs are
            ([1, 1, 1], [1, 1, 0]),  # the encoder's first run, and its first of a recording
            ([30, 1, 1], [1, 0, 0]),  # a decoder
        ],
    )
    def test_as_requests_are_given_back(self, monkeypatch, n_runs, given):
        found = []
        monkeypatch.setattr(sessions, "give_back", lambda: found.append(True))

        class Request:
            def infer(self, *, share_outputs):
                pass

        pool = RequestPool(SimpleNamespace(create_infer_request=Request))
        for n, want in zip(n_runs, given, strict=True):
            found.clear()
            taken = pool.take()
            for _ in range(n):
                pool.run(taken)
            pool.give(taken)
            assert len(found) == want


class TestGiveBackAfter:
    @pytest.fixture
    def given(self, monkeypatch):
        given = []
        monkeypatch.setattr(memory, "give_back", lambda: given.append(True))
        monkeypatch.setattr(memory, "_decoded", memory._Windows())
        return given

    def test_every_eight_windows_whoever_decodes_them(self, given):
        for n_windows, want in [(1, 0)] * 7 + [(1, 1), (7, 1), (16, 2), (7, 2), (1, 3)]:
            memory.give_back_after(n_windows)
            assert len(given) == want

    def test_transcriptions_count(self, tiny_folder, given, monkeypatch):
        """One after another, each of one window."""
        model = load_model(tiny_folder)
        noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
        counted = []
        monkeypatch.setattr(scheduler, "give_back_after", counted.append)
        for _ in range(3):
            model.transcribe(noise, vad=False, temperature=(0.0,)).result()
        assert counted == [1, 1, 1]
        assert not given


def test_systems_that_cannot(monkeypatch):
    monkeypatch.setattr(memory, "_c_library", lambda: None)
    monkeypatch.setattr(memory.Path, "read_bytes", lambda self: pytest.fail("looked for maps"))
    memory.forget_files_of([np.zeros(1)])
    memory.give_back()
    memory.map_large_blocks()


@linux
def test_free_memory_goes_back_to_the_system():
    def resident():
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    pieces = [np.ones(1 << 13, np.uint8) for _ in range(1 << 12)]  # 32 MB, below mmap's threshold
    kept = pieces[::512]  # what is at the end keeps the rest from being given back by itself
    del pieces
    before = resident()
    memory.give_back()
    assert resident() < before - (16 << 20)
    assert all(piece.all() for piece in kept)


WHERE_A_LARGE_BLOCK_LIES = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from whisper_npu.runtime.engines import memory
if sys.argv[1] == "mapped":
    memory.map_large_blocks()
for _ in range(3):
    np.ones(16 << 20, np.uint8)  # freed at once: glibc then keeps blocks of this size
block = np.ones(4 << 20, np.uint8)
address = block.__array_interface__["data"][0]
for line in Path("/proc/self/maps").read_text().splitlines():
    first, end = (int(part, 16) for part in line.split()[0].split("-"))
    if first <= address < end:
        print(line.endswith("[heap]"))
"""


@linux
@pytest.mark.parametrize(("wanted", "in_heap"), [("mapped", "False"), ("as it is", "True")])
def test_large_blocks_do_not_share_the_heap(wanted, in_heap):
    if not hasattr(memory._c_library(), "mallopt"):
        pytest.skip("not glibc")
    command = [sys.executable, "-c", WHERE_A_LARGE_BLOCK_LIES, wanted]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=usual)
    assert done.stdout.strip() == in_heap
