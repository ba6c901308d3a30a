"""The contract of `/v1/audio/*`, with the official client and a model that says known sentences."""

import json
import warnings

import openai
import pytest
from live_server import SPOKEN, TRANSCRIPTIONS, LiveServer, form

from whisper_npu import LANGUAGES, Transcription, format_transcript


@pytest.fixture(scope="module")
def expected(talker, talk) -> Transcription:
    """What the Python API says of the recording."""
    return talker.transcribe(talk, language="en").result()


def create(server: LiveServer, audio, **fields):
    with audio.open("rb") as file:
        return server.client.audio.transcriptions.create(
            **{"file": file, "model": "whisper-1", "language": "en", **fields}
        )


def events_of(reply):
    """The events of a stream, without comments and its last line."""
    lines = [line for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


class TestFormats:
    def test_json(self, server, talk, expected):
        said = create(server, talk)
        assert said.text == expected.text != ""
        assert [language.code for language in said.languages] == ["en"]
        assert (said.usage.type, said.usage.seconds) == ("duration", expected.duration)

    def test_text(self, server, talk, expected):
        said = create(server, talk, response_format="text")
        assert said == expected.text + "\n"

    @pytest.mark.parametrize("chosen", ["srt", "vtt"])
    def test_subtitles_are_those_of_the_command_line(self, server, talk, expected, chosen):
        said = create(server, talk, response_format=chosen)
        assert said == format_transcript(expected, chosen)

    def test_content_types(self, server, talk):
        types = {
            chosen: server.post(talk, ("response_format", chosen)).headers["content-type"]
            for chosen in ("json", "verbose_json", "text", "srt", "vtt")
        }
        assert types == {
            "json": "application/json",
            "verbose_json": "application/json",
            "text": "text/plain; charset=utf-8",
            "srt": "application/x-subrip; charset=utf-8",
            "vtt": "text/vtt; charset=utf-8",
        }

    def test_verbose_json(self, server, talk, expected):
        said = create(server, talk, response_format="verbose_json")
        assert said.text == expected.text
        assert said.language == LANGUAGES["en"] == "english"
        assert said.duration == expected.duration
        assert isinstance(said.duration, float)
        assert said.usage.seconds == expected.duration
        assert said.words is None
        assert len(said.segments) == len(expected.segments) > 0
        for segment, known in zip(said.segments, expected.segments, strict=True):
            fields = segment.to_dict()
            assert fields == {name: known.to_dict()[name] for name in fields}
            assert set(fields) == set(type(segment).model_fields)

    def test_translation(self, server, talk, talker):
        known = talker.transcribe(talk, task="translate").result()
        with talk.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # by OpenAI, which ends whisper-1
            said = server.client.audio.translations.create(
                file=file, model="whisper-1", response_format="verbose_json"
            )
        assert said.text == known.text
        assert said.language == "english"
        assert len(said.segments) == len(known.segments)


class TestOurPart:
    def test_details(self, server, talk, expected):
        reply = server.post(talk, ("language", "en"))
        details = json.loads(reply.body)["whisper_npu"]
        assert details["device"] == expected.device == reply.headers["x-whisper-npu-device"]
        assert details["precision"] == expected.precision
        assert details["precision"] == reply.headers["x-whisper-npu-precision"]
        assert details["coverage"] == expected.coverage.to_dict()
        assert details["warnings"] == list(expected.warnings)
        assert {"upload", "wait", "encoder", "decoder"} <= set(details["seconds"])
        seconds = expected.coverage.seconds()
        assert reply.headers["x-whisper-npu-coverage"] == ";".join(
            f"{fate}={total:.2f}" for fate, total in seconds.items()
        )

    def test_headers_of_openai(self, server, talk):
        reply = server.post(talk)
        assert reply.headers["x-request-id"].startswith("req_")
        assert int(reply.headers["openai-processing-ms"]) > 0

    def test_warnings_are_told(self, server, talk):
        reply = server.post(talk, ("prompt", "word " * 2000))
        (warning,) = json.loads(reply.body)["whisper_npu"]["warnings"]
        assert "prompt" in warning
        assert reply.headers["x-whisper-npu-warnings"] == "1"


class TestFields:
    def test_the_language_is_detected_unless_given(self, server, talk, talker):
        known = talker.transcribe(talk).result()
        with talk.open("rb") as file:
            said = server.client.audio.transcriptions.create(
                file=file, model="whisper-1", response_format="verbose_json"
            )
        assert said.text == known.text
        assert said.language == LANGUAGES[known.language]

    @pytest.mark.parametrize(
        ("fields", "options"),
        [
            ({"prompt": "Names: Anneliese."}, {"initial_prompt": "Names: Anneliese."}),
            ({"keywords": ["Øystein", "tin can"]}, {"hotwords": "Øystein, tin can"}),
            (
                {"languages": ["de", "Spanish"], "language": openai.omit},
                {"languages": ["de", "es"], "language": None},
            ),
            ({"chunking_strategy": "auto"}, {}),
            (
                {
                    "chunking_strategy": {
                        "type": "server_vad",
                        "threshold": 0.1,
                        "silence_duration_ms": 200,
                        "prefix_padding_ms": 300,
                    }
                },
                {"vad_threshold": 0.1, "vad_min_silence": 0.2},
            ),
        ],
    )
    def test_fields_are_options(self, server, talk, talker, fields, options):
        served = server.service.models.all[0].ready()
        work = []
        for model, transcribe in (
            (talker, lambda: talker.transcribe(talk, **{"language": "en", **options}).result()),
            (served, lambda: create(server, talk, **fields)),
        ):
            model.backend.asked.clear()
            model.backend.windows.clear()
            said = transcribe()
            tokens = [session.tokens for session in model.backend.asked]
            windows = [window.shape for window in model.backend.windows]
            work.append((said.text, tokens, windows))
        assert work[0] == work[1]

    def test_options_change_the_work(self, server, talk):
        """The test above would pass without them, too."""
        served = server.service.models.all[0].ready()
        work = []
        vad = {"type": "server_vad", "silence_duration_ms": 200}
        for fields in ({}, {"prompt": "Names."}, {"keywords": ["tin"]}, {"chunking_strategy": vad}):
            served.backend.asked.clear()
            create(server, talk, **fields)
            work.append(str([session.tokens for session in served.backend.asked]))
        assert len(set(work)) == len(work)

    def test_temperature(self, server, talk):
        said = create(server, talk, temperature=0.9, response_format="verbose_json")
        assert {segment.temperature for segment in said.segments} == {0.9}

    def test_json_text_as_chunking_strategy(self, server, talk):
        vad = '{"type": "server_vad", "silence_duration_ms": 200}'
        assert server.post(talk, ("chunking_strategy", vad)).status == 200

    def test_empty_fields_are_not_given(self, server, talk):
        fields = ["language", "prompt", "chunking_strategy", "stream", "keywords[]", "include[]"]
        fields += ["temperature", "response_format", "languages", "timestamp_granularities[]"]
        fields += ["chunking_strategy[type]", "chunking_strategy[threshold]"]
        assert server.post(talk, *((name, "") for name in fields)).status == 200


class TestStreams:
    def test_text_grows_and_never_changes(self, server, talk, expected):
        events = list(create(server, talk, stream=True))
        *deltas, done = events
        assert done.type == "transcript.text.done"
        assert {delta.type for delta in deltas} == {"transcript.text.delta"}
        assert "".join(delta.delta for delta in deltas) == done.text == expected.text
        assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
        assert done.usage.output_tokens == sum(len(each.tokens) for each in expected.segments)

    def test_the_stream_ends_with_done(self, server, talk):
        reply = server.post(talk, ("stream", "true"))
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["x-whisper-npu-device"] == "FAKE"
        assert reply.body.endswith(b"\n\ndata: [DONE]\n\n")

    def test_verbose_stream_has_times(self, server, talk, expected):
        fields = (("stream", "true"), ("response_format", "verbose_json"), ("language", "en"))
        *deltas, done = events_of(server.post(talk, *fields))
        segments = [delta["whisper_npu"]["segment"] for delta in deltas]
        assert segments == done["segments"]
        assert [each["start"] for each in segments] == [each.start for each in expected.segments]
        assert (done["language"], done["duration"]) == ("english", SPOKEN)
        assert done["whisper_npu"]["coverage"]["transcribed"] == SPOKEN

    def test_an_error_before_the_first_event_has_its_status(self, server):
        with pytest.raises(openai.APIStatusError) as caught:
            server.client.audio.transcriptions.create(
                file=b"no audio", model="whisper-1", stream=True
            )
        assert caught.value.status_code == 415


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"language": "klingon"}, "language"),
            ({"language": "haw"}, "language"),  # Whisper knows it, this model does not
            ({"languages": ["xx"], "language": openai.omit}, "languages"),
            ({"languages": ["de"]}, "languages"),
            ({"temperature": 1.5}, "temperature"),
            ({"response_format": "yaml"}, "response_format"),
            ({"response_format": "diarized_json"}, "response_format"),
            ({"response_format": "srt", "stream": True}, "response_format"),
            ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
            (
                {"timestamp_granularities": ["line"], "response_format": "verbose_json"},
                "timestamp_granularities",
            ),
            ({"include": ["logprobs"], "response_format": "text"}, "include"),
            ({"include": ["tears"]}, "include"),
            ({"include": ["logprobs"]}, "include"),  # the model cannot align
            (
                {"timestamp_granularities": ["word"], "response_format": "verbose_json"},
                "timestamp_granularities",
            ),
            ({"known_speaker_names": ["Ann"]}, "known_speaker_names"),
            ({"chunking_strategy": "manual"}, "chunking_strategy"),
            (
                {"chunking_strategy": {"type": "server_vad", "prefix_padding_ms": 9000}},
                "chunking_strategy",
            ),
            ({"extra_body": {"vad_filter": "true"}}, "vad_filter"),
            ({"extra_body": {"stream": "perhaps"}}, "stream"),
        ],
    )
    def test_a_wrong_field_is_named(self, server, talk, fields, param):
        with pytest.raises(openai.BadRequestError) as caught:
            create(server, talk, **fields)
        error = caught.value
        assert (error.param, error.type) == (param, "invalid_request_error")
        assert "\n" not in error.body["message"]

    def test_unknown_model(self, server, talk):
        with pytest.raises(openai.NotFoundError, match="there are talker, whisper-1") as caught:
            create(server, talk, model="gpt-4o-transcribe")
        assert (caught.value.param, caught.value.code) == ("model", "model_not_found")

    def test_no_audio(self, server):
        with pytest.raises(openai.APIStatusError, match=r"notes.txt: ") as caught:
            server.client.audio.transcriptions.create(
                file=("notes.txt", b"these are words, not sounds\n" * 100), model="whisper-1"
            )
        assert (caught.value.status_code, caught.value.param) == (415, "file")

    def test_a_name_of_a_file_with_control_characters(self, server):
        body, headers = form(b"no sound" * 100, [("model", "whisper-1")], "a\u2028\x1b[31mb.wav")
        error = json.loads(server.request("POST", TRANSCRIPTIONS, body, headers).body)["error"]
        assert error["message"].startswith("a\ufffd\ufffd[31mb.wav: ")

    @pytest.mark.parametrize(
        ("audio", "fields", "message"),
        [
            (None, [], "the field file is missing"),
            (b"", [], "0 bytes"),
            (b"x", [("model", "")], "the field model is missing"),
            (b"x", [("keywords[a]", "x"), ("keywords", "y")], "repeat the field keywords[]"),
            (b"x", [("keywords", "x"), ("keywords[a]", "y")], "repeat the field keywords[]"),
            (b"x", [("chunking_strategy", '{"a":' * 100_000)], "chunking_strategy is '{"),
            (b"x", [("prompt", "a"), ("prompt", "b")], "prompt is given twice"),
            (b"x", [("file", "talk.wav")], "the field file is text; send the recording as a file"),
            (None, [("file", "talk.wav")], "the recording as a file: curl -F file=@talk.mp3"),
            (b"x", [("keywords", "x" * 2_000_000)], "longer than"),
        ],
    )
    def test_wrong_forms(self, server, audio, fields, message):
        reply = server.post(audio, *fields)
        assert reply.status in (400, 404)
        assert message in json.loads(reply.body)["error"]["message"]

    @pytest.mark.parametrize("task", ["transcriptions", "translations"])
    @pytest.mark.parametrize("name", ["language", "anything"])
    def test_parameters_in_the_address(self, server, talk, task, name):
        path = f"/v1/audio/{task}?{name}=de"
        reply = server.post(talk, path=path)
        assert (reply.status, json.loads(reply.body)["error"]) == (
            400,
            {
                "message": f"the query parameter {name} has no effect; send it as a field of the "
                f"form: curl -F {name}=...",
                "type": "invalid_request_error",
                "param": name,
                "code": None,
            },
        )

    def test_the_parameter_that_clients_of_azure_add(self, server, talk):
        client = server.client.with_options(default_query={"api-version": "2025-04-01-preview"})
        assert client.audio.transcriptions.create(file=talk, model="whisper-1").text

    def test_the_model_is_required(self, server):
        body = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--b--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        reply = server.request("POST", "/v1/audio/transcriptions", body, headers)
        error = json.loads(reply.body)["error"]
        assert (reply.status, error["param"]) == (400, "model")

    def test_a_translation_takes_no_language(self, server, talk):
        reply = server.post(talk, ("language", "de"), path="/v1/audio/translations")
        assert json.loads(reply.body)["error"]["param"] == "language"

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v1/nothing", 404, "unknown_url"),
            ("GET", "/v1/audio/transcriptions", 405, "method_not_allowed"),
        ],
    )
    def test_unknown_addresses(self, server, method, path, status, code):
        reply = server.request(method, path)
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (status, code)
