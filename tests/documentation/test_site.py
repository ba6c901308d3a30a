"""The site: complete, no link to nothing, and nothing from elsewhere."""

import re
import shutil
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
from repository import ROOT

import whisper_npu
from whisper_npu.errors import OutputError, UsageError
from whisper_npu.scripts.documentation import command_reference, links, python_reference
from whisper_npu.scripts.documentation.site import TOP_PAGES, build_site, menu_complaints
from whisper_npu.scripts.documentation.speed_by_size import FIGURES
from whisper_npu.scripts.main import COMMANDS

LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\""
    r"|<link\b[^>]*\bhref=\"([^\"]*)\""
    r"|url\((?!data:|\"data:|'data:)([^)]*)\)"
)


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the site is made of, which a test may damage."""
    root = tmp_path / "checkout"
    root.mkdir()
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in (*TOP_PAGES, "setup.cfg"):
        shutil.copy(ROOT / name, root)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for line in setup["options"]["package_dir"].strip().splitlines():
        folder = line.partition("=")[2].strip()
        (root / folder).symlink_to(ROOT / folder)
    return root


@pytest.mark.slow
def test_every_page_is_there(site):
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")}
    assert {"index.html", "first_steps.html", "server.html", "reference/python.html"} <= pages
    assert {f"reference/commands/{command}.html" for command in COMMANDS} <= pages


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    seen = 0
    for page in (*site.rglob("*.html"), *site.rglob("*.css")):
        for match in LOADED.finditer(page.read_text(encoding="utf-8")):
            place = next(filter(None, match.groups()), "").strip("\"'")
            assert "//" not in place, f"{page.name} loads {place}"
            seen += 1
    assert seen > 100
    # Otherwise the theme loads it.
    assert 'src="./assets/mermaid.js"' in (site / "architecture.html").read_text(encoding="utf-8")
    assert (site / "assets" / "mermaid.js").is_file()


@pytest.mark.slow
def test_the_references_say_what_the_code_says(site):
    transcribe = (site / "reference/commands/transcribe.html").read_text(encoding="utf-8")
    for _, _, parser in command_reference.parsers():
        if parser.prog == "whisper-npu transcribe":
            for action in parser._actions[1:]:
                assert all(option in transcribe for option in action.option_strings)
    corpus = (site / "reference/commands/corpus.html").read_text(encoding="utf-8")
    assert "whisper-npu corpus [OPTIONS] MANIFEST --output DIR" in corpus
    assert "TSV (audio&lt;TAB&gt;reference" in corpus
    assert "<code>--vad [True|False]</code>" in transcribe
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    for name in set(whisper_npu.__all__) - {"TranscribeKwargs", "__version__"}:
        assert f'id="whisper_npu.{name}"' in python, name
    assert "reproduces PyTorch token by token" in python


def test_every_public_name_has_a_place_in_the_reference():
    listed = [name for names in python_reference.groups().values() for name in names]
    assert sorted(listed) == sorted(set(whisper_npu.__all__) - {"TranscribeKwargs", "__version__"})
    assert not python_reference.groups()["More"], "give it a subject in python_reference.GROUPS"


@pytest.mark.slow
def test_a_link_to_nothing_fails(checkout, tmp_path, real_asset):
    real_asset("docs-scripts")
    page = checkout / "docs" / "npu.md"
    page.write_text(
        page.read_text(encoding="utf-8")
        + "\n[gone](gone.md), [none](server.md#no-such-part), [here](#neither)\n",
        encoding="utf-8",
    )
    with pytest.raises(OutputError) as error:
        build_site(checkout, tmp_path / "made")
    assert str(error.value).count("npu.md") == 3
    assert "page does not exist" in str(error.value)
    assert "anchor does not exist" in str(error.value)
    assert "\n" not in str(error.value)


def test_links_lead_somewhere_before_the_site_is_built():
    """As a host of code shows the pages."""
    pages = [ROOT / page for page in TOP_PAGES] + list((ROOT / "docs").rglob("*.md"))
    for page in pages:
        for _, _, link in links._LINK.findall(page.read_text(encoding="utf-8")):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {link}"


@pytest.mark.slow
def test_the_source_of_a_reference_is_its_page(site):
    python = (site / "python.html").read_text(encoding="utf-8")
    assert re.search(r'<a href="reference/python\.html">All public names</a>', python)


def test_a_page_that_no_menu_lists_fails(tmp_path):
    for name in ("a.md", "b/c.md", "files/shown.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    menu = {"project": {"nav": [{"A": "a.md"}, {"More": ["b/c.md", {"D": "d.md"}]}]}}
    (complaint,) = menu_complaints(menu, tmp_path)
    assert "d.md, which is no page" in complaint
    menu = {"project": {"nav": [{"A": "a.md"}]}}
    (complaint,) = menu_complaints(menu, tmp_path)
    assert "no entry for b/c.md" in complaint


@pytest.mark.slow
def test_a_new_page_needs_an_entry(checkout, tmp_path):
    (checkout / "docs" / "new.md").write_text("# New\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"no entry for new\.md"):
        build_site(checkout, tmp_path / "made")


def test_another_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="is no documentation"):
        build_site(ROOT, tmp_path)
    assert (tmp_path / "mine.txt").exists()


def test_links_out_of_the_pages_lead_to_what_they_show(tmp_path):
    root, pages = tmp_path / "root", tmp_path / "pages"
    for folder in (root / "deploy", pages):
        folder.mkdir(parents=True)
    (root / "deploy" / "unit.service").write_text("[Unit]\n", encoding="utf-8")
    text = (
        "[up](../README.md#use) [README.md](../README.md) [files](../deploy) "
        "[web](https://example.org/a.md) [gone](gone.md)\n"
        "<!-- not run: needs luck -->\n"
        "```\n[code](../README.md)\n```\n"
        "| `a\\|b` | c\\|d |\n"
    )
    (pages / "a.md").write_text(text, encoding="utf-8")
    places = {Path("README.md"): pages / "index.md"}
    site = links.Site(root, pages, places, {"index.md": "Overview"})
    moved = links.moved(site, pages / "a.md", Path("docs/a.md"))
    assert moved.splitlines() == [
        "[up](index.md#use) [Overview](index.md) [files](files/deploy.md) "
        "[web](https://example.org/a.md) [gone](gone.md)",
        "*Not run by the tests: needs luck.*",
        "```",
        "[code](../README.md)",
        "```",
        "| `a|b` | c\\|d |",
    ]
    assert "[Unit]" in (pages / "files" / "deploy.md").read_text(encoding="utf-8")


def test_the_picture_of_speed_has_figures_of_the_documentation():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    models = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for size in ("tiny.en", "base"):
        assert all(f"{value} x," in readme for value in FIGURES[size].values())
    for size in ("small's size", "medium's size"):
        row = next(line for line in models.splitlines() if line.startswith(f"| {size[:5]}"))
        assert [f"{value:g} x" for value in FIGURES[size].values()] == [
            cell.strip() for cell in row.split("|")[2:-1] if cell.strip()
        ]


def test_the_configuration_asks_for_no_fonts():
    text = (ROOT / "docs" / "site" / "zensical.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert project["theme"]["font"] is False
    assert project["extra"]["polyfills"] == ["assets/iframe-worker.js"]
