"""The site in Debian's Chromium, from a folder: no server, no network."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the system's package chromium"),
]
PAGES = ("index", "architecture", "accuracy", "reference/python", "reference/commands/transcribe")


@pytest.fixture(scope="module")
def browser():
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *quiet]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """A function that opens a page; in the end it must have asked for no other place."""
    asked, errors, contexts = [], [], []

    def open_page(name, width=1200, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / f"{name}.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_a_page_fits_its_window(open_page, name, width, scheme):
    page = open_page(name, width, scheme)
    expect(page.locator("h1")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shades = [int(shade) for shade in background.strip("rgb()").split(",")[:3]]
    assert (max(shades) < 64) == (scheme == "dark")


def test_the_diagram_is_drawn(open_page):
    page = open_page("architecture")
    drawn = page.locator("div.mermaid")
    expect(drawn).to_be_visible(timeout=30_000)
    assert drawn.bounding_box()["height"] > 200


def test_search_finds_an_option(open_page):
    page = open_page("index")
    expect(page.locator("h1")).to_be_visible()
    page.keyboard.press("Control+k")
    page.keyboard.type("hotwords")
    found = page.get_by_text("What to transcribe").first  # a part of the reference's pages
    expect(found).to_be_visible(timeout=30_000)
