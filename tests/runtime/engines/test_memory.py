"""Memory given back: less of it is held, and nothing of its content is lost."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from whisper_npu import load_model
from whisper_npu.runtime.engines import memory
from whisper_npu.runtime.engines.openvino import sessions
from whisper_npu.runtime.engines.openvino.sessions import RequestPool

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


@linux
def test_pages_of_mapped_files_go_and_come_back(file, monkeypatch):
    monkeypatch.setattr(memory, "_mapped", {})
    with file.open("rb") as opened:
        content = np.frombuffer(memory.map_file(opened, "its digest"), np.int32)
    assert content.sum() == np.arange(SIZE // 4).sum()
    assert held(file) == SIZE
    memory.release_memory()
    assert held(file) == 0
    assert (content == np.arange(SIZE // 4)).all()


class TestAvailable:
    """The memory that may be used: the machine's, or less in a container."""

    @pytest.fixture
    def machine(self, tmp_path):
        def make(membership, groups):
            files = {
                "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
                "proc/self/cgroup": membership,
                **groups,
            }
            for name, text in files.items():
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return memory.available_bytes(tmp_path)

        return make

    @staticmethod
    def version_2(folder, limit, used, cached):
        return {
            f"sys/fs/cgroup{folder}/memory.max": f"{limit}\n",
            f"sys/fs/cgroup{folder}/memory.current": f"{used}\n",
            f"sys/fs/cgroup{folder}/memory.stat": f"anon 1\ninactive_file {cached}\n",
        }

    def test_without_a_limit(self, machine):
        assert machine("0::/\n", {}) == 8000 * 1024

    def test_no_limit_is_written_out(self, machine):
        assert machine("0::/a\n", self.version_2("/a", "max", 1, 1)) == 8000 * 1024

    def test_pages_of_files_count_as_free(self, machine):
        assert machine("0::/a\n", self.version_2("/a", 5000, 3000, 1000)) == 3000

    def test_the_narrowest_group_counts(self, machine):
        groups = self.version_2("/a", 4000, 3000, 0) | self.version_2("/a/b", 9000, 0, 0)
        assert machine("0::/a/b\n", groups) == 1000

    def test_a_group_that_is_mounted_at_the_top(self, machine):
        """As in a container, which does not see the host's groups."""
        assert machine("0::/host/name\n", self.version_2("", 6000, 1000, 0)) == 5000

    def test_more_than_allowed_leaves_nothing(self, machine):
        assert machine("0::/a\n", self.version_2("/a", 1000, 3000, 0)) == 0

    def test_version_1(self, machine):
        folder = "sys/fs/cgroup/memory/docker/x"
        groups = {
            f"{folder}/memory.limit_in_bytes": "7000\n",
            f"{folder}/memory.usage_in_bytes": "5000\n",
            f"{folder}/memory.stat": "total_inactive_file 500\n",
        }
        assert machine("9:cpu,memory:/docker/x\n1:name=systemd:/\n", groups) == 2500

    @pytest.mark.parametrize("lost", ["memory.stat", "memory.current"])
    def test_a_limit_counts_even_if_its_use_is_not_told(self, machine, lost):
        groups = self.version_2("/a", 5000, 3000, 1000)
        del groups[f"sys/fs/cgroup/a/{lost}"]
        left = {"memory.stat": 2000, "memory.current": 5000}
        assert machine("0::/a\n", groups) == left[lost]

    def test_more_file_pages_than_use(self, machine):
        assert machine("0::/a\n", self.version_2("/a", 5000, 1000, 3000)) == 5000

    @pytest.mark.parametrize("membership", ["", "\n", "nonsense\n", "0:\n", "0::/\udcff\n"])
    def test_nonsense_about_groups(self, tmp_path, machine, membership):
        assert machine("0::/\n", {}) == 8000 * 1024
        (tmp_path / "proc/self/cgroup").write_bytes(os.fsencode(membership))
        assert memory.available_bytes(tmp_path) == 8000 * 1024

    @pytest.mark.parametrize("value", ["", " ", " much kB", "-1 kB"])
    def test_nonsense_about_the_machine(self, tmp_path, machine, value):
        machine("", {})
        (tmp_path / "proc/meminfo").write_text(f"MemAvailable:{value}\n")
        expected = 0 if value.startswith("-") else memory._UNKNOWN
        assert memory.available_bytes(tmp_path) == expected

    def test_nonsense_in_a_group(self, machine):
        groups = {
            **self.version_2("/a", "-7", "x", "y"),
            "sys/fs/cgroup/memory.max": "9000\n",
            "sys/fs/cgroup/memory.current": "much\n",
            "sys/fs/cgroup/memory.stat": "inactive_file\n\n",
        }
        assert machine("0::/a\n", groups) == 9000


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
        monkeypatch.setattr(sessions, "release_memory", lambda: found.append(True))

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
        monkeypatch.setattr(memory, "release_memory", lambda: given.append(True))
        monkeypatch.setattr(memory, "_decoded", memory._Windows())
        return given

    def test_every_eight_windows_whoever_decodes_them(self, given):
        for n_windows, want in [(1, 0)] * 7 + [(1, 1), (7, 1), (16, 2), (7, 2), (1, 3)]:
            memory.release_memory_after(n_windows)
            assert len(given) == want

    @pytest.mark.slow
    def test_transcriptions_count(self, tiny_folder, given, monkeypatch):
        """One after another, each of one window."""
        model = load_model(tiny_folder)
        noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
        counted = []
        monkeypatch.setattr(model.scheduler, "after_batch", counted.append)
        for _ in range(3):
            model.transcribe(noise, vad=False, temperature=(0.0,)).result()
        assert counted == [1, 1, 1]
        assert not given


def test_systems_that_cannot(monkeypatch):
    monkeypatch.setattr(memory, "_c_library", lambda: None)
    memory.release_memory()
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
    memory.release_memory()
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
