"""Every command that the README and the documentation show is one that the parsers accept."""

import re
from collections import Counter
from configparser import ConfigParser
from difflib import get_close_matches
from importlib import import_module

import pytest
from doc_blocks import OTHERS, OURS, blocks, commands, inline_code
from repository import ROOT

from whisper_npu.scripts.common.cli import spell
from whisper_npu.scripts.documentation.command_reference import parsers
from whisper_npu.scripts.main import COMMANDS
from whisper_npu.version import __version__

WHEEL = rf"(?:dist/)?whisper_npu-{re.escape(__version__)}-py3-none-any\.whl"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Options of other programs.
FOREIGN = {
    "--disable-stateful",  # optimum-intel
    "--durations",  # pytest
}
# Why blocks are not run, and how many there are of each.
NOT_RUN = {
    "needs a cluster": 1,
    "needs a microphone": 1,
    "needs a microphone and a camera": 1,
    "needs the other library": 2,
    "needs Windows": 1,
}
PARSERS = {name: parser for name, _, parser in parsers()}
FOUND = list(commands())


def parser_and_arguments(words):
    """The parser of a command of ours, and its arguments."""
    if words[0] == "whisper-npu":
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in PARSERS else words[1]
        return PARSERS[name], words[1 + len(name.split()) :]
    script = re.fullmatch(r"scripts/(\w+)\.py", words[1])
    assert script, "only scripts/*.py are run by python"
    return import_module(f"whisper_npu.scripts.{script[1]}").build_parser(), words[2:]


@pytest.mark.parametrize("command", FOUND, ids=str)
def test_it_is_accepted(command, capsys):
    words = command.words
    if words[0] in ("whisper-npu", "python"):
        if words[1:] in (("--version",), ("-V",)):
            return
        parser, arguments = parser_and_arguments(words)
        spelled = spell(arguments)
        try:
            parser.check(spelled)
            parser.parse_args(spelled)
        except SystemExit:
            pytest.fail(capsys.readouterr().err)
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
        variables = [word.partition("=")[0] for word in words[1:] if "=" in word]
        assert all(re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE) for name in variables)
    elif words[:2] == ("pip", "install"):
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg", encoding="utf-8")
        extras = {*setup["options.extras_require"]}
        for word in words[2:]:
            match = re.fullmatch(rf"(?:\.|whisper-npu|{WHEEL})(?:\[([\w,]+)\])?", word)
            if match:
                assert set((match[1] or "").split(",")) - {""} <= extras
            else:
                assert word == "openai[realtime]" or "whisper" not in word


def test_there_are_commands_of_every_kind():
    shown = {words[1] for words in (command.words for command in FOUND) if words[0] == OURS[0]}
    assert shown >= {"transcribe", "stream", "serve", "export", "compile", "corpus", "wer"}
    assert {"make", "pip"} <= {command.words[0] for command in FOUND}


def test_no_line_looks_like_a_misspelt_command():
    for block in blocks():
        if block.language in ("", "sh"):
            for line in block.content.splitlines():
                first = (line.split() or [""])[0]
                near = get_close_matches(first, [OURS[0]], cutoff=0.8)
                assert first.strip("`") == OURS[0] or not near, f"{block.place}: {line}"


def test_commands_in_sentences_have_the_options_that_they_name():
    seen = 0
    for page, text in inline_code():
        match = re.match(r"whisper-npu ([a-z][a-z-]*)(?: ([a-z]+))?", text)
        if match:
            assert match[1] in COMMANDS, f"{page}: {text}"
            parser = PARSERS.get(f"{match[1]} {match[2]}", PARSERS[match[1]])
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
                assert option in parser._option_string_actions, f"{page}: {text}"
            seen += 1
    assert seen > 30


def test_options_in_sentences_are_options_of_a_command():
    known = {option for parser in PARSERS.values() for option in parser._option_string_actions}
    for script in (ROOT / "scripts").glob("*.py"):  # those of developers, too
        module = import_module(f"whisper_npu.scripts.{script.stem}")
        if hasattr(module, "build_parser"):
            known |= set(module.build_parser()._option_string_actions)
    seen = 0
    for page, text in inline_code():
        if text.startswith("--"):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
                assert option in known | FOREIGN, f"{page}: {text}"
                seen += 1
    assert seen > 100


def test_what_is_not_run_is_marked_and_counted():
    assert Counter(block.not_run for block in blocks() if block.not_run) == NOT_RUN


def test_blocks_with_commands_of_others_are_marked():
    run = {"curl", "source", "python3"}  # curl by test_server_blocks; the others make a folder
    for command in FOUND:
        if command.words[0] in set(OTHERS) - run:
            assert command.block.not_run, str(command)
