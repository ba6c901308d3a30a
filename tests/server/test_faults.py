"""Callers that leave, stall, send garbage or too much, and what each leaves behind: nothing."""

import contextlib
import http.client
import json
import logging
import resource
import select
import socket
import sys
import threading
import time
from pathlib import Path

import openai
import pytest
from live_server import PATIENCE, TRANSCRIPTIONS, form, live_server, talking_model

from whisper_npu.server import protocol
from whisper_npu.server.answers import EventWriter
from whisper_npu.server.config import Limits
from whisper_npu.server.transcribing import Job

HEAD = f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: here\r\n"
STREAM = (("model", "whisper-1"), ("stream", "true"))
MULTIPART = "multipart/form-data; boundary=b"


def error_of(reply):
    return json.loads(reply.body)["error"]


class Held:
    """A model whose encoder waits until a test lets it go on."""

    def __init__(self, folder):
        self.model = talking_model(folder)
        self.begun, self.may_go = threading.Semaphore(0), threading.Semaphore(0)
        self._encode = self.model.backend.encode
        self.is_held = False
        self.model.backend.encode = self.encode

    def encode(self, features):
        if self.is_held:
            self.begun.release()
            assert self.may_go.acquire(timeout=PATIENCE)
        return self._encode(features)

    def let_go(self):
        self.is_held = False
        self.may_go.release(1000)


@pytest.fixture
def held(tmp_path):
    return Held(tmp_path)


def connect(server) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE)


def small_buffers(server) -> socket.socket:
    """A connection on which few bytes are under way."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(PATIENCE)
    connection.connect(server.address)
    return connection


def wait_until(is_so) -> None:
    event, ends = threading.Event(), time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < ends
        event.wait(0.01)


def begin_upload(server, talk, *, n_sent: int) -> socket.socket:
    """A connection on which the first bytes of a request were sent."""
    body, headers = form(talk, [("model", "whisper-1")])
    head = HEAD + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head += f"Content-Length: {len(body)}\r\n\r\n"
    connection = connect(server)
    connection.sendall(head.encode() + body[:n_sent])
    return connection


def status_of(connection: socket.socket) -> int:
    with connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def wait_until_empty(server) -> None:
    """Wait until no request is inside; the server's own thread tells."""
    while server.service.admission.n_inside:
        server.request("GET", "/v1/models")


