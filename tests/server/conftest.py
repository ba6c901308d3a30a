"""Recordings, models and servers for the tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import tiny_whisper
from live_server import SPOKEN, LiveServer, live_server, talking_model

from whisper_npu import WhisperModel, load_model


@pytest.fixture(scope="package")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 25 s, of which `talking_model` says its sentences."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, tiny_whisper.synthetic_speech(0, SPOKEN), 16_000)
    return path


@pytest.fixture(scope="package")
def talker(tmp_path_factory: pytest.TempPathFactory) -> WhisperModel:
    """A multilingual model that is as quick as the server itself; see `talking_model`."""
    return talking_model(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of such a model, named `talker`."""
    model = talking_model(tmp_path_factory.mktemp("served"))
    with live_server("talker", load=lambda *_, **__: model) as server:
        yield server


@pytest.fixture(scope="package")
def tiny_en(tiny_en_folder: Path) -> Iterator[WhisperModel]:
    """Real tiny.en."""
    with load_model(tiny_en_folder) as model:
        yield model


@pytest.fixture(scope="package")
def tiny_en_server(tiny_en_folder: Path) -> Iterator[LiveServer]:
    """A server of real tiny.en."""
    with live_server(tiny_en_folder) as server:
        yield server
