"""The page in Debian's Chromium, driven by Playwright: what a user does, and sees."""

import base64
import json
import re
import shutil
import threading
from itertools import pairwise

import pytest
from live_server import PATIENCE, SENTENCES, live_server, talking_model
from playwright.sync_api import Page, expect, sync_playwright

from whisper_npu import format_transcript
from whisper_npu.server import api_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the system's package chromium"),
]
expect.set_options(timeout=30_000)
ENDED = re.compile("done|failed|cancelled")
# Collects the words that are marked, one after the other, in an attribute of the body.
NOTE_SAID = """() => {
  const note = () => {
    const said = document.querySelector(".said")?.textContent;
    const all = document.body.dataset.said ?? "";
    if (said && !all.endsWith(said)) document.body.dataset.said = `${all} ${said}`.trim();
  };
  const options = { subtree: true, attributes: true, attributeFilter: ["class"] };
  new MutationObserver(note).observe(document.getElementById("transcript"), options);
}"""


@pytest.fixture(scope="module")
def chromium(beckett):
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    microphone = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={beckett}",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet, *microphone]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """A function that opens the page of a server; in the end it must have had no error."""
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    problems, asked = [], []

    def visit(server) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(server.server.address)
        visit.address = server.server.address
        return page

    visit.problems = problems
    yield visit
    context.close()
    # The browser itself notes each answer with an error.
    assert [each for each in problems if "the server responded with" not in each] == []
    assert [url for url in asked if not url.startswith((visit.address, "blob:"))] == []


@pytest.fixture(scope="module")
def expected(tiny_en, beckett):
    return tiny_en.transcribe(beckett, word_timestamps=True).result()


def states(page: Page):
    return page.locator(".job .state")


def send(page: Page, *files) -> None:
    """Choose files, and wait until all are done or have failed."""
    expect(page.locator("#model")).to_be_enabled()
    page.set_input_files("#files", files)
    for number in range(len(files)):
        expect(states(page).nth(number)).to_have_class(ENDED)


def content(page: Page, kind: str, stem: str = "beckett") -> str:
    """What a download has in it."""
    with page.expect_download() as download:
        page.click(f"[data-format={kind}]")
    assert download.value.suggested_filename == f"{stem}.{kind}"
    return download.value.path().read_bytes().decode()


class TestText:
    @pytest.fixture
    def page(self, visit, tiny_en_server, beckett):
        page = visit(tiny_en_server)
        send(page, beckett)
        return page

    def test_downloads_are_those_of_the_command_line(self, page, expected, tiny_en_server, beckett):
        assert page.locator("#transcript p").all_inner_texts() == [
            segment.text.strip() for segment in expected.segments
        ]
        for kind in ("txt", "srt", "vtt"):
            assert content(page, kind) == format_transcript(expected, kind)
        fields = [("response_format", "verbose_json"), ("timestamp_granularities[]", "word")]
        reply = tiny_en_server.post(beckett, *fields, ("timestamp_granularities[]", "segment"))
        known, saved = json.loads(reply.body), json.loads(content(page, "json"))
        for each in (known, saved):
            del each["whisper_npu"]["seconds"]
        del known["usage"]
        assert saved == known

    def test_a_word_is_heard_and_marked(self, page, expected):
        words = [word.word.strip() for segment in expected.segments for word in segment.words]
        first = words.index("failed.")
        page.evaluate(NOTE_SAID)
        page.locator(".word").nth(first).click()
        heard = re.escape(" ".join(words[first : first + 3]))
        expect(page.locator("body")).to_have_attribute("data-said", re.compile(f"^{heard}"))
        expect(page.locator("#play")).to_have_text("Pause")
        page.keyboard.press("Space")
        expect(page.locator("#play")).to_have_text("Play")
        page.locator("#seek").fill("0")
        page.locator("#transcript").focus()
        for key, word in (("Right", 0), ("Right", 1), ("Right", 2), ("Left", 1), ("Left", 0)):
            page.keyboard.press(f"Arrow{key}")
            expect(page.locator(".said")).to_have_text(words[word])

    def test_the_waveform_has_the_coverage_on_it(self, page, expected):
        seconds = expected.coverage.seconds()["transcribed"]
        expect(page.locator("#legend")).to_have_text(f"transcribed {seconds:.1f} s")
        page.locator("#timeline").click(position={"x": 100, "y": 10})
        width = page.locator("#timeline").bounding_box()["width"]
        position = float(page.locator("#seek").input_value())
        assert position == pytest.approx(expected.duration * 100 / width, abs=0.1)
        if (api_page.FOLDER / api_page.WAVEFORM).is_file():
            expect(page.locator("#wave canvas").first).to_be_attached()

    def test_text_is_edited(self, page, expected):
        before = content(page, "srt")
        page.locator("#transcript").press("e")
        field = page.locator("#transcript textarea")
        field.fill(field.input_value().replace("No matter", "It does not matter"))
        field.press("Control+Enter")
        assert content(page, "srt") == before.replace("No matter", "It does not matter")
        said = json.loads(content(page, "json"))
        words = said["words"]
        assert " ".join(word["word"] for word in words) == said["text"]
        assert all(one["end"] <= other["start"] for one, other in pairwise(words))
        known = {(word.word.strip(), word.start) for s in expected.segments for word in s.words}
        changed = [word["word"] for word in words if (word["word"], word["start"]) not in known]
        assert changed == ["It", "does", "not"]
        page.locator("#transcript").press("e")
        field.fill("nothing")
        field.press("Escape")
        assert "nothing" not in page.locator("#transcript").inner_text()
        page.locator(".undo").click()
        assert content(page, "srt") == before

    @pytest.mark.parametrize("width", [320, 1200])
    @pytest.mark.parametrize("scheme", ["dark", "light"])
    def test_everything_fits(self, page, width, scheme):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        lights = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", lights))) < 200) == (scheme == "dark")


def test_a_file_is_dropped(visit, server, talk):
    page = visit(server)
    expect(page.locator("#model")).to_be_enabled()
    dropped = page.evaluate_handle(
        """(encoded) => {
          const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "talk.wav", { type: "audio/wav" }));
          return transfer;
        }""",
        base64.b64encode(talk.read_bytes()).decode(),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(states(page)).to_have_class("state done")
    for sentence in SENTENCES:
        expect(page.locator("#transcript")).to_contain_text(sentence.strip())
    for kind in ("srt", "vtt"):  # this model has no word times
        assert content(page, kind, "talk") == server.post(talk, ("response_format", kind)).text


def test_the_microphone(visit, tiny_en_server):
    page = visit(tiny_en_server)
    expect(page.locator("#model")).to_be_enabled()
    page.click("#record")
    expect(page.locator("#recording-text")).to_have_text("Recording 0:04")
    expect(page.locator("#live-text")).to_contain_text("tried")
    page.click("#record")
    expect(states(page)).to_have_class("state done")
    expect(page.locator("#transcript")).to_contain_text("failed")
    expect(page.locator("#time")).to_have_text(re.compile(r"0:00 / 0:[0-3]\d"))


def test_two_clicks_ask_for_one_microphone(visit, server):
    page = visit(server)
    page.evaluate(
        """() => {
          const devices = navigator.mediaDevices, ask = devices.getUserMedia.bind(devices);
          const answered = new Promise((answer) => (globalThis.answer = answer));
          globalThis.nAsked = 0;
          devices.getUserMedia = async (wanted) => {
            nAsked += 1;
            await answered;
            return ask(wanted);
          };
        }"""
    )
    page.click("#record")
    page.click("#record")
    page.evaluate("answer()")
    expect(page.locator("#record")).to_have_text("Stop and transcribe")
    assert page.evaluate("nAsked") == 1
    page.click("#discard")
    expect(page.locator("#record")).to_have_text("Record")


def test_text_while_one_speaks(visit, server):
    """The page against OpenAI's events; `/v1/realtime` itself has tests of its own."""
    page, sent, kind = visit(server), [], "conversation.item.input_audio_transcription"

    def answer(socket):
        def take(message):
            sent.append(json.loads(message))
            if len(sent) != 3:
                return
            for event in (
                {"type": "input_audio_buffer.speech_started", "item_id": "a"},
                {"type": "whisper_npu.tentative", "item_id": "a", "text": "Never"},
                {"type": f"{kind}.delta", "item_id": "a", "delta": "Ever <b>tried"},
                {"type": f"{kind}.delta", "item_id": "a", "delta": "."},
                {"type": f"{kind}.completed", "item_id": "a", "transcript": "Ever <b>tried."},
                {"type": "input_audio_buffer.speech_started", "item_id": "b"},
                {"type": f"{kind}.delta", "item_id": "b", "delta": "Ever"},
                {"type": "whisper_npu.tentative", "item_id": "b", "text": " <i>fail"},
            ):
                socket.send(json.dumps(event))

        socket.on_message(take)

    def with_live(route):
        known = route.fetch().json()
        route.fulfill(json={**known, "has_live": True})

    page.route_web_socket(re.compile("/v1/realtime"), answer)
    page.route("**/page/about.json", with_live)
    page.reload()
    expect(page.locator("#model")).to_be_enabled()
    page.click("#record")
    expect(page.locator("#live-text")).to_have_text("Ever <b>tried. Ever <i>fail")
    expect(page.locator("#live-text .tentative")).to_have_text("<i>fail")
    expect(page.locator("#live-text")).to_have_class("hearing")
    page.click("#discard")
    expect(page.locator("#live-text")).to_be_hidden()
    expect(states(page)).to_have_count(0)
    update, *blocks = sent
    assert update["session"]["audio"]["input"] == {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "transcription": {"model": "talker"},
    }
    assert {block["type"] for block in blocks} == {"input_audio_buffer.append"}
    assert {len(base64.b64decode(block["audio"])) for block in blocks} == {4800}  # 0.1 s


