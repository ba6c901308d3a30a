"""The Wyoming protocol, with its own client: texts, streams, hotwords, garbage, limits, the end."""

import asyncio
import contextlib
import json
import logging
import re
import socket

import numpy as np
import pytest
from live_server import PATIENCE
from live_speech import listening_model, reading, speech
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping

from whisper_npu import DeviceError, UsageError, load_audio
from whisper_npu.server.pcm import RawAudio
from whisper_npu.server.wyoming import connection
from whisper_npu.server.wyoming.config import WyomingConfig
from whisper_npu.server.wyoming.server import WyomingServer

RATE = 16_000
STREAMED = ["transcript-start", "transcript-chunk", "transcript", "transcript-stop"]


@pytest.fixture
def listener(tmp_path):
    """A model that understands `speech`."""
    return listening_model(tmp_path)


@contextlib.asynccontextmanager
async def serving(model, uri="tcp://127.0.0.1:0", *, is_live=True, **config):
    """A server during a block; it ends well."""
    config = WyomingConfig(uri=uri, name="ears", is_live=is_live, **config)
    server = WyomingServer(model, config)
    told, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(server.serve(told, ready.set))
    async with asyncio.timeout(PATIENCE):
        await ready.wait()
        try:
            yield server
        finally:
            told.set()
            await task


def client_of(server):
    return AsyncClient.from_uri(server.shown_uri)


async def say(client, samples, *, rate=RATE, width=2, channels=1, chunk=2048, **request):
    """Send an utterance."""
    await client.write_event(Transcribe(**request).event())
    form = (rate, width, channels)
    await client.write_event(AudioStart(*form).event())
    data = raw(samples, width, channels)
    for start in range(0, len(data), chunk):
        await client.write_event(AudioChunk(*form, data[start : start + chunk]).event())
    await client.write_event(AudioStop().event())


def raw(samples, width, channels):
    whole = (samples * (2 ** (8 * width - 1) - 1)).astype(f"<i{width}")
    return np.repeat(whole, channels).tobytes()


def sent(samples):
    """The samples as they arrive."""
    return np.frombuffer(raw(samples, 2, 1), "<i2").astype(np.float32) / 2**15


async def heard(client):
    """All events up to the end of a text, or of the connection."""
    events = []
    while (event := await client.read_event()) is not None:
        events.append(event)
        if event.type == "transcript-stop":
            break
    return events


def text_of(events):
    (transcript,) = [each for each in events if Transcript.is_type(each.type)]
    return Transcript.from_event(transcript).text


def chunks_of(events):
    return [each.data["text"] for each in events if TranscriptChunk.is_type(each.type)]


def test_describe(listener):
    async def check():
        async with serving(listener) as server, client_of(server) as client:
            await client.write_event(Describe().event())
            (program,) = Info.from_event(await client.read_event()).asr
            assert program.supports_transcript_streaming
            assert program.installed
            (model,) = program.models
            assert model.name == "ears"
            assert {"en", "de"} <= set(model.languages)
            await client.write_event(Ping(text="there?").event())
            assert (await client.read_event()).data["text"] == "there?"

    asyncio.run(check())


def test_several_utterances_on_a_connection(listener):
    async def check():
        async with serving(listener) as server, client_of(server) as client:
            for first in (0, 3):
                await say(client, speech(first, first + 3), language="en")
                events = await heard(client)
                assert text_of(events) == reading(first, first + 3).strip()
                assert "".join(chunks_of(events)) == text_of(events)
                kinds = [each.type for each in events]
                assert list(dict.fromkeys(kinds)) == STREAMED

    asyncio.run(check())


def test_text_comes_while_audio_arrives(listener):
    async def check():
        async with serving(listener) as server, client_of(server) as client:
            await client.write_event(Transcribe(language="en").event())
            await client.write_event(AudioStart(RATE, 2, 1).event())
            audio = raw(np.concatenate((speech(0, 3), np.zeros(RATE, np.float32))), 2, 1)
            await client.write_event(AudioChunk(RATE, 2, 1, audio).event())
            assert (await client.read_event()).type == "transcript-start"
            first = (await client.read_event()).data["text"]
            assert first == reading(0, 3).strip()
            await client.write_event(AudioChunk(RATE, 2, 1, raw(speech(3, 5), 2, 1)).event())
            await client.write_event(AudioStop().event())
            events = await heard(client)
            assert text_of(events) == reading(0, 5).strip() == first + "".join(chunks_of(events))

    asyncio.run(check())


