"""Decodes with the self-attention states kept by the plugin: the fastest way on a processor."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from whisper_npu.errors import ModelError
from whisper_npu.runtime.engines.device_calls import calling_device
from whisper_npu.runtime.engines.kv_cache import SEQUENCE_AXIS
from whisper_npu.runtime.engines.openvino import graphs
from whisper_npu.runtime.engines.openvino.alignment_queries import QUERIES, Heads, attention_weights
from whisper_npu.runtime.engines.openvino.sessions import OpenVINOSession, RequestPool
from whisper_npu.runtime.engines.openvino.stateful import ROWS
from whisper_npu.runtime.engines.protocol import Float32Array, Int64Array, check_room

# Most tokens of all rows in one pass: each needs memory for scores of cross-attention, which the
# plugin never returns.
_TOKENS_AT_ONCE = 128
# The plugin compiles kernels for every number of tokens: 2 MiB a number at tiny. So all but the
# first few tokens of a prompt are decoded in multiples of this.
_TOKENS_TOGETHER = 16


def parts_of_prompt(n_new: int, at_once: int) -> list[int]:
    """Return the parts in which `n_new` tokens are decoded; the last has at least `N_LOGITS`."""
    at_once = max(_TOKENS_TOGETHER, at_once // _TOKENS_TOGETHER * _TOKENS_TOGETHER)
    odd, even = n_new % _TOKENS_TOGETHER, n_new // _TOKENS_TOGETHER * _TOKENS_TOGETHER
    whole, left = divmod(even, at_once)
    return [part for part in (odd, left, *[at_once] * whole) if part]


def _rows_of(tensor: ov.Tensor, first: int, end: int) -> ov.Tensor:
    """Return some rows of a batch, in the same memory."""
    begin = [first, *(0 for _ in tensor.shape[1:])]
    return ov.Tensor(tensor, ov.Coordinate(begin), ov.Coordinate([end, *tensor.shape[1:]]))


class StatefulSession(OpenVINOSession):
    """Leaves the self-attention states with the plugin; one graph prefills and steps."""

    def __init__(
        self,
        cross: RequestPool,
        with_past: RequestPool,
        audio: Float32Array,
        rows_per_window: int,
        dimensions: graphs.GraphDimensions,
        n_text_ctx: int,
        *,
        on_processor: bool,
        heads: Heads,
    ) -> None:
        super().__init__(n_text_ctx, with_past.calls)
        self._heads = heads
        self._queries: list[Float32Array] | None = None  # of all decoded tokens
        self._on_processor = on_processor  # shares memory among tensors; tried on processors only
        self._batch = len(audio) * rows_per_window
        self._dimensions = dimensions
        self._n_audio_ctx = audio.shape[1]
        self._length = 0
        self._pool = with_past
        self._request = self._take(with_past)
        self._cross: dict[str, ov.Tensor] = {}
        try:
            self._prepare_cross(cross, audio, rows_per_window)
            self._request.reset_state()  # removes the states of the last session
            self._states = self._request.query_state()
            # Inputs are written in place: setting a tensor at every step takes time.
            self._tokens = self._input("input_ids", (self._batch, 1), ov.Type.i64)
            self._rows = self._input(ROWS, (self._batch,), ov.Type.i32)
            self._stay()
        except BaseException:
            self.close()
            raise

    def _input(self, name: str, shape: tuple[int, ...], element_type: ov.Type) -> npt.NDArray[Any]:
        """Give an input of the decoder new memory, which the decoder reads at each step."""
        tensor = ov.Tensor(element_type, ov.Shape(shape))
        self._request.set_tensor(name, tensor)
        memory: npt.NDArray[Any] = tensor.data
        return memory

    def _stay(self) -> None:
        """Let each row continue its own past."""
        self._rows[:] = np.arange(self._batch)
        self._has_moved = False

    def _prepare_cross(self, pool: RequestPool, audio: Float32Array, rows_per_window: int) -> None:
        """Compute the cross-attention states window by window, with the memory for one window.

        They are written to the request's earlier tensors, if these have the right shape.
        """
        projection = self._take(pool)
        d = self._dimensions
        shape = [self._batch, d.n_text_head, d.head_dim, audio.shape[1]]
        for tensor in projection.model_outputs:
            name = next(iter(tensor.get_names()))
            state = self._request.get_tensor(name)
            if list(state.shape) != shape:
                state = ov.Tensor(tensor.element_type, ov.Shape(shape))
                self._request.set_tensor(name, state)
            if self._on_processor:  # earlier tensors are released one by one
                projection.set_tensor(name, _rows_of(state, 0, 1))
            self._cross[name] = state
        for number, window in enumerate(audio):
            first, behind = number * rows_per_window, (number + 1) * rows_per_window
            projection.set_tensor(
                "encoder_hidden_states", ov.Tensor(np.ascontiguousarray(window[None]))
            )
            if self._on_processor and number:  # the projection writes each first row
                for name, state in self._cross.items():
                    projection.set_tensor(name, _rows_of(state, first, first + 1))
            pool.run(projection)
            missing = slice(first + 1 if self._on_processor else first, behind)
            for name, state in self._cross.items():
                state.data[missing] = projection.get_tensor(name).data

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._length

    @calling_device
    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens, some at a time; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        check_room(self._length, n_new, self._n_text_ctx)
        begin = 0
        for part in parts_of_prompt(n_new, _TOKENS_AT_ONCE // self._batch):
            logits = self._advance(tokens[:, begin : begin + part])
            begin += part
        return logits

    def _advance(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens in one pass; return their logits."""
        if self._tokens.shape != tokens.shape:
            self._tokens = self._input("input_ids", tokens.shape, ov.Type.i64)
        self._tokens[:] = tokens
        self._pool.run(self._request)
        self._length += tokens.shape[1]
        if self._has_moved:
            self._stay()
        if self._steps == 1:  # the first step with a past reveals the graph's contract
            self._check_states()
        d = self._dimensions
        self._log_step(
            (self._batch, d.n_text_head, self._length, d.head_dim),
            (self._batch, d.n_text_head, self._n_audio_ctx, d.head_dim),
        )
        if self._queries is not None:
            self._queries.append(self._request.get_tensor(QUERIES).data.copy())
        logits: Float32Array = self._request.get_tensor("logits").data
        return logits

    def record_attention(self) -> bool:
        """Record the queries of the alignment heads, if the graph returns them."""
        if self._heads and self._length == 0:
            self._queries = []
        return self._queries is not None

    def attention(self, row: int, n_positions: int, pooled: int) -> Iterator[Float32Array]:
        """Return the attention of a row's positions; see `DecoderSession.attention`."""
        if self._queries is None:
            raise RuntimeError("this session recorded no attention")
        queries = np.concatenate([each[row] for each in self._queries], axis=1)
        return attention_weights(queries, self._cross, self._heads, row, n_positions, pooled)

    def _check_states(self) -> None:
        held = self._states[0].state.shape[SEQUENCE_AXIS]
        if held != self._length:
            raise ModelError(
                f"the device holds {held} positions after {self._length} tokens: the model "
                "folder's manifest and graphs disagree on the KV contract; export the model again"
            )

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row `i` continue row `rows[i]`."""
        self._rows[:] = self._rows[list(rows)]
        self._has_moved = True

    @calling_device
    def keep(self, rows: Sequence[int]) -> bool:
        """Keep only these rows; see `DecoderSession.keep`."""
        if not self._on_processor:
            return False
        for name, tensor in self._cross.items():
            states = tensor.data
            for place, row in enumerate(rows):
                if place != row:
                    states[place] = states[row]
            self._request.set_tensor(name, _rows_of(tensor, 0, len(rows)))
        if self._queries is not None:
            self._queries = [each[list(rows)] for each in self._queries]
        going_on = self._rows[list(rows)]
        self._batch = len(rows)
        self._rows = self._input(ROWS, (self._batch,), ov.Type.i32)
        self._rows[:] = going_on
        self._has_moved = True
        return True

    @calling_device
    def close(self) -> None:
        """Return the requests to their pools, with whole tensors for the next session."""
        try:
            for name, tensor in self._cross.items():
                self._request.set_tensor(name, tensor)
        finally:
            self._cross = {}
            super().close()
