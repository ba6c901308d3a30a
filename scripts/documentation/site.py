"""Collects the pages of the site, and has Zensical build them.

Zensical checks links and anchors (`--strict`), but not the menu, and reads pages below one folder
only. So the pages are copied to a folder of their own, with the references beside them, and the
menu is compared with them before the build.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from whisper_npu.errors import OutputError, UsageError
from whisper_npu.export.assets import fetch
from whisper_npu.scripts.documentation import command_reference, links, python_reference

# Pages outside docs/, and their names in the site.
TOP_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Sources, and the references that the site has of them. A host of code shows the sources only.
REFERENCES = {"whisper_npu/__init__.py": "reference/python.md"}
_ASIDE = "site"  # the folder of docs/ with the site's configuration and style
_CONFIGURATION = "zensical.toml"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def build_site(root: Path, output: Path) -> Path:
    """Build the site; returns its first page.

    Args:
        root: the checkout.
        output: a folder that is replaced: it gets `pages` (Markdown), `layout` (the package as it
            is installed, for the Python reference) and `site` (HTML).

    Raises:
        UsageError: the extra [docs] is not installed.
        AssetError: npm cannot fetch the scripts of the pages.
        OutputError: a link, an anchor, a page or a menu entry is wrong.
    """
    if find_spec("zensical") is None:
        raise UsageError("the documentation needs more packages: pip install '.[docs]'")
    if output.exists() and not (output / _CONFIGURATION).is_file():
        raise UsageError(f"{output} is no documentation; give a folder that may be replaced")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    shutil.copy(root / "docs" / _ASIDE / _CONFIGURATION, output)  # first: marks it as ours
    collect(root, output / "pages")
    _lay_out(root, output / "layout")
    scripts = fetch("docs-scripts")
    shutil.copytree(scripts, output / "pages" / "assets")
    configuration = configure(root, output)
    if complaints := list(menu_complaints(tomllib.loads(configuration), output / "pages")):
        raise OutputError("; ".join(complaints))
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=output,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise OutputError(_why(run.stdout + run.stderr))
    return output / "site" / "index.html"


def collect(root: Path, pages: Path) -> None:
    """Copy the Markdown of the checkout to `pages`, with links that hold there; add references."""
    shutil.copytree(root / "docs", pages, ignore=shutil.ignore_patterns(_ASIDE))
    shutil.copy(root / "docs" / _ASIDE / "site.css", pages)
    places = {Path("docs") / page.relative_to(pages): page for page in pages.rglob("*")}
    for source, name in TOP_PAGES.items():
        shutil.copy(root / source, pages / name)
        places[Path(source)] = pages / name
    menu = tomllib.loads((root / "docs" / _ASIDE / _CONFIGURATION).read_text(encoding="utf-8"))
    made = {Path(source): pages / page for source, page in REFERENCES.items()}
    titles = {page: title for title, page in _titles(menu)}
    site = links.Site(root, pages, places | made, titles)
    for place, page in places.items():
        if page.suffix == ".md":
            page.write_text(links.moved(site, page, place), encoding="utf-8")
    command_reference.write(pages / "reference" / "commands")
    python_reference.write(pages / "reference" / "python.md")


def configure(root: Path, output: Path) -> str:
    """Write Zensical's configuration, with the menus of the generated pages; returns its text."""
    pages = output / "pages"
    text = (root / "docs" / _ASIDE / _CONFIGURATION).read_text(encoding="utf-8")
    for mark, folder in (("@COMMANDS@", "reference/commands"), ("@RESEARCH@", "research")):
        names = sorted(page.relative_to(pages).as_posix() for page in (pages / folder).glob("*.md"))
        text = text.replace(f'"{mark}"', f"[{', '.join(map(repr, names))}]".replace("'", '"'))
    (output / _CONFIGURATION).write_text(text, encoding="utf-8")
    return text


def menu_complaints(configuration: Mapping[str, Any], pages: Path) -> Iterator[str]:
    """What is wrong with the menu: entries without a page, and pages without an entry."""
    entries = {page for _, page in _titles(configuration)}
    there = {page.relative_to(pages).as_posix() for page in pages.rglob("*.md")}
    for entry in sorted(entries - there):
        yield f"the menu in docs/site/zensical.toml names {entry}, which is no page"
    for page in sorted(there - entries):
        if not page.startswith(links.FILES):
            yield f"the menu in docs/site/zensical.toml has no entry for {page}"


def _titles(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and page of the menu's entries; an entry without a title has an empty one."""
    left = list(configuration["project"]["nav"])
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield "", item
            continue
        for title, value in item.items():
            if isinstance(value, str):
                yield title, value
            else:
                left.extend(value)


def _lay_out(root: Path, layout: Path) -> None:
    """Copy the sources to where an installation has them: the Python reference reads them there."""
    setup = ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    for line in setup["options"]["package_dir"].strip().splitlines():
        package, _, folder = (part.strip() for part in line.partition("="))
        shutil.copytree(
            root / folder,
            layout / package.replace(".", "/"),
            ignore=shutil.ignore_patterns("__pycache__", "wavesurfer", "page"),
        )


def _why(text: str) -> str:
    """Zensical's complaints without colours and tracebacks, one line each."""
    lines = _ANSI.sub("", text).splitlines()
    found = [
        f"{lines[i + 1].strip(' ╭─[]')}: {line.removeprefix('Warning: ').strip()}"
        for i, line in enumerate(lines[:-1])
        if line.startswith(("Warning:", "Error:"))
    ]
    return "; ".join(found) or " ".join(lines[-3:]).strip() or "zensical failed without a word"
