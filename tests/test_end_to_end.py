"""Real tiny.en on real recordings, against PyTorch and against optimum's own runtime."""

import csv
import gc

import pytest
from decoding_checks import (
    assert_repeatable,
    assert_thread_safe,
    loaded,
    pytorch,
)

from whisper_npu.runtime.audio.stream import load_audio

WORDS = "ever tried ever failed no matter try again fail again fail better"
# One greedy decode of a whole recording, without timestamps: what transformers' `generate` does.
GREEDY = {
    "without_timestamps": True,
    "temperature": (0.0,),
    "no_speech_threshold": None,
    "vad": False,
}
N_UTTERANCES = 50
BATCH = 10  # utterances that PyTorch decodes together


def normalized(text):
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()(text)


@pytest.fixture(scope="session")
def utterances(shared_audio):
    """Path and reference text of the shared test-other utterances."""
    folder = shared_audio / "librispeech-test-other"
    with (folder / "references.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if row[0].endswith(".flac")]
    assert len(rows) == N_UTTERANCES
    return {folder / name: reference for name, reference in rows}


def generate(recordings):
    """Text tokens that transformers' greedy `generate` gives for samples, in float32."""
    import torch
    from transformers import GenerationConfig, WhisperFeatureExtractor
    from transformers.utils import logging

    checkpoint = pytorch("tiny.en")
    checkpoint.model.set_attn_implementation("sdpa")  # as from_pretrained has it, and faster
    checkpoint.model.generation_config = GenerationConfig(**checkpoint.generation_config)
    extractor = WhisperFeatureExtractor(**checkpoint.preprocessor_config)
    eot = checkpoint.generation_config["eos_token_id"]
    logging.set_verbosity_error()  # it warns that the settings are the model's own
    found = []
    for start in range(0, len(recordings), BATCH):
        samples = recordings[start : start + BATCH]
        features = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            rows = checkpoint.model.generate(
                features, return_timestamps=False, num_beams=1, do_sample=False
            )
        found += [[token for token in row if token < eot] for row in rows.tolist()]
    return found


@pytest.fixture(scope="session")
def two_threads():
    """PyTorch in two threads, as many as the machines have that run these tests."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pytorch_tokens(utterances, tiny_en_folder, two_threads):
    """PyTorch's tokens for every utterance, computed once."""
    return generate([load_audio(path) for path in utterances])


@pytest.fixture(scope="session")
def sample_tokens(sample_parts, tiny_en_folder, two_threads):
    """PyTorch's tokens for the sample and its cuts, computed once."""
    return generate(sample_parts)


def text_tokens(result):
    """All text tokens of a transcription without timestamps."""
    return [token for segment in result.segments for token in segment.tokens]


@pytest.fixture(scope="session")
def encodings():
    """Encoded windows by features: the kinds of cache differ in the decoder alone."""
    return {}


@pytest.fixture
def remember_encodings(encodings, monkeypatch):
    """A function that lets a backend encode no window that another has encoded."""

    def remember(backend):
        encode = backend.encode

        def remembered(features):
            key = features.tobytes()
            if key not in encodings:
                encodings[key] = encode(features)
            return encodings[key]

        monkeypatch.setattr(backend, "encode", remembered)

    return remember


class TestPyTorch:
    @pytest.mark.parametrize("kind", ["concat", "static", "stateful", "off"])
    def test_tokens_of_the_sample(self, tiny_en_folder, sample_parts, sample_tokens, kind):
        model = loaded(tiny_en_folder, kind)
        results = [model.transcribe(part, **GREEDY).result() for part in sample_parts]
        assert [text_tokens(result) for result in results] == sample_tokens
        assert len({tuple(row) for row in sample_tokens}) == len(sample_parts)

    @pytest.mark.parametrize("kind", ["concat", "static", "stateful", "off"])
    def test_tokens_and_word_errors(
        self, tiny_en_folder, utterances, pytorch_tokens, kind, remember_encodings
    ):
        import jiwer

        model = loaded(tiny_en_folder, kind)
        remember_encodings(model.backend)
        results = [model.transcribe(path, **GREEDY).result() for path in utterances]
        tokens = [text_tokens(result) for result in results]
        different = [
            path.name
            for path, got, want in zip(utterances, tokens, pytorch_tokens, strict=True)
            if got != want
        ]
        assert different == []
        assert len(tokens) == N_UTTERANCES

        references = [normalized(text) for text in utterances.values()]
        ours = jiwer.wer(references, [normalized(result.text) for result in results])
        theirs = jiwer.wer(
            references, [normalized(model.tokenizer.decode(row)) for row in pytorch_tokens]
        )
        assert abs(ours - theirs) <= 0.01
        assert ours < 0.25  # tiny.en on test-other; a garbled cache gives 1

    def test_utterances_are_all_different(self, pytorch_tokens):
        assert len({tuple(row) for row in pytorch_tokens}) == N_UTTERANCES


class TestOptimum:
    """The third party: the same folder through optimum's own runtime on ONNX Runtime."""

    def test_same_tokens(self, tiny_en_folder, sample_parts):
        import torch
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
        from transformers import WhisperFeatureExtractor
        from transformers.utils import logging

        extractor = WhisperFeatureExtractor()
        logging.set_verbosity_error()
        theirs = ORTModelForSpeechSeq2Seq.from_pretrained(
            tiny_en_folder, use_merged=False, providers=["CPUExecutionProvider"]
        )
        for kind in ("concat", "stateful"):
            model = loaded(tiny_en_folder, kind)
            eot = model.tokenizer.special.eot
            for recording in sample_parts[:3]:
                features = extractor(recording, sampling_rate=16_000, return_tensors="pt")
                with torch.inference_mode():
                    row = theirs.generate(
                        features.input_features,
                        return_timestamps=False,
                        num_beams=1,
                        do_sample=False,
                    )[0]
                result = model.transcribe(recording, **GREEDY).result()
                got = text_tokens(result)
                assert got == [token for token in row.tolist() if token < eot]
                assert len(got) > 5
        del theirs
        gc.collect()


class TestRealSpeech:
    @pytest.mark.parametrize("kind", ["concat", "static", "stateful", "off"])
    def test_words_of_the_sample(self, tiny_en_folder, beckett, kind):
        result = loaded(tiny_en_folder, kind).transcribe(beckett).result()
        assert normalized(result.text) == WORDS
        assert result.language == "en"
        assert result.segments[0].start < 2
        assert all(
            one.end <= other.start
            for one, other in zip(result.segments, result.segments[1:], strict=False)
        )

    def test_beams_and_other_options(self, tiny_en_folder, beckett):
        model = loaded(tiny_en_folder, "stateful")
        for options in ({"beam_size": 5}, {"initial_prompt": "Samuel Beckett."}):
            assert normalized(model.transcribe(beckett, **options).text) == WORDS

    @pytest.mark.parametrize("kind", ["concat", "static", "stateful", "off"])
    def test_same_call_again_and_a_b_a(self, tiny_en_folder, beckett, kind):
        samples = load_audio(beckett)
        recordings = [samples[:40_000], samples[73_600:140_000]]
        assert_repeatable(loaded(tiny_en_folder, kind), recordings, **GREEDY)

    @pytest.mark.parametrize("kind", ["concat", "stateful"])
    def test_several_threads_at_once(self, tiny_en_folder, beckett, kind):
        samples = load_audio(beckett)
        recordings = [samples, samples[:40_000], samples[:73_600], samples[73_600:]]
        assert_thread_safe(loaded(tiny_en_folder, kind), recordings, **GREEDY)

    def test_long_recordings_are_transcribed_to_their_end(self, tiny_en_folder, utterances):
        import jiwer
        import numpy as np

        paths = list(utterances)[:10]  # one speaker, about 77 s in all
        pause = np.zeros(4_000, np.float32)
        samples = np.concatenate([part for path in paths for part in (load_audio(path), pause)])
        reference = normalized(" ".join(utterances[path] for path in paths))
        for mode in ("sequential", "batched"):
            result = loaded(tiny_en_folder, "stateful").transcribe(samples, mode=mode).result()
            assert result.duration == pytest.approx(len(samples) / 16_000)
            assert result.segments[-1].end > result.duration - 5
            assert jiwer.wer(reference, normalized(result.text)) < 0.3
            starts = [segment.start for segment in result.segments]
            assert starts == sorted(starts)
