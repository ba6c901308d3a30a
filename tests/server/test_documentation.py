"""The OpenAPI document, and the page that shows it."""

import json
import re

import pytest
from live_server import live_server, talking_model


def document_of(server):
    return json.loads(server.request("GET", "/openapi.json").body)


def test_every_reference_leads_somewhere(server):
    document = document_of(server)
    schemas = document["components"]["schemas"]
    found = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(found) <= set(schemas)
    assert {"Transcript", "VerboseTranscript", "ErrorAnswer", "ServerVad"} <= set(found)


@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_the_form_has_the_fields_of_the_official_client(server, task):
    import openai.types.audio as types

    kinds = {
        "transcriptions": types.transcription_create_params.TranscriptionCreateParamsBase,
        "translations": types.TranslationCreateParams,
    }
    route = document_of(server)["paths"][f"/v1/audio/{task}"]["post"]
    schema = route["requestBody"]["content"]["multipart/form-data"]["schema"]
    official = set(kinds[task].__annotations__)
    official -= {"known_speaker_names", "known_speaker_references"}  # refused
    assert set(schema["properties"]) - {"stream"} == official
    assert set(schema["required"]) == {"file", "model"}
    assert schema["properties"]["model"]["examples"] == ["talker", "whisper-1"]


def test_a_key_is_documented_only_if_there_is_one(server, tmp_path):
    assert "securitySchemes" not in document_of(server)["components"]
    model = talking_model(tmp_path)
    with live_server("talker", load=lambda *_, **__: model, api_key="secret") as locked:
        document = document_of(locked)
    assert document["components"]["securitySchemes"]
    assert document["paths"]["/v1/models"]["get"]["security"]
    assert "security" not in document["paths"]["/health"]["get"]


def test_the_page_loads_nothing_from_elsewhere(server):
    page = server.request("GET", "/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert addresses
    for address in addresses:
        assert address.startswith("/")
        assert server.request("GET", address).status == 200
