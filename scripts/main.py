"""The console command `whisper-npu`: each subcommand is one of the scripts beside this file."""

import sys
from collections.abc import Sequence
from importlib import import_module

from whisper_npu.scripts.common import console
from whisper_npu.scripts.common.cli import be_process
from whisper_npu.scripts.common.command_line import EXIT_USAGE, suggestion
from whisper_npu.version import __version__

COMMANDS = {
    "transcribe": ("transcribe", "audio and video files to text"),
    "stream": ("stream", "live audio from a pipe to text, as it is spoken"),
    "export": ("export_onnx", "a Whisper checkpoint to a verified ONNX model folder"),
    "wer": ("evaluate_wer", "the word error rate and speed of models on references"),
    "benchmark": ("benchmark_rtf", "the speed of a model, stage by stage"),
    "benchmark-kv-cache": ("benchmark_kv_cache", "what each kind of decoder cache costs and saves"),
    "benchmark-peers": ("benchmark_peers", "speed and accuracy beside other recognisers"),
    "compile": ("compile_model", "a model's static graphs for the NPU, compiled ahead of time"),
    "cache": ("cache", "the compiled graphs that make later starts fast"),
    "doctor": ("check_npu", "what the NPU needs, what is missing here, and how to get it"),
    "selftest": ("selftest", "whether a device decodes as the model should"),
    "fetch-assets": ("fetch_assets", "the built-in models and the sample recording"),
}


def usage() -> str:
    """What `whisper-npu --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: whisper-npu COMMAND [OPTIONS]",
            "",
            "Whisper speech recognition on Intel NPUs, CPUs and GPUs.",
            "",
            "commands:",
            *lines,
            "",
            "`whisper-npu COMMAND --help` explains each; `--version` prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand named by the first argument; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        hint = suggestion(arguments[0], COMMANDS)
        console.error(f"there is no command {arguments[0]}{hint} (see `whisper-npu --help`)")
        return EXIT_USAGE
    module = import_module(f"whisper_npu.scripts.{COMMANDS[arguments[0]][0]}")
    code: int = module.main(arguments[1:])
    return code


def program() -> None:
    """The console command."""
    be_process(main)


if __name__ == "__main__":
    program()
