"""A real server in a thread, on a free port of this machine, and requests to it."""

import http.client
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from fake_backend import Say, fake_model
from pauses import PausesEverySoOften

from whisper_npu import WhisperModel
from whisper_npu.server.config import ModelSpec, ServerConfig
from whisper_npu.server.run import Listener, Server
from whisper_npu.server.service import Service

PATIENCE = 120  # seconds until a test that hangs fails
TRANSCRIPTIONS = "/v1/audio/transcriptions"


@dataclass
class Reply:
    """An answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class LiveServer:
    """A server, its service, and the official client of it."""

    server: Server
    service: Service
    client: openai.OpenAI
    thread: threading.Thread

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.server.address)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, headers, answer.read())
        finally:
            connection.close()

    def post(
        self, audio: Path | bytes | None, *fields: tuple[str, str], path: str = TRANSCRIPTIONS
    ) -> Reply:
        """Post a recording with fields; the model is the first unless they name another."""
        if "model" not in dict(fields):
            fields = (("model", "whisper-1"), *fields)
        body, headers = form(audio, fields)
        return self.request("POST", path, body, headers)


def form(
    audio: Path | bytes | None, fields: Sequence[tuple[str, str]], filename: str = "talk.wav"
) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a multipart request."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    if audio is not None:
        content = audio.read_bytes() if isinstance(audio, Path) else audio
        head = f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        parts.append(f"--{boundary}\r\n{head}\r\n".encode() + content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


SENTENCES = (
    " The quick brown fox jumps.",
    " Over the lazy dog it goes.",
    " Pack my box with jugs.",
    " Sphinx of black quartz.",
    " Judge my vow, please.",
)
SPOKEN = 25.0  # seconds in which they are said


def talking_model(folder: Path, sentences: Sequence[str] = SENTENCES) -> WhisperModel:
    """A model that says these sentences of every recording; no graph is run.

    Args:
        folder: an empty folder.
        sentences: said evenly over 25 s.
    """
    fake = fake_model(folder, [Say(())])
    fake.backend.n_text_ctx = 448
    begin = fake.tokenizer.special.timestamp_begin
    step = SPOKEN / len(sentences)
    tokens: list[int] = []
    for number, sentence in enumerate(sentences):
        tokens += [
            begin + round(number * step / 0.02),
            *fake.tokenizer.encode(sentence),
            begin + round((number + 1) * step / 0.02),
        ]
    fake.backend.script = [Say(tuple(tokens))]
    return WhisperModel(fake.folder, fake.backend, fake.tokenizer, PausesEverySoOften())


@contextmanager
def live_server(
    *models: Path | str,
    load: Callable[..., WhisperModel] | None = None,
    waits: bool = True,
    grace: int = 60,
    ends_with: type[Exception] | None = None,
    **config: Any,
) -> Iterator[LiveServer]:
    """Serve models during a block.

    Args:
        models: their folders; names if there is a function that loads them.
        load: takes the place of `load_model`.
        waits: whether to wait until they are loaded.
        grace: see `Listener`.
        ends_with: the error with which the server ends by itself.
        config: further parts of `ServerConfig`.
    """
    specs = tuple(ModelSpec(Path(each).name, str(each)) for each in models)
    with pytest.MonkeyPatch.context() as patch:
        if load is not None:
            patch.setattr("whisper_npu.server.models.load_model", load)
        with _serving(ServerConfig(models=specs, **config), grace, ends_with) as server:
            if waits:
                assert server.service.models.settled.wait(PATIENCE)
                patch.undo()  # another server may load a model meanwhile
            yield server


@contextmanager
def _serving(
    config: ServerConfig, grace: int, ends_with: type[Exception] | None
) -> Iterator[LiveServer]:
    server = Server(config, Listener(port=0, tls={}, grace=grace), "warning")

    def serve() -> None:
        with nullcontext() if ends_with is None else pytest.raises(ends_with):
            server.serve_until_told()

    thread = threading.Thread(target=serve)
    thread.start()
    client = openai.OpenAI(
        base_url=f"{server.address}/v1",
        api_key=config.api_key or "any",
        max_retries=0,
        timeout=PATIENCE,
    )
    try:
        yield LiveServer(server, server.app.state.service, client, thread)
    finally:
        client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
