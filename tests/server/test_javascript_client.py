"""The contract of `/v1/*` with OpenAI's JavaScript client, run by the Node.js of Playwright."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import PATIENCE, LiveServer
from playwright._impl._driver import compute_driver_executable

from whisper_npu import format_transcript

NPM = shutil.which("npm")
HERE = Path(__file__).parent / "javascript"
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.slow,
    pytest.mark.skipif(NPM is None, reason="needs npm, which fetches the client"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Path:
    """A folder with `calls.mjs` and the client."""
    folder = tmp_path_factory.mktemp("javascript")
    for file in HERE.iterdir():
        shutil.copy(file, folder)
    install = [NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict=false"]
    subprocess.run(install, cwd=folder, check=True, timeout=PATIENCE, capture_output=True)
    (folder / "notes.wav").write_text("no audio at all")
    return folder


def call(client: Path, server: LiveServer, recording: Path) -> dict[str, dict]:
    """What each call of `calls.mjs` got."""
    node, _ = compute_driver_executable()
    ended = subprocess.run(
        [node, "calls.mjs", server.server.address, str(recording), "notes.wav"],
        check=False,
        cwd=client,
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def said(client, server, talk):
    return call(client, server, talk)


@pytest.fixture(scope="module")
def really_said(client, tiny_en_server, beckett):
    """With the real tiny.en, which has times of words."""
    return call(client, tiny_en_server, beckett)


@pytest.fixture(scope="module")
def expected(talker, talk):
    """What the Python API says of the recording."""
    return talker.transcribe(talk, language="en").result()


def result(said, name):
    assert "error" not in said[name], said[name]
    return said[name]["result"]


def test_texts(said, expected):
    assert result(said, "json")["text"] == expected.text != ""
    assert result(said, "text") == expected.text + "\n"


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_those_of_the_command_line(said, expected, form):
    assert result(said, form) == format_transcript(expected, form)


def test_words(really_said, tiny_en, beckett):
    known = tiny_en.transcribe(beckett, initial_prompt="A fox.", word_timestamps=True).result()
    verbose = result(really_said, "verbose")
    assert verbose["duration"] == known.duration
    assert verbose["language"] == "english"
    words = [word for segment in known.segments for word in segment.words]
    assert (
        [(each["word"], each["start"], each["end"]) for each in verbose["words"]]
        == [(each.word.strip(), each.start, each.end) for each in words]
        != []
    )
    assert [each["text"] for each in verbose["segments"]] == [each.text for each in known.segments]


def test_logprobs(really_said):
    heard = result(really_said, "logprobs")
    assert "".join(each["token"] for each in heard["logprobs"]).strip() == heard["text"] != ""
    assert all(each["logprob"] <= 0 for each in heard["logprobs"])


def test_chunking_strategy(said, expected):
    assert result(said, "chunking")["text"] == expected.text


def test_stream(said, expected):
    *deltas, done = result(said, "streamed")
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"] == expected.text


def test_an_aborted_call_leaves_the_server_well(said, server, talk, expected):
    assert said["aborted"]["error"] == "APIUserAbortError"
    assert server.post(talk, ("language", "en"), ("response_format", "text")).text.strip() == (
        expected.text
    )


def test_the_client_comes_back_after_a_503(said, talker, talk):
    assert result(said, "retried") == {"asked": 2, "text": talker.transcribe(talk).text}


def test_translation(said, talker, talk):
    known = talker.transcribe(talk, task="translate").result()
    assert result(said, "translated")["text"] == known.text


def test_models(said):
    names = [model["id"] for model in result(said, "models")]
    assert {"talker", "whisper-1"} <= set(names)
    assert result(said, "model")["object"] == "model"


@pytest.mark.parametrize(
    ("name", "kind", "status", "param"),
    [
        ("no_model", "NotFoundError", 404, "model"),
        ("no_format", "BadRequestError", 400, "response_format"),
        ("no_audio", "APIError", 415, "file"),
    ],
)
def test_errors_have_the_client_s_types(said, name, kind, status, param):
    error = said[name]
    assert (error["error"], error["status"], error["param"]) == (kind, status, param)
    assert error["message"]
