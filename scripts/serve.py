"""Serves models over HTTP: `whisper-npu serve`, `python scripts/serve.py`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from whisper_npu import model_search
from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.choices import PRECISIONS
from whisper_npu.scripts.common import cli, console
from whisper_npu.scripts.common.decoding_options import add_variant

KEY_VARIABLE = "WHISPER_NPU_API_KEY"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

EPILOG = f"""\
examples:
  whisper-npu serve                                         # tiny.en on http://127.0.0.1:8000
  whisper-npu serve --model base --model tiny.en            # two models; whisper-1 is base
  whisper-npu serve --model whisper-large=models/large      # a name of your own
  {KEY_VARIABLE}=secret whisper-npu serve --host 0.0.0.0 --ssl-certfile a.pem --ssl-keyfile a.key

Then, from another terminal:
  curl http://127.0.0.1:8000/v1/audio/transcriptions -F file=@talk.mp3 -F model=whisper-1
  curl http://127.0.0.1:8000/v1/audio/transcriptions -F file=@talk.mp3 -F model=whisper-1 \\
    -F response_format=srt
  curl -N http://127.0.0.1:8000/v1/audio/transcriptions -F file=@talk.mp3 -F model=whisper-1 \\
    -F stream=true

or from Python, with OpenAI's client:
  client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="secret")
  print(client.audio.transcriptions.create(file=open("talk.mp3", "rb"), model="whisper-1").text)

/docs describes every field and answer, /health decodes a second of audio, /metrics is for
Prometheus. Ctrl-C or SIGTERM ends the server: requests that have begun are finished, within --grace
seconds. A second Ctrl-C ends it at once. docs/server.md tells more.

exit codes:
  0  it was told to end
  2  the command line is wrong, or the address is taken
  3  a model or the device cannot be used
