"""Builds the documentation as pages that a browser shows without a network."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from whisper_npu.scripts.common import cli

ROOT = Path(__file__).resolve().parent.parent
EPILOG = f"""\
A broken link or anchor, a page that no menu lists, and a menu entry without a page are errors.
The extra [docs] has what this program needs; npm fetches two scripts once.

{cli.EXIT_CODES}"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "build_docs",
        description="Build the documentation of this checkout as HTML. The pages can be read from "
        "a folder, without a server and without a network.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=ROOT / "build" / "docs",
        metavar="DIR",
        help="folder that is replaced; the first page is DIR/site/index.html (default: build/docs)",
    )
    return parser


def build(arguments: argparse.Namespace) -> int:
    """Build the pages; returns the exit code."""
    from whisper_npu.scripts.documentation.site import build_site  # noqa: PLC0415 - loads parsers

    print(build_site(ROOT, arguments.output))
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(build, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
