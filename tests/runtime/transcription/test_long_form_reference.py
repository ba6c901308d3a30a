"""The sequential algorithm against transformers' long-form `generate`, segment by segment.

Both are given the same features, transformers' own. Left to themselves they differ in two: ours are
scaled by the peak of each window, which a stream knows, theirs by that of the whole recording; and
behind the end of a recording ours are those of silence, theirs are zeros. Of the segments one thing
is ours alone: no timestamp is later than the recording's end.
"""

import csv
from itertools import groupby

import numpy as np
import pytest
from decoding_checks import loaded, pytorch

from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.runtime.features.stream import FeatureStream

# One greedy decode of each window of 30 s, kept whatever it looks like.
SETTINGS = {
    "mode": "sequential",
    "elastic": False,
    "vad": False,
    "temperature": (0.0,),
    "no_speech_threshold": None,
}
PAUSE = np.zeros(4_000, np.float32)


@pytest.fixture(scope="session")
def long_recordings(shared_audio):
    """Three speakers' utterances, a quarter of a second between them: float32 `(n,)` each."""
    folder = shared_audio / "librispeech-test-other"
    with (folder / "references.tsv").open(encoding="utf-8", newline="") as file:
        names = [row[0] for row in csv.reader(file, delimiter="\t") if row[0].endswith(".flac")]
    recordings = [
        np.concatenate([part for name in group for part in (load_audio(folder / name), PAUSE)])
        for _, group in groupby(names, key=lambda name: name.split("-", maxsplit=1)[0])
    ]
    assert all(len(recording) > 60 * 16_000 for recording in recordings)
    return recordings[:3]


@pytest.fixture(scope="session")
def long_sample(sample_parts):
    """The sample, and its halves across the end of the first window: 52 s, float32 `(n,)`.

    Silence lies between, since a text that is said again soon is a loop to ours.
    """
    whole, first, second, start, _ = sample_parts
    pieces = ((whole, 14), (first, 3), (second, 12), (start, 1))
    parts = [part for cut, pause in pieces for part in (cut, np.zeros(16_000 * pause, np.float32))]
    return np.concatenate(parts)[: 52 * 16_000]


def reference_segments(samples, *, condition, decode):
    """Features `(n_mels, n_frames)`, and `(start, end, text)` of each segment."""
    import torch
    from transformers import GenerationConfig, WhisperFeatureExtractor
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns that the settings are the model's own
    checkpoint = pytorch("tiny.en")
    checkpoint.model.set_attn_implementation("sdpa")
    checkpoint.model.generation_config = GenerationConfig(**checkpoint.generation_config)
    inputs = WhisperFeatureExtractor(**checkpoint.preprocessor_config)(
        samples,
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    with torch.inference_mode():
        found = checkpoint.model.generate(
            inputs.input_features,
            attention_mask=inputs.attention_mask,
            return_timestamps=True,
            return_segments=True,
            condition_on_prev_tokens=condition,
            num_beams=1,
            do_sample=False,
            temperature=0.0,
        )["segments"][0]
    eot = checkpoint.generation_config["eos_token_id"]
    end = len(samples) / 16_000
    segments = [
        (
            round(float(segment["start"]), 2),
            round(min(float(segment["end"]), end), 2),
            decode([token for token in segment["tokens"].tolist() if token < eot]).strip(),
        )
        for segment in found
    ]
    return inputs.input_features[0].numpy(), segments


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("condition", [False, True])
def test_segment_by_segment(tiny_en_folder, long_recordings, monkeypatch, number, condition):
    n_segments = check(tiny_en_folder, long_recordings[number], monkeypatch, condition=condition)
    assert n_segments > 10


@pytest.mark.parametrize("condition", [False, True])
def test_the_sample_segment_by_segment(tiny_en_folder, long_sample, monkeypatch, condition):
    n_segments = check(tiny_en_folder, long_sample, monkeypatch, condition=condition)
    assert n_segments > 3


def check(folder, samples, monkeypatch, *, condition):
    """Compare all segments; returns how many there are."""
    model = loaded(folder, "stateful")
    features, expected = reference_segments(
        samples, condition=condition, decode=model.tokenizer.decode
    )

    def joined(self, pieces, n_frames, *, amplified=False):
        assert not amplified
        ((start, end),) = pieces
        part = features[:, start:end]
        return np.pad(part, ((0, 0), (0, n_frames - part.shape[1])))

    monkeypatch.setattr(FeatureStream, "joined", joined)
    result = model.transcribe(samples, condition_on_previous_text=condition, **SETTINGS).result()
    got = [(round(one.start, 2), round(one.end, 2), one.text.strip()) for one in result.segments]
    assert got == expected
    return len(got)
