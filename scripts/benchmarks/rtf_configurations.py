"""Reads the configurations to compare from a command line; loads no models."""

import argparse
import re
import shlex
from typing import TYPE_CHECKING, NoReturn

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import (
    add_decoding_options,
    add_model_options,
    decoding_options,
    model_options,
)

if TYPE_CHECKING:
    from whisper_npu.scripts.benchmarks.rtf import Configuration

LENGTHS = (5.0, 30.0, 60.0, 300.0)  # seconds
AS_GIVEN = "as given"


def add_one_by_one(parser: "argparse._ActionsContainer") -> None:
    """Add `--one-by-one`, which `--compare` may change as well."""
    parser.add_argument(
        "--one-by-one",
        action="store_true",
        help="begin a recording only when the one before it has its text. By default windows of "
        "several recordings are decoded together, as `transcribe` does",
    )


def separate_lengths(arguments: argparse.Namespace) -> list[float]:
    """The lengths of `--lengths`; a word after `--lengths` that is no number is a file.

    Args:
        arguments: The command line; words of `lengths` that are files are moved to `files`.

    Raises:
        UsageError: A length is no number above 0.
    """
    if arguments.lengths is None:
        return []
    lengths = []
    for word in arguments.lengths:
        if not re.fullmatch(r"[\d.,]+", word):
            arguments.files.append(word)
            continue
        try:
            lengths += [float(number) for number in word.split(",") if number]
        except ValueError:
            raise UsageError(f"--lengths takes seconds, not {word!r}") from None
    if any(length <= 0 for length in lengths):
        raise UsageError("--lengths takes seconds above 0")
    return lengths or list(LENGTHS)


class _OptionParser(argparse.ArgumentParser):
    """Raises `UsageError` where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"--compare: {message}")


def read_configurations(arguments: argparse.Namespace) -> "list[Configuration]":
    """The configuration of the command line, and one for each `--compare`.

    Raises:
        UsageError: An option is unknown or wrong.
        ModelError: A model does not exist.
    """
    parser = _OptionParser(add_help=False, allow_abbrev=False)
    add_model_options(parser)
    add_decoding_options(parser)
    add_one_by_one(parser)
    found = [_configuration(AS_GIVEN, arguments)]
    for text in arguments.compare:
        changes = cli.spell([f"--{change.lstrip('-')}" for change in shlex.split(text)])
        if not changes:
            raise UsageError('--compare takes options such as "precision=f32 mode=sequential"')
        changed = parser.parse_args(changes, argparse.Namespace(**vars(arguments)))
        found.append(_configuration(text, changed))
    return found


def _configuration(label: str, arguments: argparse.Namespace) -> "Configuration":
    from whisper_npu.scripts.benchmarks.rtf import Configuration  # noqa: PLC0415

    load = model_options(arguments)
    threads: int = load.pop("threads")
    return Configuration(
        label=label,
        folder=cli.find_model(arguments.model, arguments.variant).resolve(),
        load=load,
        threads=threads,
        options=decoding_options(arguments),
        one_by_one=arguments.one_by_one,
    )
