"""Commands of the README and the documentation that are quick here run, and succeed."""

import io
import shutil
import sys
from collections import Counter

import pytest
from doc_blocks import commands

from whisper_npu.runtime.engines.compile_cache import LIMIT_VARIABLE
from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE
from whisper_npu.scripts.main import main

pytestmark = pytest.mark.slow

# Why a command is parsed only (`test_doc_commands`), by its words.
PARSED_ONLY = {
    "is for an NPU": lambda words: (
        words[-2:] == ("--device", "NPU") or words[0] in ("compile", "doctor")
    ),
    "exports, which takes a minute": lambda words: words[0] == "export" or "--against" in words,
    "decodes in many ways, which takes a minute": lambda words: words[0] == "verify",
    "asks the network": lambda words: words[0] == "pull",
    "serves until it is stopped": lambda words: words[0] in ("serve", "wyoming"),
    "starts a cluster": lambda words: words[0] == "corpus",
    "measures for minutes": lambda words: words[0].startswith("benchmark"),
    "names a folder of another exporter, or of other recordings": lambda words: (
        "--variant" in words or any(word.startswith("robustness/") for word in words)
    ),
}
RUNS = list(
    {
        command.words: command
        for command in commands()
        if command.words[0] == "whisper-npu"
        and not any(why(command.words[1:]) for why in PARSED_ONLY.values())
    }.values()
)
# A random model invents text, or repeats itself.
INVENTS = {"base"}


@pytest.fixture(scope="module")
def _kept_graphs(tmp_path_factory):
    """Compiled graphs are kept from one command to the next, as they are for a user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("graphs")
        from whisper_npu.runtime.model_folder.cache_folder import cache_folder

        (folder / "assets").symlink_to((cache_folder() / "assets").resolve())
        patch.setenv(CACHE_VARIABLE, str(folder))
        patch.setenv(LIMIT_VARIABLE, "2")
        yield


@pytest.fixture(scope="module")
def _base(desk, tiny_folder):
    """A tiny random model in place of base."""
    shutil.copytree(tiny_folder, desk / "models" / "base")


@pytest.mark.usefixtures("_base", "_kept_graphs")
@pytest.mark.parametrize("command", RUNS, ids=str)
def test_it_runs(command, at_desk, beckett, monkeypatch, capsys):
    if command.piped:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(beckett.read_bytes())))
    if command.words[1] == "cache":
        main(["transcribe", "talk.mp3"])  # so that there are graphs
    assert main(command.words[1:]) == 0, capsys.readouterr().err
    if command.words[1] in ("transcribe", "stream") and not INVENTS & set(command.words):
        texts = [path.read_text() for path in at_desk.rglob("*.srt")]
        said = "".join([capsys.readouterr().out, *texts]).lower()
        assert "fail better" in said
    assert not list(at_desk.rglob("*.partial*"))


def test_most_kinds_of_commands_run():
    assert Counter(command.words[1] for command in RUNS).keys() >= {
        "transcribe",
        "stream",
        "models",
        "cache",
        "selftest",
        "wer",
    }
