"""A client of `/v1/realtime` that keeps all events it got."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from live_server import PATIENCE, LiveServer
from websockets.sync.client import ClientConnection, connect

Event = dict[str, Any]
DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


def encoded(samples: np.ndarray) -> str:
    """Float samples as 16-bit PCM in base64."""
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2")
    return base64.b64encode(pcm.tobytes()).decode()


class LiveSession:
    """An open session; `events` are all events so far."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[Event] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.connection.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> Event:
        event: Event = json.loads(self.connection.recv(timeout=PATIENCE))
        self.events.append(event)
        return event

    def until(self, *kinds: str) -> Event:
        """The next event of one of these kinds."""
        while (event := self.receive())["type"] not in kinds:
            pass
        return event

    def append(self, samples: np.ndarray, chunk: int = 4800) -> None:
        for start in range(0, len(samples), chunk):
            audio = encoded(samples[start : start + chunk])
            self.send("input_audio_buffer.append", audio=audio)

    def update(self, **parts: Any) -> Event:
        """Change parts of `audio.input`; returns the answer."""
        session = {"type": "transcription", "audio": {"input": parts}}
        self.send("session.update", session=session)
        return self.until("session.updated", "error")

    def hear(self) -> None:
        """Wait until all audio that was sent is decoded."""
        assert self.update()["type"] == "session.updated"

    def of(self, *kinds: str) -> list[Event]:
        return [event for event in self.events if event["type"] in kinds]

    def text_of(self, item: str) -> str:
        """The deltas of an item."""
        return "".join(event["delta"] for event in self.of(DELTA) if event["item_id"] == item)


def address_of(server: LiveServer, query: str = "intent=transcription") -> str:
    host, port = server.address
    return f"ws://{host}:{port}/v1/realtime?{query}"


@contextmanager
def live_session(
    server: LiveServer, query: str = "intent=transcription", rate: int = 16_000, **options: Any
) -> Iterator[LiveSession]:
    """A session whose audio has this rate, after its first events."""
    with connect(address_of(server, query), **options) as connection:
        session = LiveSession(connection)
        session.receive()
        session.update(format={"type": "audio/pcm", "rate": rate}, transcription={"language": "en"})
        yield session
