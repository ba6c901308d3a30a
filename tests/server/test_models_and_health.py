"""Models, keys, health and metrics."""

import json
import logging
import threading

import openai
import pytest
from live_server import PATIENCE, SENTENCES, live_server, talking_model

from whisper_npu import DeviceError, ModelError


def error_of(reply):
    return json.loads(reply.body)["error"]


class TestModels:
    def test_list_and_retrieve(self, server):
        listed = {model.id: model for model in server.client.models.list()}
        assert list(listed) == ["talker", "whisper-1"]
        assert listed["talker"].owned_by == "whisper-npu"
        assert listed["whisper-1"].whisper_npu["alias_of"] == "talker"
        assert server.client.models.retrieve("talker") == listed["talker"]

    def test_unknown(self, server):
        with pytest.raises(openai.NotFoundError, match="there are talker, whisper-1"):
            server.client.models.retrieve("whisper-2")

    def test_several(self, tmp_path, talk):
        def load(name, **_):
            folder = tmp_path / name
            folder.mkdir()
            return talking_model(folder, [f" My name is {name}.", *SENTENCES[1:]])

        with live_server("ann", "ben", load=load) as server:
            texts = {
                name: json.loads(server.post(talk, ("model", name)).body)["text"]
                for name in ("ann", "ben", "whisper-1")
            }
        assert {name: text.split(".")[0] for name, text in texts.items()} == {
            "ann": "My name is ann",
            "ben": "My name is ben",
            "whisper-1": "My name is ann",
        }

    def test_requests_during_loading(self, tmp_path, talk):
        may_load, model = threading.Event(), talking_model(tmp_path)

        def load(*_, **__):
            assert may_load.wait(PATIENCE)
            return model

        with live_server("slow", load=load, waits=False) as server:
            try:
                reply = server.post(talk)
                health = server.request("GET", "/health")
            finally:
                may_load.set()
            assert (reply.status, error_of(reply)["code"]) == (503, "model_loading")
            assert int(reply.headers["retry-after"]) > 0
            assert (health.status, json.loads(health.body)["status"]) == (503, "loading")
            assert server.service.models.settled.wait(PATIENCE)
            assert server.post(talk).status == 200

    def test_a_model_that_cannot_be_loaded_ends_the_server(self):
        def load(*_, **__):
            raise ModelError("the folder is empty")

        with live_server("broken", load=load, waits=False, ends_with=ModelError) as server:
            server.thread.join(PATIENCE)
            assert not server.thread.is_alive()
            assert str(server.server.error) == "the folder is empty"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    model = talking_model(tmp_path_factory.mktemp("locked"))
    with live_server("talker", load=lambda *_, **__: model, api_key="secret") as server:
        yield server


def test_an_error_of_a_library_ends_the_server_too():
    def load(*_, **__):
        raise RuntimeError("a bug")

    with live_server("tiny", load=load, waits=False, ends_with=ModelError) as server:
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
        (model,) = server.service.models.all
        assert model.state == "failed"
        assert "model tiny cannot be loaded: RuntimeError('a bug')" in model.error