def open_spool_files(spool) -> list[Path]:
    """The files in the spool folder that this process holds open; none of them has a name."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by another thread
            found.append(link.readlink())
    return [path for path in found if path.is_relative_to(spool)]


class TestSize:
    LIMITS = Limits(upload_bytes=300_000)

    @pytest.fixture(scope="class", name="small")
    @classmethod
    def _small(cls, tmp_path_factory):
        model = talking_model(tmp_path_factory.mktemp("small"))
        with live_server("talker", load=lambda *_, **__: model, limits=cls.LIMITS) as server:
            yield server

    def test_an_announced_body_is_refused_before_it_is_sent(self, small):
        with connect(small) as connection:
            kind = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 2000000000"
            connection.sendall(f"{HEAD}{kind}\r\nExpect: 100-continue\r\n\r\n".encode())
            assert status_of(connection) == 413

    def test_a_body_without_a_length_is_counted(self, small):
        """The answer comes while the body is still being sent."""
        head = f"{HEAD}Content-Type: {MULTIPART}\r\nTransfer-Encoding: chunked\r\n\r\n"
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        with connect(small) as connection:
            connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(part), part))
            n_sent = 0
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(b"10000\r\n%s\r\n" % bytes(1 << 16))
                n_sent += 1 << 16
            assert status_of(connection) == 413
        assert n_sent < 1 << 26
        wait_until_empty(small)

    def test_the_official_client_reads_the_refusal(self, small):
        with pytest.raises(openai.APIStatusError, match="larger than 300000 bytes") as caught:
            small.client.audio.transcriptions.create(
                file=("long.wav", bytes(64 << 20)), model="whisper-1"
            )
        assert caught.value.status_code == 413
        assert caught.value.code == "upload_too_large"

    def test_a_recording_within_the_limit(self, small, talk):
        assert small.post(bytes(250_000)).status == 415  # it was read, and is no audio


class TestConnections:
    """The server waits only so long, but a refused caller gets its answer before the end."""

    def test_a_head_that_never_comes(self, server, monkeypatch):
        monkeypatch.setitem(protocol._PATIENCE, "head", 0.2)
        for sent in (b"", b"GET / HT"):
            with connect(server) as connection:
                connection.sendall(sent)
                assert connection.recv(100) == b""

    def test_a_body_that_is_not_needed(self, server, monkeypatch):
        monkeypatch.setitem(protocol._PATIENCE, "unneeded body", 0.2)
        with connect(server) as connection:
            head = f"{HEAD}Content-Type: {MULTIPART}\r\nContent-Length: 2000000000000\r\n\r\n"
            connection.sendall(head.encode())
            with contextlib.suppress(ConnectionError):
                while True:
                    connection.sendall(bytes(1 << 16))
            assert status_of(connection) == 413

    @pytest.mark.parametrize("kind", ["large", "small"])
    def test_an_answer_that_is_not_read(self, server, monkeypatch, kind):
        """Closing is not enough: the connection stays while bytes of the answer wait."""
        for name in ("unread answer", "farewell", "head"):
            monkeypatch.setitem(protocol._PATIENCE, name, 0.2)
        connections = server.server.server_state.connections
        request = b"GET /docs HTTP/1.1\r\nHost: here\r\n\r\n"
        with small_buffers(server) as connection:
            ours = None
            while ours is None:  # connections of other tests may be there, too
                server.request("GET", "/v1/models")
                found = [each for each in connections if each.client == connection.getsockname()]
                ours = next(iter(found), None)
            if kind == "small":  # fewer bytes wait than uvicorn would pause for
                ours.transport.set_write_buffer_limits(high=1 << 30)
            connection.setblocking(False)
            with contextlib.suppress(ConnectionError):
                while not ours.transport.get_write_buffer_size():
                    with contextlib.suppress(BlockingIOError):
                        connection.send(request)
            wait_until(lambda: ours not in connections)

    def test_small_answers_are_sent_at_once(self, server):
        """Else the system holds back each answer on a kept connection for 40 ms."""
        (listening,) = server.server.servers[0].sockets
        assert listening.proto == socket.IPPROTO_TCP

    def test_the_next_request_on_the_connection(self, server):
        """The body of a refused request is read to its end, and the connection stays usable."""
        caller = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
        with contextlib.closing(caller):
            for method, body, status in (("POST", bytes(5 << 20), 415), ("GET", None, 405)):
                caller.request(method, TRANSCRIPTIONS, body)
                answer = caller.getresponse()
                answer.read()
                assert answer.status == status


class TestGarbage:
    @pytest.mark.parametrize(
        ("kind", "body", "status", "code"),
        [
            ("multipart/form-data", b"x", 400, None),
            ("multipart/form-data; boundary=", b"x", 400, None),
            (f"multipart/form-data; boundary={'b' * 300}", b"x", 400, "bad_multipart"),
            (MULTIPART, b"", 400, "body_cut_off"),
            (MULTIPART, b"\x00\xff" * 5000, 400, "bad_multipart"),
            (MULTIPART, b"--b\r\nno header\r\n\r\n", 400, "bad_multipart"),
            (MULTIPART, b"--b\r\nA: b\r\n\r\nx\r\n--b--\r\n", 400, None),
            ("application/json", b"{}", 415, "not_multipart"),
            ("application/x-www-form-urlencoded", b"model=whisper-1", 415, "not_multipart"),
            ("", b"x", 415, "not_multipart"),
        ],
    )
    def test_bodies(self, server, kind, body, status, code):
        reply = server.request("POST", TRANSCRIPTIONS, body, {"Content-Type": kind})
        assert (reply.status, error_of(reply)["code"]) == (status, code)

    def test_a_body_that_ends_within_a_recording(self, server, talk):
        body, headers = form(talk, [("model", "whisper-1")])
        reply = server.request("POST", TRANSCRIPTIONS, body[: len(body) // 2], headers)
        assert (reply.status, error_of(reply)["code"]) == (400, "body_cut_off")

    def test_two_recordings(self, server):
        part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
        headers = {"Content-Type": MULTIPART}
        reply = server.request("POST", TRANSCRIPTIONS, f"{part}{part}--b--\r\n".encode(), headers)
        assert (reply.status, error_of(reply)["param"]) == (400, "file")


class TestLeaving:
    def test_during_the_upload(self, tmp_path, held, talk):
        with live_server("talker", load=lambda *_, **__: held.model, spool=tmp_path) as server:
            begin_upload(server, talk, n_sent=100_000).close()
            wait_until_empty(server)
            assert open_spool_files(tmp_path) == []
            assert server.post(talk).status == 200
            metrics = server.request("GET", "/metrics").text
        assert f'whisper_npu_requests_total{{path="{TRANSCRIPTIONS}",status="499"}} 1.0' in metrics

    @pytest.mark.parametrize("stream", ["false", "true"])
    def test_during_the_transcription(self, tmp_path, held, talk, stream, caplog):
        """Its place is free for the next caller, and its windows are not decoded."""
        limits = Limits(active=1)
        with live_server(
            "talker", load=lambda *_, **__: held.model, spool=tmp_path, limits=limits
        ) as server:
            caplog.set_level(logging.INFO, "whisper_npu.server")
            held.is_held = True
            body, headers = form(talk, [("model", "whisper-1"), ("stream", stream)])
            head = HEAD + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            connection = connect(server)
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert held.begun.acquire(timeout=PATIENCE)
            connection.close()
            held.let_go()
            wait_until_empty(server)
            assert open_spool_files(tmp_path) == []
            assert server.post(talk).status == 200
        assert "left before the end of its answer" in caplog.text

    def test_while_it_waits_for_a_place(self, held, talk):
        limits = Limits(active=1)
        with live_server("talker", load=lambda *_, **__: held.model, limits=limits) as server:
            held.is_held = True
            first = threading.Thread(target=server.post, args=(talk,))
            first.start()
            assert held.begun.acquire(timeout=PATIENCE)
            waiting = begin_upload(server, talk, n_sent=1 << 30)
            while not server.service.admission.n_waiting:
                server.request("GET", "/v1/models")
            waiting.close()
            while server.service.admission.n_waiting:
                server.request("GET", "/v1/models")
            held.let_go()
            first.join(PATIENCE)
            wait_until_empty(server)
            assert server.service.admission.n_active == 0


class TestTime:
    def test_an_upload_that_stalls(self, tmp_path, talk):
        limits = Limits(stall_seconds=0.2)
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model, limits=limits) as server:
            with begin_upload(server, talk, n_sent=50_000) as connection:
                assert status_of(connection) == 408
            wait_until_empty(server)

    def test_an_upload_byte_by_byte(self, tmp_path, talk):
        """Each byte comes in time, but all of them would take for ever."""
        limits = Limits(stall_seconds=0.5, least_rate=1e9)
        model = talking_model(tmp_path)
        with (
            live_server("talker", load=lambda *_, **__: model, limits=limits) as server,
            begin_upload(server, talk, n_sent=500) as connection,
        ):
            connection.setblocking(False)
            answer = b""
            while not answer:
                try:
                    connection.send(b"x")
                    answer = connection.recv(100)
                except BlockingIOError:
                    pass
            assert answer.split()[1] == b"408"

    def test_a_transcription_that_takes_too_long(self, held, talk, monkeypatch):
        stop = Job.stop

        def let_go_and_stop(job):
            held.let_go()
            stop(job)

        monkeypatch.setattr(Job, "stop", let_go_and_stop)
        limits = Limits(work_seconds=0.1)
        with live_server("talker", load=lambda *_, **__: held.model, limits=limits) as server:
            held.is_held = True
            reply = server.post(talk)
        assert (reply.status, error_of(reply)["code"]) == (504, "transcription_timeout")
        assert reply.headers["x-should-retry"] == "false"

    def test_a_reader_that_reads_nothing(self, tmp_path, talk, monkeypatch, caplog):
        """A stream that fills all buffers of the system ends, and its place is free."""
        monkeypatch.setattr(EventWriter, "delta", lambda *_: bytes(10 << 20))
        limits = Limits(active=1, stall_seconds=0.3)
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model, limits=limits) as server:
            caplog.set_level(logging.INFO, "whisper_npu.server")
            body, headers = form(talk, [("model", "whisper-1"), ("stream", "true")])
            head = HEAD + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            with connect(server) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                assert status_of(connection) == 200
                wait_until_empty(server)
            assert server.post(talk).status == 200
        assert "does not read its answer" in caplog.text

    def test_a_recording_that_is_too_long(self, tmp_path, talk):
        limits = Limits(audio_seconds=20.0)
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model, limits=limits) as server:
            reply = server.post(talk)
        assert (reply.status, error_of(reply)["code"]) == (400, "audio_too_long")


class TestCrowds:
    def test_a_full_queue(self, held, talk):
        limits = Limits(active=1, queue=1)
        with live_server("talker", load=lambda *_, **__: held.model, limits=limits) as server:
            held.is_held = True
            replies = []
            callers = [
                threading.Thread(target=lambda: replies.append(server.post(talk))) for _ in range(2)
            ]
            for caller in callers:
                caller.start()
            while server.service.admission.n_inside < 2:
                server.request("GET", "/v1/models")
            refused = server.post(talk)
            assert (refused.status, error_of(refused)["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            with pytest.raises(openai.RateLimitError), talk.open("rb") as file:
                server.client.audio.transcriptions.create(file=file, model="whisper-1")
            held.let_go()
            for caller in callers:
                caller.join(PATIENCE)
            assert [reply.status for reply in replies] == [200, 200]

    def test_the_official_client_tries_again(self, held, talk):
        limits = Limits(active=1, queue=0)
        with live_server("talker", load=lambda *_, **__: held.model, limits=limits) as server:
            held.is_held = True
            first = threading.Thread(target=server.post, args=(talk,))
            first.start()
            assert held.begun.acquire(timeout=PATIENCE)
            patient = server.client.with_options(max_retries=5)
            texts = []

            def ask():
                with talk.open("rb") as file:
                    said = patient.audio.transcriptions.create(file=file, model="whisper-1")
                texts.append(said.text)

            second = threading.Thread(target=ask)
            second.start()
            refused = f'whisper_npu_requests_total{{path="{TRANSCRIPTIONS}",status="429"}}'
            while refused not in server.request("GET", "/metrics").text:
                pass
            held.let_go()
            first.join(PATIENCE)
            second.join(PATIENCE)
            assert len(texts) == 1

    def test_too_many_uploads(self, tmp_path, talk):
        limits = Limits(uploads=1)
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model, limits=limits) as server:
            with begin_upload(server, talk, n_sent=1000):
                while not server.service.admission.n_uploading:
                    server.request("GET", "/v1/models")
                refused = server.post(talk)
            assert (refused.status, error_of(refused)["code"]) == (429, "queue_full")


class TestDisk:
    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
    def test_a_full_disk(self, tmp_path, talk):
        model = talking_model(tmp_path)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        with live_server("talker", load=lambda *_, **__: model, spool=tmp_path) as server:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            try:
                reply = server.post(talk)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert (reply.status, error_of(reply)["code"]) == (507, "spool_failed")
            assert open_spool_files(tmp_path) == []
            assert server.post(talk).status == 200

    def test_a_spool_folder_that_vanished(self, tmp_path, talk):
        spool = tmp_path / "spool"
        spool.mkdir()
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model, spool=spool) as server:
            spool.rmdir()
            reply = server.post(talk)
            assert (reply.status, error_of(reply)["code"]) == (507, "spool_failed")
            assert str(tmp_path) not in reply.text

    def test_a_recording_has_no_name_on_the_disk(self, tmp_path, held, talk):
        spool = tmp_path / "spool"
        spool.mkdir()
        with live_server("talker", load=lambda *_, **__: held.model, spool=spool) as server:
            held.is_held = True
            caller = threading.Thread(target=server.post, args=(talk,))
            caller.start()
            assert held.begun.acquire(timeout=PATIENCE)
            assert list(spool.iterdir()) == []
            assert len(open_spool_files(spool)) == 1
            held.let_go()
            caller.join(PATIENCE)
            assert open_spool_files(spool) == []


class TestEnding:
    def test_begun_requests_are_finished_and_others_refused(self, held, talk):
        with live_server("talker", load=lambda *_, **__: held.model) as server:
            held.is_held = True
            replies = []
            caller = threading.Thread(target=lambda: replies.append(server.post(talk)))
            caller.start()
            assert held.begun.acquire(timeout=PATIENCE)
            server.server.should_exit = True
            while True:
                try:
                    connect(server).close()
                except ConnectionError:
                    break
            held.let_go()
            caller.join(PATIENCE)
            assert [reply.status for reply in replies] == [200]
            server.thread.join(PATIENCE)
            assert not server.thread.is_alive()

    def test_a_stream_that_is_cut_off_has_a_last_event(self, held, talk, caplog):
        with live_server("talker", load=lambda *_, **__: held.model, grace=0) as server:
            caplog.set_level(logging.INFO, "whisper_npu.server")
            held.is_held = True
            connection = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
            with contextlib.closing(connection):
                connection.request("POST", TRANSCRIPTIONS, *form(talk, [*STREAM]))
                answer = connection.getresponse()  # a report of progress begins the stream
                assert answer.status == 200
                server.server.should_exit = True
                *_, last, end = answer.read().decode().split("\n\n")  # raises if it is cut
            held.let_go()
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert end == ""
        assert "cut off: --grace is over" in caplog.text
