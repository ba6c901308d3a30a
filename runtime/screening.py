"""The projection to the vocabulary in 8 bits, and the tokens that matter computed exactly.

A step of a small decoder spends much of its time reading the vocabulary's table. Here it reads the
table rounded to 8 bits. By Cauchy and Schwarz, what that does to a logit is at most the length of
its row's rounding error times the length of the hidden state. So it is known which tokens may be
the likeliest: mostly one, now and then some dozens. Those are computed again from the table as it
is, and the choice among them is the one that the whole table gives.

It pays for few rows at a time: with many, the table is read once for all of them anyway. Log
probabilities change a little, because what they are relative to is a sum over all tokens.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from whisper_npu.runtime.backend import Float32Array, Int64Array
from whisper_npu.runtime.openvino_graphs import matrix_of, port

HIDDEN = "balanced_hidden_state"
"""Output float32 `(batch, n, n_text_state)`: what is projected, see `RoundedTable.balance`."""
TAIL = "tail_logits"
"""Output float32 `(batch, n, n_vocab - n_text)`: logits from end of text on, not rounded."""

_ROWS_AT_ONCE = 1024  # of the table: what is made of them stays in the cache
_THREADS = 2  # that round the table; more would wait for memory
_BFLOAT16 = 2.0**-8  # what rounding to bf16's 8 digits changes a number by at most, relative to it
_SLACK = 1e-3  # for f32's own rounding, and sums in another order


@dataclass(frozen=True)
class RoundedTable:
    """A vocabulary's table in 8 bits: row `i` is `(codes[i] - zeros[i]) * scales[i] * balance`.

    Attributes:
        codes: uint8 `(n_vocab, n_text_state)`.
        zeros: uint8 `(n_vocab, 1)`, the code of 0.
        scales: float32 `(n_vocab, 1)`.
        balance: float32 `(n_text_state,)`; the hidden state is multiplied by it instead, so that
            its large elements do not meet large errors.
    """

    codes: npt.NDArray[np.uint8]
    zeros: npt.NDArray[np.uint8]
    scales: Float32Array
    balance: Float32Array


@dataclass(frozen=True, eq=False)
class Screen:
    """What it takes to know which tokens may be the likeliest, and to compute their logits.

    Attributes:
        table: the table as it is, `(n_vocab, n_text_state)`, in the model's memory.
        n_text: tokens before end of text: only of these the logits are rounded.
        balance: see `RoundedTable`.
        errors: how far from the truth each row's logit is at most, by the length of the balanced
            hidden state, float32 `(n_vocab,)`.
        rounding: how far from the truth it is beyond that, relative to itself.
    """

    table: npt.NDArray[np.floating]
    n_text: int
    balance: Float32Array
    errors: Float32Array
    rounding: float

    @cached_property
    def _largest_error(self) -> float:
        return float(self.errors[: self.n_text].max())

    def settle(
        self,
        logits: Float32Array,
        hidden: Float32Array,
        n_best: int | None,
        handicaps: Float32Array | None = None,
    ) -> None:
        """Make the likeliest text tokens' logits exact, in place; see `DecoderSession.settle`.

        Args:
            logits: float32 `(batch, n, n_vocab)`; what is minus infinity stays so.
            hidden: float32 `(batch, n, n_text_state)`, balanced.
            n_best: tokens of each position that have to be exact; None for all.
            handicaps: added to the logits where they are compared, float32 `(batch, n, n_vocab)`.
        """
        text = logits[..., : self.n_text]
        for place in np.ndindex(text.shape[:2]):
            scores, state = text[place], hidden[place]
            if n_best is None:
                for block in _blocks(self.n_text):
                    exact = self._exact(block, state)
                    scores[block] = np.where(np.isfinite(scores[block]), exact, -np.inf)
            else:
                handicap = None if handicaps is None else handicaps[place][: self.n_text]
                near = self._near(scores, state, n_best, handicap)
                scores[near] = self._exact(near, state)

    def _near(
        self,
        scores: Float32Array,
        state: Float32Array,
        n_best: int,
        handicap: Float32Array | None,
    ) -> Int64Array:
        """The tokens that may be among the `n_best` likeliest."""
        if handicap is not None:
            scores = scores + handicap
        best = _largest(scores, n_best)
        if not len(best):
            return best
        surely = self._exact(best, state) + (0 if handicap is None else handicap[best])
        lowest = float(surely.min())  # the last of the likeliest is no less
        largest = abs(lowest) + (0 if handicap is None else float(np.abs(handicap).max()))
        limit = lowest - _SLACK - 2 * self.rounding * largest
        length = float(np.linalg.norm(state))
        near = np.flatnonzero(scores >= limit - length * self._largest_error)
        likely: Int64Array = near[scores[near] >= limit - length * self.errors[near]]
        return likely

    def _exact(self, tokens: Int64Array | slice, state: Float32Array) -> Float32Array:
        # Not `@`: of a few rows already it would start threads, which then stand in the way of the
        # next step.
        state = state / self.balance
        logits: Float32Array = np.einsum("ij,j->i", self.table[tokens], state, dtype=np.float32)
        return logits


def _largest(scores: Float32Array, n: int) -> Int64Array:
    """Where the `n` largest are, fewer if the others are minus infinity."""
    found = [int(scores.argmax())]
    if n > 1:  # a few times through all is much faster than one partition
        rest = scores.copy()
        while len(found) < min(n, len(scores)):
            rest[found[-1]] = -np.inf
            found.append(int(rest.argmax()))
    return np.array([place for place in found if np.isfinite(scores[place])], np.int64)


def make_screen(
    table: npt.NDArray[np.floating], n_text: int, *, exact_products: bool
) -> tuple[Screen, RoundedTable]:
    """Round a table to 8 bits.

    Args:
        table: floating point `(n_vocab, n_text_state)`.
        n_text: tokens before end of text.
        exact_products: whether products are computed in f32; bf16 otherwise.
    """
    n_vocab = len(table)
    balance = _balance(table)
    codes = np.empty(table.shape, np.uint8)
    zeros, scales = np.empty((n_vocab, 1), np.uint8), np.empty((n_vocab, 1), np.float32)
    errors = np.empty(n_vocab, np.float32)

    def round_rows(block: slice) -> None:
        rows = table[block] / balance
        lowest = np.minimum(rows.min(axis=1, keepdims=True), 0)
        highest = np.maximum(rows.max(axis=1, keepdims=True), 0)
        # One code is to spare, because both ends are rounded.
        scale = np.maximum((highest - lowest) / 254, np.finfo(np.float32).tiny)
        lengths = _lengths(rows)
        zero = np.rint(-lowest / scale)
        rows *= 1 / scale
        rows += zero + np.float32(0.5)  # to the nearest: conversion to integers cuts off
        codes[block], zeros[block], scales[block] = rows, zero, scale
        rows -= codes[block]
        rows -= np.float32(0.5)
        error = (1 + _SLACK) * scale[:, 0] * _lengths(rows)
        if not exact_products:
            # Row and hidden state are rounded: (1 + u)(1 + u) - 1 of what is made from the codes.
            # The result is, too: of that in `_near`, and here of what it is off by.
            error += ((1 + _BFLOAT16) ** 2 - 1) * (lengths + error)
            error *= 1 + _BFLOAT16
        errors[block] = error

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(round_rows, _blocks(n_vocab)))
    rounding = 0 if exact_products else _BFLOAT16
    screen = Screen(table, n_text, balance, errors, rounding)
    return screen, RoundedTable(codes, zeros, scales, balance)


def _lengths(rows: Float32Array) -> Float32Array:
    lengths: Float32Array = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return lengths


def _balance(table: npt.NDArray[np.floating]) -> Float32Array:
    """Square roots of the lengths of a table's columns, 1 where a column is empty."""
    squares = np.zeros(table.shape[1], np.float32)
    for block in _blocks(len(table)):
        rows = table[block].astype(np.float32, copy=False)
        squares += np.einsum("ij,ij->j", rows, rows)
    return np.where(squares > 0, squares, 1).astype(np.float32) ** np.float32(0.25)