class TestKey:
    def test_right(self, locked, talk):
        with talk.open("rb") as file:
            said = locked.client.audio.transcriptions.create(file=file, model="talker")
        assert said.text
        assert locked.request("GET", "/metrics", headers={"Authorization": "bearer secret"}).text

    @pytest.mark.parametrize("given", [None, "Bearer", "Bearer guess", "Basic secret", "secret"])
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/models"),
            ("GET", "/v1/models/talker"),
            ("POST", "/v1/audio/transcriptions"),
            ("POST", "/v1/audio/translations"),
            ("GET", "/metrics"),
        ],
    )
    def test_wrong(self, locked, method, path, given):
        headers = {} if given is None else {"Authorization": given}
        reply = locked.request(method, path, headers=headers)
        assert (reply.status, error_of(reply)["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"

    def test_the_official_client(self, locked):
        address = str(locked.client.base_url)
        with (
            openai.OpenAI(base_url=address, api_key="guess", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError, match="the API key is wrong"),
        ):
            client.models.list()

    def test_health_and_documents_need_none(self, locked):
        for path in ("/health", "/docs", "/openapi.json"):
            assert locked.request("GET", path).status == 200


class TestHealth:
    def test_a_second_of_audio_is_decoded(self, server):
        model = server.service.models.all[0].ready()
        server.server.app.state.checks.clear()
        before = len(model.backend.windows)
        reply = server.request("GET", "/health")
        (state,) = json.loads(reply.body)["models"].values()
        assert (reply.status, json.loads(reply.body)["status"]) == (200, "ok")
        assert state["device"] == "FAKE"
        assert state["decoded_in"] > 0
        assert len(model.backend.windows) == before + 1

    def test_a_check_counts_for_some_seconds(self, server):
        model = server.service.models.all[0].ready()
        server.request("GET", "/health")
        before = len(model.backend.windows)
        assert server.request("GET", "/health").status == 200
        assert len(model.backend.windows) == before

    def test_a_failed_check_is_logged_once(self, tmp_path, monkeypatch, caplog):
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model) as server:
            monkeypatch.setattr(logging.getLogger("whisper_npu"), "propagate", True)

            def fails(features):
                raise DeviceError("the device is gone")

            model.backend.encode = fails
            server.server.app.state.checks.clear()
            assert server.request("GET", "/health").status == 503
        assert caplog.messages.count("model talker failed: the device is gone") == 1

    def test_a_device_that_fails_and_recovers(self, tmp_path, talk, monkeypatch):
        model = talking_model(tmp_path)
        encode, is_broken = model.backend.encode, True

        def fails(features):
            if is_broken:
                raise DeviceError("the device is gone")
            return encode(features)

        with live_server("talker", load=lambda *_, **__: model) as server:
            model.backend.encode = fails
            first, second = server.post(talk), server.post(talk)
            assert (first.status, error_of(first)["code"]) == (503, "device_failed")
            assert (second.status, error_of(second)["code"]) == (503, "model_failed")
            assert "the device is gone" in error_of(second)["message"]
            assert int(second.headers["retry-after"]) > 0
            health = server.request("GET", "/health")
            body = json.loads(health.body)
            assert (health.status, body["status"]) == (503, "failed")
            assert body["models"]["talker"]["error"] == "the device is gone"
            is_broken = False
            server.server.app.state.checks.clear()
            assert server.request("GET", "/health").status == 200
            assert server.post(talk).status == 200


class TestMetrics:
    def test_requests_audio_stages_and_batches(self, tmp_path, talk):
        model = talking_model(tmp_path)
        with live_server("talker", load=lambda *_, **__: model) as server:
            for _ in range(3):
                assert server.post(talk).status == 200
            assert server.post(b"x").status == 415
            metrics = server.request("GET", "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in metrics.text.splitlines() if line[0] != "#")
        path = 'path="/v1/audio/transcriptions"'
        assert lines[f'whisper_npu_requests_total{{{path},status="200"}}'] == "3.0"
        assert lines[f'whisper_npu_requests_total{{{path},status="415"}}'] == "1.0"
        assert lines['whisper_npu_audio_seconds_total{model="talker"}'] == "75.0"
        assert lines['whisper_npu_stage_seconds_count{stage="decoder"}'] == "3.0"
        assert lines['whisper_npu_stage_seconds_count{stage="wait"}'] == "3.0"
        assert float(lines['whisper_npu_windows_total{model="talker"}']) >= 3
        assert float(lines['whisper_npu_batches_total{model="talker"}']) >= 3
        ready = 'whisper_npu_model_ready{device="FAKE",model="talker",precision="f32"}'
        assert lines[ready] == "1.0"
        assert lines["whisper_npu_requests_inside"] == "0.0"
        assert lines["whisper_npu_requests_active"] == "0.0"
