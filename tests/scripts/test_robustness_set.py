"""`scripts/robustness_set.py`: what its parts are made of, and what it refuses."""

import numpy as np
import pytest
import soundfile
import tiny_whisper

from whisper_npu.scripts.evaluation.audio_changes import at_level, at_speed, with_noise
from whisper_npu.scripts.robustness_set import main

RATE = 16_000


def write(folder, speakers, per_speaker=2):
    lines = []
    for number, speaker in enumerate(speakers):
        for each in range(per_speaker):
            name = f"{speaker}-{each}.wav"
            samples = tiny_whisper.synthetic_speech(10 * number + each, 8)
            soundfile.write(folder / name, samples, RATE)
            lines.append(f"{name}\tword {speaker} {each}\n")
    (folder / "references.tsv").write_text("".join(lines))
    return folder / "references.tsv"


def test_every_part_has_its_recordings_and_words(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(write(tmp_path, ("ann", "bob"))), str(out)]) == 0
    parts = {path.stem for path in out.glob("*.tsv")}
    assert parts >= {"clean", "two-levels", "telephone", "noise-5", "overlap", "slow", "pauses"}
    n_words = 0
    for part in parts:
        for line in (out / f"{part}.tsv").read_text().splitlines():
            name, text = line.split("\t")
            assert soundfile.info(out / name).samplerate == RATE
            n_words += len(text.split())
    assert capsys.readouterr().out.splitlines()[-1] == f"{n_words} words in {out}"
    turns = (out / "turns.tsv").read_text().splitlines()[0].split("\t")[1]
    assert turns == "word ann 0 word bob 1 word ann 1 word bob 0"


def test_one_speaker_is_too_few(tmp_path, capsys):
    assert main([str(write(tmp_path, ("ann",))), str(tmp_path / "out")]) == 2
    assert "two speakers or more are needed" in capsys.readouterr().err


class TestChanges:
    def test_level(self):
        speech = tiny_whisper.synthetic_speech(0, 1)
        assert np.abs(at_level(speech, -20.0)).max() == pytest.approx(0.1)

    def test_noise_is_so_many_decibels_below(self):
        speech = tiny_whisper.synthetic_speech(0, 2)
        noise = 2 * with_noise(speech, 10, np.random.default_rng(0)) - speech
        ratio = np.mean(np.square(speech)) / np.mean(np.square(noise))
        assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.1)

    @pytest.mark.parametrize("speed", [0.8, 1.25])
    def test_speed(self, speed):
        changed = at_speed(tiny_whisper.synthetic_speech(0, 4), speed)
        assert len(changed) / RATE == pytest.approx(4 / speed, abs=0.1)
