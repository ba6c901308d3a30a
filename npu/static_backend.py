"""Decodes any prompt and batch with the fixed-shape graphs of a bundle.

Token rows are decoded in lanes. A lane is a request of a step graph for one or several rows, with
buffers for the whole context that are written in place. A session takes lanes, clears them, and
returns them.
"""

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.npu import bundle as bundles
from whisper_npu.npu.bundle import Bundle
from whisper_npu.npu.placement import DECODER_PART, ENCODER_PART
from whisper_npu.npu.static_engine import Engine, Request
from whisper_npu.runtime.engines.kv_cache import is_self_attention, past_name
from whisper_npu.runtime.engines.openvino.int8_weights import named_precision
from whisper_npu.runtime.engines.protocol import (
    N_LOGITS,
    Float32Array,
    Int64Array,
    NoAttention,
    SingleStream,
    check_room,
)

INPUT_IDS = "input_ids"
CACHE_POSITION = "cache_position"
LOGIT_POSITIONS = "logit_positions"
AUDIO_LENGTH = "audio_length"
LOGITS = "logits"


def present_name(past: str) -> str:
    """The name of the output with the new states of input `past`."""
    return past.replace("past_key_values.", "present.", 1)


def graph_names(bundle: Bundle, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The graphs that every transcription needs of these parts, and all graphs of the parts."""
    whole, shortest = bundle.frames[-1], bundle.buckets[0]
    encoders = [name for name in bundle.graphs if name.startswith(f"{bundles.ENCODER}_")]
    decoders = [name for name in bundle.graphs if name not in encoders]
    at_once, names = [], []
    if ENCODER_PART in parts:
        at_once.append(f"{bundles.ENCODER}_{whole}")
        names += encoders
    if DECODER_PART in parts:
        step = f"{bundles.STEP}_{bundle.step_rows[0]}"
        first = (f"{bundles.CROSS}_{whole}", f"{bundles.PREFILL}_{shortest}", step)
        at_once += first
        names += decoders
    return at_once, names


class StaticBackend(SingleStream):
    """A bundle of static graphs on an engine. Safe to use from several threads."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Decode with the graphs of `bundle`; `engine` runs them."""
        self._bundle = bundle
        self._engine = engine
        self._lanes: dict[int, list[_Lane]] = {rows: [] for rows in bundle.step_rows}
        self._lock = Lock()

    @property
    def n_mels(self) -> int:
        """Number of mel bands of the features."""
        return self._bundle.sizes["n_mels"]

    @property
    def n_audio_ctx(self) -> int:
        """Number of encoder positions of a whole window."""
        return self._bundle.sizes["n_audio_ctx"]

    @property
    def n_text_ctx(self) -> int:
        """Number of decoder positions."""
        return self._bundle.sizes["n_text_ctx"]

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._bundle.sizes["n_vocab"]

    @property
    def window_frames(self) -> tuple[int, ...]:
        """Frame numbers of the encoder's windows, shortest first."""
        return self._bundle.frames

    @property
    def device(self) -> str:
        """The label of the devices that execute the graphs."""
        return ",".join(dict.fromkeys(self._engine.placements.values()))

    @property
    def placements(self) -> dict[str, str]:
        """The device that executes each graph, by name."""
        return self._engine.placements

    @property
    def kv_cache(self) -> str:
        """`static`: past states are in buffers for the whole context, written in place."""
        return "static"

    @property
    def precision(self) -> str:
        """The precision of the device's computation, and 8-bit weights if the bundle has them."""
        stored = "int8" if self._bundle.weights == "int8" else ""
        return named_precision(self._engine.precision, stored)

    @property
    def can_align(self) -> bool:
        """Whether the bundle has graphs for word times."""
        return f"{bundles.ALIGN}_{self._bundle.frames[-1]}" in self._bundle.graphs

    def encode(self, features: Float32Array) -> Float32Array:
        """Encode windows: `(windows, n_mels, frames)` to `(windows, frames // 2, n_audio_state)`.

        Raises:
            UsageError: there is no encoder graph for windows of that length.
        """
        frames = features.shape[2]
        if frames not in self._bundle.frames:
            raise UsageError(
                f"the static encoder takes windows of {self._bundle.frames} frames, not {frames}"
            )
        name = f"{bundles.ENCODER}_{frames}"
        out = np.empty(
            (len(features), frames // 2, self._bundle.sizes["n_audio_state"]), np.float32
        )
        request = self._engine.take(name)
        try:
            for window, hidden in zip(features, out, strict=True):
                request.buffer("input_features")[0] = window
                request.run()
                hidden[:] = request.output("last_hidden_state")[0]
        finally:
            self._engine.give(name, request)
        return out

    def start(self, audio: Float32Array, rows_per_window: int = 1) -> "StaticSession":
        """Begin decoding encoded windows; see `Backend.start`."""
        frames = 2 * audio.shape[1]
        if frames not in self._bundle.frames:
            raise UsageError(
                f"the static decoder takes windows of {self._bundle.frames} frames, not {frames}"
            )
        return StaticSession(self, audio, rows_per_window)

    def align(self, audio: Float32Array, tokens: Int64Array) -> tuple[Float32Array, Float32Array]:
        """The attention of the tokens of finished texts; see `Backend.align`."""
        n_tokens = tokens.shape[1]
        name = f"{bundles.ALIGN}_{2 * audio.shape[1]}"
        if name not in self._bundle.graphs:
            raise ModelError(
                f"the model of {self._bundle.path} has no alignment graph, which word times need; "
                "add it with `whisper-npu export --add-alignment`"
            )
        check_room(0, n_tokens, self.n_text_ctx)
        probabilities, attentions = [], []
        request = self._engine.take(name)
        try:
            for hidden, row in zip(audio, tokens, strict=True):
                request.buffer("encoder_hidden_states")[0] = hidden
                ids = request.buffer(INPUT_IDS)
                ids[0, :n_tokens] = row
                ids[0, n_tokens:] = row[-1]  # any token: no real position attends to it
                request.run()
                probabilities.append(
                    request.output("token_probabilities")[0, : n_tokens - 1].copy()
                )
                attentions.append(request.output("cross_attentions")[0, :, :n_tokens].copy())
        finally:
            self._engine.give(name, request)
        return np.stack(probabilities), np.stack(attentions)

    def take_lanes(self, n_rows: int) -> "list[_Lane]":
        """Cleared lanes for the caller alone, for `n_rows` rows in all, the widest first."""
        lanes: list[_Lane] = []
        while n_rows > 0:
            # A wide lane with idle rows is cheaper than a narrow lane for each row.
            fitting = [rows for rows in self._bundle.step_rows if rows <= n_rows + n_rows // 2]
            rows = fitting[-1]
            lanes.append(self._take_lane(rows))
            n_rows -= rows
        return lanes

    def _take_lane(self, rows: int) -> "_Lane":
        with self._lock:
            free = self._lanes[rows]
            lane = free.pop() if free else None
        if lane is None:
            name = f"{bundles.STEP}_{rows}"
            lane = _Lane(self._engine.take(name), self._bundle, rows)
        lane.clear()
        return lane

    def give_lane(self, lane: "_Lane") -> None:
        """Return a lane for others to use."""
        with self._lock:
            self._lanes[lane.rows].append(lane)

    def project(self, hidden: Float32Array) -> "_CrossStates":
        """Cross-attention states of one window `(n_audio_ctx, n_audio_state)`."""
        return _CrossStates(self._engine, self._bundle, hidden)

    def prefill(self, tokens: Int64Array, cross: "_CrossStates", place: "_Place") -> Float32Array:
        """Run the first tokens `(n,)` of a row, at most as many as the longest prefill graph takes.

        Returns:
            float32 logits `(min(n, N_LOGITS), n_vocab)` of the last positions.
        """
        n_tokens = len(tokens)
        bucket = next(size for size in self._bundle.buckets if size >= n_tokens)
        name = f"{bundles.PREFILL}_{bucket}"
        request = self._engine.take(name)
        try:
            cross.attach(request)
            ids = request.buffer(INPUT_IDS)
            ids[0, :n_tokens] = tokens
            ids[0, n_tokens:] = tokens[-1]  # any token: no real position attends to it
            wanted = min(n_tokens, N_LOGITS)
            positions = request.buffer(LOGIT_POSITIONS)
            positions[:] = n_tokens - 1
            positions[:wanted] = np.arange(n_tokens - wanted, n_tokens)
            request.run()
            place.lane.fill(place.row, request, n_tokens)
            return request.output(LOGITS)[0, :wanted].copy()
        finally:
            self._engine.give(name, request)

    @property
    def longest_prefill(self) -> int:
        """The largest number of tokens of a prefill."""
        return self._bundle.buckets[-1]


class _CrossStates:
    """The cross-attention states of one window, held by the request that computed them."""

    def __init__(self, engine: Engine, bundle: Bundle, hidden: Float32Array) -> None:
        self._engine = engine
        self._length = len(hidden)
        self._name = f"{bundles.CROSS}_{2 * len(hidden)}"
        self._states = list(bundle.graphs[self._name].outputs)
        self._has_shorter_windows = len(bundle.frames) > 1
        self._request = engine.take(self._name)
        self._request.buffer("encoder_hidden_states")[0] = hidden
        self._request.run()

    def attach(self, request: Request, row: int = 0, rows: int = 1) -> None:
        """Make a row of a decoder graph's request read these states."""
        for name in self._states:
            past = past_name(name)
            if self._has_shorter_windows or rows > 1:
                # The graph ignores positions after `audio_length`.
                request.buffer(past)[row, :, : self._length] = self._request.output(name)[0]
            else:
                request.share(past, self._request, name)
        if self._has_shorter_windows:
            request.buffer(AUDIO_LENGTH)[:] = self._length

    def close(self) -> None:
        """Give the request back."""
        self._engine.give(self._name, self._request)


class _Lane:
    """A request of a step graph for some rows, with their buffers for the whole context."""

    def __init__(self, request: Request, bundle: Bundle, rows: int) -> None:
        graph = bundle.graphs[f"{bundles.STEP}_{rows}"]
        self._pasts = [name for name in graph.inputs if is_self_attention(name)]
        self.request = request
        self.rows = rows

    def clear(self) -> None:
        """Clear the states of the last session."""
        for name in self._pasts:
            self.request.buffer(name)[:] = 0

    def step(self, tokens: Int64Array, position: int) -> Float32Array:
        """Run one token per row; logits `(len(tokens), 1, n_vocab)`, valid until the next step."""
        self.request.buffer(INPUT_IDS)[: len(tokens), 0] = tokens
        self.request.buffer(CACHE_POSITION)[:] = position
        self.request.run()
        for name in self._pasts:
            new = self.request.output(present_name(name))
            self.request.buffer(name)[:, :, position] = new[:, :, 0]
        logits: Float32Array = self.request.output(LOGITS)[: len(tokens)]
        return logits

    def fill(self, row: int, request: Request, n_new: int) -> None:
        """Copy the first `n_new` states of a prefill into the row's buffers."""
        for name in self._pasts:
            new = request.output(present_name(name))
            self.request.buffer(name)[row, :, :n_new] = new[0, :, :n_new]

    def states(self, row: int, length: int) -> dict[str, Float32Array]:
        """A copy of a row's states, by input name."""
        return {name: self.request.buffer(name)[row, :, :length].copy() for name in self._pasts}

    def replace(self, row: int, length: int, states: dict[str, Float32Array]) -> None:
        """Replace a row's states by those of another row."""
        for name, state in states.items():
            self.request.buffer(name)[row, :, :length] = state


class _Place(NamedTuple):
    """The lane and row in which a row of a session is decoded."""

    lane: _Lane
    row: int


class StaticSession(NoAttention):
    """A batch of token rows being decoded in lanes. Close it when done."""

    def __init__(self, backend: StaticBackend, audio: Float32Array, rows_per_window: int) -> None:
        self._backend = backend
        self._length = 0
        self._cross: list[_CrossStates] = []
        self._lanes: list[_Lane] = []
        n_rows = len(audio) * rows_per_window
        try:
            for hidden in audio:
                self._cross.append(backend.project(hidden))
            self._lanes = backend.take_lanes(n_rows)
            places = [_Place(lane, row) for lane in self._lanes for row in range(lane.rows)]
            self._places = places[:n_rows]
            self._rows = [cross for cross in self._cross for _ in range(rows_per_window)]
            for place, cross in zip(self._places, self._rows, strict=True):
                cross.attach(place.lane.request, place.row, place.lane.rows)
        except BaseException:
            self.close()
            raise

    @property
    def length(self) -> int:
        """Positions decoded so far."""
        return self._length

    def step(self, tokens: Int64Array) -> Float32Array:
        """Decode further tokens; see `DecoderSession.step`."""
        n_new = tokens.shape[1]
        check_room(self._length, n_new, self._backend.n_text_ctx)
        found: list[Float32Array] = []
        rest = tokens
        if self._length == 0:
            first, rest = np.split(tokens, [self._backend.longest_prefill], axis=1)
            found.append(self._prefill(first))
        found.extend(self._step(column) for column in rest.T)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)[:, -N_LOGITS:]

    def _prefill(self, tokens: Int64Array) -> Float32Array:
        """Logits of the last positions, `(rows, min(n, N_LOGITS), n_vocab)`."""
        logits = [
            self._backend.prefill(row, cross, place)
            for row, cross, place in zip(tokens, self._rows, self._places, strict=True)
        ]
        self._length = tokens.shape[1]
        return np.stack(logits)

    def _step(self, tokens: Int64Array) -> Float32Array:
        """Logits `(rows, 1, n_vocab)` after one token per row `(rows,)`."""
        logits = []
        start = 0
        for lane in self._lanes:
            mine = tokens[start : start + lane.rows]
            logits.append(lane.step(mine, self._length))
            start += lane.rows
        self._length += 1
        return np.concatenate(logits)  # a copy, because the lanes reuse their memory

    def reorder(self, rows: Sequence[int]) -> None:
        """Make row `i` continue the old row `rows[i]`."""
        moved = {target: source for target, source in enumerate(rows) if target != source}
        states = {
            source: self._places[source].lane.states(self._places[source].row, self._length)
            for source in set(moved.values())
        }
        for target, source in moved.items():
            place = self._places[target]
            place.lane.replace(place.row, self._length, states[source])

    def keep(self, rows: Sequence[int]) -> bool:
        """Keep all rows; returns False."""
        return False

    def close(self) -> None:
        """Return lanes and requests for others to use."""
        while self._lanes:
            self._backend.give_lane(self._lanes.pop())
        while self._cross:
            self._cross.pop().close()
