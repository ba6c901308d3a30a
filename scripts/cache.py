"""Shows and clears the cache of compiled graphs: `whisper-npu cache list|clear`."""

import argparse
import json
import time
from collections.abc import Sequence

from whisper_npu.scripts import cli

EPILOG = """\
The cache lies below $WHISPER_NPU_CACHE, else in the user's cache directory, and holds at most
$WHISPER_NPU_CACHE_LIMIT GiB (default 8); what was used longest ago goes first. It can be deleted at
any time: graphs are then compiled again at the next start.
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "cache",
        description="List or clear the compiled graphs that make later starts fast.",
        epilog=EPILOG,
    )
    parser.add_argument("action", choices=["list", "clear"])
    parser.add_argument("--json", action="store_true", help="list as one JSON object")
    return parser


def cache(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; returns the exit code."""
    from whisper_npu.runtime.compile_cache import default_cache  # noqa: PLC0415

    found = default_cache()
    if arguments.action == "clear":
        print(f"{found.clear()} files deleted from {found.folder}")
        return cli.EXIT_OK
    entries = found.entries()
    total = sum(entry.size for entry in entries)
    if arguments.json:
        rows = [
            {
                "file": entry.path.name,
                "bytes": entry.size,
                "used": entry.used,
                "label": entry.label,
                "key": entry.key,
            }
            for entry in entries
        ]
        content = {"folder": str(found.folder), "limit": found.limit, "entries": rows}
        print(json.dumps(content, indent=2))
        return cli.EXIT_OK
    for entry in reversed(entries):
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        device = entry.key.get("device_name") or entry.key.get("device", "")
        print(f"{used}  {entry.size / 1e6:8.1f} MB  {entry.label or 'damaged'}  {device}")
    limit = found.limit / (1 << 30)
    print(f"{len(entries)} graphs, {total / 1e6:.1f} MB of {limit:g} GiB in {found.folder}")
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(cache, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
