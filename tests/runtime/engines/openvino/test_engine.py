"""Every kind of cache decodes as PyTorch does in one pass over the whole context."""

import logging
import shutil

import numpy as np
import pytest
from decoding_checks import (
    KINDS,
    PLAIN,
    TOLERANCE,
    assert_equals_full_context,
    assert_repeatable,
    assert_thread_safe,
    loaded,
    pytorch,
    reference_hidden,
    reference_logits,
    stepwise_logits,
)
from model_surgery import copy_folder, edit_manifest

from whisper_npu import load_model
from whisper_npu.errors import DeviceError, ModelError, UsageError
from whisper_npu.runtime.audio.stream import load_audio
from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows, initial_tokens
from whisper_npu.runtime.engines.protocol import N_LOGITS
from whisper_npu.runtime.features.stream import FeatureStream
from whisper_npu.runtime.timing import StageTimes

N_TEXT_CTX = 448
CHUNK = {"off": N_LOGITS}  # it computes everything anew at each step; the others go token by token


@pytest.fixture(scope="module")
def features(tiny_audio):
    """Three windows, `(3, 80, 3000)`."""
    windows = [FeatureStream(iter([load_audio(path)]), 80).window(0, 3000) for path in tiny_audio]
    return np.stack(windows)


@pytest.fixture(scope="module")
def audio(tiny_folder, features):
    """Three encoded windows, `(3, 1500, 64)`."""
    return loaded(tiny_folder).backend.encode(features)


@pytest.fixture(scope="module")
def rows():
    """Three rows of random tokens that fill the context, `(3, 448)`."""
    return np.random.default_rng(3).integers(0, 330, (3, N_TEXT_CTX), dtype=np.int64)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, audio, rows):
    """PyTorch's logits for them, `(3, 448, n_vocab)`."""
    return reference_logits(pytorch(tiny_checkpoint), audio, rows)


@pytest.fixture(scope="module", params=KINDS)
def model(request, tiny_folder):
    return loaded(tiny_folder, request.param)


def test_encoder_equals_pytorch(tiny_folder, tiny_checkpoint, features, audio):
    want = reference_hidden(pytorch(tiny_checkpoint), features)
    assert audio.shape == (3, 1500, 64)
    np.testing.assert_allclose(audio, want, rtol=0, atol=1e-4)
    assert np.abs(audio[0] - audio[1]).max() > 0.1  # different recordings are told apart


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_equal_full_context_up_to_the_limit(model, audio, rows, expected, batch):
    assert_equals_full_context(
        model.backend,
        audio[:batch],
        rows[:batch],
        expected[:batch],
        chunk=CHUNK.get(model.backend.kv_cache, 1),
    )


def test_several_tokens_per_step(model, audio, rows, expected):
    assert_equals_full_context(model.backend, audio[:1], rows[:1, :34], expected[:1, :34], chunk=3)


def test_a_long_prefill_returns_the_last_logits(model, audio, rows, expected):
    session = model.backend.start(audio[:2])
    try:
        logits = session.step(rows[:2, :200]).copy()
        assert session.length == 200
        np.testing.assert_allclose(
            logits[:, -N_LOGITS:], expected[:2, 200 - N_LOGITS : 200], rtol=0, atol=TOLERANCE
        )
    finally:
        session.close()


@pytest.mark.parametrize("full", [N_TEXT_CTX, N_TEXT_CTX - 2])
def test_a_step_beyond_the_limit_is_refused(model, audio, rows, full):
    session = model.backend.start(audio[:1])
    try:
        session.step(rows[:1, :full])
        too_many = rows[:1, : N_TEXT_CTX - full + 1]
        with pytest.raises(UsageError, match=r"do not fit the decoder's context of 448"):
            session.step(too_many)
        assert session.length == full
    finally:
        session.close()


