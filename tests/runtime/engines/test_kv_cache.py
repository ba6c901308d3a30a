"""Both host caches against a plain record of every state that was ever fed."""

import numpy as np
import pytest

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.kv_cache import (
    ConcatCache,
    StaticCache,
    is_cross_attention,
    is_self_attention,
    past_name,
)

N_TEXT_CTX = 16
NAMES = [f"present.{i}.decoder.{kind}" for i in range(2) for kind in ("key", "value")]
CACHES = {"concat": ConcatCache, "static": lambda contract: StaticCache(contract, N_TEXT_CTX)}


@pytest.fixture(params=list(CACHES))
def make_cache(request):
    return CACHES[request.param]


class Oracle:
    """Every state in order, `(batch, heads, N_TEXT_CTX, head_dim)`, known beforehand."""

    def __init__(self, batch=2, seed=0):
        random = np.random.default_rng(seed)
        self.whole = {
            name: random.standard_normal((batch, 3, N_TEXT_CTX, 4)).astype(np.float32)
            for name in NAMES
        }

    def present(self, contract, past, new):
        start = 0 if contract == "accumulated" else past
        return {name: whole[:, :, start : past + new] for name, whole in self.whole.items()}

    def past(self, length):
        return {past_name(name): whole[:, :, :length] for name, whole in self.whole.items()}


def assert_same_states(got, want):
    assert got.keys() == want.keys()
    for name, state in want.items():
        np.testing.assert_array_equal(got[name], state, err_msg=name)


@pytest.mark.parametrize("contract", ["accumulated", "delta"])
@pytest.mark.parametrize("steps", [[4, *[1] * 12], [1] * 16, [3, 5, 8], [16]])
def test_holds_every_state_in_order(make_cache, contract, steps):
    cache, oracle = make_cache(contract), Oracle()
    assert cache.length == 0
    length = 0
    for n_new in steps:
        cache.update(oracle.present(contract, length, n_new), n_new)
        length += n_new
        assert cache.length == length
        assert_same_states(cache.past(), oracle.past(length))
    assert length == N_TEXT_CTX


@pytest.mark.parametrize("contract", ["accumulated", "delta"])
def test_keeps_no_view_of_the_output_buffers(make_cache, contract):
    cache, oracle = make_cache(contract), Oracle()
    for past, n_new in ((0, 2), (2, 1)):
        present = {
            name: state.copy() for name, state in oracle.present(contract, past, n_new).items()
        }
        cache.update(present, n_new)
        for state in present.values():
            state[...] = np.nan  # the graph writes its buffers again
    assert_same_states(cache.past(), oracle.past(3))


@pytest.mark.parametrize("contract", ["accumulated", "delta"])
@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [1, 1], [0, 1]])
def test_reorder_moves_whole_histories(make_cache, contract, rows):
    cache, before, after = make_cache(contract), Oracle(seed=1), Oracle(seed=2)
    cache.update(before.present(contract, 0, 5), 5)
    cache.reorder(rows)
    moved = {name: state[rows] for name, state in before.past(5).items()}
    assert_same_states(cache.past(), moved)
    new = {name: whole[:, :, 5:6] for name, whole in after.whole.items()}
    present = new
    if contract == "accumulated":
        present = {
            name: np.concatenate((moved[past_name(name)], state), axis=2)
            for name, state in new.items()
        }
    cache.update(present, 1)
    for name, state in new.items():
        got = cache.past()[past_name(name)]
        np.testing.assert_array_equal(got[:, :, :5], moved[past_name(name)])
        np.testing.assert_array_equal(got[:, :, 5:], state)


@pytest.mark.parametrize(("said", "given"), [("accumulated", "delta"), ("delta", "accumulated")])
def test_refuses_states_of_the_other_contract(make_cache, said, given):
    cache, oracle = make_cache(said), Oracle()
    cache.update(oracle.present(said, 0, 3), 3)
    with pytest.raises(ModelError) as caught:
        cache.update(oracle.present(given, 3, 1), 1)
    message = str(caught.value)
    assert message.startswith(f"{NAMES[0]} has {4 if given == 'accumulated' else 1} positions")
    assert f"the {said} contract means {4 if said == 'accumulated' else 1}" in message


def test_static_buffers_never_grow_nor_move():
    cache, oracle = StaticCache("delta", N_TEXT_CTX), Oracle()
    cache.update(oracle.present("delta", 0, 1), 1)
    size = cache.n_bytes
    assert size == len(NAMES) * 2 * 3 * N_TEXT_CTX * 4 * 4
    bases = {name: state.base for name, state in cache.past().items()}
    for past in range(1, N_TEXT_CTX):
        cache.update(oracle.present("delta", past, 1), 1)
    assert cache.n_bytes == size
    assert all(state.base is bases[name] for name, state in cache.past().items())


def test_concatenated_states_take_what_they_hold():
    cache, oracle = ConcatCache("delta"), Oracle()
    sizes = []
    for past in range(3):
        cache.update(oracle.present("delta", past, 1), 1)
        sizes.append(cache.n_bytes)
    assert sizes == [len(NAMES) * 2 * 3 * length * 4 * 4 for length in (1, 2, 3)]


def test_names():
    assert past_name("present.3.decoder.key") == "past_key_values.3.decoder.key"
    assert is_self_attention("present.0.decoder.value")
    assert not is_self_attention("past_key_values.0.encoder.key")
    assert is_cross_attention("past_key_values.0.encoder.key")
    assert not is_cross_attention("present.0.decoder.key")