def test_text_is_never_markup(visit, tmp_path, talk):
    attack = " <img src=x onerror=alert(1)> <b>bold</b>."
    model = talking_model(tmp_path, [attack, *SENTENCES[1:]])
    named = tmp_path / "<img src=x onerror=alert(2)>.wav"
    named.write_bytes(talk.read_bytes())
    with live_server("talker", load=lambda *_, **__: model) as server:
        page = visit(server)
        send(page, named)
        expect(page.locator("#transcript p").first).to_have_text(attack.strip())
        expect(page.locator("#detail-title")).to_have_text(named.name)
        assert page.locator("img, b").count() == 0
        page.close()


def test_the_server_asks_for_a_key(visit, tmp_path, talk):
    model = talking_model(tmp_path)
    with live_server("talker", load=lambda *_, **__: model, api_key="secret") as server:
        page = visit(server)
        expect(page.locator("#key-text")).to_contain_text("asks for an API key")
        page.fill("#key", "guess")
        page.press("#key", "Enter")
        expect(page.locator("#key-text")).to_contain_text("the API key is wrong")
        page.set_input_files("#files", [talk])
        expect(states(page)).to_have_text("Waiting")
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        expect(states(page)).to_have_class("state done")
        page.close()


def test_the_queue(visit, tmp_path, talk):
    model, may_go_on = talking_model(tmp_path), threading.Event()
    encode = model.backend.encode

    def waits(features):
        assert may_go_on.wait(PATIENCE)
        return encode(features)

    with live_server("talker", load=lambda *_, **__: model) as server:
        model.backend.encode = waits
        page = visit(server)
        wrong = tmp_path / "notes.txt"
        wrong.write_text("no sound")
        try:
            expect(page.locator("#model")).to_be_enabled()
            page.set_input_files("#files", [talk, talk, wrong, talk])
            for number in range(2):
                expect(states(page).nth(number)).to_have_class("state decoding")
            expect(states(page).nth(3)).to_have_text("Waiting")
            page.locator(".cancel").nth(1).click()
            expect(states(page).nth(1)).to_have_text("Cancelled")
            expect(states(page).nth(2)).to_have_text(
                re.compile("Failed: notes.txt: not a recording")
            )
            page.locator(".cancel").nth(3).click()
        finally:
            may_go_on.set()
        expect(states(page).nth(0)).to_have_class("state done")
        page.locator(".again").nth(1).click()
        expect(states(page).nth(1)).to_have_class("state done")
        page.locator(".remove").nth(0).click()
        expect(states(page)).to_have_count(3)
        assert server.service.admission.n_active == 0
        page.close()


