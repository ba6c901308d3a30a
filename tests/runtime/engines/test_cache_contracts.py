"""What `present.*` holds is found out, whatever way it is said; and a broken cache is noticed."""

import logging

import numpy as np
import openvino as ov
import pytest
from decoding_checks import (
    PLAIN,
    TOLERANCE,
    assert_equals_full_context,
    assert_repeatable,
    loaded,
    pytorch,
    reference_logits,
)
from model_surgery import (
    copy_folder,
    edit_manifest,
    hide_lengths,
    make_delta,
    return_nothing_known,
)

from whisper_npu import load_model
from whisper_npu.errors import DeviceError, ModelError
from whisper_npu.runtime.engines.kv_cache import ConcatCache, StaticCache, past_name
from whisper_npu.runtime.engines.openvino import engine
from whisper_npu.runtime.engines.openvino.graphs import contract_of, detect_contract
from whisper_npu.runtime.model_folder.layout import DECODER_WITH_PAST

CACHED = ("concat", "static", "stateful")
N_TEXT_CTX = 448


@pytest.fixture(scope="module")
def audio():
    """Three windows that stand for encoded audio, `(3, 1500, 64)`."""
    return np.random.default_rng(5).standard_normal((3, 1500, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(6).integers(0, 330, (3, N_TEXT_CTX), dtype=np.int64)


@pytest.fixture(scope="module")
def expected(tiny_checkpoint, audio, rows):
    return reference_logits(pytorch(tiny_checkpoint), audio, rows)


def shape_of(path, name):
    model = ov.Core().read_model(path)
    return next(port for port in model.outputs if name in port.get_names()).partial_shape


class TestBothContracts:
    @pytest.mark.slow
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("kind", CACHED)
    def test_delta_graph_equals_full_context(self, folders, audio, rows, expected, kind, batch):
        model = loaded(folders["delta"], kind)
        assert_equals_full_context(model.backend, audio[:batch], rows[:batch], expected[:batch])

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", CACHED)
    def test_several_new_tokens_at_once(self, folders, audio, rows, expected, kind):
        model = loaded(folders["delta"], kind)
        assert_equals_full_context(
            model.backend, audio[:1], rows[:1, :24], expected[:1, :24], chunk=4
        )

    @pytest.mark.slow
    def test_texts_agree(self, folders, tiny_audio):
        texts = {
            (contract, kind): [
                loaded(folder, kind).transcribe(path, **PLAIN, sample_len=60).text
                for path in tiny_audio[:2]
            ]
            for contract, folder in folders.items()
            for kind in CACHED
        }
        assert len({tuple(text) for text in texts.values()}) == 1
        assert all(next(iter(texts.values())))


class TestDetection:
    def graph(self, folder):
        return ov.Core().read_model(folder / DECODER_WITH_PAST)

    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_from_shapes(self, folders, contract):
        graph = self.graph(folders[contract])
        assert detect_contract(graph) == contract
        assert graph.input("input_ids").partial_shape[1].is_dynamic  # only a copy was reshaped

    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_from_fixed_shapes(self, folders, contract):
        graph = self.graph(folders[contract])
        shapes = {}
        for tensor in graph.inputs:
            shape = tensor.partial_shape
            shape[0] = 1
            if "input_ids" in tensor.get_names():
                shape[1] = 1
            elif ".decoder." in tensor.get_any_name():
                shape[2] = 447
            shapes[tensor] = shape
        graph.reshape(shapes)
        assert detect_contract(graph) == contract

    @pytest.mark.parametrize(("n_present", "contract"), [(7, "accumulated"), (2, "delta")])
    def test_lengths_decide(self, n_present, contract):
        assert contract_of(n_present, n_past=5, n_new=2) == contract

    @pytest.mark.parametrize("n_present", [0, 5, 6, 8, 448])
    def test_other_lengths_are_no_contract(self, n_present):
        with pytest.raises(ModelError, match=f"has {n_present} positions after 5 \\+ 2 tokens"):
            contract_of(n_present, n_past=5, n_new=2)

    @pytest.mark.parametrize("delta", [False, True])
    def test_open_shapes_leave_it_open(self, tiny_folder, tmp_path, delta):
        folder = hide_lengths(copy_folder(tiny_folder, tmp_path / "tiny"), delta=delta)
        assert detect_contract(self.graph(folder)) is None

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", CACHED)
    @pytest.mark.parametrize(
        ("source", "contract"),
        [
            ("manifest", "accumulated"),
            ("manifest", "delta"),
            ("graph", "accumulated"),
            ("graph", "delta"),
            ("probing step", "accumulated"),
            ("probing step", "delta"),
        ],
    )
    def test_each_source_leads_to_the_right_tokens(
        self, tiny_folder, tmp_path, audio, rows, expected, caplog, source, contract, kind
    ):
        folder = copy_folder(tiny_folder, tmp_path / "tiny")
        if source == "probing step":
            hide_lengths(folder, delta=contract == "delta")
        elif contract == "delta":
            make_delta(folder)
        if source == "graph":
            edit_manifest(folder, kv_contract=None)
        with caplog.at_level(logging.DEBUG, "whisper_npu"):
            model = load_model(folder, kv_cache=kind, precision="f32")
        word = "a" if source == "probing step" else "the"
        assert f"KV contract: {contract} (from {word} {source})" in caplog.messages
        assert_equals_full_context(
            model.backend, audio[:2], rows[:2, :16], expected[:2, :16], chunk=1
        )

    def test_delta_graph_really_is_one(self, folders):
        shape = shape_of(folders["delta"] / DECODER_WITH_PAST, "present.0.decoder.key")
        assert shape.is_dynamic
        model = ov.Core().read_model(folders["delta"] / DECODER_WITH_PAST)
        request = ov.Core().compile_model(model, "CPU").create_infer_request()
        feed = {"input_ids": np.zeros((1, 1), np.int64)}
        for tensor in model.inputs:
            name = tensor.get_any_name()
            if name != "input_ids":
                length = 9 if ".decoder." in name else 1500
                feed[name] = np.zeros((1, 2, length, 32), np.float32)
        request.infer(feed)
        assert request.get_tensor("present.1.decoder.value").shape == [1, 2, 1, 32]


class TestContradictions:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", CACHED)
    @pytest.mark.parametrize(
        ("graph", "said"), [("accumulated", "delta"), ("delta", "accumulated")]
    )
    def test_manifest_against_graph(self, folders, tmp_path, audio, rows, kind, graph, said):
        folder = copy_folder(folders[graph], tmp_path / "tiny")
        edit_manifest(folder, kv_contract=said)
        with pytest.raises(ModelError, match="export the model again"):
            decode_somewhat(folder, kind, audio, rows)

    @pytest.mark.parametrize("kind", CACHED)
    def test_neither_contract(self, tiny_folder, tmp_path, audio, rows, kind):
        folder = return_nothing_known(copy_folder(tiny_folder, tmp_path / "tiny"))
        with pytest.raises(ModelError, match="neither the joined states nor the new ones"):
            decode_somewhat(folder, kind, audio, rows)

    def test_unknown_word_in_the_manifest(self, tiny_folder, tmp_path):
        folder = copy_folder(tiny_folder, tmp_path / "tiny")
        edit_manifest(folder, kv_contract="both")
        with pytest.raises(
            ModelError, match=r"kv_contract is 'both', not one of accumulated, delta"
        ):
            load_model(folder, kv_cache="concat")


def decode_somewhat(folder, kind, audio, rows):
    """What a caller does: the error may come at loading or at the first step that can tell."""
    session = load_model(folder, kv_cache=kind, precision="f32").backend.start(audio[:1])
    try:
        for step in range(3):
            session.step(rows[:1, step : step + 1])
    finally:
        session.close()


class FeedsOnlyNewStates(ConcatCache):
    """The classic mistake: the past of a step is what the last step returned anew."""

    def update(self, present, n_new):
        for name, state in present.items():
            self._states[past_name(name)] = state[:, :, -n_new:].copy()
        self._length += n_new


class JoinsOnAxis(ConcatCache):
    """Joins states along another axis than the sequence's."""

    axis = 2

    def update(self, present, n_new):
        for name, state in present.items():
            key = past_name(name)
            new = state[:, :, -n_new:]
            past = self._states.get(key, np.empty_like(new[:, :, :0]))
            if past.shape[2] == 0:
                self._states[key] = new.copy()
            else:
                self._states[key] = np.concatenate((past, new), self.axis)
        self._length += n_new


class JoinsOnBatch(JoinsOnAxis):
    axis = 0


class JoinsOnHeads(JoinsOnAxis):
    axis = 1


class JoinsOnHeadDim(JoinsOnAxis):
    axis = 3


class JoinsOnHeadDimCutToShape(ConcatCache):
    """Joins on the last axis and folds the result back to a shape that the graph accepts."""

    def update(self, present, n_new):
        for name, state in present.items():
            key = past_name(name)
            new = state[:, :, -n_new:]
            if key not in self._states:
                self._states[key] = new.copy()
                continue
            past = self._states[key]
            rows, heads, length, dim = past.shape
            flat = np.concatenate(
                (past.reshape(rows, heads, -1), new.reshape(rows, heads, -1)), axis=2
            )
            folded = flat.reshape(rows, heads, dim, length + n_new).swapaxes(2, 3)
            self._states[key] = np.ascontiguousarray(folded)
        self._length += n_new


class JoinsTwice(ConcatCache):
    """Joins states that the graph has joined already, without looking at their length."""

    def update(self, present, n_new):
        for name, state in present.items():
            key = past_name(name)
            past = self._states.get(key, np.empty_like(state[:, :, :0]))
            self._states[key] = np.concatenate((past, state), 2)
        self._length += n_new


class WritesInTheWrongPlace(StaticCache):
    """Writes the new states one position too early."""

    def update(self, present, n_new):
        super().update(present, n_new)
        if self._length > n_new:
            for buffer in self._buffers.values():
                at = self._length - n_new
                buffer[:, :, at - 1 : at + n_new - 1] = buffer[:, :, at : at + n_new]


class ForgetsToCopy(ConcatCache):
    """Keeps views of the graph's output buffer, which the next step overwrites."""

    def update(self, present, n_new):
        for name, state in present.items():
            self._states[past_name(name)] = state
        self._length += n_new


class TestBrokenCachesAreNoticed:
    """Each bug that garbles text makes the equality above fail: it is no test that passes anything.

    Joins on a wrong axis are refused by NumPy or OpenVINO as shapes that do not fit; whatever fits
    must be told by its values.
    """

    NOTICED = (AssertionError, DeviceError, ModelError, ValueError)

    def check(self, folder, kind, audio, rows, expected):
        # Loaded anew: nothing that other tests use is ever spoilt. One token at a time from the
        # first on, so that shapes alone give away as little as possible.
        model = load_model(folder, kv_cache=kind, precision="f32")
        session = model.backend.start(audio[:1])
        try:
            got = [session.step(rows[:1, i : i + 1]).copy() for i in range(12)]
        finally:
            session.close()
        got = np.concatenate(got, axis=1)
        np.testing.assert_allclose(got, expected[:1, :12], rtol=0, atol=TOLERANCE)
        assert_equals_full_context(model.backend, audio[:1], rows[:1, :12], expected[:1, :12])

    @pytest.mark.slow
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_the_check_passes_what_is_right(self, folders, audio, rows, expected, contract):
        for kind in CACHED:
            self.check(folders[contract], kind, audio, rows, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_the_check_passes_a_join_on_the_sequence(
        self, folders, audio, rows, expected, contract, monkeypatch
    ):
        monkeypatch.setattr(engine, "ConcatCache", JoinsOnAxis)
        self.check(folders[contract], "concat", audio, rows, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    @pytest.mark.parametrize("broken", [JoinsOnBatch, JoinsOnHeads, JoinsOnHeadDim])
    def test_wrong_axis(self, folders, audio, rows, expected, contract, broken, monkeypatch):
        monkeypatch.setattr(engine, "ConcatCache", broken)
        with pytest.raises(self.NOTICED):
            self.check(folders[contract], "concat", audio, rows, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    @pytest.mark.parametrize("broken", [FeedsOnlyNewStates, JoinsOnHeadDimCutToShape])
    def test_wrong_values_of_a_right_shape(
        self, folders, audio, rows, expected, contract, broken, monkeypatch
    ):
        monkeypatch.setattr(engine, "ConcatCache", broken)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            self.check(folders[contract], "concat", audio, rows, expected)

    @pytest.mark.slow
    def test_joining_twice(self, folders, audio, rows, expected, monkeypatch):
        monkeypatch.setattr(engine, "ConcatCache", JoinsTwice)
        self.check(folders["delta"], "concat", audio, rows, expected)  # there it is right
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            self.check(folders["accumulated"], "concat", audio, rows, expected)

    @pytest.mark.slow
    def test_keeping_the_output_buffer(self, folders, audio, rows, expected, monkeypatch):
        monkeypatch.setattr(engine, "ConcatCache", ForgetsToCopy)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            self.check(folders["delta"], "concat", audio, rows, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("contract", ["accumulated", "delta"])
    def test_wrong_position(self, folders, audio, rows, expected, contract, monkeypatch):
        monkeypatch.setattr(engine, "StaticCache", WritesInTheWrongPlace)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            self.check(folders[contract], "static", audio, rows, expected)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["concat", "static"])
    @pytest.mark.parametrize(
        ("graph", "taken"), [("accumulated", "delta"), ("delta", "accumulated")]
    )
    def test_wrong_contract(self, folders, audio, rows, expected, monkeypatch, kind, graph, taken):
        broken = {
            "concat": lambda _contract: ConcatCache(taken),
            "static": lambda _contract, n_text_ctx: StaticCache(taken, n_text_ctx),
        }
        name = {"concat": "ConcatCache", "static": "StaticCache"}[kind]
        monkeypatch.setattr(engine, name, broken[kind])
        with pytest.raises(ModelError, match=f"the {taken} contract means"):
            self.check(folders[graph], kind, audio, rows, expected)

    @pytest.mark.slow
    def test_state_that_leaks_from_one_session_into_the_next(
        self, folders, tiny_audio, audio, rows, expected, monkeypatch
    ):
        right = engine.StatefulSession

        class Leaks(right):
            def __init__(self, cross, with_past, *rest, **options):
                left = [
                    np.array(variable.state.data)
                    for request in with_past._free[-1:]
                    for variable in request.query_state()
                ]
                super().__init__(cross, with_past, *rest, **options)
                for variable, state in zip(self._states, left, strict=False):
                    if state.ndim == 4:
                        variable.state = ov.Tensor(state)

        monkeypatch.setattr(engine, "StatefulSession", Leaks)
        noticed = (AssertionError, ModelError)  # by the length of the states, or by values
        with pytest.raises(noticed):
            self.check(folders["accumulated"], "stateful", audio, rows, expected)
        model = load_model(folders["accumulated"], kv_cache="stateful", precision="f32")
        with pytest.raises(noticed):
            assert_repeatable(model, tiny_audio[:2], **PLAIN, sample_len=20)