@pytest.mark.slow
@pytest.mark.parametrize("n_windows", [1, 2])
def test_rows_of_a_window_share_its_audio(model, tiny_checkpoint, audio, rows, n_windows):
    rows = np.resize(rows, (3 * n_windows, 24))
    windows = audio[:n_windows]
    want = reference_logits(pytorch(tiny_checkpoint), np.repeat(windows, 3, axis=0), rows)
    assert_equals_full_context(model.backend, windows, rows, want, rows_per_window=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_windows", "order"),
    [(1, [2, 0, 0]), (1, [0, 1, 2]), (1, [1, 1, 1]), (2, [2, 1, 0, 4, 3, 3])],
)
def test_reordered_rows_continue_the_permuted_history(model, audio, rows, n_windows, order):
    rows = np.resize(rows, (3 * n_windows, 30))
    windows = audio[:n_windows]
    before, after = rows[:, :20], rows[:, 20:]
    session = model.backend.start(windows, 3)
    try:
        session.step(before[:, :N_LOGITS])
        session.step(before[:, N_LOGITS:])
        session.reorder(order)
        got = [session.step(after[:, i : i + 1]).copy() for i in range(after.shape[1])]
        session.reorder(order)  # a second time, on the history it has now
        got.append(session.step(after[:, :1]).copy())
    finally:
        session.close()
    history = np.concatenate((before[order], after), axis=1)
    history = np.concatenate((history[order], after[:, :1]), axis=1)
    twice = stepwise_logits(model.backend, windows, history, rows_per_window=3)
    once = np.concatenate((before[order], after), axis=1)
    once = stepwise_logits(model.backend, windows, once, rows_per_window=3)
    np.testing.assert_allclose(
        np.concatenate(got[:-1], axis=1), once[:, 20:], rtol=0, atol=TOLERANCE
    )
    np.testing.assert_allclose(got[-1][:, 0], twice[:, -1], rtol=0, atol=TOLERANCE)


def decode(model, audio, options, **changes):
    backend, tokenizer, vocabulary = model.backend, model.tokenizer, model.vocabulary
    return decode_windows(backend, tokenizer, vocabulary, audio, options, StageTimes(), **changes)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("model", ["concat", "static", "stateful"], indirect=True)
def test_tokens_equal_pytorch_up_to_the_limit(model, tiny_checkpoint, audio, batch):
    check_tokens_up_to_the_limit(model, tiny_checkpoint, audio[:batch])


@pytest.mark.slow
def test_tokens_equal_pytorch_up_to_the_limit_without_cache(tiny_folder, tiny_checkpoint, audio):
    # Each step computes everything anew, so most of the context is given.
    before = tuple(np.random.default_rng(7).integers(0, 320, 380).tolist())
    check_tokens_up_to_the_limit(loaded(tiny_folder, "off"), tiny_checkpoint, audio[:1], before)


def check_tokens_up_to_the_limit(model, tiny_checkpoint, audio, before=()):
    """The longest text there can be, behind the text `before`, is PyTorch's token by token."""
    batch = len(audio)
    eot = model.tokenizer.special.eot
    options = DecodingOptions(
        without_timestamps=True,
        suppress_tokens=(*model.vocabulary.suppress, eot, *range(eot, model.backend.n_vocab)),
        suppress_first=model.vocabulary.begin_suppress,
    )
    windows = decode(model, audio, options, prompts=[before] * batch)
    prompt, _ = initial_tokens(model.tokenizer, model.vocabulary, options, N_TEXT_CTX, before)
    assert [window.reached_limit for window in windows] == [True] * batch
    tokens = np.array([prompt + list(window.tokens) for window in windows], np.int64)
    assert tokens.shape == (batch, N_TEXT_CTX)
    logits = reference_logits(pytorch(tiny_checkpoint), audio, tokens)
    logits = logits[:, len(prompt) - 1 : -1]
    logits[:, :, list(options.suppress_tokens)] = -np.inf
    logits[:, 0, list(options.suppress_first)] = -np.inf
    np.testing.assert_array_equal(logits.argmax(-1), tokens[:, len(prompt) :])


@pytest.mark.slow
def test_a_batch_decodes_each_window_as_if_alone(model, audio):
    options = DecodingOptions(
        without_timestamps=True,
        suppress_tokens=model.vocabulary.suppress,
        suppress_first=model.vocabulary.begin_suppress,
        sample_len=60,
    )

    together = decode(model, audio, options)
    alone = [decode(model, audio[i : i + 1], options)[0] for i in range(3)]
    assert [window.tokens for window in together] == [window.tokens for window in alone]
    assert [window.reached_limit for window in together] == [False, False, True]
    assert len({window.tokens for window in together}) == 3
    for one, other in zip(together, alone, strict=True):
        assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
        assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)


