"""The benchmark of the server: what it sends, how it judges, and a short run."""

import json

import numpy as np
import pytest

from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.scripts import benchmark_server as command
from whisper_npu.scripts.benchmarks.server_load import (
    ALONE,
    BESIDE,
    TOGETHER,
    Load,
    Round,
    make_clips,
)


def test_clips_follow_each_other(tmp_path):
    speech = np.repeat(np.linspace(-0.5, 0.5, 7, dtype=np.float32), 16_000)
    clips = [load_audio(path) for path in make_clips(speech, 2.0, tmp_path, 9)]
    assert [len(clip) for clip in clips] == [32_000] * 3
    np.testing.assert_allclose(np.concatenate(clips), speech[:96_000], atol=1e-4)
    assert len(make_clips(speech, 2.0, tmp_path, 2)) == 2


def test_what_is_compared():
    one = Round(
        latencies={ALONE: [0.2, 0.4], TOGETHER: [0.4, 0.6], BESIDE: [0.3, 1.0]},
        elapsed={ALONE: 0.8, TOGETHER: 0.4, BESIDE: 1.6},
    )
    load = Load(16.0, [one], library=[0.20, 0.30], over_http=[0.21, 0.32], memory=[1 << 20])
    lines = command.report(load, 4).splitlines()
    assert lines[1].split()[-3:] == ["20.0", "300", "390"]
    assert "at once, times one after another: 2.00" in lines
    (slower,) = [line for line in lines if line.startswith("a clip's time")]
    assert "2.00 in the middle, 95 of 100 within 2.45" in slower
    assert "HTTP adds 15.0 ms to a clip (median of pairs)" in lines


def test_a_short_run(tiny_en_folder, beckett, tmp_path, capfd):
    found, plot = tmp_path / "load.json", tmp_path / "load.png"
    options = ["--rounds", "1", "--requests", "3", "--clients", "2", "--seconds", "4"]
    options += ["--long", "900", "--json", str(found), "--plot", str(plot)]
    assert command.main([str(beckett), "--model", str(tiny_en_folder), *options]) == 0
    assert "texts that differ from those sent alone: 0" in capfd.readouterr().out
    (one,) = json.loads(found.read_text())["rounds"]
    assert {name: len(times) for name, times in one["latencies"].items()} == {
        ALONE: 3,
        TOGETHER: 3,
        BESIDE: 3,
    }
    assert plot.stat().st_size > 1000


def test_too_short_a_long_recording_is_told(tiny_en_folder, beckett, capfd):
    options = ["--rounds", "1", "--requests", "1", "--clients", "1", "--long", "1"]
    assert command.main([str(beckett), "--model", str(tiny_en_folder), *options]) == 3
    assert "the long recording ended" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["--clients", "--requests", "--rounds", "--seconds", "--long"])
def test_nothing_to_measure_is_refused(option, capsys):
    assert command.main(["a.wav", option, "0"]) == 2
    assert f"{option} must be above 0" in capsys.readouterr().err
