"""The parser of every command, which reports a mistake in one line."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from whisper_npu.scripts.common.console import one_line

EXIT_USAGE = 2


class Parser(argparse.ArgumentParser):
    """A command line; a mistake is one line, which names the option that was probably meant."""

    def __init__(self, command: str, **options: Any) -> None:
        """Make an empty command line.

        Args:
            command: the subcommand of `whisper-npu` that it belongs to.
            options: see `argparse.ArgumentParser`.
        """
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog=program_name(command), **options)

    def check(self, arguments: Sequence[str]) -> None:
        """Refuse a mistyped option before argparse misreads its value."""
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if name.startswith("--") and not self._has(name):
                self.error(f"there is no option {name}{suggestion(name, self._all_names())}")

    def _all_names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _has(self, name: str) -> bool:
        """Whether an option has that name, or begins with it if abbreviations are allowed."""
        names = self._all_names()
        return name in names or (self.allow_abbrev and any(n.startswith(name) for n in names))

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error, and end the program with exit code 2."""
        print(f"error: {one_line(message)} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def program_name(command: str) -> str:
    """The program as the user called it: `whisper-npu COMMAND`, or the script."""
    called = Path(sys.argv[0] if sys.argv else "")
    if called.name == "__main__.py" and called.parent.name == "whisper_npu":
        return f"python -m whisper_npu {command}"
    if called.suffix == ".py" and called.parent.resolve() == Path(__file__).resolve().parents[1]:
        return f"python {called}{f' {command}' if called.stem == 'main' else ''}"
    return f"whisper-npu {command}"


def suggestion(name: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """`: did you mean ...?` if a known name is similar to `name`; else an empty text.

    Args:
        name: what the user wrote.
        known: the names that exist.
        likeness: how similar a name has to be, from 0 to 1; see `difflib.get_close_matches`.
    """
    alike = difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return f": did you mean {alike[0]}?" if alike else ""
