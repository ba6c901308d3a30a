"""The reference of the command line, made of the parsers of the commands."""

import argparse
import html
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from whisper_npu.scripts.main import COMMANDS

_OF_ARGPARSE = {"positional arguments": "Arguments", "options": "Options"}


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Command, summary and parser of every command, with those that are a command's second word."""
    for command, (module_name, summary) in COMMANDS.items():
        module = import_module(f"whisper_npu.scripts.{module_name}")
        for name in vars(module):
            if match := re.fullmatch(r"build_(?:(\w+)_)?parser", name):
                make: Callable[[], argparse.ArgumentParser] = getattr(module, name)
                parser = make()
                parser.prog = f"whisper-npu {command}" + (f" {match[1]}" if match[1] else "")
                yield parser.prog.partition(" ")[2], summary, parser


def write(folder: Path) -> None:
    """Write a page for each command into `folder`."""
    folder.mkdir(parents=True)
    pages: dict[str, list[str]] = {}
    for name, summary, parser in parsers():
        command = name.split()[0]
        page = pages.setdefault(command, [f"# {command}\n", f"{_sentence(summary)}\n"])
        if name != command:
            page.append(f"## {name}\n")
        page.extend(_described(parser))
    for command, parts in pages.items():
        (folder / f"{command}.md").write_text("\n".join(parts), encoding="utf-8")


def _described(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The description of a parser in Markdown."""
    # argparse has no public way to its groups and to the texts of its help.
    formatter = parser._get_formatter()
    words = [
        _spelled(formatter, action).rpartition(", ")[2]
        if action.option_strings
        else formatter._format_args(action, action.dest)
        for action in parser._actions
        if action.required or not action.option_strings
    ]
    yield f"```text\n{' '.join([parser.prog, '[OPTIONS]', *words])}\n```\n"
    if parser.description:
        yield f"{html.escape(parser.description, quote=False)}\n"
    for group in sorted(parser._action_groups, key=lambda group: group.title == "options"):
        if all(isinstance(action, argparse._HelpAction) for action in group._group_actions):
            continue
        title = _OF_ARGPARSE.get(group.title or "", group.title or "")
        yield f"## {_capital(title)}\n"
        if group.description:
            yield f"{html.escape(group.description, quote=False)}\n"
        rows = [
            f"| `{_spelled(formatter, action)}` |"
            f" {_cell(_escaped(formatter._expand_help(action)))} |"
            for action in group._group_actions
            if action.help and action.help is not argparse.SUPPRESS
        ]
        yield "\n".join(["| | |", "| --- | --- |", *rows, ""])
    if parser.epilog:
        yield f"## Notes\n\n```text\n{parser.epilog.strip()}\n```\n"


def _spelled(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    return formatter._format_action_invocation(action)


def _escaped(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    words = re.sub(r"([\\`*_\[\]#])", r"\\\1", " ".join(text.split()))
    return html.escape(words, quote=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(text: str) -> str:
    return f"{_capital(text)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
