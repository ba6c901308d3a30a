"""Lists the models on this machine: `whisper-npu models`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from whisper_npu.scripts.common import cli

EPILOG = """\
Looked at: `models` of this folder and of the checkout, models that were exported on first use
($WHISPER_NPU_CACHE), and the Hugging Face hub's cache ($HF_HOME). The name works as --model of
every command. "verified" means that the export, or `whisper-npu verify --against`, compared the
best variant with the checkpoint.

examples:
  whisper-npu models
  whisper-npu models --json
"""


def build_parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        "models", description="List the models that are on this machine.", epilog=EPILOG
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON, for programs")
    return parser


def models(arguments: argparse.Namespace) -> int:
    """List the models; returns the exit code."""
    from whisper_npu.model_search import local_models  # noqa: PLC0415

    found = local_models()
    if arguments.json:
        rows = [{**asdict(model), "path": str(model.path)} for model in found]
        print(json.dumps(rows, indent=2))
        return cli.EXIT_OK
    if not found:
        print("there is no model yet: whisper-npu pull tiny.en")
        return cli.EXIT_OK
    width = max(len(model.name) for model in found)
    for model in found:
        facts = [model.form, f"{model.size / 1e6:.0f} MB"]
        facts.append(model.precision or ", ".join(model.variants))
        if model.is_verified:
            facts.append("verified")
        print(f"{model.name:<{width}}  {'; '.join(facts)}  {model.path}")
    return cli.EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    return cli.run(models, build_parser(), argv)


if __name__ == "__main__":
    cli.be_process(main)
