"""Decodes a batch of encoded windows: one prefill, then step by step to the end of text.

Follows openai/whisper's `decoding.py`: logit filters forbid tokens, a sampler picks from the rest,
and `rank` picks one candidate per window. The prompts of a batch are equally long, so its rows need
no attention mask.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whisper_npu.errors import UsageError
from whisper_npu.runtime.decoding.logit_filters import (
    LogitFilter,
    ReachEnd,
    SuppressFirst,
    SuppressTokens,
    TimestampRules,
    log_normalizer,
)
from whisper_npu.runtime.decoding.loop_detection import is_endless
from whisper_npu.runtime.decoding.samplers import BeamSearch, Sampler, rank
from whisper_npu.runtime.engines.protocol import (
    N_LOGITS,
    Backend,
    DecoderSession,
    Float32Array,
    Int64Array,
)
from whisper_npu.runtime.features.windows import Stretch
from whisper_npu.runtime.text.tokenizer import TIMESTAMP_STEP, Tokenizer, Vocabulary
from whisper_npu.runtime.timestamps.alignment import TokenTimes
from whisper_npu.runtime.timestamps.sentences import AttentionRecorder, with_timestamps
from whisper_npu.runtime.timestamps.words import WordTiming, time_words
from whisper_npu.runtime.timing import StageTimes

# Finished rows leave a batch once at most this share of its rows goes on. The engine compiles
# kernels for every new number of rows, so the number should change seldom.
_LEAVING = 0.5

_LOOK_FOR_LOOPS = 16  # tokens between two searches for loops


@dataclass(frozen=True)
class DecodingOptions:
    """How a batch of windows is decoded.

    Attributes:
        task: `transcribe`, or `translate` into English.
        language: language code; English-only models take `en`.
        temperature: 0 takes the likeliest token; above 0, tokens are sampled.
        best_of: samples per window at a temperature above 0.
        beam_size: beams at temperature 0; None for greedy decoding.
        patience: beam search waits for `patience * beam_size` finished candidates.
        length_penalty: Google NMT's alpha in ranking candidates; None divides by their length.
        prefix_tokens: first tokens of the transcript of each window, timestamps included.
        without_timestamps: sample text only.
        aligned: sample text only, and add timestamps afterwards, from the model's attention.
        attention_delay: seconds by which the attention lags behind the sound.
        max_initial_timestamp: latest start of the first segment, in seconds into the window.
        suppress_tokens: tokens that are never sampled.
        suppress_first: tokens that are never sampled first.
        sample_len: most tokens sampled per window; None: until the context is full.
        cut_loops: end a text that repeats one phrase, before it fills the context.
    """

    task: str = "transcribe"
    language: str = "en"
    temperature: float = 0.0
    best_of: int = 5
    beam_size: int | None = None
    patience: float = 1.0
    length_penalty: float | None = None
    prefix_tokens: tuple[int, ...] = ()
    without_timestamps: bool = False
    aligned: bool = False
    attention_delay: float = 0.0
    max_initial_timestamp: float | None = 1.0
    suppress_tokens: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    sample_len: int | None = None
    cut_loops: bool = False

    @property
    def rows_per_window(self) -> int:
        """Token rows decoded together for each window."""
        if self.temperature > 0:
            return self.best_of
        return self.beam_size or 1

    @property
    def samples_timestamps(self) -> bool:
        """Whether timestamps are sampled."""
        return not (self.without_timestamps or self.aligned)


@dataclass(frozen=True)
class DecodedWindow:
    """The text decoded from one window.

    Attributes:
        tokens: prefix tokens and sampled tokens, timestamps included, without prompt and end of
            text.
        text: the text of the tokens, stripped.
        avg_logprob: mean log probability of the sampled tokens, end of text included.
        no_speech_prob: probability of `<|nospeech|>` at the start of the transcript.
        temperature: temperature of the attempt.
        compression_ratio: bytes of the text divided by its bytes after zlib; loops compress well.
        reached_limit: `sample_len` or the context was exhausted before the end of text.
        words: the words, timed by alignment; None where timestamps were sampled.
        unheard: stretches of speech that the text does not account for.
    """

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float
    reached_limit: bool
    words: tuple[WordTiming, ...] | None = None
    unheard: tuple[Stretch, ...] = ()

    @property
    def aligned(self) -> bool:
        """Whether its timestamps come from alignment and were not sampled."""
        return self.words is not None


TokenCallback = Callable[[list[tuple[int, ...]]], None]
"""Takes the tokens of each window so far: those of the likeliest beam or sample."""


def compression_ratio(text: str) -> float:
    """Bytes of `text` divided by its bytes after zlib; 1 for an empty text."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def initial_tokens(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    options: DecodingOptions,
    n_text_ctx: int,
    prompt: Sequence[int] = (),
) -> tuple[list[int], int]:
    """The tokens that decoding starts from, and the index of `<|startoftranscript|>` in them.

    Args:
        tokenizer: the model's tokenizer.
        vocabulary: tells whether the model is multilingual.
        options: how to decode.
        n_text_ctx: tokens in the decoder's context.
        prompt: tokens of the text before the window, the user's prompt included.

    Raises:
        UsageError: prompt and prefix leave no room to decode.
    """
    special = tokenizer.special
    tokens: list[int] = []
    if prompt:
        tokens += [special.sot_prev, *prompt]
    sot_index = len(tokens)
    tokens.append(special.sot)
    if vocabulary.is_multilingual:
        tokens.append(special.languages[options.language])
        tokens.append(special.translate if options.task == "translate" else special.transcribe)
    if not options.samples_timestamps:
        tokens.append(special.no_timestamps)
    tokens += options.prefix_tokens
    if len(tokens) >= n_text_ctx:
        raise UsageError(f"prompt and prefix fill the decoder's context of {n_text_ctx} tokens")
    return tokens, sot_index


