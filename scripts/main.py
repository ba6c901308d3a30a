"""The console command `whisper-npu`: each subcommand is one of the scripts beside this file."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from whisper_npu.scripts.common import console
from whisper_npu.scripts.common.cli import be_process
from whisper_npu.scripts.common.command_line import EXIT_USAGE, program_name, suggestion
from whisper_npu.version import __version__

COMMANDS = {
    "transcribe": ("transcribe", "transcribe audio and video files"),
    "corpus": ("corpus", "transcribe thousands of hours on Ray, every recording exactly once"),
    "stream": ("stream", "transcribe live speech from a pipe"),
    "serve": ("serve", "serve models over HTTP with OpenAI's audio API"),
    "wyoming": ("serve_wyoming", "serve a model to Home Assistant over the Wyoming protocol"),
    "export": ("export_onnx", "export a Whisper checkpoint to a verified ONNX model folder"),
    "pull": ("pull", "fetch a model, so that later starts need no network"),
    "models": ("models", "list the models on this machine"),
    "wer": ("evaluate_wer", "measure the word error rate and speed of models"),
    "benchmark": ("benchmark_rtf", "measure the speed of a model, stage by stage"),
    "benchmark-kv-cache": ("benchmark_kv_cache", "compare the kinds of key/value cache"),
    "benchmark-peers": ("benchmark_peers", "compare speed and accuracy with other recognisers"),
    "benchmark-server": ("benchmark_server", "measure a server's callers, alone and together"),
    "compile": ("compile_model", "make and compile a model's static graphs for the NPU"),
    "cache": ("cache", "list or delete the compiled graphs that make later starts fast"),
    "doctor": ("check_npu", "find what an NPU needs and this machine lacks"),
    "verify": ("verify", "verify a model folder: files, caches, engines, checkpoint"),
    "selftest": ("selftest", "check that a device decodes correctly"),
    "fetch-assets": ("fetch_assets", "download the built-in models and the sample recording"),
    "completion": ("completion", "print a script that completes commands and options in a shell"),
}

# Names of the same things elsewhere, which no likeness of letters leads to.
_ELSEWHERE = {
    "check": "doctor",
    "convert": "export",
    "download": "pull",
    "evaluate": "wer",
    "list": "models",
    "live": "stream",
    "listen": "stream",
    "test": "selftest",
}


def usage() -> str:
    """The text that `whisper-npu --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program_name('COMMAND')} [OPTIONS]",
            "",
            "Whisper speech recognition on Intel NPUs, CPUs and GPUs.",
            "",
            "commands:",
            *lines,
            "",
            f"`{program_name('COMMAND')} --help` explains a command; `-V` or `--version` prints",
            "the version. `whisper-npu doctor` names the commands to begin with on this machine.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand named by the first argument; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in {"-V", "--version"}:
        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        console.error(_no_command(arguments[0]))
        return EXIT_USAGE
    module = import_module(f"whisper_npu.scripts.{COMMANDS[arguments[0]][0]}")
    code: int = module.main(arguments[1:])
    return code


def _no_command(name: str) -> str:
    """The message for a command that does not exist; it names the one that was probably meant."""
    if name.startswith("-"):
        hint = suggestion(name, ("--help", "--version"), likeness=0.8)
        message = f"there is no option {name}{hint or ': options follow the name of a command'}"
    elif Path(name).exists():
        message = f"there is no command {name}: did you mean {program_name('transcribe')} {name}?"
    elif name in _ELSEWHERE:
        message = f"there is no command {name}: did you mean {_ELSEWHERE[name]}?"
    else:
        message = f"there is no command {name}{suggestion(name, COMMANDS)}"
    return f"{message} (see `{program_name('--help')}`)"


def program() -> None:
    """The console command `whisper-npu`; ends the process with the exit code."""
    be_process(main)


if __name__ == "__main__":
    program()