@pytest.mark.slow
def test_no_speech_probability_is_that_after_sot(model, tiny_checkpoint, audio):
    special = model.tokenizer.special
    logits = reference_logits(
        pytorch(tiny_checkpoint), audio, np.full((3, 1), special.sot, np.int64)
    )[:, 0].astype(np.float64)
    want = np.exp(logits[:, special.no_speech]) / np.exp(logits).sum(-1)
    for prompt in [(), (5, 6, 7), tuple(range(100))]:  # sot is elsewhere behind a prompt
        options = DecodingOptions(without_timestamps=True, sample_len=1)
        got = decode(model, audio, options, prompts=[prompt] * 3)
        if not prompt:
            assert [w.no_speech_prob for w in got] == pytest.approx(want.tolist(), abs=1e-6)
        else:
            row = np.array([[special.sot_prev, *prompt, special.sot]] * 3, np.int64)
            logits = reference_logits(pytorch(tiny_checkpoint), audio, row)[:, -1]
            logits = logits.astype(np.float64)
            behind = np.exp(logits[:, special.no_speech]) / np.exp(logits).sum(-1)
            assert [w.no_speech_prob for w in got] == pytest.approx(behind.tolist(), abs=1e-6)


@pytest.mark.slow
def test_same_call_again_and_a_b_a(model, tiny_audio):
    assert_repeatable(model, tiny_audio, **PLAIN, sample_len=25)


@pytest.mark.slow
def test_same_results_from_several_threads_at_once(model, tiny_audio):
    samples = [load_audio(path) for path in tiny_audio]
    recordings = [samples[0], samples[1], samples[2][:80_000], samples[2][100_000:]]
    assert_thread_safe(model, recordings, **PLAIN, sample_len=20)


@pytest.mark.slow
def test_all_kinds_give_the_same_text(tiny_folder, tiny_audio):
    texts = {
        kind: [
            loaded(tiny_folder, kind).transcribe(path, **PLAIN, sample_len=50).text
            for path in tiny_audio
        ]
        for kind in KINDS
    }
    assert texts["concat"] == texts["static"] == texts["stateful"] == texts["off"]


def test_sizes_come_from_the_graphs(tiny_folder):
    backend = loaded(tiny_folder, "static").backend
    assert (backend.n_mels, backend.n_audio_ctx, backend.n_text_ctx) == (80, 1500, 448)
    assert backend.n_vocab == 1834
    assert backend.kv_cache == "static"
    assert backend.precision == "f32"
    assert backend.device == "CPU"


def test_every_step_logs_the_shapes_of_the_cache(model, audio, caplog):
    with caplog.at_level(logging.DEBUG, "whisper_npu"):
        stepwise_logits(model.backend, audio[:2], np.zeros((2, 6), np.int64))
    assert caplog.messages == [
        f"step {step}: self (2, 2, {length}, 32), cross (2, 2, 1500, 32)"
        for step, length in ((1, 4), (2, 5), (3, 6))
    ]


def test_unknown_device(tiny_folder):
    with pytest.raises(DeviceError, match=r"^device TPU is not available here; OpenVINO finds CPU"):
        load_model(tiny_folder, device="TPU")
    with pytest.raises(DeviceError, match=r"^device CUDA .*; CUDA is not supported$"):
        load_model(tiny_folder, device="cuda")


@pytest.mark.parametrize(
    "name", ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]
)
def test_a_damaged_graph_is_a_model_error(tiny_folder, tmp_path, name):
    folder = copy_folder(tiny_folder, tmp_path / "model")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("share", [None, 0, 0.5])
def test_missing_or_truncated_weights_are_a_model_error(tiny_folder, tmp_path, share):
    folder = copy_folder(tiny_folder, tmp_path / "model")
    weights = folder / "model.onnx_data"
    if share is None:
        weights.unlink()
    else:
        content = weights.read_bytes()
        weights.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_swapped_graphs_are_a_model_error(tiny_folder, tmp_path):
    folder = copy_folder(tiny_folder, tmp_path / "model")
    shutil.copy(folder / "decoder_model.onnx", folder / "decoder_with_past_model.onnx")
    edit_manifest(folder)
    with pytest.raises(ModelError, match=r"no input past_key_values\.0\.decoder\.key"):
        load_model(folder)


def test_one_thread_gives_the_same_text(tiny_folder, tiny_audio):
    one = load_model(tiny_folder, kv_cache="concat", precision="f32", threads=1)
    several = loaded(tiny_folder)
    texts = [model.transcribe(tiny_audio[0], **PLAIN).text for model in (one, several)]
    assert texts[0] == texts[1] != ""


def test_streams_are_not_bound_to_processor_cores(tiny_folder):
    """Else one of the encoder and one of the decoder would share a core, another being idle."""
    backend = load_model(tiny_folder, precision="f32", threads=2).backend.parallel()
    bound = [pool.compiled.get_property("ENABLE_CPU_PINNING") for pool in backend._pools.values()]
    assert bound == [False] * 3