def forbidden_tokens(options: DecodingOptions) -> list[LogitFilter]:
    """The rules that forbid fixed tokens; they are applied first."""
    return [SuppressFirst(options.suppress_first), SuppressTokens(options.suppress_tokens)]


def timestamp_rules(tokenizer: Tokenizer, options: DecodingOptions) -> list[LogitFilter]:
    """The rules for timestamps; empty where no timestamps are sampled."""
    if not options.samples_timestamps:
        return []
    special = tokenizer.special
    limit = options.max_initial_timestamp
    return [
        TimestampRules(
            timestamp_begin=special.timestamp_begin,
            no_timestamps=special.no_timestamps,
            eot=special.eot,
            max_initial_index=None if limit is None else round(limit / TIMESTAMP_STEP),
        )
    ]


def decode_windows(
    backend: Backend,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    audio: Float32Array,
    options: DecodingOptions,
    times: StageTimes,
    *,
    prompts: Sequence[Sequence[int]] = (),
    seeds: Sequence[int] = (),
    min_end_time: Sequence[float] = (),
    n_frames: Sequence[int] = (),
    on_tokens: TokenCallback | None = None,
    is_wanted: Callable[[], Sequence[bool]] | None = None,
    make_way: Callable[[], None] | None = None,
) -> list[DecodedWindow]:
    """Decode a batch of encoded windows.

    Args:
        backend: the model.
        tokenizer: the model's tokenizer.
        vocabulary: the model's suppression lists, and whether it is multilingual.
        audio: float32 `(windows, n_audio_ctx, n_audio_state)` from `backend.encode`.
        options: how to decode.
        times: where stage times are added.
        prompts: tokens of the text before each window, the user's prompt included; equally many
            for each. By default no window has a prompt.
        seeds: a number per window that makes its sampling repeatable in any batch; by default its
            place in the batch.
        min_end_time: seconds into each window that its text must reach before it may end, if it has
            timestamps; by default it may end anywhere.
        n_frames: frames of 10 ms of audio in each window; alignment needs them.
        on_tokens: called after each step with the tokens of each window so far.
        is_wanted: called after each step; tells for each window whether a caller still waits for
            its text. The other windows are decoded no further.
        make_way: called after each step; returns when decoding may go on.

    Returns:
        one result per window; a window that no caller waits for has the text decoded so far.

    Raises:
        UsageError: prompt and prefix leave no room.
        ValueError: the prompts are not equally long.
    """
    eot = tokenizer.special.eot
    starts, sot_index = _starts(
        tokenizer, vocabulary, options, backend.n_text_ctx, prompts or [()] * len(audio)
    )
    room = backend.n_text_ctx - starts.shape[1]
    limit = room if options.sample_len is None else min(options.sample_len, room)
    chooser = _chooser(options, eot, seeds or range(len(audio)))
    rules = _rules(tokenizer, options, min_end_time)
    with times.measure("cross-attention projection"):
        session = backend.start(audio, options.rows_per_window)
    try:
        is_single = options.rows_per_window == 1
        recorder = (
            AttentionRecorder(
                session, starts[0], sot_index, n_frames, eot, times, follows=is_single
            )
            if options.aligned
            else None
        )
        with times.measure("prefill"):
            every_row = np.repeat(starts, options.rows_per_window, axis=0)
            logits, at_sot = _prefill(session, every_row, sot_index)
        no_speech = _probability(at_sot, tokenizer.special.no_speech)[:: options.rows_per_window]
        rows = _Rows(session, len(audio) * options.rows_per_window, recorder)
        for sampled in range(1, limit + 1):
            with times.measure("token choice"):
                for rule in rules:
                    rule.apply(logits, chooser.tokens)
                sources = chooser.choose(logits)
                if options.cut_loops and sampled % _LOOK_FOR_LOOPS == 0:
                    chooser.end(is_endless(chooser.tokens))
            if on_tokens is not None:
                on_tokens(_leading(chooser, options.rows_per_window))
            if is_wanted is not None:
                chooser.end(~np.repeat(np.array(is_wanted(), bool), options.rows_per_window))
            if chooser.done or sampled == limit:
                break
            if make_way is not None:
                make_way()
            with times.measure("decoder"):
                if sources is not None:
                    session.reorder(sources)
                logits = rows.step(chooser.tokens, chooser.finished)
        if recorder is not None:
            recorder.record(rows.left, range(len(rows.left)), chooser.tokens)
    finally:
        session.close()

    results = []
    for window, candidates in enumerate(chooser.candidates(len(audio))):
        best = rank(candidates, options.length_penalty)
        tokens, words = best.tokens, None
        with times.measure("text"):
            text = tokenizer.decode(tokens).strip()
        if recorder is not None:
            spoken = recorder.times(window, best.tokens, backend, audio)
            tokens, words = _aligned(best.tokens, spoken, tokenizer, options, n_frames[window])
        n_sampled = len(best.tokens) - len(options.prefix_tokens)
        results.append(
            DecodedWindow(
                tokens=tokens,
                text=text,
                avg_logprob=best.sum_logprob / (n_sampled + 1),
                no_speech_prob=float(no_speech[window]),
                temperature=options.temperature,
                compression_ratio=compression_ratio(text),
                reached_limit=n_sampled >= limit,
                words=words,
            )
        )
    return results


