"""`scripts/benchmark_memory.py`: the audio it makes up, and the table it prints."""

import io

import numpy as np
import pytest
import soundfile

from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.scripts.benchmark_memory import main
from whisper_npu.scripts.benchmarks.memory import EndlessWav, minute_of


def test_a_minute_is_said_again_and_again():
    minute = minute_of("noise", None)
    n_samples = 2 * len(minute) + 1000
    samples = load_audio(io.BufferedReader(EndlessWav(minute, n_samples)))
    expected = np.resize(minute, n_samples) / 32768
    np.testing.assert_allclose(samples, expected, atol=1e-6)


@pytest.mark.slow
def test_a_line_for_each_length(tiny_folder, capfd):
    hours = ["0.001", "0.002"]
    assert main(["--model", str(tiny_folder), "--hours", *hours]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == [
        "silence, auto, vad True",
        "| hours | peak MiB | s | s per hour | segments |",
    ]
    assert [line.split("|")[5].strip() for line in lines[3:]] == ["0", "0"]


def test_speech_needs_a_recording(tiny_folder):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(tiny_folder), "--content", "speech"])


def test_speech_comes_before_pauses(tmp_path):
    soundfile.write(tmp_path / "speech.wav", np.full(16_000 * 9, 0.5), 16_000)
    minute = minute_of("speech", tmp_path / "speech.wav").reshape(12, -1)  # of 5 s each
    assert list((minute != 0).mean(axis=1)) == 3 * [1, 0, 0, 0]