@pytest.mark.parametrize("form", [{"width": 4}, {"channels": 2}, {"chunk": 333}])
def test_formats_of_audio(listener, form):
    async def check():
        async with serving(listener) as server, client_of(server) as client:
            await say(client, speech(0, 2), language="en", **form)
            assert text_of(await heard(client)) == reading(0, 2).strip()

    asyncio.run(check())


def test_no_audio_is_no_text(listener):
    async def check():
        async with serving(listener) as server, client_of(server) as client:
            await client.write_event(AudioStop().event())
            assert text_of(await heard(client)) == ""
            await client.write_event(AudioStart(RATE, 2, 1).event())
            await client.write_event(AudioStop().event())
            assert text_of(await heard(client)) == ""

    asyncio.run(check())


def test_names_and_terms_are_hotwords_for_one_utterance(listener, monkeypatch):
    given = []
    transcribe = listener.transcribe

    def noted(samples, **options):
        given.append(options)
        return transcribe(samples, **options)

    monkeypatch.setattr(listener, "transcribe", noted)

    async def check():
        async with (
            serving(listener, is_live=False, language="de") as server,
            client_of(server) as client,
        ):
            names, terms = ["Küche", "Anna"], ["dimmen"]
            await say(client, speech(0, 1), transcript_names=names, transcript_terms=terms)
            await heard(client)
            await say(client, speech(0, 1), language="en")
            await heard(client)

    asyncio.run(check())
    # Names come last: of too many hotwords, the last are used.
    assert given == [{"language": "de", "hotwords": "dimmen, Küche, Anna"}, {"language": "en"}]


def test_real_speech(tiny_en, beckett):
    async def check():
        known = tiny_en.transcribe(sent(load_audio(beckett))).result().text
        for is_live in (False, True):
            async with serving(tiny_en, is_live=is_live) as server, client_of(server) as client:
                await say(client, load_audio(beckett), language="en-US")
                said = text_of(await heard(client))
                assert re.sub(r"\W+", " ", said.lower()) == re.sub(r"\W+", " ", known.lower())
                if not is_live:
                    assert said == known

    asyncio.run(check())


def test_clients_at_the_same_time(tiny_en, sample_parts):
    async def text(server, samples):
        async with client_of(server) as client:
            await say(client, samples)
            return text_of(await heard(client))

    async def check():
        alone = [tiny_en.transcribe(sent(samples)).result().text for samples in sample_parts]
        async with serving(tiny_en, is_live=False) as server:
            together = await asyncio.gather(*(text(server, each) for each in 3 * sample_parts))
        assert together == 3 * alone

    asyncio.run(check())


# What is refused


async def refused(client):
    """The error, after which the connection ends."""
    event = await client.read_event()
    assert event.type == "error"
    assert await client.read_event() is None
    return event.data


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (
            [Event("transcribe", {"name": "nose"}), "start"],
            "there is no model 'nose'; there is ears",
        ),
        ([Event("transcribe", {"language": "nope"}), "start"], "nope"),
        ([Event("transcribe", {"transcript_names": [5]}), "start"], "lists of texts"),
        ([Event("transcribe", {"transcript_names": 5}), "start"], "lists of texts"),
        ([Event("audio-start", {"rate": 0, "width": 2, "channels": 1})], "rate '0'"),
        ([Event("audio-start", {"rate": RATE, "width": 5, "channels": 1})], "width '5'"),
        ([Event("audio-chunk", {"rate": RATE, "width": 2})], "channels 'None'"),
    ],
)
def test_wrong_requests(listener, events, message):
    start = AudioStart(RATE, 2, 1).event()

    async def check():
        async with serving(listener) as server:
            async with client_of(server) as client:
                for event in events:
                    await client.write_event(start if event == "start" else event)
                error = await refused(client)
                assert message in error["text"]
                assert error["code"] == "bad-request"
            async with client_of(server) as client:
                await say(client, speech(0, 1), language="en")
                assert text_of(await heard(client)) == reading(0, 1).strip()

    asyncio.run(check())


