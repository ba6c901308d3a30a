"""The cache of compiled graphs: what is wrong is compiled anew, never used, never fatal."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines import compile_cache, memory
from whisper_npu.runtime.engines.compile_cache import (
    CompileCache,
    Contents,
    compile_cached,
    default_cache,
)
from whisper_npu.runtime.engines.compile_key import cache_key

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}


def make_model(factor=2.0):
    values = ops.parameter([1, 64], np.float32, name="values")
    product = ops.matmul(values, np.full((64, 64), factor, np.float32), False, False)
    return ov.Model([product], [values], "model")


def of(graph):
    return Contents("/models/tiny", graph, "f32")


@pytest.fixture
def core():
    return ov.Core()


@pytest.fixture
def cache(tmp_path):
    return CompileCache(tmp_path / "compiled", 1 << 30)


@pytest.fixture
def compiles(core, cache):
    """A function that gives the model's answer and whether it had to be compiled."""

    def run(graph="graph", factor=2.0, options=OPTIONS, in_cache=cache):
        read = []

        def read_model():
            read.append(graph)
            return make_model(factor)

        key = cache_key(core, graph, "CPU", options)
        compiled = compile_cached(
            core, read_model, key, options, cache=in_cache, contents=of(graph)
        )
        answer = compiled(np.ones((1, 64), np.float32))[0][0, 0]
        return float(answer), bool(read)

    return run


def only_file(cache):
    (entry,) = cache.entries()
    return entry.path


def test_the_second_time_nothing_is_compiled(compiles):
    assert compiles() == (128.0, True)
    assert compiles() == (128.0, False)


def test_without_a_cache_everything_is_compiled(compiles):
    assert [compiles(in_cache=None)[1] for _ in range(2)] == [True, True]


def test_everything_a_result_depends_on_is_in_the_key(core):
    key = cache_key(core, "graph", "CPU", OPTIONS)
    assert key.openvino == ov.get_version()
    assert key.device_name == core.get_property("CPU", "FULL_DEVICE_NAME")
    changes = {
        **dict.fromkeys(("graph", "openvino", "device", "device_name"), "another"),
        **dict.fromkeys(("driver", "compiler"), "another"),
        "options": (("INFERENCE_PRECISION_HINT", "bf16"),),
    }
    digests = {replace(key, **{name: value}).digest for name, value in changes.items()}
    assert len(digests | {key.digest}) == len(changes) + 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def from_another_program(path):
    path.write_bytes(b"\x00" * 10_000)


def headed_by_another_kind(path):
    path.write_bytes(b"[1, 2]".ljust(4096) + b"\x00" * 100)


def not_a_blob(path):
    """A right header over something OpenVINO cannot load."""
    content = b"nonsense" * 100
    header = json.loads(path.read_bytes().partition(b"\n")[0])
    digest = compile_cache._digest(header["facts"])
    digest.update(content)
    header |= {"bytes": len(content), "sha256": digest.hexdigest()}
    head = json.dumps(header).encode().ljust(compile_cache._HEADER - 1) + b"\n"
    path.write_bytes(head + content)


DAMAGES = [truncate, empty, flip_a_bit, from_another_program, headed_by_another_kind, not_a_blob]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_repaired(compiles, cache, damage, monkeypatch):
    mapped = []

    def map_file(file, digest):
        mapped.append(digest)
        return memory.map_file(file, digest)

    monkeypatch.setattr(compile_cache, "map_file", map_file)
    compiles()
    damage(only_file(cache))
    assert compiles() == (128.0, True)
    assert len(mapped) == (damage is not_a_blob), "all else is found before OpenVINO reads it"
    assert compiles() == (128.0, False)


def test_a_blob_of_another_graph_is_not_used(compiles, cache):
    compiles()
    other = only_file(cache).read_bytes()
    assert compiles("another", factor=3.0) == (192.0, True)
    for entry in cache.entries():
        entry.path.write_bytes(other)
    assert compiles("another", factor=3.0) == (192.0, True)


def a_fifo(path):
    os.mkfifo(path)


def a_folder(path):
    path.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("put", [a_fifo, a_folder], ids=lambda put: put.__name__)
def test_what_is_no_file_does_not_hang(compiles, cache, put):
    compiles()
    path = only_file(cache)
    put(path.with_name("other.blob"))
    assert compiles() == (128.0, False)
    assert [entry.path for entry in cache.entries()] == [path]
    path.unlink()
    put(path)
    assert compiles() == (128.0, True)
    assert cache.clear() == (0 if put is a_folder else 2)


def test_an_unreadable_file_is_no_error(compiles, cache):
    compiles()
    path = only_file(cache)
    path.unlink()
    path.mkdir()  # what nobody, not even root, can read as a file
    assert compiles() == (128.0, True)
    assert compiles() == (128.0, True)