def _blocks(n_rows: int) -> list[slice]:
    starts = range(0, n_rows, _ROWS_AT_ONCE)
    return [slice(start, min(start + _ROWS_AT_ONCE, n_rows)) for start in starts]


def table_of(decoder: ov.Model) -> npt.NDArray[np.floating] | None:
    """The table that a graph's logits are computed from, `(n_vocab, n_text_state)`.

    None where there is none to be found, or nothing to gain: it is 8 bits already.
    """
    return matrix_of(port(decoder.outputs, "logits").get_node().input_value(0).get_node())


def screen_logits(decoder: ov.Model, screen: Screen, table: RoundedTable) -> None:
    """Compute a graph's logits from the table in 8 bits, in place, and add `HIDDEN` and `TAIL`."""
    product = port(decoder.outputs, "logits").get_node().input_value(0).get_node()
    hidden = product.input_value(0)
    codes = ops.convert(ops.constant(table.codes, shared_memory=True), "f32")
    zeros = ops.convert(ops.constant(table.zeros), "f32")
    rounded = ops.multiply(ops.subtract(codes, zeros), ops.constant(table.scales))
    balanced = ops.multiply(hidden, ops.constant(table.balance))
    coarse = ops.matmul(balanced, rounded, transpose_a=False, transpose_b=True)
    for reader in product.output(0).get_target_inputs():
        reader.replace_source_output(coarse.output(0))
    exact = ops.constant(screen.table[screen.n_text :].astype(np.float32))
    tail = ops.matmul(hidden, exact, transpose_a=False, transpose_b=True)
    results = []
    # That the balanced state is an output keeps it from being rounded before that.
    for name, value in ((HIDDEN, balanced.output(0)), (TAIL, tail.output(0))):
        results.append(ops.result(value))
        results[-1].output(0).get_tensor().set_names({name})
    decoder.add_results(results)
    decoder.validate_nodes_and_infer_types()
