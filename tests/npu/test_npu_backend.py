"""The NPU's graphs through OpenVINO's real NPU plugin, its work sent to the CPU (NPU_EMULATED).

What the dynamic path on the CPU gives is the oracle throughout.
"""

import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from decoding_checks import PLAIN, assert_repeatable, assert_thread_safe, stepwise_logits
from model_surgery import copy_folder

from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.loading import load_backend
from whisper_npu.npu import bundle as bundle_module
from whisper_npu.npu import static_backend
from whisper_npu.npu.build_bundle import ensure_bundle
from whisper_npu.npu.devices import EMULATED, EMULATED_LABEL
from whisper_npu.npu.load_static import load_static
from whisper_npu.npu.split_backend import SplitBackend
from whisper_npu.runtime.engines.compile_cache import CompileCache
from whisper_npu.runtime.engines.protocol import N_LOGITS
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.transcription.model import WhisperModel

TOLERANCE = 2e-4  # of logits; the same arithmetic in another order


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return CompileCache(tmp_path_factory.mktemp("compiled"), 8 << 30)


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return read_model_folder(copy_folder(tiny_folder, tmp_path_factory.mktemp("npu") / "tiny"))


@pytest.fixture(scope="module")
def emulated(folder, cache):
    return load_static(folder, EMULATED, cache=cache)


@pytest.fixture(scope="module")
def oracle(folder):
    return load_backend(folder, "CPU", kv_cache="concat", precision="f32")


@pytest.fixture(scope="module")
def audio(oracle):
    features = np.random.default_rng(0).standard_normal((2, 80, 3000)).astype(np.float32)
    return oracle.encode(features)


def test_says_that_it_is_emulated(emulated):
    assert emulated.device == EMULATED_LABEL
    assert set(emulated.placements) == {
        *("encoder_3000", "cross_3000", "align_3000", "step_1", "step_4"),
        *("prefill_4", "prefill_32", "prefill_128", "prefill_228"),
    }
    assert set(emulated.placements.values()) == {EMULATED_LABEL}
    assert (emulated.precision, emulated.kv_cache) == ("f32", "static")


def test_sizes_are_the_model_s(emulated, oracle):
    for size in ("n_mels", "n_audio_ctx", "n_text_ctx", "n_vocab"):
        assert getattr(emulated, size) == getattr(oracle, size)
    assert emulated.window_frames == (3000,)


def test_encodes_like_the_cpu(emulated, oracle):
    features = np.random.default_rng(1).standard_normal((2, 80, 3000)).astype(np.float32)
    np.testing.assert_allclose(emulated.encode(features), oracle.encode(features), atol=1e-4)
    with pytest.raises(UsageError, match="windows of"):
        emulated.encode(features[:, :, :1000])


def both_step(backends, audio, rows_per_window, calls, reorders=()):
    """Logits of the same calls on every backend; the second argument of a reorder is when."""
    results = []
    for backend in backends:
        session = backend.start(audio, rows_per_window)
        found = []
        for index, tokens in enumerate(calls):
            found.append(session.step(tokens).copy())
            for when, rows in reorders:
                if when == index:
                    session.reorder(rows)
        assert session.length == sum(tokens.shape[1] for tokens in calls)
        session.close()
        results.append(found)
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


def tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, 300, (rows, length))


# Start sequences; every bucket full, one more, one less; and longer than the longest bucket.
@pytest.mark.parametrize("length", [1, 3, 4, 5, 31, 32, 33, 103, 128, 227, 228, 229, 240])
def test_prompts_of_any_length(emulated, oracle, audio, length):
    calls = [tokens(1, length), tokens(1, 1, 1), tokens(1, 1, 2)]
    both_step([emulated, oracle], audio[:1], 1, calls)


