"""The parser of every command, which reports a mistake in one line."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from whisper_npu.scripts.common.console import one_line
from whisper_npu.spelling import LIKENESS, nearest

EXIT_USAGE = 2

_MAY_BE_EMPTY = ("TEXT", "MARKS", "IDS")  # by their metavar

# Options of other commands and programs, and what does the same here; a command gets the hint only
# if it has the option.
_ELSEWHERE = {
    "--compute-type": "--precision",
    "--fp16": "--precision",
    "--format": "--output-format",
    "--host": "--uri tcp://HOST:PORT",
    "--ip": "--host",
    "--key": "--api-key",
    "--lang": "--language",
    "--model-size": "--model",
    "--no-vad": "--vad False",
    "--output": "--output-dir",
    "--port": "--uri tcp://HOST:PORT",
    "--uri": "--host and --port",
    "--vad-filter": "--vad",
}


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
            is_short = re.match("-[^-0-9.]", argument) and " " not in argument  # as argparse has it
            if is_short and name[:2] not in self._option_string_actions:
                self.error(f"there is no option {name[:2]}; for a file write ./{argument}")
            is_ambiguous = name in _ELSEWHERE and self._n_begun_by(name) > 1
            if name.startswith("--") and (is_ambiguous or not self._has(name)):
                self.error(f"there is no option {name}{self._meant(name)}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line in which options may stand between the files."""
        given = sys.argv[1:] if args is None else args
        # argparse's intermixed parsing changes `--help` and drops `--`, so it comes second.
        parsed, extra = self.parse_known_args(given, namespace)
        if extra and "--" not in given:
            parsed, extra = self.parse_known_intermixed_args(given, namespace)
        if extra:
            self.error(self._superfluous(extra[0], given))
        return parsed

    def _meant(self, name: str) -> str:
        elsewhere = _ELSEWHERE.get(name)
        if elsewhere is not None and elsewhere.split()[0] in self._all_names():
            return f": did you mean {elsewhere}?"
        return suggestion(name, self._all_names())

    def _superfluous(self, name: str, given: Sequence[str]) -> str:
        """The message for an argument that the command has no place for."""
        if self._get_positional_actions():
            hint = "; write all files behind --" if "--" in given else ""
            return f"one argument too many: {name}{hint}"
        if self._has("--model"):
            from whisper_npu.export.source import KNOWN_NAMES  # noqa: PLC0415 - not for --help

            if name in KNOWN_NAMES or Path(name, "config.json").is_file():
                return f"a model is named by an option: did you mean --model {name}?"
            return (
                f"this command takes no file: for a recording use `whisper-npu transcribe {name}`"
            )
        return f"this command takes no names and no files: {name}"

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        # `"$OUT"` of a variable that is not set: a path would mean the current folder.
        if not text and action.metavar not in _MAY_BE_EMPTY:
            raise argparse.ArgumentError(action, "the value is empty; give one, or leave it out")
        return super()._get_value(action, text)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{value!r} is none of {', '.join(known)}{suggestion(str(value), known)}"
            )

    def _all_names(self) -> list[str]:
        return [name for name in self._option_string_actions if name.startswith("--")]

    def _n_begun_by(self, name: str) -> int:
        """The number of options that begin with a name; 1 for a whole name."""
        names = self._all_names()
        return 1 if name in names else sum(each.startswith(name) for each in names)

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


def suggestion(name: str, known: Iterable[str], *, likeness: float = LIKENESS) -> str:
    """`: did you mean ...?` if a known name is similar to `name`; see `spelling.nearest`."""
    meant = nearest(name, known, likeness)
    return f": did you mean {meant}?" if meant else ""
