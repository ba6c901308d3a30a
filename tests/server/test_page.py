"""The page's files as they are served; `test_page_in_a_browser.py` runs them."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from live_server import live_server, talking_model

from whisper_npu import LANGUAGES, __version__
from whisper_npu.server import api_page

OWN = sorted(path for path in api_page.FOLDER.iterdir() if path.is_file())
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": None}


class Elements(HTMLParser):
    """Lists the elements of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def html(server):
    return server.request("GET", "/")


def test_the_page(html):
    assert html.status == 200
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert html.headers["cache-control"] == "no-store"
    assert html.headers["x-content-type-options"] == "nosniff"
    assert html.headers["referrer-policy"] == "no-referrer"


def test_only_its_own_scripts_run(html):
    policy = dict(
        part.strip().split(" ", 1) for part in html.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self' blob:"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in html.headers["content-security-policy"]
    for tag, attributes in Elements(html.text).found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "style"
        assert tag != "script" or attributes["src"].startswith("page/")


def test_each_nonce_is_used_once(server, html):
    def nonce(reply):
        (given,) = re.findall(r'nonce="([\w-]+)"', reply.text)
        assert f"'nonce-{given}'" in reply.headers["content-security-policy"]
        return given

    assert nonce(html) != nonce(server.request("GET", "/"))


def test_every_file_that_is_named_is_served_with_its_type(server, html):
    named = {
        value
        for _, attributes in Elements(html.text).found
        for name, value in attributes.items()
        if name in ("src", "href") and value.startswith("page/")
    }
    scripts = [path for path in OWN if path.suffix == ".js"]
    for path in scripts:
        found = re.findall(r'(?:from |new URL\()"\./(.+?)"', path.read_text())
        named |= {f"page/{name}" for name in found}
    assert {f"page/{path.name}" for path in scripts} <= named  # there is none that nobody uses
    for name in named:
        reply = server.request("GET", f"/{name}")
        (suffix,) = re.findall(r"\.\w+$", name)
        assert (reply.status, reply.headers["content-type"]) == (
            200,
            f"{TYPES[suffix]}; charset=utf-8",
        )
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.body == (api_page.FOLDER / name.removeprefix("page/")).read_bytes()


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_comes_from_the_network(path):
    text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"""\w+://|["'(]//|@import|url\(""", text)


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_a_script(path):
    dangerous = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert not re.findall(dangerous, path.read_text("utf-8"))


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "../app.py", "%2e%2e/app.py", "..%2Fapp.py", "/etc/passwd", "index.html"],
)
def test_no_other_file_is_served(server, name):
    reply = server.request("GET", f"/page/{name}")
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (404, "unknown_url")


def test_a_key_is_not_needed_for_the_page(tmp_path):
    model = talking_model(tmp_path)
    with live_server("talker", load=lambda *_, **__: model, api_key="secret") as server:
        for path in ("/", "/page/app.js", "/page/about.json"):
            assert server.request("GET", path).status == 200


def test_what_the_page_knows_of_its_server(server, tmp_path, monkeypatch):
    folder = shutil.copytree(
        api_page.FOLDER, tmp_path / "page", ignore=shutil.ignore_patterns("wavesurfer")
    )
    monkeypatch.setattr(api_page, "FOLDER", folder)
    known = json.loads(server.request("GET", "/page/about.json").body)
    assert known["languages"] == LANGUAGES
    assert known["version"] == __version__
    assert known["has_waveform"] is False
    (folder / "wavesurfer").mkdir()
    (folder / "wavesurfer" / "wavesurfer.esm.js").write_text("export {};")
    (folder / "wavesurfer" / "LICENSE").write_text("BSD")
    known = json.loads(server.request("GET", "/page/about.json").body)
    assert known["has_waveform"] is True
    licence = server.request("GET", "/page/wavesurfer/LICENSE")
    assert (licence.text, licence.headers["content-type"]) == ("BSD", "text/plain; charset=utf-8")
