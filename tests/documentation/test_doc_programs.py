"""The Python programs of the README and the documentation run, and so do the requests by curl."""

import base64
import shlex
import shutil
import subprocess

import numpy as np
import pytest
import soxr
from doc_blocks import blocks, commands
from live_server import live_server

from whisper_npu import load_audio, load_model

ELSEWHERE = {
    "docs/coming-from.md": "tests/whisper_npu/test_coming_from.py",
    "docs/server.md": "below",
}
PROGRAMS = {
    page: [block for block in blocks() if block.page == page and block.language == "python"]
    for page in {block.page: None for block in blocks() if block.language == "python"}
}


class Microphone:
    """Reads a recording, then a second of silence."""

    def __init__(self, samples):
        self.pieces = list(np.array_split(np.concatenate((samples, np.zeros(16_000, "f4"))), 20))

    def read(self):
        return self.pieces.pop(0) if self.pieces else None


def run(program, names):
    exec(compile(program.content, program.place, "exec"), names)


@pytest.mark.parametrize("page", sorted(PROGRAMS.keys() - ELSEWHERE.keys()))
def test_programs_of_a_page_run_one_after_another(page, at_desk, beckett, capsys):
    with load_model("models/tiny.en") as model:
        names = {"model": model, "microphone": Microphone(load_audio(beckett))}
        for program in PROGRAMS[page]:
            run(program, names)
    if page != "docs/input.md":  # reads samples only
        assert "fail better" in capsys.readouterr().out.lower()


def test_every_python_block_is_run():
    assert all(not block.not_run for programs in PROGRAMS.values() for block in programs)
    assert PROGRAMS.keys() >= {"README.md", "docs/first_steps.md", "docs/python.md"}


class HeardError(Exception):
    """Ends a loop over events that has no end."""


# The official client keeps a WebSocket without the block that websockets 17.1 wants.
@pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")
def test_requests_of_the_servers_page(tiny_en_folder, at_desk, beckett, capsys):
    heard = []

    def hear(*texts, **_):
        heard.extend(map(str, texts))
        if "better" in heard[-1] and connected:
            raise HeardError

    connected = False
    sound = soxr.resample(load_audio(beckett), 16_000, 24_000)
    pcm = np.concatenate((np.round(sound * 32767), np.zeros(48_000))).astype("<i2")
    simple, realtime = PROGRAMS["docs/server.md"]
    with live_server(tiny_en_folder) as server:
        address = server.server.address.rstrip("/")
        names = {"print": hear, "base64_of_pcm16": base64.b64encode(pcm.tobytes()).decode()}
        for program in (simple, realtime):
            connected = program is realtime
            text = program.content.replace("http://127.0.0.1:8000", address)
            code = compile(text, program.place, "exec")
            if connected:
                with pytest.raises(HeardError):
                    exec(code, names)
            else:
                exec(code, names)
                assert "fail better" in heard.pop(0).lower()
        assert "Fail better" in "".join(heard) or "fail better" in "".join(heard)
        curl = shutil.which("curl")
        for command in commands():
            if command.words[0] == "curl" and curl:
                words = shlex.join(command.words[1:]).replace("http://127.0.0.1:8000", address)
                done = subprocess.run(
                    [curl, "--silent", "--fail-with-body", *shlex.split(words)],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
                assert "better" in done.stdout, str(command)
