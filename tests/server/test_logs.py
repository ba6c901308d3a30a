"""What the servers log: when, who, and why an answer or a connection ended; nothing private."""

import logging
import threading
from contextlib import contextmanager

import pytest
from live_server import PATIENCE, TRANSCRIPTIONS, form, live_server, talking_model
from live_session import address_of, live_session
from live_speech import listening_model, speech
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from whisper_npu.server.config import Limits
from whisper_npu.server.logs import shown
from whisper_npu.server.run import _logging

LOGGER = "whisper_npu.server"


@contextmanager
def logged(caplog):
    """A function that waits for the next line, and returns it without its client.

    The server has to run: its start takes other handlers away.
    """
    come, lines = threading.Condition(), []

    class Waking(logging.Handler):
        def emit(self, record):
            with come:
                lines.append(record.getMessage())
                come.notify_all()

    def next_line():
        with come:
            assert come.wait_for(lambda: lines, timeout=PATIENCE)
            client, _, message = lines.pop(0).partition(" - ")
        assert client.startswith("127.0.0.1:")
        return message

    logger, handler = logging.getLogger(LOGGER), Waking()
    logger.addHandler(handler)
    with caplog.at_level(logging.INFO, LOGGER):
        yield next_line
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (("127.0.0.1", 5), "127.0.0.1:5"),
        (("::1", 5, 0, 0), "::1:5"),
        (("\x1b[2J1.2.3.4:9 - \n", 5), "?[2J1.2.3.4:9 - ?:5"),  # as a proxy may pass it on
        (("a" * 1000, 5), f"{'a' * 64}:5"),
        ("", "a local client"),
        (None, "a local client"),
    ],
)
def test_the_name_of_a_client(address, name):
    assert shown(address) == name


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_holds_for_all_messages(level):
    assert _logging(level)["loggers"]["whisper_npu"]["level"] == level.upper()


def test_every_line_has_its_time():
    for formatter in _logging("info")["formatters"].values():
        assert formatter["fmt"].startswith("%(asctime)s ")


def test_a_refused_request(tmp_path, talk, caplog):
    def post(audio, **fields):
        body, headers = form(audio, list({"model": "whisper-1", **fields}.items()))
        headers |= {"Authorization": "Bearer secret"}
        return server.request("POST", TRANSCRIPTIONS, body, headers)

    model = talking_model(tmp_path)
    with (
        live_server("talker", load=lambda *_, **__: model, api_key="secret") as server,
        logged(caplog) as line,
    ):
        server.request("GET", "/v1/models", headers={"Authorization": "Bearer nearly"})
        assert line() == "refused: 401 invalid_api_key"
        post(talk, langauge="en")
        assert line() == "refused: 400 invalid_request_error, field 'langauge'"
        assert post(b"no audio", stream="true").status == 415
        assert line() == "refused: 415 unsupported_audio, field 'file'"
        server.request("GET", "/v1/private")
        assert line() == "refused: 404 unknown_url"
        server.request("GET", TRANSCRIPTIONS)
        assert line() == "refused: 405 method_not_allowed"
    for private in ("secret", "nearly", "talk.wav", "/v1/private"):
        assert private not in caplog.text


def test_how_a_live_session_ended(tmp_path, caplog):
    model = listening_model(tmp_path)
    with (
        live_server("listener", load=lambda *_, **__: model) as server,
        logged(caplog) as line,
    ):
        with pytest.raises(InvalidStatus), connect(address_of(server, "intent=conversation")):
            pass
        assert line() == "refused: 400 invalid_request_error, field 'intent'"
        with live_session(server) as session:
            session.append(speech(0, 2))
            session.hear()
        assert line() == "live session ended after 2.0 s of audio: the client left"
        with live_session(server) as session:
            server.server.should_exit = True
            with pytest.raises(ConnectionClosed):
                session.receive()
        assert line() == "live session ended after 0.0 s of audio: the server ends"


def test_an_idle_session(tmp_path, caplog):
    model = listening_model(tmp_path)
    limits = Limits(idle_seconds=0.05)
    with (
        live_server("listener", load=lambda *_, **__: model, limits=limits) as server,
        logged(caplog) as line,
        connect(address_of(server)),
    ):
        assert line() == "live session ended after 0.0 s of audio: no event for 0.05 s"
