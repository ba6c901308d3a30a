"""The scripts for shells: they name every command, and the shells accept them."""

import shutil
import subprocess

import pytest

from whisper_npu.scripts import completion, main

BASH = """
source {script}
words() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _shtab_whisper_npu
    echo "${{COMPREPLY[@]}}"
}}
words whisper-npu tr
words whisper-npu transcribe --lang
words whisper-npu transcribe --precision ''
words whisper-npu transcribe ta
words whisper-npu transcribe --output-dir t
words whisper-npu completion ''
"""


@pytest.fixture
def script(tmp_path, capsys, request):
    """The script of a shell, as a file."""
    shell = request.param
    assert main.main(["completion", shell]) == 0
    path = tmp_path / f"script.{shell}"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.mark.parametrize("script", completion.SHELLS, indirect=True)
def test_every_command_is_in_it(script):
    text = script.read_text(encoding="utf-8")
    assert [name for name in main.COMMANDS if name not in text] == []
    assert "word-timestamps" in text


@needs("bash")
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script, tmp_path):
    (tmp_path / "talk.mp3").touch()
    (tmp_path / "texts").mkdir()
    done = subprocess.run(
        ["bash", "-c", BASH.format(script=script)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "transcribe",
        "--language --languages",
        "auto f32 bf16 f16 int8",
        "talk.mp3",
        "texts",
        " ".join(completion.SHELLS),
    ]


@needs("zsh")
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_reads_it(script):
    subprocess.run(["zsh", "-n", script], check=True)


@needs("fish")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script, tmp_path):
    (tmp_path / "talk.mp3").touch()
    lines = []
    for words in ("whisper-npu tr", "whisper-npu transcribe --lang", "whisper-npu transcribe ta"):
        line = f"source {script}; complete -C '{words}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", line],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        lines += [found.split("\t")[0] for found in done.stdout.splitlines()]
    assert lines == ["transcribe", "--language", "--languages", "talk.mp3"]


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main.main(["completion", "csh"])
    assert end.value.code == 2
    assert "'csh' is none of bash, zsh, fish, powershell" in capsys.readouterr().err
