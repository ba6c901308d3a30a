"""Text drafted from a part of the vocabulary: what single steps would give, and where."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
from decoding_checks import HAS_BF16, TOLERANCE, stepwise_logits

from whisper_npu.runtime import draft
from whisper_npu.runtime.decoding.decode import DecodingOptions, decode_windows
from whisper_npu.runtime.decoding.logit_filters import SuppressTokens
from whisper_npu.runtime.draft import Draft
from whisper_npu.runtime.engines.openvino.compile_cache import CompileCache
from whisper_npu.runtime.engines.openvino.engine import OpenVINOBackend
from whisper_npu.runtime.engines.openvino.graphs import DRAFT, HIDDEN, split_vocabulary
from whisper_npu.runtime.engines.openvino.stateful_session import _StatefulDrafter
from whisper_npu.runtime.model_folder.config import GenerationConfig
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.text.tokenizer import Tokenizer, read_vocabulary
from whisper_npu.runtime.timing import StageTimes

N_VOCAB, EOT = 40, 30
N_FREQUENT = 20
WIDTH = 8


class ToyDrafter:
    """Likelihoods made from all tokens so far; the small part lacks the tokens 20 to 29."""

    def __init__(self, *, sure=True):
        self.context = []
        self.sure = sure
        self.unsettled = 0
        self.rewound = 0
        self.settled = []

    @property
    def length(self):
        return len(self.context)

    def logits(self, context):
        rng = np.random.default_rng([1, *context])
        likeliest = rng.integers(0, EOT) if len(context) % 11 else EOT
        logits = rng.standard_normal(N_VOCAB).astype(np.float32)
        logits[likeliest] += 20 if self.sure else 4
        if self.sure:  # the small part, too, where it is wrong
            logits[rng.integers(0, N_FREQUENT)] += 10
        return logits

    def draft(self, tokens):
        assert tokens.shape == (1, 1)
        self.context.append(int(tokens[0, 0]))
        self.unsettled += 1
        logits = self.logits(self.context)
        logits[N_FREQUENT:EOT] = -np.inf
        return (logits - np.log(np.exp(logits).sum()))[None]

    def settle(self):
        n, self.unsettled = self.unsettled, 0
        self.settled.append(n)
        ends = range(len(self.context) - n + 1, len(self.context) + 1)
        return np.stack([self.logits(self.context[:end]) for end in ends])

    def rewind(self, length):
        assert length < len(self.context)
        assert not self.unsettled
        self.rewound += 1
        del self.context[length:]


def follow(drafter, n_steps, *, rules=(), choose=None, n_tokens=1000):
    """Take the likeliest token, or another one, again and again; all logits must be exact."""
    steps = Draft(drafter, rules, EOT, n_tokens)
    tokens = np.array([[3]])
    for place in range(n_steps):
        logits = steps.step(tokens, np.array([False]))
        np.testing.assert_array_equal(logits, drafter.logits(tokens[0].tolist())[None])
        for rule in rules:
            rule.apply(logits, tokens)
        token = int(logits.argmax()) if choose is None else choose(place)
        tokens = np.append(tokens, [[token]], axis=1)
    return tokens[0].tolist()


class TestDraft:
    def test_logits_are_those_of_single_steps(self):
        drafter = ToyDrafter()
        said = follow(drafter, 60)
        assert any(N_FREQUENT <= token < EOT for token in said)
        assert drafter.rewound > 3
        assert len(drafter.settled) < 40

    def test_whatever_is_chosen(self):
        """Not the likeliest token: nothing that was drafted can be used."""
        drafter = ToyDrafter()
        follow(drafter, 20, choose=lambda place: place)
        assert len(drafter.settled) > 15
        assert drafter.rewound > 5

    def test_no_more_at_once_than_are_read_for_nothing(self, monkeypatch):
        monkeypatch.setattr(ToyDrafter, "logits", lambda _self, _context: np.eye(N_VOCAB)[5] * 20)
        drafter = ToyDrafter()
        steps = Draft(drafter, [], EOT, 1000)
        for n in range(1, 20):
            steps.step(np.full((1, n), 5), np.array([False]))
        assert drafter.settled == [8, 8, 8]
        assert drafter.rewound == 0

    def test_nothing_follows_a_token_that_is_not_sure(self):
        drafter = ToyDrafter(sure=False)
        follow(drafter, 20)
        sure = ToyDrafter()
        follow(sure, 20)
        assert len(drafter.settled) > len(sure.settled)
        assert drafter.rewound == 0

    def test_nothing_follows_the_end(self):
        drafter = ToyDrafter()
        steps = Draft(drafter, [], EOT, 1000)
        tokens = np.full((1, 11), 3)
        drafter.context = [3] * 10
        assert steps.step(tokens, np.array([False])).argmax() == EOT
        assert drafter.settled == [1]

    def test_the_rules_hold_for_drafts(self, monkeypatch):
        plain = ToyDrafter.draft
        rule = SuppressTokens(list(range(10)))
        drafter = ToyDrafter()
        drafted = []
        monkeypatch.setattr(
            ToyDrafter, "draft", lambda self, tokens: drafted.append(tokens) or plain(self, tokens)
        )
        said = follow(drafter, 40, rules=[rule])
        assert min(said[1:]) >= 10
        assert min(each.item() for each in drafted[1:]) >= 10

    def test_nothing_is_drafted_that_is_not_asked_for(self):
        drafter = ToyDrafter()
        follow(drafter, 13, n_tokens=13)
        assert drafter.length == 13


@pytest.fixture(scope="module")
def folder(tiny_folder):
    return read_model_folder(tiny_folder)


@pytest.fixture(scope="module")
def backend(folder):
    return OpenVINOBackend(folder, precision="f32")


@pytest.fixture(scope="module")
def joined(folder):
    """The same model, the projection to the vocabulary in the decoder's graph."""
    return OpenVINOBackend(folder, precision="f32", streams=2)


