"""Links of a page that moves from the checkout into the site."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

FILES = "files"  # the folder of the site with files that pages link to, and that are no pages
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
# A block that tests do not run: `<!-- not run: why -->` before it (tests/support/doc_blocks.py).
_NOT_RUN = re.compile(r"<!-- not run: (.*) -->")


def moved(page: Path, source: Path, root: Path, pages: Path, places: Mapping[Path, Path]) -> str:
    """The text of a page whose links lead to where their targets are in the site.

    A link to a file or folder of the checkout that is no page leads to a page with its content. A
    link to nothing stays, so that the build refuses it.

    Args:
        page: the page in the site.
        source: where it was, relative to the checkout.
        root: the checkout.
        pages: the folder of the site's pages.
        places: the pages and pictures of the site by their paths in the checkout.
    """

    def follow(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        target, hash_, anchor = link.partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        at = Path(os.path.normpath(source.parent / target))
        place = places.get(at)
        if place is None:
            if at.parts[:1] == ("..",) or not (root / at).exists():
                return match[0]
            place = _show(root, at, pages)
        return f"{before}{os.path.relpath(place, page.parent)}{hash_}{anchor}{after}"

    lines, fence = [], ""
    for line in page.read_text(encoding="utf-8").splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        is_code = bool(fence) or line.startswith("    ")
        shown = line if is_code else _NOT_RUN.sub(r"*Not run by the tests: \1.*", line)
        lines.append(shown if is_code else _LINK.sub(follow, shown))
    return "".join(lines)


def _show(root: Path, path: Path, pages: Path) -> Path:
    """A page with the content of a file, or of all files of a folder."""
    place = pages / FILES / f"{path.as_posix().replace('/', '-')}.md"
    place.parent.mkdir(exist_ok=True)
    files = (
        sorted(file for file in (root / path).iterdir() if file.is_file())
        if (root / path).is_dir()
        else [root / path]
    )
    parts = [f"# {path.as_posix()}\n"]
    for file in files:
        content = file.read_text(encoding="utf-8").rstrip("\n")
        parts.append(f"## {file.name}\n\n````\n{content}\n````\n")
    place.write_text("\n".join(parts), encoding="utf-8")
    return place
