"""`whisper-npu serve` as a process: how it starts, what it refuses, how it ends."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
import soundfile
from live_server import TRANSCRIPTIONS, form
from repository import ROOT

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.scripts.serve import main
from whisper_npu.server.config import ServerConfig, parse_models
from whisper_npu.server.run import Listener, Server

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO: +"
SCRIPT = ROOT / "scripts" / "serve.py"
pytestmark = pytest.mark.slow


@contextmanager
def serving(model, *arguments):
    """A server process that has loaded its model, and its address."""
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            assert first.startswith("listening: open http://127.0.0.1:"), first
            address = first.split()[2].rstrip(";")
            while "is ready" not in process.stderr.readline():
                assert process.poll() is None
            yield process, address
        finally:
            process.kill()


def post(address, audio, **fields):
    body, headers = form(audio, [("model", "whisper-1"), *fields.items()])
    request = urllib.request.Request(f"{address}/v1/audio/transcriptions", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tiny_folder, tiny_audio, number):
    with serving(tiny_folder) as (process, address):
        with urllib.request.urlopen(f"{address}/health") as answer:
            assert json.loads(answer.read())["status"] == "ok"
        said = post(address, tiny_audio[0], response_format="verbose_json", language="en")
        assert (said["duration"], said["whisper_npu"]["model"]) == (4.0, "tiny")
        process.send_signal(number)
        assert process.wait() == 0
        log = process.stderr.read().splitlines()
    assert all(re.match(TIME, line) for line in log), log
    assert any(f'"POST {TRANSCRIPTIONS} HTTP/1.1" 200' in line for line in log)


@pytest.fixture
def long_recording(beckett, tmp_path):
    """Ten minutes of speech."""
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(load_audio(beckett), 60), 16_000)
    return path


@contextmanager
def asking(address, recording):
    """A thread whose request for a recording is being decoded; yields its outcome in a list."""
    outcome = []

    def ask():
        try:
            outcome.append(post(address, recording, language="en"))
        except (urllib.error.HTTPError, OSError, http.client.HTTPException) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    metrics = ""
    while "whisper_npu_requests_active 1.0" not in metrics:
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            metrics = answer.read().decode()
    yield outcome
    thread.join()


def test_no_request_is_waited_for_longer_than_the_grace(tiny_en_folder, long_recording):
    with serving(tiny_en_folder, "--grace", "1") as (process, address):
        with asking(address, long_recording) as outcome:
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0
        assert outcome[0].code == 503
        assert json.loads(outcome[0].read())["error"]["code"] == "shutting_down"
        log = process.stderr.read()
    assert "cut off: --grace is over" in log
    assert "Traceback" not in log


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_second_ctrl_c_ends_it_at_once(tiny_en_folder, long_recording):
    with serving(tiny_en_folder) as (process, address):
        with asking(address, long_recording) as outcome:
            process.send_signal(signal.SIGINT)
            while "Waiting for connections" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
        assert isinstance(outcome[0], OSError | http.client.HTTPException)


def test_a_killed_server_leaves_no_upload_behind(tiny_folder, tiny_audio, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    for _ in range(2):  # it starts again, too
        with serving(tiny_folder, "--spool", str(spool)) as (process, address):
            host, port = address.removeprefix("http://").split(":")
            body, headers = form(tiny_audio[2], [("model", "whisper-1")])
            kind = headers["Content-Type"]
            head = (
                f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + body[:-10])
                metrics = ""
                while "whisper_npu_requests_uploading 1.0" not in metrics:
                    with urllib.request.urlopen(f"{address}/metrics") as answer:
                        metrics = answer.read().decode()
                process.kill()
                assert process.wait() == -signal.SIGKILL
        assert list(spool.iterdir()) == []


@pytest.fixture
def refused(capsys):
    """A function from a wrong command line to its exit code and its only line."""

    def run(*arguments):
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse
            code = end.code
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        return code, line

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-upload", "much"], "'much' is no size"),
        (["--max-active", "0"], "active is 0"),
        (["--max-sessions", "0"], "sessions is 0"),
        (["--port", "70000"], "70000 is no port"),
        (["--grace", "-1"], "grace is -1; give seconds, 0 or more"),
        (["--model", "a=x", "--model", "a=y"], "two models are named a"),
        (["--spool", "/no/such/folder"], "does not exist; make it"),
        (["--api-key", " "], "--api-key has spaces, line ends"),
        (["--api-key", ""], "argument --api-key: the value is empty; give one"),
        (["--ssl-keyfile", "a.key"], "give --ssl-certfile"),
        (["--ssl-certfile", "/no/a.pem"], "--ssl-certfile /no/a.pem: No such file or directory"),
        (["--ssl-certfile", "setup.cfg"], "TLS cannot be used with setup.cfg: "),
        (
            ["--ssl-certfile", "setup.cfg", "--ssl-keyfile", "/no/a.key"],
            "--ssl-keyfile /no/a.key: No such file or directory",
        ),
        (["--host", "no.such.host.invalid"], "choose another --host"),
        (["--modle", "base"], "did you mean --model?"),
    ],
)
def test_wrong_command_lines(refused, arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, line = refused(*arguments)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("host", "shown", "everywhere"),
    [
        ("127.0.0.1", "http://127.0.0.1:", False),
        ("0.0.0.0", "http://127.0.0.1:", True),
        ("::", "http://[::1]:", True),
    ],
)
def test_the_address_can_be_opened(host, shown, everywhere):
    try:
        server = Server(
            ServerConfig(models=parse_models(["a"])), Listener(host=host, port=0, tls={})
        )
    except UsageError:
        assert ":" in host  # a machine without IPv6
        return
    server._socket.close()
    assert server.address.startswith(shown)
    assert server.is_everywhere == everywhere


def test_a_variable_for_the_key_that_is_empty(refused, monkeypatch):
    """A server that should have a key must not start without one."""
    monkeypatch.setenv("WHISPER_NPU_API_KEY", "")
    code, line = refused("--port", "0")
    assert code == 2
    assert "WHISPER_NPU_API_KEY is empty; give it a key, or leave it out" in line


def test_an_address_in_use(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = refused("--port", str(port))
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: " in line


def test_a_model_that_does_not_exist(tmp_path):
    command = [sys.executable, str(SCRIPT), "--model", "no-model", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("error: model no-model does not exist; ")
    assert done.stderr.count("\n") == 1
    done = subprocess.run(
        [*command, "--model", f"b={tmp_path}/none"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)


def test_a_folder_that_is_no_model(tmp_path):
    """It is noticed while the server listens, as all that reading a model takes."""
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("listening: ")
    assert lines[-1].startswith(f"error: model folder {tmp_path} lacks an encoder")


def test_a_warning_without_a_key(tmp_path):
    command = [sys.executable, str(SCRIPT), "--host", "0.0.0.0", "--port", "0"]
    command += ["--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "set WHISPER_NPU_API_KEY" in done.stderr.splitlines()[0]
