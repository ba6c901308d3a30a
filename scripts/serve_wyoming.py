"""Serves a model to Home Assistant: `whisper-npu wyoming`, `python scripts/serve_wyoming.py`.

The file is not called `wyoming.py`: run as a script, it would hide the library of that name.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli
from whisper_npu.scripts.common.decoding_options import add_model_options, model_options
from whisper_npu.server.logs import DATE, TIMED
from whisper_npu.server.wyoming.config import DEFAULT_URI, WyomingConfig

if TYPE_CHECKING:
    from whisper_npu.server.wyoming.server import WyomingServer


_ENDING = (signal.SIGINT, signal.SIGTERM)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

EPILOG = """\
examples:
  whisper-npu wyoming                                       # tiny.en on tcp://127.0.0.1:10300
  whisper-npu wyoming --model base --language de --uri tcp://0.0.0.0:10300
  whisper-npu wyoming --model small --device NPU --uri tcp://0.0.0.0:10300 --zeroconf

In Home Assistant: Settings, Devices & services, Add integration, Wyoming Protocol; then the host
and port of this server. Home Assistant's names of rooms and devices reach the decoder as hotwords.

The protocol has no key: let only Home Assistant reach the port. Ctrl-C or SIGTERM ends the server;
an utterance that is being decoded is finished. docs/server.md tells more.

exit codes:
  0  it was told to end
  2  the command line is wrong, or the address is taken
  3  the model or the device cannot be used
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "wyoming",
        description="Serve speech recognition over the Wyoming protocol, for Home Assistant.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--uri",
        default=DEFAULT_URI,
        help="where to listen: tcp://HOST:PORT, unix://PATH, or stdio:// for one client "
        "(default: %(default)s, which other machines cannot reach)",
    )
    server.add_argument(
        "--language",
        help="language of requests that name none: a code or an English name (default: detected)",
    )
    server.add_argument(
        "--streaming",
        action="store_true",
        help="decode while audio arrives, and send the text in parts. It takes more work, and has "
        "a few more errors; without it, an utterance is decoded once, at its end",
    )
    server.add_argument(
        "--max-connections",
        type=cli.positive,
        default=32,
        metavar="N",
        help="most connections at the same time (default: %(default)s)",
    )
    server.add_argument(
        "--max-duration",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest utterance (default: %(default)s)",
    )
    server.add_argument(
        "--zeroconf",
        nargs="?",
        const="whisper-npu",
        metavar="NAME",
        help="let Home Assistant find the server by this name (default: whisper-npu); needs "
        "`pip install 'wyoming[zeroconf]'`",
    )
    add_model_options(parser)
    return parser


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    try:
        from whisper_npu.server.wyoming.server import WyomingServer  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            f"this server needs {error.name}: pip install 'whisper-npu[wyoming]'"
        ) from None
    from whisper_npu.api import load_model  # noqa: PLC0415 - after the command line is checked

    config = WyomingConfig(
        uri=arguments.uri,
        name=_name(arguments.model),
        language=arguments.language,
        is_live=arguments.streaming,
        connections=arguments.max_connections,
        audio_seconds=arguments.max_duration,
    )
    if arguments.zeroconf is not None:
        _require_reachable(arguments.uri)
    logging.basicConfig(format=f"{TIMED}%(levelname)s: %(message)s", datefmt=DATE)
    logging.getLogger("whisper_npu").setLevel(logging.INFO)
    folder = cli.find_model(arguments.model, arguments.variant)
    with load_model(folder, **model_options(arguments)) as model:
        server = WyomingServer(model, config)
        asyncio.run(_serve(server, arguments))
    return cli.EXIT_OK


def _name(model: str) -> str:
    """The name of a model in requests: that of its folder, also of `.`."""
    return Path(model).expanduser().absolute().name


async def _serve(server: "WyomingServer", arguments: argparse.Namespace) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        for number in _ENDING:  # a second signal ends the process at once
            loop.remove_signal_handler(number)
        told.set()

    for number in _ENDING:
        with suppress(NotImplementedError):  # on Windows; Ctrl-C ends the process there
            loop.add_signal_handler(number, end)
    if arguments.zeroconf is not None:
        await _announce(arguments.zeroconf, arguments.uri)
    await server.serve(told, lambda: _say_ready(server))


def _say_ready(server: "WyomingServer") -> None:
    print(f"listening on {server.shown_uri}", file=sys.stderr, flush=True)


def _require_reachable(uri: str) -> None:
    """Refuse to announce a server that no other machine can reach.

    Raises:
        UsageError: none can.
    """
    parts = urlsplit(uri)
    if parts.scheme != "tcp" or parts.hostname in _LOOPBACK or not parts.port:
        raise UsageError(
            "--zeroconf announces a port that other machines reach: give --uri tcp://0.0.0.0:10300"
        )


async def _announce(name: str, uri: str) -> None:
    """Let Home Assistant find the server until the process ends.

    Raises:
        UsageError: a library is missing.
    """
    parts = urlsplit(uri)
    assert parts.port is not None  # checked by `_require_reachable`
    logging.getLogger("wyoming.zeroconf").setLevel(logging.CRITICAL + 1)  # it tells it itself
    try:
        from wyoming.zeroconf import HomeAssistantZeroconf  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("--zeroconf needs: pip install 'wyoming[zeroconf]'") from None
    host = None if parts.hostname in ("0.0.0.0", "::") else parts.hostname
    await HomeAssistantZeroconf(parts.port, name, host).register_server()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(serve, build_parser(), argv, handles_signals=True)


if __name__ == "__main__":
    cli.be_process(main)
