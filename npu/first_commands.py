"""Names the commands to begin with on a machine, for the end of the doctor's report."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command line and its purpose, each a text of one line."""

    line: str
    purpose: str


def first_commands(
    models: Sequence[str], default: str, packages: Collection[str], *, has_npu: bool
) -> tuple[Command, Command, Command]:
    """Choose three commands that work on a machine as it is.

    Args:
        models: names of the models on the machine, the best to begin with first.
        default: the model of commands that name none.
        packages: names of the installed Python packages, in lower case with hyphens.
        has_npu: whether `--device NPU` runs there.
    """
    device = ["--device", "NPU"] if has_npu else []
    if not models:
        model, first = [], f"; fetches {default} first"
    else:
        model, first = ["--model", models[0]] if default not in models else [], ""
    where = "the NPU" if has_npu else "the processor"
    transcribe = ["whisper-npu", "transcribe", "talk.mp3", *model, *device]
    if models:
        name = default if default in models else models[0]
        second = Command(
            shlex.join(["whisper-npu", "selftest", name, *device]),
            f"checks that {where} decodes correctly",
        )
    else:
        second = Command(
            "whisper-npu pull base",
            "fetches a model of 99 languages, so that later starts need no network",
        )
    if "fastapi" in packages:
        third = Command("whisper-npu serve", "serves a page and OpenAI's audio API at port 8000")
    else:
        third = Command(
            shlex.join(
                ["whisper-npu", "transcribe", "recordings/", "-o", "texts", *model, *device]
            ),
            "writes texts and subtitles of a whole folder",
        )
    return (
        Command(shlex.join(transcribe), f"transcribes a recording on {where}{first}"),
        second,
        third,
    )