@pytest.mark.slow
def test_a_large_model_has_fewer_graphs(tiny_folder, tmp_path, cache, oracle, audio, monkeypatch):
    """Prompts of all lengths still run, by the graph for the longest."""
    monkeypatch.setattr(bundle_module, "_LARGE", 1)
    copy = read_model_folder(copy_folder(tiny_folder, tmp_path / "large"))
    large = load_static(copy, EMULATED, weights="lossless", cache=cache)
    prefills = {name for name in large.placements if name.startswith("prefill")}
    assert prefills == {"prefill_4", "prefill_228"}
    for length in (3, 5, 33, 228):
        both_step([large, oracle], audio[:1], 1, [tokens(1, length), tokens(1, 1, 1)])


def test_several_tokens_after_the_first(emulated, oracle, audio):
    """A prefix longer than the logits kept is decoded in two calls."""
    calls = [tokens(2, 7), tokens(2, 6, 1), tokens(2, 2, 2), tokens(2, 1, 3)]
    both_step([emulated, oracle], audio, 1, calls)


@pytest.mark.parametrize("n_rows", range(1, 8))
def test_any_number_of_rows(emulated, oracle, audio, n_rows):
    """Rows are packed into lanes of four and of one; idle rows of a lane disturb nothing."""
    windows = np.repeat(audio, 4, axis=0)[:n_rows]
    calls = [tokens(n_rows, 4), tokens(n_rows, 1, 1), tokens(n_rows, 1, 2)]
    both_step([emulated, oracle], windows, 1, calls)


def test_rows_that_share_windows_and_change_places(emulated, oracle, audio):
    calls = [tokens(6, 4), tokens(6, 1, 1), tokens(6, 1, 2), tokens(6, 1, 3)]
    reorders = [(1, [0, 0, 1, 5, 4, 3]), (2, [2, 1, 0, 3, 3, 3])]
    both_step([emulated, oracle], audio, 3, calls, reorders)


@pytest.mark.slow
def test_full_context(emulated, oracle, audio):
    row = tokens(1, oracle.n_text_ctx)
    ours, theirs = (stepwise_logits(item, audio[:1], row) for item in (emulated, oracle))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    session = emulated.start(audio[:1])
    session.step(row[:, :-1])
    session.step(row[:, -1:])
    with pytest.raises(UsageError, match=r"448 \+ 1 tokens do not fit"):
        session.step(row[:, :1])
    session.close()


@pytest.mark.slow
def test_shorter_windows(tiny_folder, tmp_path, cache, oracle):
    copy = read_model_folder(copy_folder(tiny_folder, tmp_path / "elastic"))
    ensure_bundle(copy, windows=(10,))
    elastic = load_static(copy, EMULATED, cache=cache)
    assert elastic.window_frames == (1000, 3000)
    features = np.random.default_rng(5).standard_normal((1, 80, 3000)).astype(np.float32)
    row = tokens(1, 6)
    for frames in (3000, 1000, 3000):  # nothing of the longer window is left in the shorter
        ours, theirs = (item.encode(features[:, :, :frames]) for item in (elastic, oracle))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
        both_step([elastic, oracle], theirs, 1, [row, row[:, :1], row[:, 1:2]])
        aligned = zip(elastic.align(theirs, row), oracle.align(theirs, row), strict=True)
        for mine, other in aligned:
            np.testing.assert_allclose(mine, other, atol=1e-4)


