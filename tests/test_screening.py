"""The projection in 8 bits: what it may be wrong by, and that no choice of tokens depends on it."""

import gc
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
from decoding_checks import TOLERANCE, exact_step, stepwise_logits

from whisper_npu.errors import UsageError
from whisper_npu.runtime.audio import load_audio
from whisper_npu.runtime.decoding import DecodingOptions, decode_windows
from whisper_npu.runtime.feature_stream import FeatureStream
from whisper_npu.runtime.model_dir import DECODER_WITH_PAST, read_model_folder
from whisper_npu.runtime.openvino_backend import OpenVINOBackend
from whisper_npu.runtime.openvino_graphs import read_graph
from whisper_npu.runtime.openvino_sessions import StatefulSession
from whisper_npu.runtime.screening import HIDDEN, make_screen, table_of
from whisper_npu.runtime.timing import StageTimes
from whisper_npu.runtime.tokenizer import Tokenizer, read_vocabulary

N_VOCAB, N_TEXT, WIDTH = 3000, 2500, 48


@pytest.fixture(scope="module")
def table():
    """Rows of many lengths, columns too, one of them empty."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((N_VOCAB, WIDTH)) * rng.uniform(0.01, 1, (N_VOCAB, 1))
    rows *= rng.uniform(0.1, 5, WIDTH)
    rows[:, 7] = 0
    rows[11] = 0
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def hidden():
    """States with a few large elements, as decoders have them, `(30, 1, WIDTH)`."""
    rng = np.random.default_rng(6)
    states = rng.standard_normal((30, 1, WIDTH)) * rng.uniform(0.2, 3, WIDTH)
    states[..., 3] += 40
    return states.astype(np.float32)


def coarse_logits(hidden, rounded):
    rows = (rounded.codes.astype(np.float32) - rounded.zeros) * rounded.scales * rounded.balance
    return (hidden @ rows.T).astype(np.float32)


class TestScreen:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_no_logit_is_further_off_than_it_may_be(self, table, hidden, dtype):
        table = table.astype(dtype)
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        off = np.abs(coarse_logits(hidden, rounded) - hidden @ table.T.astype(np.float32))
        limit = np.linalg.norm(hidden * screen.balance, axis=-1, keepdims=True) * screen.errors
        assert (off <= limit + 1e-4).all()
        assert off.max() > 0.01  # it is rounded indeed
        rows = (rounded.codes.astype(np.float32) - rounded.zeros) * rounded.scales
        lengths = np.linalg.norm(table / screen.balance - rows, axis=1)
        np.testing.assert_allclose(screen.errors, lengths, rtol=0.01, atol=1e-6)  # no more either

    @pytest.mark.parametrize("n_best", [1, 2, 6, N_TEXT])
    def test_the_best_are_exact_and_the_others_behind_them(self, table, hidden, n_best):
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        exact = (hidden @ table.T)[:, 0, :N_TEXT]
        logits = coarse_logits(hidden, rounded)
        order = np.argsort(-exact, axis=1)
        coarse_order = np.argsort(-logits[:, 0, :N_TEXT], axis=1)
        assert (order[:, :6] != coarse_order[:, :6]).any()  # there is something to settle
        screen.settle(logits, hidden * screen.balance, n_best)
        settled = logits[:, 0, :N_TEXT]
        for got, want, best in zip(settled, exact, order, strict=True):
            np.testing.assert_allclose(got[best[:n_best]], want[best[:n_best]], atol=1e-4)
            if n_best < N_TEXT:
                assert got[best[n_best:]].max() <= got[best[n_best - 1]] + 1e-4

    def test_only_few_are_computed(self, table, hidden):
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        before = coarse_logits(hidden, rounded)
        after = before.copy()
        screen.settle(after, hidden * screen.balance, 1)
        assert np.median((before != after).sum(axis=2)) < 0.02 * N_TEXT

    @pytest.mark.parametrize("n_best", [1, 6, None])
    def test_forbidden_tokens_stay_forbidden(self, table, hidden, n_best):
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        exact = hidden @ table.T
        logits = coarse_logits(hidden, rounded)
        likeliest = np.argsort(-exact[..., :N_TEXT], axis=-1)[..., :5]
        np.put_along_axis(logits, likeliest, -np.inf, axis=-1)
        np.put_along_axis(exact, likeliest, -np.inf, axis=-1)
        screen.settle(logits, hidden * screen.balance, n_best)
        assert np.isneginf(np.take_along_axis(logits, likeliest, axis=-1)).all()
        best = logits[..., :N_TEXT].argmax(axis=-1)
        assert (best == exact[..., :N_TEXT].argmax(axis=-1)).all()
        logits[:] = -np.inf  # nothing at all is allowed
        screen.settle(logits, hidden * screen.balance, n_best)
        assert np.isneginf(logits).all()

    def test_handicaps_decide_too(self, table, hidden):
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        exact, coarse = hidden @ table.T, coarse_logits(hidden, rounded)
        # Nearly level, so that only what chance adds and the last digits tell tokens apart.
        noise = np.random.default_rng(7).gumbel(size=exact.shape) * 0.01
        handicaps = (exact.max(axis=-1, keepdims=True) - exact + noise).astype(np.float32)
        want = (exact + handicaps)[..., :N_TEXT].argmax(axis=-1)
        assert ((coarse + handicaps)[..., :N_TEXT].argmax(axis=-1) != want).any()
        screen.settle(coarse, hidden * screen.balance, 1, handicaps)
        assert ((coarse + handicaps)[..., :N_TEXT].argmax(axis=-1) == want).all()

    def test_specials_and_timestamps_are_left_alone(self, table, hidden):
        screen, rounded = make_screen(table, N_TEXT, exact_products=True)
        logits = coarse_logits(hidden, rounded)
        before = logits[..., N_TEXT:].copy()
        screen.settle(logits, hidden * screen.balance, None)
        assert (logits[..., N_TEXT:] == before).all()

    def test_bf16_may_be_further_off(self, table):
        exact, _ = make_screen(table, N_TEXT, exact_products=True)
        coarse, _ = make_screen(table, N_TEXT, exact_products=False)
        assert (coarse.errors[table.any(axis=1)] > exact.errors[table.any(axis=1)]).all()


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return read_model_folder(tiny_folder)


@pytest.fixture(scope="module")
def backends(folder):
    """The same model with and without."""
    return (
        OpenVINOBackend(folder, precision="f32", screening=True),
        OpenVINOBackend(folder, precision="f32"),
    )


@pytest.fixture(scope="module")
def audio(backends, tiny_audio):
    """Three encoded windows, `(3, 1500, 64)`."""
    windows = [FeatureStream(iter([load_audio(path)]), 80).window(0, 3000) for path in tiny_audio]
    return backends[0].encode(np.stack(windows))


@pytest.fixture(scope="module")
def rows():
    """Three rows of random tokens that fill the context, `(3, 448)`."""
    return np.random.default_rng(3).integers(0, 330, (3, 448), dtype=np.int64)


def tensor_names(backend):
    outputs = backend._pools["with_past"].compiled.outputs
    return {name for output in outputs for name in output.get_names()}


class TestBackend:
    def test_it_is_in_the_graph_where_it_is_asked_for(self, backends):
        assert "tail_logits" in tensor_names(backends[0])
        assert "tail_logits" not in tensor_names(backends[1])  # f32 is exact in every digit

    def test_it_is_in_the_graph_by_default(self, folder):
        assert "tail_logits" in tensor_names(OpenVINOBackend(folder, precision="bf16"))

    @pytest.mark.parametrize("options", [{"streams": 2}, {"threads": 1}])
    def test_not_where_many_rows_are_decoded(self, folder, options):
        backend = OpenVINOBackend(folder, precision="bf16", **options)
        assert "tail_logits" not in tensor_names(backend)

    @pytest.mark.parametrize("kind", ["concat", "static", "off"])
    def test_not_with_the_caches_it_is_compared_with(self, folder, kind):
        assert OpenVINOBackend(folder, kv_cache=kind)._screen is None
        with pytest.raises(UsageError, match="screening needs the stateful cache"):
            OpenVINOBackend(folder, kv_cache=kind, screening=True)

    @pytest.mark.parametrize("precision", ["f32", "bf16"])
    def test_no_logit_is_further_off_than_it_may_be(self, folder, audio, rows, precision):
        """On a processor that computes in bf16; others do it in f32."""
        backend = OpenVINOBackend(folder, precision=precision, screening=True)
        screen = backend._screen
        session = backend.start(audio)
        off = []
        for place in range(12):
            logits = session.step(rows[:3, place : place + 1])[:, 0, : screen.n_text]
            hidden = session._request.get_tensor(HIDDEN).data[:, 0]
            digits = np.ascontiguousarray(hidden).view(np.uint32) & 0xFFFF
            assert digits.any(), "the state was rounded to bf16 before it was handed out"
            limit = np.linalg.norm(hidden, axis=1)[:, None] * screen.errors[: screen.n_text]
            exact = (hidden / screen.balance) @ screen.table[: screen.n_text].T
            off.append(np.abs(logits - exact) / (limit + screen.rounding * np.abs(exact)))
        session.close()
        assert np.max(off) <= 1
        assert np.max(off) > 0.02

    def test_the_table_outlives_its_graph(self, folder):
        backend = OpenVINOBackend(folder, precision="bf16")
        gc.collect()
        table = read_graph(ov.Core(), folder.path / DECODER_WITH_PAST)
        np.testing.assert_array_equal(backend._screen.table, table_of(table))

    def test_settled_logits_are_those_of_the_whole_table(self, backends, audio, rows):
        one, other = (stepwise_logits(backend, audio[:2], rows[:2, :12]) for backend in backends)
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)

    def test_logits_are_rounded_until_they_are_settled(self, backends, audio, rows):
        logits = []
        for backend in backends:
            session = backend.start(audio[:1])
            logits.append(session.step(rows[:1, :1]).copy())
            session.close()
        n_text = backends[0]._folder.end_of_text
        off = np.abs(logits[0] - logits[1])
        assert off[..., :n_text].max() > 10 * TOLERANCE
        assert off[..., n_text:].max() <= TOLERANCE

    @pytest.mark.parametrize(
        "options",
        [
            DecodingOptions(),
            DecodingOptions(without_timestamps=True),
            DecodingOptions(beam_size=3),
            DecodingOptions(temperature=0.8, best_of=3),
        ],
        ids=["greedy", "without timestamps", "beams", "samples"],
    )
    def test_the_tokens_are_the_same(self, folder, backends, audio, options):
        tokenizer = Tokenizer(folder.tokenizer)
        vocabulary = read_vocabulary(folder, tokenizer)
        options = replace(
            options,
            sample_len=40,
            suppress_tokens=vocabulary.suppress,
            suppress_first=vocabulary.begin_suppress,
        )
        one, other = (
            decode_windows(backend, tokenizer, vocabulary, audio[:3], options, StageTimes())
            for backend in backends
        )
        assert [window.tokens for window in one] == [window.tokens for window in other]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.avg_logprob == pytest.approx(theirs.avg_logprob, abs=0.01)
            assert mine.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=0.001)

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_what_chance_adds_is_settled_too(
        self, folder, backends, audio, temperature, monkeypatch
    ):
        asked = []
        settle = StatefulSession.settle

        def note(self, logits, n_best, handicaps=None):
            asked.append(None if handicaps is None else handicaps.shape == logits.shape)
            settle(self, logits, n_best, handicaps)

        monkeypatch.setattr(StatefulSession, "settle", note)
        tokenizer = Tokenizer(folder.tokenizer)
        vocabulary = read_vocabulary(folder, tokenizer)
        options = DecodingOptions(temperature=temperature, best_of=2, sample_len=3)
        decode_windows(backends[0], tokenizer, vocabulary, audio[:1], options, StageTimes())
        assert asked == ([None, True] * 3 if temperature else [None] * 3)

    def test_the_hidden_state_is_not_rounded(self, backends):
        compiled = backends[0]._pools["with_past"].compiled
        assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0

    def test_rows_that_have_left(self, backends, audio, rows):
        found = []
        for backend in backends:
            session = backend.start(audio[:3])
            session.step(rows[:3, :2])
            assert session.keep([0, 2])
            found.append(exact_step(session, rows[[0, 2], 2:3]))
            session.close()
        np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE)

    def test_the_whole_context(self, backends, audio, rows):
        screened = backends[0].start(audio[:1])
        logits = exact_step(screened, rows[:1])
        screened.close()
        plain = backends[1].start(audio[:1])
        np.testing.assert_allclose(logits, plain.step(rows[:1]), rtol=0, atol=TOLERANCE)
        plain.close()


class TestTable:
    def test_no_transposition_at_all(self, table):
        ops = ov.opset13
        value = ops.transpose(ops.constant(np.ascontiguousarray(table.T)), ops.constant([0, 1]))
        hidden = ops.parameter([-1, -1, WIDTH], np.float32)
        result = ops.result(ops.matmul(hidden, value, False, False))
        result.output(0).get_tensor().set_names({"logits"})
        assert table_of(ov.Model([result], [hidden])) is None

    @pytest.mark.parametrize("by_token", [True, False])
    @pytest.mark.parametrize("transposed", [True, False])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_however_it_is_stored(self, table, by_token, transposed, dtype):
        ops = ov.opset13
        weights = ops.constant(np.ascontiguousarray(table if by_token else table.T, dtype))
        value = weights if dtype == np.float32 else ops.convert(weights, "f32")
        if transposed:
            value = ops.transpose(value, ops.constant([1, 0]))
        hidden = ops.parameter([-1, -1, WIDTH], np.float32)
        logits = ops.matmul(hidden, value, False, by_token != transposed)
        result = ops.result(logits)
        result.output(0).get_tensor().set_names({"logits"})
        found = table_of(ov.Model([result], [hidden]))
        np.testing.assert_array_equal(found, table.astype(dtype))

    def test_8_bits_already(self, table):
        ops = ov.opset13
        weights = ops.convert(ops.constant(table.astype(np.int8)), "f32")
        hidden = ops.parameter([-1, -1, WIDTH], np.float32)
        result = ops.result(ops.matmul(hidden, weights, False, True))
        result.output(0).get_tensor().set_names({"logits"})
        assert table_of(ov.Model([result], [hidden])) is None

    def test_no_matrix_product(self):
        hidden = ov.opset13.parameter([-1, -1, WIDTH], np.float32)
        result = ov.opset13.result(ov.opset13.relu(hidden))
        result.output(0).get_tensor().set_names({"logits"})
        assert table_of(ov.Model([result], [hidden])) is None

    def test_a_folder_that_does_not_say_where_text_ends(self, folder):
        unknown = replace(folder, generation_config={}, config={**folder.config})
        unknown.config.pop("eos_token_id", None)
        assert unknown.end_of_text is None
        assert OpenVINOBackend(unknown, precision="bf16")._screen is None
