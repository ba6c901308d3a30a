"""Freed blocks go back to the system, whatever is still in use behind them."""

import platform
import subprocess
import sys

import pytest

from whisper_npu.scripts import allocator

# Resident bytes before, and after 240 MB in large blocks between small ones have come and gone.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from whisper_npu.scripts.allocator import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "set":
    assert give_back_large_blocks()
np.ones(30 << 20, np.uint8)  # freed at once: glibc takes large blocks from its heap from now on
before = resident()
kept, large = [], []
for _ in range(40):
    large.append(np.ones(6 << 20, np.uint8))
    kept.append(np.ones(64 << 10, np.uint8))
large.clear()
print(resident() - before)
"""


def left_over(setting):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_large_blocks_go_back(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert left_over("set") < 20 << 20
    assert left_over("leave") > 200 << 20  # else there is nothing to be set


def test_a_setting_of_the_users_is_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not allocator.give_back_large_blocks()


def test_another_c_library(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert not allocator.give_back_large_blocks()
