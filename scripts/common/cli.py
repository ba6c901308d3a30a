"""Spelling of options, errors, exit codes and the search for models, for all commands."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, NoReturn

from whisper_npu import model_search
from whisper_npu.errors import UsageError, WhisperNpuError
from whisper_npu.runtime.engines.choices import parse_device
from whisper_npu.runtime.engines.memory import map_large_blocks
from whisper_npu.scripts.common import console
from whisper_npu.scripts.common.command_line import EXIT_USAGE, Parser, suggestion
from whisper_npu.scripts.common.signals import EXIT_INTERRUPTED, Terminated, ended_by_signals
from whisper_npu.spelling import parse_precision

__all__ = ["EXIT_INTERRUPTED", "EXIT_USAGE", "Parser"]

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_NO_MODEL = 3

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EXIT_CODES = """\
exit codes:
  0    everything was done
  1    some files failed, each with one line on standard error; the others were done
  2    the command line is wrong
  3    the model or the device cannot be used
  130  interrupted by Ctrl-C
  143  ended by SIGTERM (129 by SIGHUP)
"""

DEFAULT_MODEL = "tiny.en"


_YES, _NO = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")
_TRUTHS = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)
_flags: set[str] = set()


def add_flag(
    group: argparse._ArgumentGroup, name: str, *, help: str, default: bool | None = None
) -> None:
    """Add an option that is `True` or `False`, as in openai/whisper; alone it is `True`."""
    _flags.add(name)
    group.add_argument(
        name,
        type=boolean,
        nargs="?",
        const=True,
        default=default,
        metavar="True|False",
        help=help,
    )


def spell(arguments: Sequence[str]) -> list[str]:
    """A command line in the spelling of these parsers.

    Underscores, which openai/whisper has, become hyphens: `--beam_size=5` is `--beam-size=5`. A
    flag without a value gets `=True`, so that it does not take the file after it for its value:
    `--word-timestamps talk.mp3`.
    """
    spelled: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return [*spelled, *arguments[i:]]
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        is_flag = len(name) > 2 and any(flag.startswith(name) for flag in _flags)
        following = (*arguments[i + 1 : i + 2], "")[0]
        # Another word counts as a value, which the parser then refuses, unless it names a file.
        is_value = following.lower() in _TRUTHS or (
            following.isalpha() and not Path(following).exists()
        )
        alone = not equals and not is_value
        spelled.append(f"{name}=True" if is_flag and alone else name + equals + value)
    return spelled


def run(
    body: Callable[[argparse.Namespace], int],
    parser: Parser,
    argv: Sequence[str] | None,
    *,
    handles_signals: bool = False,
) -> int:
    """Parse the command line and run `body`; an error becomes one line and an exit code.

    Args:
        body: the program.
        parser: its command line.
        argv: the command line; None for that of the process.
        handles_signals: whether `body` ends by itself after a signal, as a server does.
    """
    spelled = spell(sys.argv[1:] if argv is None else argv)
    parser.check(spelled)
    arguments = parser.parse_args(spelled)
    try:
        with nullcontext() if handles_signals else ended_by_signals():
            return body(arguments)
    except (WhisperNpuError, OSError, MemoryError, KeyboardInterrupt, Terminated) as error:
        return _tell(error)


def _tell(error: BaseException) -> int:
    """Print one line that says why the program ends; returns its exit code."""
    if isinstance(error, Terminated):
        print("terminated", file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if isinstance(error, console.StandardOutputError):
        console.drop_output()
    if isinstance(error, MemoryError):
        console.error("not enough memory; end other programs, or use a smaller model or batch")
    elif isinstance(error, OSError):
        console.error(_describe(error))
    elif not isinstance(error, console.StandardOutputGoneError):
        console.error(error)
    return error.exit_code if isinstance(error, WhisperNpuError) else EXIT_SOME_FAILED


def _describe(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    if error.errno in _DISK_FULL:
        return (
            f"a file cannot be written: {reason}; free some space where the model, the cache, "
            "temporary files and the output lie"
        )
    return reason


def be_process(main: Callable[[], int]) -> NoReturn:
    """Run a program, and end this process with the program's exit code."""
    # OpenVINO imports its model converter if it can, and with it a web client for telemetry. No
    # command needs them, and the import takes a fifteenth of a second.
    sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
    map_large_blocks()
    console.guard_streams()
    try:
        code = main()
    except SystemExit as end:  # argparse, after --help or a wrong command line
        code = end.code if isinstance(end.code, int) else EXIT_OK
    try:
        sys.stdout.flush()
    except console.StandardOutputError as error:
        if not isinstance(error, console.StandardOutputGoneError):
            console.error(error)
        code = code or error.exit_code
    sys.stderr.flush()
    os._exit(code)  # a normal exit would free the model first, which takes a tenth of a second


def standard_input() -> BinaryIO:
    """Standard input as a binary stream.

    Raises:
        UsageError: standard input is closed, as for services.
    """
    if sys.stdin is None:
        raise UsageError("standard input is closed: there is nothing to read audio from")
    return sys.stdin.buffer


def boolean(text: str) -> bool:
    """The value of an option that is `True` or `False`."""
    if text.lower() not in _TRUTHS:
        hint = suggestion(text, ("True", "False"))
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False{hint}")
    return _TRUTHS[text.lower()]


def positive(text: str) -> int:
    """Convert an option's value to a whole number above 0; a type for `argparse`.

    Raises:
        argparse.ArgumentTypeError: it is not above 0.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def amount(text: str) -> float:
    """Convert an option's value to a finite number, 0 or more; a type for `argparse`.

    Raises:
        argparse.ArgumentTypeError: it is below 0, or is no finite number.
    """
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number


def names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def some_of(*known: str) -> Callable[[str], list[str]]:
    """The type of an option that takes some of the known names, separated by commas."""

    def convert(text: str) -> list[str]:
        given = names(text)
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is none of {', '.join(known)}{suggestion(name, known)}"
                )
        return given

    return convert


def device(text: str) -> str:
    """A device's name in upper case; a type for `argparse`.

    Raises:
        argparse.ArgumentTypeError: no device is called like this.
    """
    try:
        encoder, decoder = parse_device(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return f"encoder={encoder},decoder={decoder}" if "=" in text else encoder


def precision(*known: str) -> Callable[[str], str]:
    """The type of an option that takes a precision, in either spelling: `fp32` is `f32`."""

    def convert(text: str) -> str:
        return parse_precision(text, known)

    return convert


def optional(convert: Callable[[str], float]) -> Callable[[str], float | None]:
    """A number, or `None` to switch the option off."""

    def number(text: str) -> float | None:
        return None if text.lower() == "none" else convert(text)

    number.__name__ = f"{convert.__name__} or None"  # argparse's name for it in errors
    return number


def find_model(name: str, variant: str | None = None) -> Path:
    """The model folder that `name` means; see `model_search`.

    Raises:
        ModelError: no model has that name.
        WhisperNpuError: the model is known, but its export failed.
    """

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return model_search.find_model(name, show, variant=variant)
