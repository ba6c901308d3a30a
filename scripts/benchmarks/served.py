"""Runs `whisper-npu serve` in a process of its own, for measurements."""

import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from whisper_npu.errors import DeviceError

PATIENCE = 300.0
"""Seconds to wait for any answer of the server."""

_ADDRESS = re.compile(r"http://\S+:\d+")


@contextmanager
def serving(model: str, options: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`whisper-npu serve` on a free port, until the end of the block; yields its address.

    Args:
        model: a model folder or name.
        options: further options of the command.

    Raises:
        DeviceError: it does not start.
    """
    command = [sys.executable, "-m", "whisper_npu", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, _address(process)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:  # it does not end: a block would wait for ever
                process.kill()
                raise


def _address(process: subprocess.Popen[str]) -> str:
    """Wait until the server can be used; returns its address."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := _ADDRESS.search(line):
            break
    else:
        raise DeviceError("the server did not start; run `whisper-npu serve` to see why")
    threading.Thread(target=process.stderr.read, daemon=True).start()  # never let it wait
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{found[0]}/health", timeout=PATIENCE):
                return found[0]
        except OSError:
            time.sleep(0.2)
    raise DeviceError("the server has no model after minutes; run `whisper-npu serve` to see why")
