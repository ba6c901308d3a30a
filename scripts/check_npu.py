"""Finds what an NPU needs and this machine lacks: `whisper-npu doctor`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli

EPILOG = """\
exit codes:
  0  --device NPU runs here
  2  the command line is wrong
  3  --device NPU would exit with code 3 here; the first failed line says why, and how to mend it
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "doctor",
        description="Check everything that an Intel NPU needs, from the hardware to a small graph, "
        "say how to get the missing parts, and name three commands to begin with on this machine.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for programs, instead of lines"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("/"),
        help="read the machine's files below this folder, for example a mounted disk (default: /)",
    )
    return parser


def check(arguments: argparse.Namespace) -> int:
    """Diagnose this machine; returns the exit code."""
    from whisper_npu.model_search import local_models  # noqa: PLC0415
    from whisper_npu.npu.doctor import diagnose, installed_distributions  # noqa: PLC0415
    from whisper_npu.npu.doctor_engine import OpenVINOEngine  # noqa: PLC0415
    from whisper_npu.npu.first_commands import first_commands  # noqa: PLC0415
    from whisper_npu.npu.host import Host  # noqa: PLC0415

    if not arguments.root.is_dir():
        raise UsageError(f"--root {arguments.root}: no such folder; name where a system is mounted")
    root = arguments.root if arguments.root != Path("/") else Path(Path.cwd().anchor)
    diagnosis = diagnose(Host(root), OpenVINOEngine(), installed_distributions)
    models = [model.name for model in local_models()]
    commands = first_commands(
        models, cli.DEFAULT_MODEL, installed_distributions(), has_npu=diagnosis.usable
    )
    if arguments.json:
        report = {**asdict(diagnosis), "commands": [asdict(command) for command in commands]}
        print(json.dumps(report, indent=2))
    else:
        for finding in diagnosis.findings:
            print(f"{finding.status:<7} {finding.name}: {finding.detail}")
            if finding.fix:
                print(f"        -> {finding.fix}")
        print(diagnosis.verdict)
        print("\nto begin with on this machine:")
        width = max(len(command.line) for command in commands)
        for command in commands:
            print(f"  {command.line:<{width}}  # {command.purpose}")
    return cli.EXIT_OK if diagnosis.usable else cli.EXIT_NO_MODEL


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(check, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