def test_word_times(emulated, oracle, audio):
    row = tokens(2, 20)
    for ours, theirs in zip(emulated.align(audio, row), oracle.align(audio, row), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_model_without_alignment_says_so(tiny_folder, tmp_path, cache, audio):
    copy = copy_folder(tiny_folder, tmp_path / "plain")
    (copy / "decoder_alignment_model.onnx").unlink()
    backend = load_static(read_model_folder(copy), EMULATED, cache=cache)
    with pytest.raises(ModelError, match="--add-alignment"):
        backend.align(audio, tokens(2, 5))


OPTIONS = {
    "plain": {},
    "timestamps": {"without_timestamps": False},
    "prompt": {"initial_prompt": "some words that go before " * 3},
    "long prompt": {"initial_prompt": "one two three " * 200},
    "beams": {"beam_size": 2, "sample_len": 30},
    "sampling": {"temperature": (0.7,), "best_of": 3, "sample_len": 30},
    "another language": {"language": "de", "task": "translate"},
    "language detection": {"language": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_options_give_what_the_cpu_gives(emulated, oracle, folder, tiny_audio, name):
    results = [
        WhisperModel(folder, backend)
        .transcribe(tiny_audio[1], **{**PLAIN, **OPTIONS[name]})
        .result()
        for backend in (emulated, oracle)
    ]
    tokens_of = [[segment.tokens for segment in result.segments] for result in results]
    assert tokens_of[0] == tokens_of[1]
    assert any(tokens_of[0])
    assert results[0].language == results[1].language
    assert results[0].device == EMULATED_LABEL
    assert results[0].to_dict()["device"] == EMULATED_LABEL


@pytest.mark.slow
def test_nothing_is_left_behind(emulated, folder, tiny_audio):
    assert_repeatable(WhisperModel(folder, emulated), tiny_audio)


def test_threads_do_not_disturb_each_other(emulated, folder, tiny_audio):
    assert_thread_safe(WhisperModel(folder, emulated), tiny_audio[:2])


def _keep_states(session, tokens, real=static_backend.StaticSession._prefill):
    """A session that goes on behind the states the last one left in its lane."""
    logits = real(session, tokens)
    lane = session._lanes[0]
    session._length = max(getattr(lane, "reached", 0), session._length)
    lane.reached = session._length + 20
    return logits


def _keep_audio(backend, hidden, real=static_backend.StaticBackend.project):
    """A backend that goes on attending to the first window it saw."""
    if not hasattr(backend, "first_window"):
        backend.first_window = hidden.copy()
    return real(backend, backend.first_window)


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["states", "audio"])
def test_the_leak_test_catches_a_leak(emulated, folder, tiny_audio, monkeypatch, leak):
    if leak == "states":
        monkeypatch.setattr(static_backend._Lane, "clear", lambda lane: None)
        monkeypatch.setattr(static_backend.StaticSession, "_prefill", _keep_states)
    else:
        monkeypatch.setattr(static_backend.StaticBackend, "project", _keep_audio)
    fresh = static_backend.StaticBackend(emulated._bundle, emulated._engine)
    with pytest.raises((AssertionError, UsageError)):
        assert_repeatable(WhisperModel(folder, fresh), tiny_audio)


def test_closed_sessions_give_everything_back(emulated, audio):
    for _ in range(3):
        session = emulated.start(audio, 2)
        session.step(tokens(4, 4))
        session.close()
    lanes = len(emulated._lanes[4])
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: emulated.start(audio).close(), range(4)))
    assert len(emulated._lanes[4]) == lanes >= 1


def test_second_load_compiles_nothing(folder, cache, emulated, caplog):
    caplog.set_level("INFO", logger="whisper_npu")
    again = load_static(folder, EMULATED, cache=cache)
    assert again.device == emulated.device
    assert not caplog.records


def test_encoder_and_decoder_on_two_devices(folder, cache, oracle, tiny_audio):
    split = load_backend(
        folder, "encoder=NPU_EMULATED,decoder=CPU", kv_cache="auto", precision="f32", cache=cache
    )
    assert isinstance(split, SplitBackend)
    assert split.device == f"encoder on {EMULATED_LABEL}, decoder on CPU"
    assert split.placements == {"encoder": EMULATED_LABEL, "decoder": "CPU"}
    results = [
        WhisperModel(folder, backend).transcribe(tiny_audio[0], **PLAIN).result()
        for backend in (split, oracle)
    ]
    assert results[0].text == results[1].text


