"""What is remembered of files: never of other content, and never in the way."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from whisper_npu.runtime.model_folder import digests
from whisper_npu.runtime.model_folder.digests import ContentMemory, remembered_sha256, sha256_file

OLD = 1_000_000_000  # nanoseconds since 1970: long ago


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def memory(tmp_path):
    return ContentMemory(tmp_path / "cache" / "content.json")


@pytest.fixture
def later(monkeypatch):
    """A clock that is ahead, so that files written just now were written long ago."""
    now = digests.time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(digests.time, "time_ns", lambda: now)


def read(stream):
    return stream.read().decode()


def never(_stream):
    pytest.fail("the file was read again")


def test_a_fact_is_computed_once(memory, file, later):
    assert memory.recall(file, "text", read) == "first"
    assert memory.recall(file, "text", never) == "first"
    assert memory.recall(file, "size", lambda stream: len(stream.read())) == 5
    again = ContentMemory(memory.path)
    assert (again.recall(file, "text", never), again.recall(file, "size", never)) == ("first", 5)


def test_a_file_written_just_now_is_not_remembered(memory, file):
    """It could be written again within the file system's grain, and keep size and times."""
    assert memory.recall(file, "text", read) == "first"
    assert not memory.path.exists()
    status = file.stat()
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert memory.recall(file, "text", read) == "other"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no time of change")
def test_fixed_times_deceive_nobody(memory, file, later):
    """Image layers and reproducible archives unpack every file with the same time."""
    os.utime(file, ns=(OLD, OLD))
    assert memory.recall(file, "text", read) == "first"
    file.write_bytes(b"other")
    os.utime(file, ns=(OLD, OLD))
    assert memory.recall(file, "text", read) == "other"


def test_another_file_in_its_place_is_another(memory, file, later):
    assert memory.recall(file, "text", read) == "first"
    other = file.with_name("other")
    other.write_bytes(b"other")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file)
    assert memory.recall(file, "text", read) == "other"


def test_a_file_that_changes_while_it_is_read_is_not_remembered(memory, file, later):
    def read_and_write(stream):
        file.write_bytes(b"longer than before")
        return stream.read().decode()

    memory.recall(file, "text", read_and_write)
    assert memory.recall(file, "text", read) == "longer than before"


def not_json(path):
    path.write_bytes(b"\x00\xff{")


def of_another_format(path):
    path.write_text(json.dumps({"format": 99, "files": json.loads(path.read_text())["files"]}))


def other_values(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "files": {key: [1] for key in content["files"]}}))


def a_list(path):
    path.write_text("[]")


def deep(path):
    path.write_text("[" * 100_000)


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_fifo(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = [not_json, of_another_format, other_values, a_list, deep, a_folder]


@pytest.mark.parametrize("damage", [*DAMAGES, *([a_fifo] if hasattr(os, "mkfifo") else [])])
def test_a_damaged_memory_is_no_error(memory, file, later, damage):
    memory.recall(file, "text", read)
    damage(memory.path)
    assert ContentMemory(memory.path).recall(file, "text", read) == "first"


def test_a_memory_that_cannot_be_written_is_no_error(file, later, tmp_path):
    (tmp_path / "in the way").write_text("")
    memory = ContentMemory(tmp_path / "in the way" / "content.json")
    assert memory.recall(file, "text", read) == "first"
    assert memory.recall(file, "text", never) == "first", "this process remembers"


def test_the_oldest_go_first(memory, tmp_path, later, monkeypatch):
    monkeypatch.setattr(digests, "_MOST_FILES", 2)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
        memory.recall(tmp_path / name, "text", read)
    assert list(json.loads(memory.path.read_text())["files"]) == [
        str(tmp_path / "b"),
        str(tmp_path / "c"),
    ]


def test_forgotten(memory, file, later):
    memory.recall(file, "text", read)
    memory.forget()
    memory.forget()
    assert not memory.path.exists()
    file_was_read = []
    memory.recall(file, "text", lambda stream: file_was_read.append(1) or read(stream))
    assert file_was_read


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_an_error_and_no_hang(memory, tmp_path, kind):
    path = tmp_path / kind
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        memory.recall(path, "text", read)
    with pytest.raises(OSError, match="not a regular file"):
        sha256_file(path)


def test_threads_share_it(memory, tmp_path, later):
    files = [tmp_path / str(i) for i in range(20)]
    for path in files:
        path.write_text(path.name)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda path: memory.recall(path, "text", read), files))
    assert found == [path.name for path in files]
    again = ContentMemory(memory.path)
    assert [again.recall(path, "text", never) for path in files] == found


_PROGRAM = """
import sys
from pathlib import Path
from whisper_npu.runtime.model_folder import digests
digests._GRAIN = -(10**18)  # everything counts as old
for path in sorted(Path(sys.argv[1]).iterdir()):
    assert digests.remembered_sha256(path) == digests.sha256_file(path)
"""


def test_processes_share_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}").write_text(str(i))
    command = [sys.executable, "-c", _PROGRAM, str(folder)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 3
    content = json.loads((tmp_path / "cache" / "content.json").read_text())
    assert str(folder / "19") in content["files"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["content.json"]


def test_the_digest_is_sha256(file, monkeypatch, tmp_path):
    monkeypatch.setenv("WHISPER_NPU_CACHE", str(tmp_path / "cache"))
    digest = "a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    assert remembered_sha256(file) == sha256_file(file) == digest
