"""The contract with real tiny.en: words, probabilities, formats, many callers."""

import io
import json

import pytest
import soundfile

from whisper_npu import format_transcript, load_audio


@pytest.fixture(scope="module")
def expected(tiny_en, beckett):
    return tiny_en.transcribe(beckett, word_timestamps=True).result()


def create(server, beckett, **fields):
    with beckett.open("rb") as file:
        return server.client.audio.transcriptions.create(file=file, model="tiny.en", **fields)


@pytest.mark.parametrize("chosen", ["srt", "vtt"])
def test_subtitles(tiny_en_server, tiny_en, beckett, chosen):
    known = tiny_en.transcribe(beckett).result()
    said = create(tiny_en_server, beckett, response_format=chosen)
    assert said == format_transcript(known, chosen)


def test_words_without_segments(tiny_en_server, beckett, expected):
    said = create(
        tiny_en_server, beckett, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert said.segments is None
    words = [word for segment in expected.segments for word in segment.words]
    assert [(each.word, each.start, each.end) for each in said.words] == [
        (each.word.strip(), each.start, each.end) for each in words
    ]
    assert said.words[0].word == "Ever"


def test_words_and_segments(tiny_en_server, beckett, expected):
    said = create(
        tiny_en_server,
        beckett,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert [each.text for each in said.segments] == [each.text for each in expected.segments]
    assert " ".join(each.word for each in said.words) == said.text == expected.text


def test_logprobs(tiny_en_server, beckett, expected):
    said = create(tiny_en_server, beckett, include=["logprobs"])
    assert "".join(each.token for each in said.logprobs).strip() == expected.text
    assert all(bytes(map(int, each.bytes)).decode() == each.token for each in said.logprobs)
    assert all(-5 < each.logprob <= 0 for each in said.logprobs)


def test_a_stream_with_words_and_logprobs(tiny_en_server, beckett):
    events = list(
        create(
            tiny_en_server,
            beckett,
            stream=True,
            include=["logprobs"],
            response_format="verbose_json",
            timestamp_granularities=["word"],
        )
    )
    *deltas, done = events
    assert "".join(delta.delta for delta in deltas) == done.text
    logprobs = [each.to_dict() for delta in deltas for each in delta.logprobs]
    assert logprobs == [each.to_dict() for each in done.logprobs] != []
    streamed = [word for delta in deltas for word in delta.whisper_npu["words"]]
    assert streamed == done.words != []


@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg"])
def test_formats_of_audio(tiny_en_server, tiny_en, beckett, kind):
    content = io.BytesIO()
    soundfile.write(content, load_audio(beckett), 16_000, format=kind)
    known = tiny_en.transcribe(content.getvalue()).result()
    said = tiny_en_server.client.audio.transcriptions.create(
        file=(f"talk.{kind}", content.getvalue()), model="whisper-1"
    )
    assert said.text == known.text != ""


def test_many_callers_get_the_texts_they_get_alone(tiny_en_server, tiny_en, sample_parts):
    from concurrent.futures import ThreadPoolExecutor

    recordings = []
    for samples in sample_parts:
        content = io.BytesIO()
        soundfile.write(content, samples, 16_000, format="wav")
        recordings.append(content.getvalue())
    alone = [tiny_en.transcribe(each).result().text for each in recordings]
    order = [number % len(recordings) for number in range(48)]

    def text(number: int) -> str:
        return json.loads(tiny_en_server.post(recordings[number]).body)["text"]

    with ThreadPoolExecutor(16) as callers:
        together = list(callers.map(text, order))
    assert together == [alone[number] for number in order]
    counts = tiny_en_server.service.models.all[0].ready().decoded
    assert counts.windows > counts.batches  # windows of several callers were decoded together
