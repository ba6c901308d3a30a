"""Files being written: what a killed program left goes, what a living one writes stays."""

import os
import subprocess
import sys
import time

import pytest

from whisper_npu.runtime.output import part_files

WRITER = """
import sys
from pathlib import Path
from whisper_npu.runtime.output.part_files import open_draft
path, file = open_draft(Path(sys.argv[1]))
file.write("half")
file.flush()
print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path):
    """Another program that writes a draft, and the draft, an hour old."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        draft = tmp_path / process.stdout.readline().strip()
        os.utime(draft, (time.time() - 3600,) * 2)
        part_files._remove_abandoned.cache_clear()
        yield process, draft
        process.kill()


def test_a_living_programs_draft_stays(writer, tmp_path):
    path, file = part_files.open_draft(tmp_path)
    file.close()
    assert sorted(tmp_path.iterdir()) == sorted([writer[1], path])


def test_a_killed_programs_draft_goes(writer, tmp_path):
    process, draft = writer
    process.kill()
    process.wait()
    path, file = part_files.open_draft(tmp_path)
    file.close()
    assert list(tmp_path.iterdir()) == [path]
    assert path != draft


def test_a_draft_just_made_stays(tmp_path):
    """Its program may not hold it yet."""
    young = tmp_path / ".whisper-npu-abc.part"
    young.touch()
    part_files._remove_abandoned.cache_clear()
    _, file = part_files.open_draft(tmp_path)
    file.close()
    assert young.exists()