130  a second Ctrl-C
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "serve",
        description="Serve speech recognition over HTTP, with OpenAI's audio API.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    models = parser.add_argument_group("models and device")
    models.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="[NAME=]DIR",
        help="model folder, or the name of a model, which is exported on first use. Requests name "
        "it by its folder's name, or by NAME; whisper-1 means the first model. Can be repeated "
        f"(default: {cli.DEFAULT_MODEL})",
    )
    add_variant(models)
    models.add_argument(
        "--device",
        type=cli.device,
        default="CPU",
        help="device that computes: CPU, GPU, NPU, NPU_EMULATED, or AUTO, which measures and takes "
        "the fastest; never replaced by another (default: %(default)s)",
    )
    models.add_argument(
        "--precision",
        default="auto",
        type=cli.precision(*PRECISIONS),
        choices=PRECISIONS,
        help="number format of the computation; see `whisper-npu transcribe --help` "
        "(default: %(default)s)",
    )
    models.add_argument(
        "--threads",
        type=int,
        default=0,
        help="number of processor threads; 0 is one per core (default: %(default)s)",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 is every address of this machine "
        "(default: %(default)s, which other machines cannot reach)",
    )
    network.add_argument(
        "--port", type=_port, default=8000, help="port; 0 takes a free one (default: %(default)s)"
    )
    network.add_argument(
        "--api-key",
        metavar="KEY",
        help="key that requests must bring as `Authorization: Bearer KEY`. Other users of this "
        f"machine can read a command line: better set {KEY_VARIABLE} (default: no key)",
    )
    network.add_argument("--ssl-certfile", type=Path, metavar="FILE", help="certificate for TLS")
    network.add_argument("--ssl-keyfile", type=Path, metavar="FILE", help="its private key")
    network.add_argument("--ssl-keyfile-password", metavar="TEXT", help="password of that key")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-upload",
        default="1G",
        metavar="SIZE",
        help="largest request, such as 25M or 2G (default: %(default)s)",
    )
    limits.add_argument(
        "--max-uploads",
        type=int,
        default=16,
        metavar="N",
        help="requests that upload at the same time (default: %(default)s)",
    )
    limits.add_argument(
        "--max-active",
        type=int,
        default=16,
        metavar="N",
        help="requests that are decoded at the same time; their windows share batches "
        "(default: %(default)s)",
    )
    limits.add_argument(
        "--max-queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that may wait beside these; further ones get status 429 "
        "(default: %(default)s)",
    )
    limits.add_argument(
        "--max-sessions",
        type=int,
        default=32,
        metavar="N",
        help="live sessions over the WebSocket at the same time; the next one gets status 429 "
        "(default: %(default)s)",
    )
    limits.add_argument(
        "--max-duration",
        type=float,
        default=43_200,
        metavar="SECONDS",
        help="longest recording (default: %(default)s)",
    )
    limits.add_argument(
        "--max-seconds",
        type=float,
        default=3600,
        metavar="SECONDS",
        help="longest time to decode a recording (default: %(default)s)",
    )
    limits.add_argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="folder for uploads while they are decoded. Choose a disk: /tmp is often in memory "
        "(default: the folder in TMPDIR, else /var/tmp)",
    )
    limits.add_argument(
        "--grace",
        type=int,
        default=60,
        metavar="SECONDS",
        help="time for the requests that have begun, when the server ends (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="least level of messages; info has a line for every request, without its text "
        "(default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return int(text)


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code."""
    try:
        from whisper_npu.server import config, run  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UsageError(
            f"the server needs {error.name}: pip install 'whisper-npu[server]'"
        ) from None
    # An empty key is refused: it is a variable that was not set, on a server that should have one.
    key = os.environ.get(KEY_VARIABLE) if arguments.api_key is None else arguments.api_key
    if key is not None:
        config.require_key(key, KEY_VARIABLE if arguments.api_key is None else "--api-key")
    given = {
        "upload_bytes": config.parse_size(arguments.max_upload),
        "uploads": arguments.max_uploads,
        "active": arguments.max_active,
        "queue": arguments.max_queue,
        "sessions": arguments.max_sessions,
        "audio_seconds": arguments.max_duration,
        "work_seconds": arguments.max_seconds,
    }
    served = config.ServerConfig(
        models=config.parse_models(arguments.models or [cli.DEFAULT_MODEL]),
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        variant=arguments.variant,
        api_key=key,
        limits=config.Limits(**given),
        spool=arguments.spool or config.default_spool(),
    )
    for each in served.models:  # the others are loaded, exported or fetched while it listens
        model_search.require_known(each.path)
    server = run.Server(
        served,
        run.Listener(
            host=arguments.host,
            port=arguments.port,
            tls=_tls(arguments),
            grace=arguments.grace,
        ),
        log_level=arguments.log_level,
    )
    if key is None and arguments.host not in _LOOPBACK:
        console.warning(
            f"every machine that reaches {arguments.host} can use this server: it has "
            f"no key; set {KEY_VARIABLE}"
        )
    everywhere = " and at every other address of this machine" if server.is_everywhere else ""
    print(
        f"listening: open {server.address} in a browser{everywhere}; "
        f"{server.address}/docs describes the API",
        file=sys.stderr,
    )
    server.serve_until_told()
    return cli.EXIT_OK


def _tls(arguments: argparse.Namespace) -> dict[str, object]:
    """Uvicorn's options for TLS; none without a certificate.

    Raises:
        UsageError: there is a key without a certificate, or a file cannot be read.
    """
    given = {
        name: getattr(arguments, name)
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_keyfile_password")
        if getattr(arguments, name) is not None
    }
    if given and arguments.ssl_certfile is None:
        raise UsageError("TLS needs a certificate: give --ssl-certfile")
    for name in given.keys() - {"ssl_keyfile_password"}:
        try:
            given[name].open("rb").close()
        except OSError as error:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {given[name]}: {error.strerror or error}") from None
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(serve, build_parser(), argv, handles_signals=True)


if __name__ == "__main__":
    cli.be_process(main)
