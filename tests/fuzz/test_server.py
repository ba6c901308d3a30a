"""Requests and messages with anything in them: an answer as documented, never an error of ours."""

import json

import pytest
from fuzzing import damaged, examples, json_values
from hypothesis import given
from hypothesis import strategies as st
from live_server import form, live_server, talking_model
from live_session import live_session

FIELDS = (
    ("model", "whisper-1"),
    ("language", "en"),
    ("response_format", "verbose_json"),
    ("timestamp_granularities[]", "segment"),
    ("temperature", "0.2"),
    ("prompt", "A fox."),
    ("chunking_strategy", '{"type": "server_vad", "threshold": 0.5}'),
)
KNOWN = {200, 400, 404, 413, 415}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = talking_model(tmp_path_factory.mktemp("served"))
    with live_server("talker", load=lambda *_, **__: model) as server:
        yield server


@pytest.fixture(scope="module")
def clip(tmp_path_factory, tiny_audio):
    return tiny_audio[0].read_bytes()[:4000]


def check(reply):
    assert reply.status in KNOWN, reply.body
    if reply.status != 200:
        error = json.loads(reply.body)["error"]
        assert error["message"]
        assert "\n" not in error["message"]
        assert error["type"] == "invalid_request_error"


@examples(150)
@given(data=st.data())
def test_damaged_bodies(server, clip, data):
    body, headers = form(clip, FIELDS)
    check(server.request("POST", "/v1/audio/transcriptions", data.draw(damaged(body)), headers))


@examples(150)
@given(data=st.data())
def test_fields_with_any_value(server, clip, data):
    name = data.draw(st.sampled_from([name for name, _ in FIELDS] + ["stream", "include[]"]))
    value = data.draw(st.text(max_size=30) | json_values().map(json.dumps))
    value = value.encode("utf-8", "replace").decode()
    fields = [*(each for each in FIELDS if each[0] != name), (name, value)]
    check(server.request("POST", "/v1/audio/transcriptions", *form(clip, fields)))


@examples(60)
@given(message=json_values(max_leaves=16) | st.text(max_size=40) | st.binary(max_size=40))
def test_any_message_of_live_speech(server, message):
    with live_session(server) as session:
        if not isinstance(message, (str, bytes)):
            message = json.dumps(message)
        session.connection.send(message)
        event = session.receive()
        assert event["type"] == "error"
        assert event["error"]["type"] == "invalid_request_error"


@examples(100)
@given(data=st.data())
def test_any_settings_of_live_speech(server, data):
    kinds = ["format", "transcription", "turn_detection", "noise_reduction", "other"]
    parts = {kind: data.draw(json_values()) for kind in data.draw(st.sets(st.sampled_from(kinds)))}
    with live_session(server) as session:
        answer = session.update(**parts)
        if answer["type"] == "error":
            assert answer["error"]["type"] == "invalid_request_error"
