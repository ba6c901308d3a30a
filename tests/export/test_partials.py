"""Unfinished folders: whose they are, and what becomes of them."""

import os
import subprocess
import sys

import pytest

from whisper_npu.export.partials import clean, locked, move_into_place, prefix, tidy, unfinished

HOLDER = """
import sys
from pathlib import Path
from whisper_npu.export.partials import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path):
    return tmp_path / "models" / "tiny [1].en"


@pytest.fixture
def left(place):
    """What a killed program left: an unfinished folder with half a file."""
    folder = place.parent / f"{prefix(place)}abc"
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def holder(place):
    """Another program that holds the place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_a_dead_program_left_goes_at_once(place, left):
    tidy(place)
    assert list(place.parent.iterdir()) == []


def test_what_a_living_program_makes_stays(place, left, holder):
    place.mkdir()
    tidy(place)
    assert unfinished(place) == [left]
    holder.kill()
    holder.wait()
    tidy(place)
    assert unfinished(place) == []


def test_a_place_is_held_by_one(place, holder):
    waited = []
    with (
        pytest.raises(TimeoutError),
        locked(place, timeout=0, waiting=lambda: waited.append(True)),
    ):
        pytest.fail("it is held by another program")
    assert waited == [True]


def test_the_lock_leaves_nothing(place):
    place.parent.mkdir(parents=True)
    with locked(place):
        pass
    assert list(place.parent.iterdir()) == []


def test_neighbours_are_left_alone(place, left):
    for name in (".tiny [1].en-2.partial-abc", ".tiny 1.en.partial-abc", "tiny [1].en.partial-abc"):
        (place.parent / name).mkdir()
    (place.parent / f"{prefix(place)}file").touch()
    tidy(place)
    assert len(list(place.parent.iterdir())) == 4


def test_what_was_replaced_returns(place, left):
    (left / "replaced").mkdir()
    (left / "replaced" / "old").touch()
    tidy(place)
    assert [path.name for path in place.iterdir()] == ["old"]
    assert unfinished(place) == []


def test_what_was_replaced_goes_where_its_successor_is_there(place, left):
    (left / "replaced" / "old").mkdir(parents=True)
    place.mkdir()
    (place / "new").touch()
    clean(place)
    assert [path.name for path in place.iterdir()] == ["new"]
    assert unfinished(place) == []


SWAPS = """
import os, signal, sys
from pathlib import Path
from whisper_npu.export.partials import locked, move_into_place
place, finished = Path(sys.argv[1]), Path(sys.argv[2])
original = Path.replace
def replace(self, target):
    if self.name == finished.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, target)
Path.replace = replace
with locked(place):
    move_into_place(finished, place)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_between_the_renames(place, left):
    place.mkdir()
    (place / "old").touch()
    (left / "model").mkdir()
    command = [sys.executable, "-c", SWAPS, str(place), str(left / "model")]
    assert subprocess.run(command, check=False).returncode == -9
    assert not place.exists()
    tidy(place)
    assert [path.name for path in place.iterdir()] == ["old"]
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_moving_into_an_empty_place(place, left):
    (left / "model").mkdir()
    move_into_place(left / "model", place)
    assert place.is_dir()