def _chooser(options: DecodingOptions, eot: int, seeds: Sequence[int]) -> Sampler | BeamSearch:
    """The sampler for windows with these seeds."""
    if options.temperature == 0 and options.beam_size is not None:
        n_rows = len(seeds) * options.beam_size
        return BeamSearch(n_rows, options.beam_size, options.patience, eot, options.prefix_tokens)
    rngs = [
        np.random.default_rng((seed, row))
        for seed in seeds
        for row in range(options.rows_per_window)
    ]
    return Sampler(options.temperature, eot, rngs, options.prefix_tokens)


def _rules(
    tokenizer: Tokenizer, options: DecodingOptions, min_end_time: Sequence[float]
) -> list[LogitFilter]:
    """All rules over logits, in the order of their application: timestamps come last."""
    rules = [*forbidden_tokens(options), *timestamp_rules(tokenizer, options)]
    if any(min_end_time) and options.samples_timestamps:
        special = tokenizer.special
        rules.append(
            ReachEnd(
                np.repeat(np.asarray(min_end_time), options.rows_per_window),
                timestamp_begin=special.timestamp_begin,
                eot=special.eot,
                step=TIMESTAMP_STEP,
            )
        )
    return rules


def _aligned(
    text: tuple[int, ...],
    spoken: TokenTimes | None,
    tokenizer: Tokenizer,
    options: DecodingOptions,
    n_frames: int,
) -> tuple[tuple[int, ...], tuple[WordTiming, ...]]:
    """A window's text with timestamps, and its words, if the times of its tokens are known."""
    if spoken is None:
        return text, ()
    words, groups = time_words(text, spoken, tokenizer, options.language, options.attention_delay)
    stamped = with_timestamps(words, groups, tokenizer.special.timestamp_begin, n_frames)
    return stamped, tuple(words)


