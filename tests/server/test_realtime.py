"""Live speech over the WebSocket: OpenAI's events, what is refused, who may enter, who must go."""

import asyncio
import base64
import json
import logging
import socket
from contextlib import suppress

import numpy as np
import openai
import pytest
import soxr
from live_server import PATIENCE, live_server
from live_session import (
    COMPLETED,
    DELTA,
    FAILED,
    LiveSession,
    address_of,
    encoded,
    live_session,
)
from live_speech import listening_model, reading, silence, speech
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from whisper_npu import DeviceError
from whisper_npu.server import protocol
from whisper_npu.server.config import Limits
from whisper_npu.server.errors import bad_request
from whisper_npu.server.pcm import _G711
from whisper_npu.server.realtime.inbox import Inbox
from whisper_npu.server.realtime.settings import TENTATIVE
from whisper_npu.server.websocket import PatientWebSocket

PAUSE = silence(1)
TWO = np.concatenate((silence(0.5), speech(0, 3), PAUSE, speech(3, 5), PAUSE))
COMMITTED = "input_audio_buffer.committed"
# The official client calls websockets in a way that newer versions want to be changed.
OFFICIAL = pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A server of a model that understands `speech`."""
    model = listening_model(tmp_path_factory.mktemp("listener"))
    with live_server("listener", load=lambda *_, **__: model) as server:
        yield server


@pytest.fixture
def session(listener):
    with live_session(listener) as session:
        yield session


def kinds(events):
    return [event["type"].removeprefix("conversation.item.") for event in events]


def n_open(server):
    return server.server.app.state.live.n_open


def wait_until_closed(server):
    """Wait until the server has no session; its own thread tells."""
    while n_open(server):
        server.request("GET", "/v1/models")


# Words


def test_two_utterances_and_the_order_of_their_events(session):
    session.append(TWO)
    session.until(COMPLETED)
    session.until(COMPLETED)
    events = session.events[2:]  # after session.created and session.updated
    assert kinds(event for event in events if event["type"] != DELTA) == 2 * [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "added",
        "done",
        "input_audio_transcription.completed",
    ]
    first, second = session.of(COMPLETED)
    assert first["transcript"] == session.text_of(first["item_id"]) == reading(0, 3).strip()
    assert second["transcript"] == session.text_of(second["item_id"]) == reading(3, 5).strip()
    before = {event["item_id"]: event["previous_item_id"] for event in session.of(COMMITTED)}
    assert before == {first["item_id"]: None, second["item_id"]: first["item_id"]}
    assert len({event["event_id"] for event in session.events}) == len(session.events)


def test_times_of_speech_include_the_padding_and_the_pause(session):
    session.append(TWO)
    session.until(COMPLETED)
    (started,) = session.of("input_audio_buffer.speech_started")
    (stopped,) = session.of("input_audio_buffer.speech_stopped")
    assert started["audio_start_ms"] == pytest.approx(500 - 300, abs=64)
    assert stopped["audio_end_ms"] == pytest.approx(3400 + 500, abs=64)
    usage = session.of(COMPLETED)[0]["usage"]
    length = stopped["audio_end_ms"] - started["audio_start_ms"]
    assert usage == {"type": "duration", "seconds": pytest.approx(length / 1000, abs=0.002)}


def test_final_words_come_while_speech_goes_on(session):
    for second in range(4):
        session.append(speech(second, second + 1))
        session.hear()
    early = session.of(DELTA)
    assert early != []
    assert not session.of(COMMITTED)
    session.append(silence(1))
    whole = session.until(COMPLETED)
    assert whole["transcript"] == reading(0, 4).strip()
    assert session.of(DELTA)[: len(early)] == early
    assert session.text_of(whole["item_id"]) == whole["transcript"]


def test_words_that_may_still_change_come_if_asked_for(listener):
    with live_session(listener) as session:
        settings = {"type": "transcription", "include": [TENTATIVE]}
        session.send("session.update", session=settings)
        shown = session.until("session.updated")["session"]
        assert shown["include"] == [TENTATIVE]
        assert shown["whisper_npu"]["warnings"] == []
        session.send("session.update", session={"type": "transcription"})
        assert session.until("session.updated")["session"]["include"] == [TENTATIVE]
        for second in range(4):
            session.append(speech(second, second + 1))
            session.hear()
        session.append(silence(1))
        whole = session.until(COMPLETED)["transcript"]
    assert whole == reading(0, 4).strip()
    sent = ""
    maybe = []
    for event in session.of(DELTA, TENTATIVE):
        if event["type"] == DELTA:
            sent += event["delta"]
        else:
            maybe.append(event["text"])
            assert whole.startswith((sent + event["text"]).strip())  # this model never errs
    assert any(maybe)


def test_words_that_may_still_change_do_not_come_unasked(session):
    for second in range(4):
        session.append(speech(second, second + 1))
        session.hear()
    assert session.of(DELTA)
    assert not session.of(TENTATIVE)


@OFFICIAL
def test_the_official_client(listener):
    with listener.client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        created = connection.recv()
        assert created.type == "session.created"
        assert created.session.type == "transcription"
        assert created.session.audio.input.turn_detection.type == "server_vad"
        connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "whisper-1", "language": "en"},
                        "turn_detection": None,
                    }
                },
            }
        )
        assert connection.recv().session.audio.input.turn_detection is None
        audio = soxr.resample(speech(0, 2), 16_000, 24_000)
        connection.input_audio_buffer.append(audio=encoded(audio))
        connection.input_audio_buffer.commit()
        events = []
        while not events or events[-1].type != COMPLETED:
            events.append(connection.recv())
        committed, added, done, *deltas, completed = [
            event for event in events if event.type != DELTA or event.delta
        ]
        assert committed.type == COMMITTED
        assert (added.item.role, done.item.id) == ("user", committed.item_id)
        assert completed.transcript == "".join(event.delta for event in deltas)
        assert completed.transcript == reading(0, 2).strip()
        assert completed.usage.seconds == pytest.approx(2, abs=0.01)
        assert [each.code for each in completed.languages] == ["en"]


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_audio(session, kind):
    session.update(format={"type": kind}, turn_detection=None)
    table = _G711["mu-law" if kind == "audio/pcmu" else "a-law"]
    samples = soxr.resample(speech(0, 2), 16_000, 8_000)
    order = np.argsort(table)
    places = np.clip(np.searchsorted(table[order], samples), 0, 255)
    audio = base64.b64encode(order[places].astype(np.uint8).tobytes()).decode()
    session.send("input_audio_buffer.append", audio=audio)
    session.send("input_audio_buffer.commit")
    assert session.until(COMPLETED)["transcript"] == reading(0, 2).strip()


# The client commits


def test_commit_and_clear_by_the_client(session):
    session.update(turn_detection=None)
    session.append(speech(0, 2))
    session.send("input_audio_buffer.commit")
    assert session.until(COMPLETED)["transcript"] == reading(0, 2).strip()
    session.append(speech(2, 4))
    session.send("input_audio_buffer.clear")
    session.until("input_audio_buffer.cleared")
    session.append(speech(4, 6))
    session.send("input_audio_buffer.commit")
    assert session.until(COMPLETED)["transcript"] == reading(4, 6).strip()
    first, second = session.of(COMMITTED)
    assert second["previous_item_id"] == first["item_id"]
    assert not session.of("input_audio_buffer.speech_started")


def test_an_empty_commit_is_refused_and_loses_nothing(session):
    session.update(turn_detection=None)
    session.send("input_audio_buffer.commit", event_id="mine")
    error = session.until("error")["error"]
    assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")
    audio = speech(0, 2)
    session.append(audio[:800])
    session.send("input_audio_buffer.commit")
    assert "50 ms" in session.until("error")["error"]["message"]
    session.append(audio[800:])
    session.send("input_audio_buffer.commit")
    assert session.until(COMPLETED)["transcript"] == reading(0, 2).strip()


def test_a_commit_ends_an_utterance_of_the_server(session):
    session.append(speech(0, 2))
    session.send("input_audio_buffer.commit")
    assert session.until(COMPLETED)["transcript"] == reading(0, 2).strip()
    session.append(np.concatenate((speech(2, 4), PAUSE)))
    assert session.until(COMPLETED)["transcript"] == reading(2, 4).strip()
    starts = [event["audio_start_ms"] for event in session.of("input_audio_buffer.speech_started")]
    assert starts == [0, 2000]


# Settings


def test_an_update_changes_only_what_it_gives(session):
    vad = {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 800}
    before = session.update()["session"]["audio"]["input"]
    after = session.update(turn_detection=vad)["session"]["audio"]["input"]
    assert after == {**before, "turn_detection": {**vad, "prefix_padding_ms": 300}}
    last = session.update(transcription={"prompt": "Tea."})["session"]["audio"]["input"]
    assert last["transcription"] == {"model": "listener", "language": "en", "prompt": "Tea."}
    assert last["turn_detection"] == after["turn_detection"]


def test_settings_without_effect_are_named(session):
    answer = session.update(noise_reduction={"type": "near_field"})["session"]
    assert answer["audio"]["input"]["noise_reduction"] is None
    assert "does not filter noise" in answer["whisper_npu"]["warnings"][0]


INPUT = "session.audio.input"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"transcription": {"language": "nope"}}, f"{INPUT}.transcription.language"),
        ({"transcription": {"languages": ["nope"]}}, f"{INPUT}.transcription.languages"),
        ({"transcription": {"languages": ["de"]}}, f"{INPUT}.transcription.languages"),
        ({"transcription": {"model": "gpt-9"}}, "model"),
        ({"transcription": {"delay": "none"}}, f"{INPUT}.transcription.delay"),
        ({"transcription": {"prompt": "a" * 5000}}, f"{INPUT}.transcription.prompt"),
        ({"transcription": None}, f"{INPUT}.transcription"),
        ({"turn_detection": {"type": "semantic_vad"}}, f"{INPUT}.turn_detection.type"),
        ({"turn_detection": {"threshold": 2}}, f"{INPUT}.turn_detection.threshold"),
        ({"format": {"type": "audio/pcm", "rate": 8000}}, f"{INPUT}.format.rate"),
        ({"format": {"type": "audio/pcmu", "rate": 24_000}}, f"{INPUT}.format.rate"),
        ({"format": {"rate": 44_100}}, f"{INPUT}.format.rate"),
        ({"colour": "red"}, f"{INPUT}.colour"),
    ],
)
def test_wrong_settings_change_nothing(session, changes, param):
    before = session.update()["session"]
    answer = session.update(**changes)
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert session.update()["session"] == before


def test_a_conversation_is_refused(session):
    session.send("session.update", session={"type": "realtime"})
    assert session.until("error")["error"]["param"] == "session.type"
    session.send("session.update", session="all")
    assert session.until("error")["error"]["param"] == "session"


def test_the_format_cannot_change_within_an_utterance(session):
    session.append(speech(0, 1))
    answer = session.update(turn_detection=None)
    assert "commit" in answer["error"]["message"]
    session.send("input_audio_buffer.clear")
    assert session.update(turn_detection=None)["type"] == "session.updated"


def test_the_events_from_before_the_api_was_final(listener):
    headers = {"OpenAI-Beta": "realtime=v1"}
    with connect(address_of(listener), additional_headers=headers) as connection:
        session = LiveSession(connection)
        created = session.receive()
        assert created["type"] == "transcription_session.created"
        assert created["session"]["input_audio_format"] == "pcm16"
        session.send(
            "transcription_session.update",
            session={
                "input_audio_format": "pcm16",
                "input_audio_transcription": {"model": "whisper-1", "language": "en"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                "input_audio_noise_reduction": None,
                "include": ["item.input_audio_transcription.logprobs"],
            },
        )
        updated = session.receive()
        assert updated["type"] == "transcription_session.updated"
        assert updated["session"]["turn_detection"]["silence_duration_ms"] == 400
        assert updated["session"]["input_audio_transcription"]["language"] == "en"
        assert "no log probabilities" in updated["session"]["whisper_npu"]["warnings"][0]
        session.append(soxr.resample(TWO, 16_000, 24_000))
        assert session.until(COMPLETED)["transcript"] == reading(0, 3).strip()
        assert session.of("conversation.item.created")
        assert not session.of("conversation.item.added")
        session.send("transcription_session.update", session={"voice": "alloy"})
        assert session.until("error")["error"]["code"] == "unknown_parameter"


# Garbage


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no JSON", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("1" * 5000, "invalid_json"),
        (b"\xff\x00", "invalid_json"),
        ("[]", "invalid_event"),
        ("null", "invalid_event"),
        ('{"type": 5}', "invalid_event"),
        ('{"kind": "x"}', "invalid_event"),
        ('{"type": "response.create"}', "unknown_event"),
        ('{"type": "x", "event_id": "\\ud800"}', "unknown_event"),
        ('{"type": "session.update", "session": {"\\ud800": 1}}', "invalid_value"),
        ('{"type": "input_audio_buffer.append"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": 5}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_value"),
        ('{"type": "input_audio_buffer.append", "audio": "\\u00e9"}', "invalid_value"),
    ],
)
def test_garbage_gets_an_error_and_the_session_goes_on(session, message, code):
    session.connection.send(message)
    event = session.until("error")
    assert event["error"]["code"] == code
    assert event["error"]["type"] == "invalid_request_error"
    session.append(TWO)
    assert session.until(COMPLETED)["transcript"] == reading(0, 3).strip()


def test_an_error_names_the_event_that_caused_it(session):
    session.append(speech(0, 1))
    session.send("input_audio_buffer.append", audio="%", event_id="third")
    session.append(np.concatenate((speech(1, 2), PAUSE)))
    assert session.until("error")["error"]["event_id"] == "third"
    assert session.until(COMPLETED)["transcript"] == reading(0, 2).strip()


def test_bytes_that_are_no_websocket(listener):
    with connect(address_of(listener)) as connection:
        connection.recv()
        connection.socket.sendall(b"\xff" * 1000)
        with pytest.raises(ConnectionClosed):
            connection.recv()
    wait_until_closed(listener)
    assert listener.request("GET", "/health").status == 200


# Who may enter


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    model = listening_model(tmp_path_factory.mktemp("guarded"))
    with live_server("listener", load=lambda *_, **__: model, api_key="right") as server:
        yield server


def test_the_key_in_the_header(guarded):
    headers = {"Authorization": "Bearer right"}
    with connect(address_of(guarded), additional_headers=headers) as connection:
        assert json.loads(connection.recv())["type"] == "session.created"


def test_the_key_as_a_browser_sends_it(guarded):
    protocols = ["realtime", "openai-insecure-api-key.right", "openai-beta.realtime-v1"]
    with connect(address_of(guarded), subprotocols=protocols) as connection:
        assert connection.subprotocol == "realtime"
        assert json.loads(connection.recv())["type"] == "transcription_session.created"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
        {
            "subprotocols": ["realtime", "openai-insecure-api-key.wrong"],
            "additional_headers": {"Authorization": "Bearer right"},
        },
    ],
)
def test_a_wrong_key(guarded, options):
    with pytest.raises(InvalidStatus) as refused, connect(address_of(guarded), **options):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("query", "status"), [("intent=conversation", 400), ("intent=transcription&model=gpt-9", 404)]
)
def test_what_is_not_served(listener, query, status):
    with pytest.raises(InvalidStatus) as refused, connect(address_of(listener, query)):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]["message"]


def test_the_limit_of_sessions(tmp_path):
    model = listening_model(tmp_path)
    limits = Limits(sessions=1)
    with live_server("listener", load=lambda *_, **__: model, limits=limits) as server:
        with live_session(server):
            with pytest.raises(InvalidStatus) as refused, connect(address_of(server)):
                pass
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["Retry-After"]
        wait_until_closed(server)
        with live_session(server) as session:
            session.append(TWO)
            assert session.until(COMPLETED)["transcript"] == reading(0, 3).strip()


def test_a_websocket_on_a_connection_that_had_a_request(listener, monkeypatch):
    monkeypatch.setitem(protocol._PATIENCE, "unneeded body", 0.0)
    connection = socket.create_connection(listener.address, timeout=PATIENCE)
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: here\r\n\r\n")
    answer = b""
    while b"whisper-1" not in answer and b"listener" not in answer:
        answer += connection.recv(1 << 16)
    with connect(address_of(listener), sock=connection) as upgraded:
        session = LiveSession(upgraded)
        assert session.receive()["type"] == "session.created"
        session.hear()


# Who must go


def test_an_idle_session_ends(tmp_path):
    model = listening_model(tmp_path)
    limits = Limits(idle_seconds=0.05)
    with (
        live_server("listener", load=lambda *_, **__: model, limits=limits) as server,
        connect(address_of(server)) as connection,
    ):
        session = LiveSession(connection)
        assert session.until("error")["error"]["code"] == "session_idle"
        with pytest.raises(ConnectionClosed) as closed:
            session.receive()
        assert closed.value.rcvd.code == 1000


def test_a_client_that_does_not_read_is_closed(listener, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "whisper_npu.server")
    monkeypatch.setattr(PatientWebSocket, "patience", 0.1)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(listener.address)
    connection.settimeout(PATIENCE)
    host, port = connection.getsockname()
    update = {"audio": {"input": {"transcription": {"keywords": ["\N{GRINNING FACE}" * 4000]}}}}
    message = json.dumps({"type": "session.update", "session": update}, ensure_ascii=False)
    with connect(address_of(listener), sock=connection, max_queue=1, close_timeout=0) as client:
        sent = 0
        with suppress(ConnectionClosed):
            while sent < 100_000:
                client.send(message)
                sent += 1
    assert sent < 100_000
    wait_until_closed(listener)
    assert f"{host}:{port} - the client does not read: its connection is closed" in caplog.text
    assert listener.request("GET", "/health").status == 200


def test_a_client_that_leaves_frees_its_place(listener):
    with live_session(listener) as session:
        session.append(speech(0, 3))
    wait_until_closed(listener)
    assert n_open(listener) == 0


def test_a_server_that_ends_closes_its_sessions(tmp_path):
    model = listening_model(tmp_path)
    with (
        live_server("listener", load=lambda *_, **__: model) as server,
        live_session(server) as session,
    ):
        server.server.should_exit = True
        with pytest.raises(ConnectionClosed) as closed:
            session.receive()
        assert closed.value.rcvd.code == 1012


def test_a_device_that_fails(tmp_path):
    model = listening_model(tmp_path)
    encode = model.backend.encode

    def fail(_features):
        raise DeviceError("the device is gone; restart it")

    with live_server("listener", load=lambda *_, **__: model) as server:
        with live_session(server) as session:
            session.update(turn_detection=None)
            model.backend.encode = fail
            session.append(speech(0, 2))
            session.send("input_audio_buffer.commit")
            failed = session.until(FAILED, COMPLETED)
            assert failed["type"] == FAILED
            assert failed["error"]["code"] == "device_failed"
            assert failed["item_id"] == session.of(COMMITTED)[0]["item_id"]
            session.append(speech(0, 2))
            assert session.until("error")["error"]["code"] == "model_failed"
        with pytest.raises(InvalidStatus) as refused, connect(address_of(server)):
            pass
        assert refused.value.response.status_code == 503
        model.backend.encode = encode


def test_an_error_of_the_program_ends_the_item_only(tmp_path):
    model = listening_model(tmp_path)
    encode = model.backend.encode

    def fail(_features):
        raise ZeroDivisionError

    with (
        live_server("listener", load=lambda *_, **__: model) as server,
        live_session(server) as session,
    ):
        session.update(turn_detection=None)
        model.backend.encode = fail
        session.append(speech(0, 2))
        session.send("input_audio_buffer.commit")
        assert session.until(FAILED)["error"]["code"] == "internal_error"
        model.backend.encode = encode
        session.append(speech(2, 4))
        session.send("input_audio_buffer.commit")
        assert session.until(COMPLETED)["transcript"] == reading(2, 4).strip()


def test_metrics_count_live_speech(tmp_path):
    model = listening_model(tmp_path)
    with live_server("listener", load=lambda *_, **__: model) as server:
        with live_session(server) as session:
            session.update(turn_detection=None)
            session.append(speech(0, 2))
            session.send("input_audio_buffer.commit")
            session.until(COMPLETED)
        metrics = server.request("GET", "/metrics").text
    assert 'whisper_npu_audio_seconds_total{model="listener"} 2.0' in metrics


def test_audio_that_waits_is_bounded():
    append = {"type": "input_audio_buffer.append", "audio": ""}

    async def check():
        inbox = Inbox()
        await inbox.put(append, 3 << 20)
        blocked = asyncio.create_task(inbox.put(append, 1))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not blocked.done()
        assert await inbox.take() == [append]
        await blocked
        await inbox.put(bad_request("wrong"), 1)
        await inbox.put(append, 1)
        assert await inbox.take() == [append]  # audio after another event waits for it
        assert len(await inbox.take()) == 1
        await inbox.put(append, 1)
        await inbox.end()
        assert await inbox.take() == [None]  # the client left: nothing waits

    asyncio.run(check())


@OFFICIAL
def test_the_client_library_sees_refusals_as_its_errors(guarded):
    client = openai.OpenAI(base_url=f"{guarded.server.address}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(InvalidStatus):
        client.realtime.connect(extra_query={"intent": "transcription"}).enter()