@pytest.mark.parametrize(
    "data",
    [
        b"no JSON\n",
        b"[]\n",
        b"5\n",
        b"{}\n",
        b"x" * 200_000,
        b'{"type": "audio-chunk", "payload_length": 1000000000000}\n',
        b'{"type": "audio-chunk", "data_length": 1000000000000}\n',
        b'{"type": "audio-chunk", "data_length": 3}\nabc',
        b'{"type": "audio-chunk", "data_length": "many"}\n',
    ],
)
def test_garbage_gets_an_error_and_the_end(listener, data):
    async def check():
        async with serving(listener) as server:
            async with client_of(server) as client:
                client._writer.write(data)
                assert (await refused(client))["code"] == "bad-request"
            async with client_of(server) as client:
                await client.write_event(Describe().event())
                assert (await client.read_event()).type == "info"

    asyncio.run(check())


def test_an_utterance_that_is_too_long(listener):
    async def check():
        async with serving(listener, audio_seconds=2) as server, client_of(server) as client:
            await say(client, speech(0, 4))
            assert "more than 2 s of audio" in (await refused(client))["text"]

    asyncio.run(check())


def test_a_rate_that_makes_much_of_few_bytes(listener, monkeypatch):
    """100 bytes would be 100 s, which is refused before it is resampled."""
    heard = []
    monkeypatch.setattr(RawAudio, "push", lambda _, data: heard.append(data))

    async def check():
        async with serving(listener, audio_seconds=60) as server, client_of(server) as client:
            await client.write_event(AudioChunk(1, 1, 1, bytes(100)).event())
            await client.write_event(AudioStop().event())
            assert "more than 60 s of audio" in (await refused(client))["text"]

    asyncio.run(check())
    assert heard == []


def test_too_many_connections(listener):
    async def check():
        async with serving(listener, connections=1) as server, client_of(server) as first:
            await first.write_event(Ping().event())
            assert (await first.read_event()).type == "pong"
            async with client_of(server) as second:
                assert (await refused(second))["code"] == "busy"

    asyncio.run(check())


def test_a_silent_client_is_closed(listener):
    async def check():
        async with serving(listener, idle_seconds=0.01) as server, client_of(server) as client:
            assert await client.read_event() is None

    asyncio.run(check())


def test_a_client_that_leaves_in_the_middle(listener):
    async def check():
        async with serving(listener) as server:
            for cut in (b'{"type": "au', b'{"type": "audio-chunk", "payload_length": 5}\nab'):
                async with client_of(server) as client:
                    await client.write_event(AudioStart(RATE, 2, 1).event())
                    client._writer.write(cut)
            async with client_of(server) as client:
                await say(client, speech(0, 1), language="en")
                assert text_of(await heard(client)) == reading(0, 1).strip()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeviceError("the device is gone"), "transcription-failed"), (KeyError(), "server-error")],
)
def test_a_transcription_that_fails(listener, error, code):
    def fail(_features):
        raise error

    listener.backend.encode = fail

    async def check():
        async with serving(listener) as server, client_of(server) as client:
            await say(client, speech(0, 2), language="en")
            assert (await refused(client))["code"] == code

    asyncio.run(check())


# Addresses and the end


def test_an_utterance_that_is_decoded_is_finished_at_the_end(listener, monkeypatch):
    encode = listener.backend.encode

    async def check():
        loop = asyncio.get_running_loop()
        server = WyomingServer(listener, WyomingConfig(uri="tcp://127.0.0.1:0", is_live=True))
        told, ready = asyncio.Event(), asyncio.Event()

        def end_meanwhile(features):
            loop.call_soon_threadsafe(told.set)
            return encode(features)

        monkeypatch.setattr(listener.backend, "encode", end_meanwhile)
        task = asyncio.create_task(server.serve(told, ready.set))
        await ready.wait()
        async with client_of(server) as client:
            await say(client, speech(0, 2), language="en")
            assert text_of(await heard(client)) == reading(0, 2).strip()
            assert await client.read_event() is None
        await task

    asyncio.run(check())


def test_a_unix_socket(listener, tmp_path):
    path = tmp_path / "ears.socket"

    async def check():
        async with serving(listener, f"unix://{path}") as server, client_of(server) as client:
            await say(client, speech(0, 1), language="en")
            assert text_of(await heard(client)) == reading(0, 1).strip()
        assert not path.exists()

    asyncio.run(check())


