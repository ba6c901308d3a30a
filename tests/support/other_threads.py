"""Measures how long the other threads of a process have computed."""

import os
import subprocess
import sys
import time
from pathlib import Path

TASKS = Path("/proc/self/task")


def run_program(code: str) -> float:
    """Run a program that prints a number of seconds; return the number."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def seconds_of_other_threads() -> float:
    """Processor time of all threads except this one, read when all of them sleep."""
    own = str(os.getpid())  # also the id of the main thread
    late = time.monotonic() + 60
    while any(_is_running(task) for task in TASKS.iterdir() if task.name != own):
        assert time.monotonic() < late, "a thread never sleeps"
    return time.process_time() - time.thread_time()


def _is_running(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
