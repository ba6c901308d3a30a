"""Memory given back: less of it is held, and nothing of its content is lost."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from whisper_npu import load_model
from whisper_npu.runtime import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is held")
SIZE = 4 << 20


def held(path):
    """Bytes of a file's mappings that are in memory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
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


@linux
class TestForgetFiles:
    def test_pages_go_and_come_back(self, file):
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(mapped, np.int32)
        assert content.sum() == np.arange(SIZE // 4).sum()
        assert held(file) == SIZE
        memory.forget_files(file.parent)
        assert held(file) == 0
        assert (content == np.arange(SIZE // 4)).all()

    def test_a_link_to_a_file_elsewhere(self, file, tmp_path):
        folder = tmp_path / "snapshot"
        folder.mkdir()
        (folder / "weights").symlink_to(file)
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        assert bytes(mapped[:]) == file.read_bytes()
        memory.forget_files(folder)
        assert held(file) == 0

    def test_what_may_have_been_written_is_kept(self, file):
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped[:4] = b"mine"
        memory.forget_files(file.parent)
        assert mapped[:4] == b"mine"

    def test_other_folders_are_left_alone(self, file, tmp_path):
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        assert mapped[:] == file.read_bytes()
        other = tmp_path / "other"
        other.mkdir()
        memory.forget_files(other)
        assert held(file) == SIZE

    def test_a_loaded_model_holds_little_of_its_files(self, tiny_folder):
        model = load_model(tiny_folder, precision="f32")
        weights = (tiny_folder / "model.onnx_data").resolve()
        assert weights.stat().st_size > 1 << 20
        assert held(weights) < weights.stat().st_size / 2
        assert model.backend.precision == "f32"


def test_a_folder_that_is_gone(tmp_path):
    memory.forget_files(tmp_path / "nothing")


def test_systems_that_cannot(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_c_library", lambda: None)
    memory.forget_files(tmp_path)
    memory.give_back()
