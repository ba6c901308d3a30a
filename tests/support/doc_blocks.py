"""The blocks of code, and the commands, in the README and the documentation."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from repository import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
# Programs that begin a command; the others that pages name, such as `curl`, are not ours.
OURS = ("whisper-npu", "python", "make", "pip")
OTHERS = ("curl", "arecord", "ffmpeg", "ray", "source", "python3", "py", r".venv\Scripts\activate")
_MARK = re.compile(r"<!-- not run: (.+) -->\s*")
_SEPARATORS = ("|", "&&", ";")
_INTO = ">"  # the rest of the command is a file


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: the page's path below the repository.
        line: the line of its beginning, from 1.
        language: `python`, ...; empty for an indented block.
        content: the code.
        not_run: why tests do not run it, from `<!-- not run: why -->` before it; else empty.
    """

    page: str
    line: int
    language: str
    content: str
    not_run: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block, or a part of a pipe."""

    block: Block
    words: tuple[str, ...]
    piped: bool = False

    def __str__(self) -> str:
        return f"{self.block.place}: {' '.join(self.words)}"


def blocks() -> Iterator[Block]:
    """All blocks of all pages."""
    for page in PAGES:
        yield from blocks_of(page)


def blocks_of(page: Path) -> Iterator[Block]:
    reason = ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            place = page.relative_to(ROOT).as_posix()
            yield Block(place, token.map[0] + 1, token.info.strip(), token.content, reason)
        mark = _MARK.fullmatch(token.content) if token.type == "html_block" else None
        reason = mark[1] if mark else ""


def commands() -> Iterator[Command]:
    """The commands of all blocks that have some: a line that begins with a program's name."""
    for block in blocks():
        if block.language in ("", "sh"):
            for line in block.content.splitlines():
                yield from _commands_of(block, line)
        elif block.language == "ini":
            for line in re.findall(
                r"^ExecStart=\S*/(whisper-npu .*)$", block.content, re.MULTILINE
            ):
                yield from _commands_of(block, line)


def _commands_of(block: Block, line: str) -> Iterator[Command]:
    first = line.split(maxsplit=1)[:1]
    if not first or first[0] not in OURS + OTHERS:
        return
    lexer = shlex.shlex(line, posix=first[0] != OTHERS[-1], punctuation_chars="|&;")
    lexer.whitespace_split = True
    words: list[str] = []
    piped = False
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            if _INTO in words:
                del words[words.index(_INTO) :]
            yield Command(block, tuple(words), piped)
            words, piped = [], word == "|"
        else:
            words.append(word)


def inline_code() -> Iterator[tuple[str, str]]:
    """Page and text of all code within sentences and tables."""
    for page in PAGES:
        for token in (
            MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
        ):
            for child in token.children or ():
                if child.type == "code_inline":
                    yield page.relative_to(ROOT).as_posix(), child.content
