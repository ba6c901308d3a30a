"""Links of a page that moves from the checkout into the site."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILES = "files"  # the folder of the site with files that pages link to, and that are no pages
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_PATH = re.compile(r"[\w./-]+\.md")
_CODE = re.compile(r"`[^`]+`")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
# A block that tests do not run: `<!-- not run: why -->` before it (tests/support/doc_blocks.py).
_NOT_RUN = re.compile(r"<!-- not run: (.*) -->")


@dataclass(frozen=True)
class Site:
    """Where the site's pages are, and were.

    Attributes:
        root: the checkout.
        pages: the folder of the site's pages.
        places: pages and pictures of the site by their paths in the checkout.
        titles: of pages by their paths in the site, as the menu has them.
    """

    root: Path
    pages: Path
    places: Mapping[Path, Path]
    titles: Mapping[str, str]


def moved(site: Site, page: Path, source: Path) -> str:
    """The text of a page whose links lead to where their targets are in the site.

    A link to a file or folder of the checkout that is no page leads to a page with its content. A
    link to nothing stays, so that the build refuses it. A path as the text of a link becomes the
    page's title.

    Args:
        site: the site.
        page: the page in the site.
        source: where it was, relative to the checkout.
    """

    def follow(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        target, hash_, anchor = link.partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        at = Path(os.path.normpath(source.parent / target))
        place = site.places.get(at)
        if place is None:
            if at.parts[:1] == ("..",) or not (site.root / at).exists():
                return match[0]
            place = _show(site, at)
        if _PATH.fullmatch(text):
            text = site.titles.get(place.relative_to(site.pages).as_posix(), text)
        return f"{image}[{text}]({os.path.relpath(place, page.parent)}{hash_}{anchor})"

    lines, fence = [], ""
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        if fence or mark or line.startswith("    "):
            lines.append(line)
            continue
        shown = _LINK.sub(follow, _NOT_RUN.sub(r"*Not run by the tests: \1.*", line))
        if line.startswith("|"):  # a pipe in code is escaped for others, not for this Markdown
            shown = _CODE.sub(lambda match: match[0].replace("\\|", "|"), shown)
        lines.append(shown)
    return "".join(lines)


def _show(site: Site, path: Path) -> Path:
    """A page with the content of a file, or of all files of a folder."""
    place = site.pages / FILES / f"{path.as_posix().replace('/', '-')}.md"
    place.parent.mkdir(exist_ok=True)
    shown = site.root / path
    files = sorted(filter(Path.is_file, shown.iterdir())) if shown.is_dir() else [shown]
    parts = [f"# {path.as_posix()}\n"]
    for file in files:
        content = file.read_text(encoding="utf-8").rstrip("\n")
        parts.append(f"## {file.name}\n\n````text\n{content}\n````\n")
    place.write_text("\n".join(parts), encoding="utf-8")
    return place