def _starts(
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    options: DecodingOptions,
    n_text_ctx: int,
    prompts: Sequence[Sequence[int]],
) -> tuple[Int64Array, int]:
    """`initial_tokens` of each window, `(windows, tokens)`, and the index of the transcript."""
    if len({len(prompt) for prompt in prompts}) > 1:
        raise ValueError("the prompts of windows decoded together must be equally long")
    starts = [
        initial_tokens(tokenizer, vocabulary, options, n_text_ctx, prompt) for prompt in prompts
    ]
    return np.array([tokens for tokens, _ in starts], np.int64), starts[0][1]


class _Rows:
    """The rows that a session still decodes; finished rows leave it, many at a time."""

    def __init__(
        self, session: DecoderSession, n_rows: int, recorder: AttentionRecorder | None
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._n_rows = n_rows
        self.left = np.arange(n_rows)
        self._may_leave = True

    def step(self, tokens: Int64Array, finished: npt.NDArray[np.bool_]) -> Float32Array:
        """Logits `(rows, n_vocab)` after the last of tokens `(rows, n)`; 0 for rows that left."""
        going_on = np.flatnonzero(~finished[self.left])
        if self._may_leave and len(going_on) <= _LEAVING * len(self.left):
            if self._recorder is not None:
                leaving = np.flatnonzero(finished[self.left])
                self._recorder.record(self.left[leaving], leaving, tokens)
            self._may_leave = self._session.keep(going_on.tolist())
            if self._may_leave:
                self.left = self.left[going_on]
        logits = self._session.step(tokens[self.left, -1:])[:, -1]
        if len(self.left) == self._n_rows:
            return logits
        every = np.zeros((self._n_rows, logits.shape[1]), np.float32)
        every[self.left] = logits
        return every


def _leading(chooser: Sampler | BeamSearch, rows_per_window: int) -> list[tuple[int, ...]]:
    """The tokens of the likeliest row of each window."""
    best = chooser.sum_logprobs.reshape(-1, rows_per_window).argmax(axis=1)
    rows = np.arange(len(best)) * rows_per_window + best
    return [tuple(row) for row in chooser.tokens[rows].tolist()]


def _prefill(
    session: DecoderSession, prompt: Int64Array, sot_index: int
) -> tuple[Float32Array, Float32Array]:
    """Logits after the prompt and at `<|startoftranscript|>`, `(rows, n_vocab)` each."""
    behind_sot = prompt.shape[1] - 1 - sot_index
    if behind_sot < N_LOGITS:
        logits = session.step(prompt)
        return logits[:, -1], logits[:, -1 - behind_sot].copy()
    at_sot = session.step(prompt[:, : sot_index + 1])[:, -1].copy()
    return session.step(prompt[:, sot_index + 1 :])[:, -1], at_sot


def _probability(logits: Float32Array, token: int) -> Float32Array:
    probability: Float32Array = np.exp(logits[:, token] - log_normalizer(logits))
    return probability
