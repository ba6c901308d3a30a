"""Past key/value states of the decoder, held by the host.

Every state has shape `(batch, heads, sequence, head_dim)`; states are joined along the sequence
axis and nowhere else. Exporters differ in the content of a graph's `present.*.decoder.*` outputs. A
wrong guess garbles the text, so every cache is given the contract explicitly:

- accumulated: past and new states already joined; they replace the past;
- delta: the states of the new tokens only; they are appended to the past.

Cross-attention states depend on the audio alone: computed once per window, never changed again.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import ModelError
from whisper_npu.runtime.model_folder.config import KVContract

SEQUENCE_AXIS = 2

State = npt.NDArray[np.float32]
States = dict[str, State]


def past_name(present: str) -> str:
    """Return the input that takes the state of output `present`."""
    return present.replace("present.", "past_key_values.", 1)


def is_self_attention(name: str) -> bool:
    """Whether `name` is a past or present state of the decoder's self-attention."""
    return ".decoder." in name


def is_cross_attention(name: str) -> bool:
    """Whether `name` is a past or present state of the cross-attention."""
    return ".encoder." in name


class KVCache(Protocol):
    """Self-attention states of one decoding session, by input name `past_key_values.*`."""

    @property
    def length(self) -> int:
        """Number of positions held."""
        ...

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""
        ...

    def past(self) -> States:
        """Return the graph's past inputs: `(batch, heads, length, head_dim)` each."""
        ...

    def update(self, present: Mapping[str, State], n_new: int) -> None:
        """Add the states that a step of `n_new` tokens returned, by output name `present.*`."""
        ...

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` of the batch continue row `rows[i]`."""
        ...


def check_present(name: str, state: State, contract: KVContract, past: int, n_new: int) -> None:
    """Refuse a state whose length breaks the contract.

    Raises:
        ModelError: the graph breaks the contract; further decoding would garble the text.
    """
    expected = past + n_new if contract == "accumulated" else n_new
    if state.shape[SEQUENCE_AXIS] != expected:
        raise ModelError(
            f"{name} has {state.shape[SEQUENCE_AXIS]} positions after {past} + {n_new} tokens; "
            f"the {contract} contract means {expected}. The model folder's manifest and graphs "
            "disagree: export the model again"
        )


class ConcatCache:
    """Joins new states to the past (delta), or replaces it by joined states (accumulated)."""

    def __init__(self, contract: KVContract) -> None:
        self._contract = contract
        self._states: States = {}
        self._length = 0

    @property
    def length(self) -> int:
        """Number of positions held."""
        return self._length

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(state.nbytes for state in self._states.values())

    def past(self) -> States:
        """Return states by input name, `(batch, heads, length, head_dim)` each."""
        return self._states

    def update(self, present: Mapping[str, State], n_new: int) -> None:
        """Add the states of `n_new` tokens.

        Raises:
            ModelError: the states break the contract.
        """
        for name, state in present.items():
            check_present(name, state, self._contract, self._length, n_new)
            key = past_name(name)
            if self._contract == "delta" and key in self._states:
                self._states[key] = np.concatenate((self._states[key], state), SEQUENCE_AXIS)
            else:
                self._states[key] = state.copy()  # the graph reuses its output buffer
        self._length += n_new

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._states = {name: state[list(rows)] for name, state in self._states.items()}


class StaticCache:
    """A buffer for the whole context, allocated once, written in place at `length`."""

    def __init__(self, contract: KVContract, n_text_ctx: int) -> None:
        self._contract = contract
        self._n_text_ctx = n_text_ctx
        self._buffers: States = {}
        self._length = 0

    @property
    def length(self) -> int:
        """Number of positions held."""
        return self._length

    @property
    def n_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def past(self) -> States:
        """Return views of the written part by name, `(batch, heads, length, head_dim)` each."""
        return {name: buffer[:, :, : self._length] for name, buffer in self._buffers.items()}

    def update(self, present: Mapping[str, State], n_new: int) -> None:
        """Write the states of `n_new` tokens after those held.

        Raises:
            ModelError: the states break the contract.
        """
        start, stop = self._length, self._length + n_new
        for name, state in present.items():
            check_present(name, state, self._contract, self._length, n_new)
            key = past_name(name)
            if key not in self._buffers:
                batch, heads, _, head_dim = state.shape
                self._buffers[key] = np.zeros(
                    (batch, heads, self._n_text_ctx, head_dim), state.dtype
                )
            self._buffers[key][:, :, start:stop] = state[:, :, -n_new:]
        self._length = stop

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        for name, buffer in self._buffers.items():
            self._buffers[name] = buffer[list(rows)]
