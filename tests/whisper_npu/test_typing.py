"""What a type checker says of programs that use the public API, under mypy's strict mode."""

import pytest
from repository import ROOT

pytest.importorskip("mypy")

PROGRAM = """
import io
from pathlib import Path
from typing import Unpack, assert_type

import numpy as np

from whisper_npu import (
    AudioError,
    LiveTranscriber,
    TranscribeKwargs,
    TranscribeOptions,
    Transcription,
    WhisperModel,
    load_audio,
    load_model,
)


def wrapped(model: WhisperModel, **options: Unpack[TranscribeKwargs]) -> Transcription:
    return model.transcribe("talk.wav", **options).result()


with load_model(Path("tiny.en"), device="NPU", kv_cache="auto", precision="int8") as model:
    with model.transcribe("talk.wav", language="en", task="translate") as stream:
        for segment in stream:
            assert_type(segment.start, float)
    samples = load_audio(io.BytesIO(), channels="left")
    model.transcribe(samples, temperature=0.2, suppress_tokens="-1", initial_prompt=[5, 6])
    model.transcribe(b"RIFF", temperature=(0.0, 0.2), suppress_tokens=[-1], vad=False)
    model.transcribe(np.zeros((10, 2), np.int16), TranscribeOptions(temperature=0, prefix="A"))
    for each in model.transcribe_all(["a.wav", Path("b.wav")], mode="batched", batch_size=4):
        assert_type(each.text if not isinstance(each, AudioError) else str(each), str)
    with LiveTranscriber(model, language="de", vad_threshold=0.4) as live:
        live.feed(samples)

load_model("tiny.en", device="GPU.7", backend="torch")  # wrong
load_model("tiny.en", kv_cache="fast")  # wrong
load_model("tiny.en", precision="int4")  # wrong
load_audio("talk.wav", channels="both")  # wrong
model.transcribe("talk.wav", langauge="en")  # wrong
model.transcribe("talk.wav", task="sing")  # wrong
model.transcribe("talk.wav", mode="fast")  # wrong
model.transcribe("talk.wav", beam_size="5")  # wrong
model.transcribe("talk.wav", temperature="0")  # wrong
model.transcribe("talk.wav", vad_filter=True)  # wrong
model.transcribe([0.0, 0.1])  # wrong
model.transcribe_all(["a.wav"], channels="middle")  # wrong
wrapped(model, channels="middle")  # wrong
LiveTranscriber(model, languages="en", max_chunk=1)  # wrong
TranscribeOptions(suppress_tokens=5)  # wrong
TranscribeOptions("en")  # wrong
"""


@pytest.fixture
def as_installed(tmp_path):
    """A folder in which the package lies as pip puts it; mypy does not read `package_dir`."""
    package = tmp_path / "installed" / "whisper_npu"
    package.mkdir(parents=True)
    for path in (ROOT / "whisper_npu").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name in ("export", "npu", "runtime", "scripts"):
        (package / name).symlink_to(ROOT / name)
    return package.parent


@pytest.mark.slow
def test_right_programs_check_and_wrong_ones_do_not(as_installed, tmp_path, monkeypatch):
    from mypy import api

    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setenv("MYPYPATH", str(as_installed))
    monkeypatch.chdir(tmp_path)
    arguments = ("--strict", "--follow-imports=silent", "--no-error-summary", "--hide-error-codes")
    cache = ROOT / ".mypy_cache" / "programs"
    found, problems, _ = api.run(
        [*arguments, "--config-file=", f"--cache-dir={cache}", str(program)]
    )
    assert problems == ""
    errors = [line for line in found.splitlines() if ": error: " in line]
    assert all(line.startswith("program.py:") for line in errors), found
    refused = {int(line.split(":")[1]) for line in errors}
    lines = PROGRAM.splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert refused == wrong, found
