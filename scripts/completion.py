"""Prints a script that completes commands and options in a shell: `whisper-npu completion bash`.

The script is static. Nothing of this program runs when the user presses the tab key.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module

from whisper_npu.scripts.common import cli

SHELLS = ("bash", "zsh", "fish", "powershell")
# What these metavars stand for is completed from the disk.
_FILES = {"FILE", "RECORDING", "RECORDING=FILE", "REFERENCES", "TSV", "MANIFEST", "CHECKPOINT"}
_FOLDERS = {"DIR", "FOLDER", "OUT", "MODEL", "[NAME=]DIR"}
EPILOG = """\
where each shell looks for the script:
  whisper-npu completion bash > ~/.local/share/bash-completion/completions/whisper-npu
  whisper-npu completion zsh > "${fpath[1]}/_whisper-npu"      then: compinit
  whisper-npu completion fish > ~/.config/fish/completions/whisper-npu.fish
  whisper-npu completion powershell > ~/whisper-npu.ps1        then in $PROFILE: . ~/whisper-npu.ps1

Make the script again after an upgrade. It completes the command whisper-npu, not the scripts.
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "completion",
        description="Print a script that completes commands, options and their values.",
        epilog=EPILOG,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to run the script")
    return parser


def whole_parser(commands: Mapping[str, tuple[str, str]]) -> argparse.ArgumentParser:
    """A parser of all commands, of which the script is made; it parses nothing itself.

    Args:
        commands: the module in `scripts` and the summary of each command.
    """
    parser = argparse.ArgumentParser("whisper-npu", description="Whisper speech recognition.")
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    places = parser.add_subparsers(dest="command", parser_class=argparse.ArgumentParser)
    for name, (module, summary) in commands.items():
        command = import_module(f"whisper_npu.scripts.{module}").build_parser()
        # The help is among the options of `command` already.
        place = places.add_parser(name, parents=[command], add_help=False, help=summary)
        _complete_paths(place._actions)
    return parser


def _complete_paths(actions: Iterable[argparse.Action]) -> None:
    """Mark the options and arguments that are files or folders."""
    import shtab  # noqa: PLC0415 - no other command needs it

    for action in actions:
        name = str(action.metavar or action.dest)
        if action.choices is None and action.nargs != 0 and name.upper() in _FILES | _FOLDERS:
            kind = shtab.FILE if name.upper() in _FILES else shtab.DIRECTORY
            # An attribute of shtab's own; argparse has no place for it.
            action.complete = kind  # type: ignore[attr-defined]


def complete(arguments: argparse.Namespace) -> int:
    """Print the script; returns the exit code."""
    import shtab  # noqa: PLC0415

    from whisper_npu.scripts.main import COMMANDS  # noqa: PLC0415 - it knows this command

    print(shtab.complete(whole_parser(COMMANDS), shell=arguments.shell))
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(complete, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