def test_a_folder_that_cannot_be_written_is_no_error(compiles, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    blocked = CompileCache(tmp_path / "file" / "compiled", 1 << 30)
    assert compiles(in_cache=blocked) == (128.0, True)
    assert "cannot be kept" in caplog.text


def test_the_limit_removes_what_was_used_longest_ago(compiles, cache):
    for age, graph in ((300, "first"), (200, "second")):
        compiles(graph)
        newest = max(cache.entries(), key=lambda entry: entry.used).path
        os.utime(newest, (time.time() - age,) * 2)
    size = cache.entries()[0].size
    compiles("first")  # used again just now
    cache.limit = int(2.5 * size)
    compiles("third")
    assert {entry.contents.graph for entry in cache.entries()} == {"first", "third"}
    cache.limit = 10
    assert compiles("fourth") == (128.0, True), "too large to keep is no error"
    assert "fourth" not in {entry.contents.graph for entry in cache.entries()}


def test_a_soft_limit_gives_way_to_one_model(compiles, cache):
    compiles("first")
    compiles("second")
    cache.limit, cache.is_soft = 10, True
    compiles("third")
    assert {entry.contents.graph for entry in cache.entries()} == {"first", "second", "third"}
    other = Contents("/models/base", "other", "f32")
    key = cache_key(ov.Core(), "other", "CPU", OPTIONS)
    compiled = ov.Core().compile_model(make_model(2.0), "CPU", OPTIONS)
    assert cache.store(key, compiled, other)
    assert {entry.contents.graph for entry in cache.entries()} == {"other"}


def test_what_a_kill_left_behind_goes_away(compiles, cache):
    compiles("one")
    old, new = (cache.folder / f"{name}.part" for name in ("old", "new"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    compiles("two")
    assert not old.exists()
    assert new.exists(), "another process may be writing it"
    assert cache.clear() == 3
    assert list(cache.folder.iterdir()) == []


def test_threads_share_the_cache(compiles):
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: compiles()[0], range(8)))
    assert answers == [128.0] * 8


_PROGRAM = """
import sys
import numpy as np, openvino as ov
from pathlib import Path
from openvino import opset13 as ops
from whisper_npu.runtime.engines.compile_cache import (
    CompileCache, Contents, compile_cached)
from whisper_npu.runtime.engines.compile_key import cache_key
core = ov.Core()
cache = CompileCache(Path(sys.argv[1]), 1 << 30)
for i in range(int(sys.argv[2])):
    def read():
        values = ops.parameter([1, 512], np.float32)
        weights = np.full((512, 512), i, np.float32)
        return ov.Model([ops.matmul(values, weights, False, False)], [values], "m")
    key = cache_key(core, str(i), "CPU", {})
    contents = Contents("m", str(i), "f32")
    compiled = compile_cached(core, read, key, {}, cache=cache, contents=contents)
    assert compiled(np.ones((1, 512), np.float32))[0][0, 0] == 512 * i
print("done")
"""


def start(folder, graphs, before="", *arguments):
    command = [sys.executable, "-c", before + _PROGRAM, *map(str, (folder, graphs, *arguments))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_share_the_cache(tmp_path):
    processes = [start(tmp_path / "shared", 6) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in outputs] == ["done"] * 2, outputs
    assert len(CompileCache(tmp_path / "shared", 1 << 30).entries()) == 6


# Stops for good at the third argument's moment: before something is done to the cache's folder, or
# with half of a part of a file written.
_STOPS = """
import itertools, sys, tempfile, threading
moments = itertools.count(1)

def moment():
    if next(moments) == int(sys.argv[3]):
        print("here", flush=True)
        threading.Event().wait()

def before(event, arguments):
    if event in ("open", "os.mkdir", "os.rename") and sys.argv[1] in str(arguments):
        moment()

def in_halves(*arguments, make=tempfile.NamedTemporaryFile, **options):
    made = make(*arguments, **options)
    def write(content, write=made.file.write):
        half = len(content) // 2
        write(content[:half])
        made.file.flush()
        moment()
        write(content[half:])
    made.write = write
    return made

tempfile.NamedTemporaryFile = in_halves
sys.addaudithook(before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(1, 12))
def test_a_kill_at_any_moment_does_no_harm(tmp_path, moment):
    folder = tmp_path / "killed"
    process = start(folder, 40, _STOPS, moment)
    assert process.stdout.readline() == "here\n"
    process.kill()
    process.communicate()
    out, error = start(folder, 3).communicate(timeout=60)
    assert out.strip() == "done", error


def test_where_the_cache_lies_and_how_much_it_holds(monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path))
    monkeypatch.setenv("WHISPER_NPU_CACHE_LIMIT", "0.5")
    cache = default_cache()
    assert cache.folder == tmp_path / "compiled"
    assert cache.limit == 1 << 29
    assert cache.entries() == []
    assert cache.clear() == 0
    monkeypatch.setenv("WHISPER_NPU_CACHE_LIMIT", "much")
    with pytest.raises(UsageError, match="WHISPER_NPU_CACHE_LIMIT is 'much'"):
        default_cache()