def test_a_busy_server_is_asked_again(visit, server, talk):
    page = visit(server)
    replies = iter(range(1))

    def answer(route):
        if next(replies, None) is None:
            route.continue_()
            return
        error = {"message": "the queue is full", "code": "queue_full"}
        route.fulfill(status=429, json={"error": error}, headers={"Retry-After": "1"})

    page.route("**/v1/audio/transcriptions", answer)
    expect(page.locator("#model")).to_be_enabled()
    page.set_input_files("#files", [talk])
    expect(states(page)).to_have_text("Waiting: the queue is full; next try in 2 s")
    expect(states(page)).to_have_class("state done")


def test_a_server_that_is_gone(visit, server, talk):
    page = visit(server)
    expect(page.locator("#model")).to_be_enabled()
    page.route("**/v1/**", lambda route: route.abort())
    page.set_input_files("#files", [talk])
    expect(states(page)).to_contain_text("Failed: the server cannot be reached")
    page.unroute("**/v1/**")
    page.locator(".again").click()
    expect(states(page)).to_have_class("state done")
    assert [each for each in visit.problems if "net::ERR_FAILED" not in each] == []
    visit.problems.clear()


def test_the_waveform_is_not_there(visit, server, talk, tmp_path, monkeypatch):
    folder = shutil.copytree(
        api_page.FOLDER, tmp_path / "page", ignore=shutil.ignore_patterns("wavesurfer")
    )
    monkeypatch.setattr(api_page, "FOLDER", folder)
    page = visit(server)
    send(page, talk)
    expect(page.locator("#timeline")).to_have_class("flat")
    expect(page.locator("#legend")).to_contain_text("transcribed")
    page.locator("#transcript p").nth(2).click()
    expect(page.locator(".said")).to_have_text(SENTENCES[2].strip())


def test_times_of_subtitles_are_pythons(visit, server):
    from whisper_npu.runtime.output.subtitles import format_timestamp

    page = visit(server)
    times = [0, 0.0005, 0.0015, 0.34, 59.9996, 60, 3599.9995, 3600.25, 86_399.999, 360_000]
    written = page.evaluate(
        """async (times) => {
          const { toFile } = await import("./page/formats.js");
          const segments = times.map((start) => ({ start, end: start, text: "a", words: null }));
          const job = { name: "a.wav", segments };
          return [await toFile(job, "vtt").text(), await toFile(job, "srt").text()];
        }""",
        times,
    )
    for text, options in zip(
        written, ({}, {"always_include_hours": True, "decimal_marker": ","}), strict=True
    ):
        assert re.findall(r"(\S+) -->", text) == [
            format_timestamp(time, **options) for time in times
        ]