def test_a_path_that_is_taken(listener, tmp_path):
    """Neither a file nor the socket of a server that runs is taken away; one that is left is."""
    file, path = tmp_path / "notes.txt", tmp_path / "ears.socket"
    file.write_text("dear")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def check():
        async with serving(listener, f"unix://{path}") as server:
            for taken in (file, path):
                other = WyomingServer(listener, WyomingConfig(uri=f"unix://{taken}"))
                with pytest.raises(UsageError, match="in use"):
                    await other.serve(asyncio.Event(), lambda: None)
            async with client_of(server) as client:
                await client.write_event(Describe().event())
                assert (await client.read_event()).type == "info"
        assert file.read_text() == "dear"

    asyncio.run(check())


@pytest.mark.parametrize(
    "uri", ["", "10300", "http://here:1", "tcp://here", "tcp://:1", "tcp://here:99999", "unix://"]
)
def test_uris_that_cannot_be_used(uri):
    with pytest.raises(UsageError, match=r"give tcp://|a port is"):
        WyomingConfig(uri=uri)


@pytest.mark.parametrize("name", ["connections", "audio_seconds", "idle_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_that_cannot_be_used(name, value):
    with pytest.raises(UsageError, match=f"{name} is {value}; give more than 0"):
        WyomingConfig(**{name: value})


def test_an_address_in_use(listener):
    async def check():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            uri = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            server = WyomingServer(listener, WyomingConfig(uri=uri))
            with pytest.raises(UsageError, match="cannot listen on"):
                await server.serve(asyncio.Event(), lambda: None)

    asyncio.run(check())


def test_a_language_that_the_model_does_not_know(listener):
    with pytest.raises(UsageError, match="nope"):
        WyomingServer(listener, WyomingConfig(language="nope"))


def test_a_client_that_does_not_read_is_left(listener, monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.05)
    ping = json.dumps({"type": "ping", "data": {"text": "a" * 50_000}}).encode() + b"\n"

    async def check():
        async with serving(listener) as server:
            _, writer = await asyncio.open_connection(*server.address, limit=1)
            with contextlib.suppress(ConnectionError):
                while True:  # ends with the connection, or the test's patience
                    writer.write(ping)
                    await writer.drain()
            assert writer.is_closing()

    asyncio.run(check())


# The log


def test_who_came_and_why_each_connection_ended(listener, caplog):
    caplog.set_level(logging.INFO, "whisper_npu.server")

    async def left(server):
        if server._connections:
            await asyncio.wait(server._connections)

    async def check():
        async with serving(listener, connections=1) as server:
            async with client_of(server) as first, client_of(server) as second:
                await say(first, speech(0, 2), language="en", transcript_names=["Anna"])
                assert text_of(await heard(first)) == reading(0, 2).strip()
                await refused(second)
            await left(server)
        async with serving(listener, idle_seconds=0.01) as server, client_of(server) as client:
            assert await client.read_event() is None
        async with serving(listener) as server, client_of(server) as client:
            await client.write_event(Event("transcribe", {"language": "no\npe"}))
            await client.write_event(AudioStart(RATE, 2, 1).event())
            await refused(client)
        async with serving(listener) as server:
            async with client_of(server) as client:
                client._writer.write(b'{"type": "audio-chunk", "payload_length": 5}\nab')
            await left(server)
        async with serving(listener) as server, client_of(server) as client:
            await client.write_event(Ping().event())
            await client.read_event()

    asyncio.run(check())
    lines = [line.partition(" - ") for line in caplog.messages if " - " in line]
    assert all(client.startswith("127.0.0.1:") for client, _, _ in lines)
    lines = [line for _, _, line in lines]
    assert lines.count("connected") == 6
    assert any(re.match(r"2\.0 s of audio; its text came after \d+\.\d\d s", x) for x in lines)
    assert [line.removeprefix("ended: ") for line in lines if line.startswith("ended: ")] == [
        "refused: busy",
        "the client left",
        "no event for 0.01 s",
        "refused: bad-request",
        "the client left within an event",
        "the server ends",
    ]
    assert "Anna" not in caplog.text
