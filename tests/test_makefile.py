"""What `make` would do: nothing here runs a recipe."""

import re
import shutil
import subprocess

import pytest
from repository import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def plan(*arguments):
    """The lines that make would run, if nothing were made yet."""
    command = ["make", "--dry-run", "--always-make", "AUDIO=x.wav", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.splitlines()


def test_a_line_says_what_takes_long_before_it_begins():
    lines = plan("transcribe")
    told = "".join("T" if line.startswith("echo ") else "." for line in lines)
    for step in ("pip install", "fetch_assets.py$", "export_onnx.py", "transcribe.py"):
        place = next(i for i, line in enumerate(lines) if re.search(step, line))
        assert "T" in told[max(0, place - 2) : place], lines[place]
    assert not any("://" in line for line in lines)


@pytest.mark.parametrize(
    ("precision", "folder"),
    [
        ("f32", "models/tiny.en"),
        ("fp32", "models/tiny.en"),
        ("f16", "models/tiny.en-fp16"),
        ("fp16", "models/tiny.en-fp16"),
        ("int8", "models/tiny.en-int8"),
    ],
)
def test_a_precision_in_either_spelling(precision, folder):
    (line,) = (line for line in plan("help", f"PRECISION={precision}") if "OUT=" in line)
    assert line.endswith(f'OUT={folder}"')
