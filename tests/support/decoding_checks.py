"""Checks that every kind of cache must pass.

They are functions, so that a test can also show that a broken cache fails them.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import openvino as ov

from whisper_npu import load_model
from whisper_npu.runtime.engines.cpu_capabilities import (
    computes_in,
    is_faster_whole,
    multiplies_bytes,
)
from whisper_npu.runtime.engines.protocol import N_LOGITS

KINDS = ("concat", "static", "stateful", "off")
TOLERANCE = 2e-3  # rounding reaches 6e-4 for sharp attention, a wrong past whole units
HAS_BF16 = computes_in(ov.Core(), "CPU", "bf16")
HAS_VNNI = multiplies_bytes()
HAS_AMX = HAS_BF16 and is_faster_whole("bf16")
# Every window becomes text, without fallback: all texts of a random model are improbable.
PLAIN = {
    "language": "en",
    "without_timestamps": True,
    "temperature": (0.0,),
    "no_speech_threshold": None,
    "vad": False,
}


@cache
def loaded(folder, kv_cache="concat"):
    """A model in exact arithmetic, loaded once per session."""
    return load_model(folder, kv_cache=kv_cache, precision="f32")


@cache
def pytorch(source):
    """A checkpoint's PyTorch model and configurations, loaded once per session."""
    from whisper_npu.export.checkpoint import load_checkpoint

    return load_checkpoint(str(source))


def reference_hidden(checkpoint, features):
    """PyTorch's encoder: `(batch, n_mels, frames)` to `(batch, n_audio_ctx, n_audio_state)`."""
    import torch

    with torch.inference_mode():
        return checkpoint.model.model.encoder(torch.from_numpy(features)).last_hidden_state.numpy()


def reference_logits(checkpoint, audio, tokens):
    """PyTorch's logits `(batch, n, n_vocab)` of one pass over whole token rows, without a cache."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    with torch.inference_mode():
        output = checkpoint.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=torch.from_numpy(audio)),
            decoder_input_ids=torch.from_numpy(tokens),
            use_cache=False,
        )
    return output.logits.numpy()


def stepwise_logits(backend, audio, tokens, *, chunk=1, rows_per_window=1):
    """A session's logits after each token: `N_LOGITS` tokens at once, then steps of `chunk`."""
    session = backend.start(audio, rows_per_window)
    try:
        parts = [session.step(tokens[:, :N_LOGITS]).copy()]
        for start in range(N_LOGITS, tokens.shape[1], chunk):
            assert session.length == start
            parts.append(session.step(tokens[:, start : start + chunk]).copy())
        assert session.length == tokens.shape[1]
    finally:
        session.close()
    return np.concatenate(parts, axis=1)


def assert_equals_full_context(backend, audio, tokens, expected, *, chunk=1, rows_per_window=1):
    """Check that the logits after each token equal those of one pass over the whole context."""
    got = stepwise_logits(backend, audio, tokens, chunk=chunk, rows_per_window=rows_per_window)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def assert_repeatable(model, recordings, **options):
    """Check that a recording's result is equal bit for bit, again and after other recordings."""
    options = options or PLAIN
    first = [model.transcribe(path, **options).result() for path in recordings]
    assert len({result.text for result in first}) == len(recordings), "they must differ to tell"
    again = [model.transcribe(recordings[0], **options).result() for _ in range(2)]
    assert again == [first[0]] * 2
    backwards = [model.transcribe(path, **options).result() for path in reversed(recordings)]
    assert backwards == first[::-1]


def assert_thread_safe(model, recordings, **options):
    """Check that several threads at once get the results of one thread after the other."""
    options = options or PLAIN
    alone = [model.transcribe(path, **options).result() for path in recordings]

    def work(offset):
        order = [(offset + i) % len(recordings) for i in range(len(recordings))]
        return {i: model.transcribe(recordings[i], **options).result() for i in order}

    with ThreadPoolExecutor(max_workers=len(recordings)) as threads:
        for results in threads.map(work, range(len(recordings))):
            assert [results[i] for i in range(len(recordings))] == alone


def products_of_int8(arithmetic):
    """The number of tiny.en's products per precision with `precision="int8"`."""
    if HAS_AMX:
        return {"encoder": {"bf16": 24}, "with_past": {"i8": 33}, "cross": {"bf16": 8}}
    return {"encoder": {"i8": 8, arithmetic: 16}, "with_past": {"i8": 33}, "cross": {"i8": 8}}


def product_precisions(compiled):
    """The number of a compiled graph's products with constants, per precision.

    The plugin has another name for a product with the constant on the left, as in the projection of
    cross-attention states.
    """
    is_projection = compiled.inputs[0].get_any_name() == "encoder_hidden_states"
    kinds = {"FullyConnected", "MatMul"} if is_projection else {"FullyConnected"}
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return Counter(
        info["runtimePrecision"].astype(str)
        for info in infos
        if info["layerType"].astype(str) in kinds
    )
