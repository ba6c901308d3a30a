"""Fetches a model from the Hugging Face hub: `whisper-npu pull NAME`."""

import argparse
import sys
from collections.abc import Sequence

from whisper_npu.errors import UsageError
from whisper_npu.scripts.common import cli

EPILOG = """\
A hub id (owner/name) with ONNX graphs or OpenVINO files is fetched as it is: one variant of the
graphs, the tokenizer and the configurations, into the hub's own cache ($HF_HOME). A hub id with a
checkpoint only, and a model's name such as small or turbo, is exported, which needs the extra
[export]. Afterwards the name works as --model of every command, without a network. With
HF_HUB_OFFLINE=1 nothing is asked of the network.

examples:
  whisper-npu pull onnx-community/whisper-small.en
  whisper-npu pull onnx-community/whisper-small.en --variant q4
  whisper-npu pull turbo
  whisper-npu models                       list the models that are here
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "pull", description="Fetch a model, so that later starts need no network.", epilog=EPILOG
    )
    parser.add_argument("name", help="hub id (owner/name), or a model's name")
    parser.add_argument(
        "--variant", help="graphs to fetch: plain, fp16, int8, q4, ... (default: the most exact)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    return parser


def pull(arguments: argparse.Namespace) -> int:
    """Fetch the model, print its folder; returns the exit code."""
    from whisper_npu.export.source import is_hub_id  # noqa: PLC0415

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = None
    if is_hub_id(arguments.name):
        from whisper_npu.model_search import require_hub  # noqa: PLC0415

        folder = require_hub(arguments.name).download_model(
            arguments.name,
            revision=arguments.revision,
            variant=arguments.variant,
            progress=show,
        )
    elif arguments.revision or arguments.variant:
        raise UsageError(f"--revision and --variant are for hub ids; {arguments.name} is none")
    if folder is None and arguments.revision:
        raise UsageError(
            f"{arguments.name} has no graphs at {arguments.revision}: export it with `whisper-npu "
            f"export {arguments.name} --revision {arguments.revision} --output DIR`"
        )
    print(folder or cli.find_model(arguments.name, arguments.variant))
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(pull, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
