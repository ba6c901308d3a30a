"""`whisper-npu wyoming` as a process: how it starts, what it refuses, how it ends."""

import asyncio
import re
import signal
import subprocess
import sys

import pytest
from repository import ROOT
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.info import Describe, Info

from whisper_npu.scripts import serve_wyoming
from whisper_npu.scripts.main import main

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO: "
SCRIPT = ROOT / "scripts" / "serve_wyoming.py"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tiny_folder, number):
    command = [sys.executable, str(SCRIPT), "--model", str(tiny_folder)]
    command += ["--uri", "tcp://127.0.0.1:0", "--language", "en"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (line := process.stderr.readline()).startswith("listening on tcp://"):
                assert re.match(TIME, line), line
            uri = line.split()[2]

            async def ask():
                async with AsyncClient.from_uri(uri) as client:
                    await client.write_event(Describe().event())
                    (program,) = Info.from_event(await client.read_event()).asr
                    assert program.models[0].name == "tiny"
                    await client.write_event(Transcribe().event())
                    await client.write_event(AudioStart(16_000, 2, 1).event())
                    await client.write_event(AudioChunk(16_000, 2, 1, bytes(32_000)).event())
                    await client.write_event(AudioStop().event())
                    kinds = [(await client.read_event()).type for _ in range(3)]
                    assert kinds == ["transcript-start", "transcript", "transcript-stop"]

            asyncio.run(ask())
            process.send_signal(number)
            assert process.wait() == 0
            log = process.stderr.read().splitlines()
            assert all(re.match(TIME, line) for line in log), log
            assert log[0].endswith(" - connected")
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--uri", "10300"], "give tcp://HOST:PORT"),
        (["--uri", "tcp://here:99999"], "a port is a number"),
        (["--max-connections", "0"], "0 is not above 0"),
        (["--zeroconf"], "give --uri tcp://0.0.0.0:10300"),
        (["--uri", "unix:///run/ears", "--zeroconf", "ears"], "give --uri tcp://0.0.0.0:10300"),
        (["--langauge", "de"], "did you mean --language?"),
    ],
)
def test_wrong_command_lines(capsys, arguments, message):
    try:
        code = main(["wyoming", *arguments])
    except SystemExit as end:  # argparse
        code = end.code
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert code == 2
    assert message in line


@pytest.mark.parametrize("model", [".", "../ears", "../ears/", "/any/ears", "ears"])
def test_the_name_of_a_model_is_that_of_its_folder(tmp_path, monkeypatch, model):
    (tmp_path / "ears").mkdir()
    monkeypatch.chdir(tmp_path / "ears")
    assert serve_wyoming._name(model) == "ears"