def test_no_npu_is_an_error_that_leads_to_the_doctor(folder):
    with pytest.raises(DeviceError, match="whisper-npu doctor") as error:
        load_backend(folder, "NPU")
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "stateful"}, "--kv-cache auto or static"),
        ({"kv_cache": "nonsense"}, "kv_cache is 'nonsense'"),
        ({"precision": "f64"}, "precision is 'f64'"),
        ({"backend": "tensorflow"}, "backend is 'tensorflow'"),
    ],
)
def test_options_the_device_cannot_follow(folder, options, message):
    with pytest.raises(UsageError, match=message):
        load_backend(folder, EMULATED, **options)


# Shaped like large-v3-turbo (128 mels, a deep encoder, a shallow decoder) and like distil models.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder_layers", "decoder_layers", "mels"), [(4, 1, 128), (3, 2, 80)], ids=["turbo", "distil"]
)
def test_other_shapes(tmp_path, cache, encoder_layers, decoder_layers, mels):
    exported = _export(tmp_path, encoder_layers, decoder_layers, mels)
    backend = load_static(exported, EMULATED, cache=cache)
    exact = load_backend(exported, "CPU", kv_cache="concat", precision="f32")
    features = np.random.default_rng(0).standard_normal((1, mels, 3000)).astype(np.float32)
    hidden = exact.encode(features)
    np.testing.assert_allclose(backend.encode(features), hidden, atol=1e-4)
    both_step([backend, exact], hidden, 1, [tokens(1, N_LOGITS), tokens(1, 1, 1), tokens(1, 1, 2)])


def _export(tmp_path, encoder_layers, decoder_layers, mels):
    """A random model exported by optimum itself, without our manifest or shared weights."""
    import tiny_whisper
    from optimum.exporters.onnx import main_export
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    source = tmp_path / "source"
    tokenizer_json = tiny_whisper.build_tokenizer_json()
    config = WhisperConfig(
        vocab_size=1000,
        num_mel_bins=mels,
        d_model=32,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    WhisperForConditionalGeneration(config).save_pretrained(source)
    target = tmp_path / "exported"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter, on which optimum builds
        main_export(
            str(source),
            target,
            task="automatic-speech-recognition-with-past",
            no_post_process=True,
            do_validation=False,
        )
    (target / "tokenizer.json").write_bytes(tokenizer_json)
    return read_model_folder(target)


@pytest.fixture(scope="module")
def real_models(tiny_en_folder, tmp_path_factory):
    """Real tiny.en through the emulated NPU, and on the CPU's dynamic path."""
    model = read_model_folder(tiny_en_folder)
    # Static graphs are written into the model folder: not into the repository's own.
    copy = tmp_path_factory.mktemp("real") / model.path.name
    copy.mkdir()
    for path in model.path.iterdir():
        if path.is_file():
            shutil.copyfile(path, copy / path.name)
    copied = read_model_folder(copy)
    cache = CompileCache(tmp_path_factory.mktemp("real-compiled"), 8 << 30)
    return [
        WhisperModel(copied, load_static(copied, EMULATED, cache=cache)),
        WhisperModel(model, load_backend(model, "CPU", kv_cache="stateful", precision="f32")),
    ]


def assert_same_tokens(models, recording):
    ours, theirs = (model.transcribe(recording).result() for model in models)
    assert ours.device == EMULATED_LABEL
    found, expected = ([segment.tokens for segment in result.segments] for result in (ours, theirs))
    assert found == expected, recording
    assert found


def test_real_speech_token_by_token(real_models, sample_parts):
    """Real weights, real speech: the emulated NPU decodes what the dynamic CPU path decodes."""
    for part in sample_parts:
        assert_same_tokens(real_models, part)


def test_fifty_real_utterances_token_by_token(real_models, shared_audio):
    recordings = sorted((shared_audio / "librispeech-test-other").glob("*.flac"))
    assert len(recordings) == 50
    for recording in recordings:
        assert_same_tokens(real_models, recording)
