"""Shows and clears the cache of compiled graphs: `whisper-npu cache [list|clear] [MODEL]`."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.tables import text_table

if TYPE_CHECKING:
    from whisper_npu.runtime.engines.compile_cache import CacheEntry

_OF_STATIC_SHAPES = re.compile(r"_\d+$")  # of frames, tokens or rows
# Parts of a key that users have a word for; the first are always shown.
_ALWAYS = {"INFERENCE_NUM_THREADS": "threads", "NUM_STREAMS": "streams"}
_WORDS = {**_ALWAYS, "openvino": "OpenVINO", "driver": "driver", "compiler": "compiler"}

EPILOG = """\
The cache is a folder in $WHISPER_NPU_CACHE, or else in the user's cache directory. It holds at
most $WHISPER_NPU_CACHE_LIMIT GiB (default 8, or one model's graphs if these are larger); when it is
full, the graphs that were used longest ago are deleted. You can delete it at any time: graphs are
then compiled again at the next start. The column `settings` says what else a graph was
compiled for: a number of threads, or of streams, which decode windows at the same time.

examples:
  whisper-npu cache                        list the compiled graphs of each model
  whisper-npu cache clear models/tiny.en   delete the graphs of one model (a folder, or its name)
  whisper-npu cache clear                  delete all graphs, and the remembered digests of files
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "cache",
        description="List or clear the compiled graphs that make later starts fast.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", "clear"],
        default="list",
        help="list the graphs, or delete them to free disk space (default: %(default)s)",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="list or clear the graphs of one model only: its folder, or its name (default: all)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the list as one JSON object, for programs"
    )
    return parser


def cache(arguments: argparse.Namespace) -> int:
    """List or clear the cache; returns the exit code."""
    from whisper_npu.runtime.engines.compile_cache import default_cache  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.digests import default_memory  # noqa: PLC0415

    found = default_cache()
    model: str | None = arguments.model
    entries = [entry for entry in found.entries() if model is None or entry.is_of(model)]
    if model is not None and not entries:
        raise UsageError(f"{found.folder} holds no graphs of {model}; see `whisper-npu cache`")
    if arguments.action == "clear":
        n_deleted = found.clear() if model is None else found.delete(entries)
        if model is None:
            default_memory().forget()
        print(f"{n_deleted} files deleted from {found.folder}")
        return cli.EXIT_OK
    if arguments.json:
        content = {
            "folder": str(found.folder),
            "limit": found.limit,
            "entries": [_row(entry) for entry in entries],
        }
        print(json.dumps(content, indent=2))
        return cli.EXIT_OK
    _print_by_model(entries)
    total = sum(entry.size for entry in entries)
    limit = found.limit / (1 << 30)
    print(f"{len(entries)} graphs, {total / 1e6:.1f} MB of {limit:g} GiB in {found.folder}")
    return cli.EXIT_OK


def _row(entry: "CacheEntry") -> dict[str, object]:
    return {
        "file": entry.path.name,
        "bytes": entry.size,
        "used": entry.used,
        "contents": None if entry.contents is None else asdict(entry.contents),
        "key": entry.key,
    }


def _print_by_model(entries: "Sequence[CacheEntry]") -> None:
    """Print each model's path, and below it one line per graph, the last used graph first."""
    by_model: dict[str, list[CacheEntry]] = {}
    for entry in reversed(entries):
        model = "damaged, or of another version" if entry.contents is None else entry.contents.model
        by_model.setdefault(model, []).append(entry)
    settings = _settings(entries)
    now = time.time()
    header = ("  graph", "shapes", "precision", "device", "settings", "size", "used")
    for model, its in by_model.items():
        size = sum(entry.size for entry in its)
        print(f"{_printable(model)}  ({size / 1e6:.1f} MB)")
        rows = [
            (
                *map(_printable, (*_looks(entry), settings[entry.path])),
                f"{entry.size / 1e6:.1f} MB",
                f"{_age(now - entry.used)} ago",
            )
            for entry in its
        ]
        print(text_table(header, rows, names=5))


def _looks(entry: "CacheEntry") -> tuple[str, str, str, str]:
    """The graph, whether its shapes are fixed, its precision and its device."""
    emulation = "_EMULATED" if "NPUW_DEVICES" in entry.key.get("options", {}) else ""
    device = f"{entry.key.get('device', '')}{emulation} {entry.key.get('device_name', '')}".strip()
    if entry.contents is None:
        return "  ?", "?", "?", device
    graph = entry.contents.graph
    shapes = "static" if _OF_STATIC_SHAPES.search(graph) else "dynamic"
    return f"  {graph}", shapes, entry.contents.precision, device


def _settings(entries: "Sequence[CacheEntry]") -> dict[Path, str]:
    """Threads and streams, and what else differs between entries that look alike otherwise.

    Returns:
        a text for each entry's file; no two that look alike have the same.
    """
    alike: dict[object, list[CacheEntry]] = {}
    for entry in entries:
        model = None if entry.contents is None else entry.contents.model
        alike.setdefault((model, *_looks(entry)), []).append(entry)
    found: dict[Path, str] = {}
    for its in alike.values():
        keys = [{**entry.key, **entry.key.get("options", {})} for entry in its]
        names = sorted({name for key in keys for name in key} - {"options", *_ALWAYS})
        names = [name for name in names if len({str(key.get(name)) for key in keys}) > 1]
        known = [name for name in names if name in _WORDS]
        for shown in ([*_ALWAYS, *known], [*_ALWAYS, *names]):
            texts = [_words(key, shown) for key in keys]
            if len(set(texts)) == len(texts):
                break
        else:  # the texts are shortened
            texts = [f"file {entry.path.name[:8]}" for entry in its]
        found.update(zip((entry.path for entry in its), texts, strict=True))
    return found


def _words(key: dict[str, Any], names: Sequence[str]) -> str:
    values = ((_WORDS.get(name, name), str(key[name])) for name in names if name in key)
    return ", ".join(f"{name} {value[:12]}" for name, value in values) or "default"


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _printable(text: str) -> str:
    """`text` with its control characters escaped: names of folders may hold any character."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(cache, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