@pytest.fixture(scope="module")
def audio():
    return np.random.default_rng(7).standard_normal((3, 1500, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(3).integers(0, 330, (3, 448), dtype=np.int64)


class TestBackend:
    def test_a_step_gives_the_same(self, backend, joined, audio, rows):
        one, other = (stepwise_logits(each, audio[:2], rows[:2, :12]) for each in (backend, joined))
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)

    def test_rows_that_have_left(self, backend, joined, audio, rows):
        found = []
        for each in (backend, joined):
            session = each.start(audio)
            session.step(rows[:, :2])
            assert session.keep([0, 2])
            found.append(session.step(rows[[0, 2], 2:3]).copy())
            session.close()
        np.testing.assert_allclose(*found, rtol=0, atol=TOLERANCE)

    def test_drafts_settled_are_steps(self, backend, audio, rows):
        expected = stepwise_logits(backend, audio[:1], rows[:1, :24])
        session = backend.start(audio[:1])
        session.step(rows[:1, :4])
        drafter = session.drafter()
        n_text = backend._folder.end_of_text
        for begin, end in ((4, 5), (5, 13), (13, 24)):
            for place in range(begin, end):
                scores = drafter.draft(rows[:1, place : place + 1])
                assert scores.shape == (1, backend.n_vocab)
                some = np.flatnonzero(np.isfinite(scores[0]))
                n_draft = backend._facts.n_draft
                assert some.tolist() == [*range(n_draft), *range(n_text, backend.n_vocab)]
                logits = expected[0, place, some]
                normal = logits - np.log(np.exp(logits).sum())
                np.testing.assert_allclose(scores[0, some], normal, rtol=0, atol=TOLERANCE)
            settled = drafter.settle()
            assert drafter.length == end
            np.testing.assert_allclose(settled, expected[0, begin:end], rtol=0, atol=TOLERANCE)
        session.close()

    def test_after_a_rewind(self, backend, audio, rows):
        expected = stepwise_logits(backend, audio[:1], rows[:1, :12])
        session = backend.start(audio[:1])
        session.step(rows[:1, :4])
        drafter = session.drafter()
        for place in (4, 5):
            drafter.draft(rows[:1, place : place + 1])
        for token in (7, 8, 9, 10):
            drafter.draft(np.array([[token]]))
        drafter.settle()
        drafter.rewind(6)
        assert session.length == 6
        for place in range(6, 12):
            drafter.draft(rows[:1, place : place + 1])
        np.testing.assert_allclose(drafter.settle(), expected[0, 6:], rtol=0, atol=TOLERANCE)
        session.close()

    @pytest.fixture
    def calls(self, monkeypatch):
        """How often drafters were asked for and given, and what they did."""
        found = Counter()

        def count(cls, name):
            call = getattr(cls, name)

            def counted(self, *arguments):
                found[name] += 1
                return call(self, *arguments)

            monkeypatch.setattr(cls, name, counted)

        for name in ("draft", "settle", "rewind"):
            count(_StatefulDrafter, name)
        return found

    @pytest.fixture
    def decode(self, folder, audio):
        tokenizer = Tokenizer(folder.tokenizer)
        vocabulary = read_vocabulary(folder, tokenizer)

        def decode(backend, options, **more):
            options = replace(options, suppress_tokens=vocabulary.suppress)
            (found,) = decode_windows(
                backend, tokenizer, vocabulary, audio[:1], options, StageTimes(), **more
            )
            return found

        return decode

    def assert_same(self, drafted, plain):
        assert drafted.tokens == plain.tokens
        assert drafted.avg_logprob == pytest.approx(plain.avg_logprob, abs=1e-5)
        assert drafted.no_speech_prob == plain.no_speech_prob

    @pytest.mark.parametrize(
        ("options", "more"),
        [
            (DecodingOptions(), {}),
            (DecodingOptions(), {"reach": [20.0]}),
            (DecodingOptions(without_timestamps=True), {}),
            (DecodingOptions(begun=(5, 6, 7)), {"prompts": [(8, 9)]}),
        ],
        ids=["timestamps", "reach", "without timestamps", "begun"],
    )
    def test_windows_are_decoded_the_same(self, backend, options, more, decode, calls, monkeypatch):
        """A random model is never sure, so drafts are gone on from that are not either."""
        plain = decode(backend, options, drafts=False, **more)
        assert not calls
        for sure in (0.0, 0.01, 0.5):
            monkeypatch.setattr(draft, "_SURE", sure)
            self.assert_same(decode(backend, options, **more), plain)
            if not sure:
                assert calls["settle"] < len(plain.tokens)
                assert calls["rewind"] > 0
                assert calls["draft"] - len(plain.tokens) <= 7 * calls["rewind"]

    def test_the_last_tokens_are_not_drafted_for_nothing(self, backend, decode, calls, monkeypatch):
        monkeypatch.setattr(draft, "_SURE", 0.0)
        options = DecodingOptions(without_timestamps=True, sample_len=2)
        assert len(decode(backend, options).tokens) == 2
        assert calls == {"draft": 1, "settle": 1}

    @pytest.mark.parametrize("precision", ["f32", *(["bf16"] if HAS_BF16 else [])])
    def test_drafts_from_compiled_graphs(
        self, folder, decode, calls, precision, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(draft, "_SURE", 0.0)
        cache = CompileCache(tmp_path / "compiled", 1 << 30)
        backends = [OpenVINOBackend(folder, precision=precision, cache=cache) for _ in range(2)]
        plain = decode(backends[0], DecodingOptions(), drafts=False)
        for backend in backends:
            calls.clear()
            self.assert_same(decode(backend, DecodingOptions()), plain)
            assert calls["rewind"] > 0

    @pytest.mark.parametrize(
        "options",
        [DecodingOptions(beam_size=1), DecodingOptions(temperature=0.8, best_of=1)],
        ids=["beam", "sample"],
    )
    def test_only_the_likeliest_token_is_drafted(self, backend, options, decode, calls):
        decode(backend, options)
        assert not calls

    def test_side_by_side(self, backend, decode, monkeypatch):
        monkeypatch.setattr(draft, "_SURE", 0.0)
        plain = decode(backend, DecodingOptions(), drafts=False)
        with ThreadPoolExecutor(3) as threads:
            for found in threads.map(lambda _: decode(backend, DecodingOptions()), range(6)):
                self.assert_same(found, plain)

    def test_several_rows_are_not_drafted(self, backend, audio):
        session = backend.start(audio[:2])
        assert session.drafter() is None
        session.close()

    @pytest.mark.parametrize(
        "options",
        [
            {"streams": 2},
            {"kv_cache": "concat"},
            {"kv_cache": "off"},
            {"precision": "int8"},
        ],
        ids=["streams", "concat", "off", "int8"],
    )
    def test_where_it_would_not_pay(self, folder, audio, options):
        backend = OpenVINOBackend(folder, **{"precision": "f32", **options})
        assert "draft" not in backend._pools
        session = backend.start(audio[:1])
        assert session.drafter() is None
        session.close()

    def test_a_folder_that_does_not_say_where_text_ends(self, folder):
        config = replace(folder.config, eos_token_id=None)
        unknown = replace(folder, generation_config=GenerationConfig(), config=config)
        assert unknown.end_of_text is None
        assert "draft" not in OpenVINOBackend(unknown, precision="f32")._pools


class TestSplitVocabulary:
    @staticmethod
    def graph(weights, *, turned, transposed=False):
        ops = ov.opset13
        value = ops.constant(weights)
        if weights.dtype != np.float32:
            value = ops.convert(value, "f32")
        if transposed:
            value = ops.transpose(value, ops.constant([1, 0]))
        hidden = ops.parameter([-1, -1, WIDTH], np.float32)
        result = ops.result(ops.matmul(hidden, value, False, turned))
        result.output(0).get_tensor().set_names({"logits"})
        return ov.Model([result], [hidden])

    @pytest.mark.parametrize("by_token", [True, False])
    @pytest.mark.parametrize("transposed", [True, False])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_however_the_table_is_stored(self, by_token, transposed, dtype):
        rng = np.random.default_rng(2)
        table = rng.standard_normal((N_VOCAB, WIDTH)).astype(dtype)
        state = rng.standard_normal((2, 3, WIDTH)).astype(np.float32)
        weights = np.ascontiguousarray(table if by_token else table.T)
        model = self.graph(weights, turned=by_token != transposed, transposed=transposed)
        parts = split_vocabulary(model, EOT, N_FREQUENT)
        assert list(parts) == ["vocabulary", "draft"]
        core = ov.Core()
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        (hidden,) = core.compile_model(model, "CPU", exact)(state).to_dict().values()
        assert model.output(0).get_names() == {HIDDEN}
        np.testing.assert_array_equal(hidden, state)
        found = core.compile_model(parts["vocabulary"], "CPU", exact)(state)["logits"]
        logits = state @ table.astype(np.float32).T
        np.testing.assert_allclose(found, logits, atol=1e-5)
        some = np.concatenate((logits[..., :N_FREQUENT], logits[..., EOT:]), axis=-1)
        some -= np.log(np.exp(some).sum(axis=-1, keepdims=True))
        found = core.compile_model(parts["draft"], "CPU", exact)(state)[DRAFT]
        np.testing.assert_allclose(found, some, atol=1e-5)

    def test_a_table_in_8_bits_stays_where_it_is(self):
        model = self.graph(np.ones((N_VOCAB, WIDTH), np.int8), turned=True)
        assert split_vocabulary(model, EOT, N_FREQUENT) == {}
        assert model.output(0).get_names() == {"logits"}

    @pytest.mark.parametrize("n_text", [N_FREQUENT - 1, N_VOCAB, N_VOCAB + 5])
    def test_text_that_ends_elsewhere(self, n_text):
        model = self.graph(np.ones((N_VOCAB, WIDTH), np.float32), turned=True)
        assert split_vocabulary(model, n_text, N_FREQUENT) == {}
        assert model.output(0).get_names() == {"logits"}

    def test_no_matrix_product(self):
        hidden = ov.opset13.parameter([-1, -1, WIDTH], np.float32)
        result = ov.opset13.result(ov.opset13.relu(hidden))
        result.output(0).get_tensor().set_names({"logits"})
        assert split_vocabulary(ov.Model([result], [hidden]), EOT, N_FREQUENT) == {}
