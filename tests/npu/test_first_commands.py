"""The commands that the doctor ends with, and that the command line accepts each of them."""

import shlex
from importlib import import_module

import pytest

from whisper_npu.npu.first_commands import first_commands
from whisper_npu.scripts.main import COMMANDS


@pytest.mark.parametrize(
    ("models", "packages", "has_npu", "expected"),
    [
        (
            [],
            {"openvino"},
            False,
            [
                "whisper-npu transcribe talk.mp3",
                "whisper-npu pull base",
                "whisper-npu transcribe recordings/ -o texts",
            ],
        ),
        (
            ["mine", "tiny.en"],
            {"fastapi"},
            True,
            [
                "whisper-npu transcribe talk.mp3 --device NPU",
                "whisper-npu selftest tiny.en --device NPU",
                "whisper-npu serve",
            ],
        ),
        (
            ["my model", "other"],
            set(),
            True,
            [
                "whisper-npu transcribe talk.mp3 --model 'my model' --device NPU",
                "whisper-npu selftest 'my model' --device NPU",
                "whisper-npu transcribe recordings/ -o texts --model 'my model' --device NPU",
            ],
        ),
    ],
)
def test_they_fit_the_machine(models, packages, has_npu, expected):
    commands = first_commands(models, "tiny.en", packages, has_npu=has_npu)
    assert [command.line for command in commands] == expected
    assert ("tiny.en" in commands[0].purpose) == (not models)
    for line in expected:
        _, name, *arguments = shlex.split(line)
        import_module(f"whisper_npu.scripts.{COMMANDS[name][0]}").build_parser().parse_args(
            arguments
        )
