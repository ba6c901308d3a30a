"""The logit filters against the reference's rules written out row by row."""

import math

import numpy as np
import pytest

from whisper_npu.runtime.decoding.logit_filters import (
    ReachEnd,
    SuppressFirst,
    SuppressTokens,
    TimestampRules,
    log_normalizer,
)

# A small vocabulary: text 0-29, eot 30, other special tokens, <|notimestamps|> 35, timestamps.
EOT = 30
NO_TIMESTAMPS = 35
BEGIN = 36
N_VOCAB = BEGIN + 21
NEVER = -math.inf


def restated(row, history, max_initial_index):
    """The rules of openai/whisper's ApplyTimestampRules for one row, as its comments say them."""
    row = [float(value) for value in row]

    def forbid(tokens):
        for token in tokens:
            row[token] = NEVER

    # Timestamps are asked for, so the token that says there are none is never right.
    forbid([NO_TIMESTAMPS])
    if not history:
        # The first token is a timestamp...
        forbid(range(BEGIN))
        # ... and not later than the option allows.
        if max_initial_index is not None:
            forbid(range(BEGIN + max_initial_index + 1, N_VOCAB))
    else:
        last_is_stamp = history[-1] >= BEGIN
        before_is_stamp = len(history) < 2 or history[-2] >= BEGIN
        if last_is_stamp and before_is_stamp:  # a pair is complete: text has to follow
            forbid(range(BEGIN, N_VOCAB))
        elif last_is_stamp:  # a segment was closed: the next begins, or the text ends
            forbid(range(EOT))
        stamps = [token for token in history if token >= BEGIN]
        if stamps:  # never back, and no segment without length
            closing = last_is_stamp and not before_is_stamp
            forbid(range(BEGIN, stamps[-1] if closing else stamps[-1] + 1))
    # Timestamps together likelier than any one text token: a timestamp it is.
    total = sum(math.exp(value) for value in row)
    stamps_probability = sum(math.exp(value) for value in row[BEGIN:]) / total
    best_text = max(math.exp(value) for value in row[:BEGIN]) / total
    if stamps_probability > best_text:
        forbid(range(BEGIN))
    return row


def timestamp_rules(max_initial_index):
    return TimestampRules(
        timestamp_begin=BEGIN,
        no_timestamps=NO_TIMESTAMPS,
        eot=EOT,
        max_initial_index=max_initial_index,
    )


@pytest.mark.parametrize("max_initial_index", [None, 0, 5])
@pytest.mark.parametrize("seed", range(4))
def test_timestamp_rules_equal_the_restatement(seed, max_initial_index):
    """Random walks under the rules: every token that they allow is taken now and then."""
    random = np.random.default_rng(seed)
    rules = timestamp_rules(max_initial_index)
    batch = 32
    tokens = np.empty((batch, 0), np.int64)
    met = set()
    for _ in range(24):
        logits = random.normal(0, 2, (batch, N_VOCAB)).astype(np.float32)
        logits[::3, BEGIN:] += 3  # rows that prefer timestamps
        logits[1::3, BEGIN:] -= 6  # and rows that avoid them
        want = [
            restated(row, history, max_initial_index)
            for row, history in zip(logits, tokens.tolist(), strict=True)
        ]
        rules.apply(logits, tokens)
        np.testing.assert_array_equal(logits, np.array(want, np.float32))
        allowed = np.isfinite(logits)
        assert allowed.any(axis=1).all(), "some token must always be left"
        chosen = [random.choice(np.flatnonzero(row)) for row in allowed]
        met |= {
            "stamp" if token > BEGIN else "first stamp" if token == BEGIN else "text"
            for token in chosen
        }
        tokens = np.concatenate((tokens, np.array(chosen)[:, None]), axis=1)
    assert met == {"text", "first stamp", "stamp"}


def test_rows_do_not_influence_each_other():
    random = np.random.default_rng(9)
    tokens = np.array([[BEGIN, 3, 4], [BEGIN, 5, BEGIN + 7], [BEGIN, 6, 7], [1, BEGIN, BEGIN]])
    logits = random.normal(0, 2, (4, N_VOCAB)).astype(np.float32)
    together = logits.copy()
    timestamp_rules(None).apply(together, tokens)
    for row in range(4):
        alone = logits[row : row + 1].copy()
        timestamp_rules(None).apply(alone, tokens[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_closed_segment_may_begin_where_it_ended_but_an_open_one_may_not_end_where_it_began():
    equal = np.full((2, N_VOCAB), 1.0, np.float32)
    equal[:, :BEGIN] = -20.0  # no text in the way
    closed = [BEGIN, 3, BEGIN + 4]
    reopened = [3, BEGIN + 4, 5]
    timestamp_rules(None).apply(equal, np.array([closed, reopened]))
    assert np.flatnonzero(np.isfinite(equal[0])).tolist() == list(range(BEGIN + 4, N_VOCAB))
    assert np.flatnonzero(np.isfinite(equal[1])).tolist() == list(range(BEGIN + 5, N_VOCAB))


def test_many_improbable_timestamps_together_win():
    logits = np.full((2, N_VOCAB), -10.0, np.float32)
    logits[:, 3] = 2.0
    logits[0, BEGIN:] = 2.0 - math.log(21) + 0.01  # 21 of them: just above the text
    logits[1, BEGIN:] = 2.0 - math.log(20) - 0.10  # just below
    history = np.array([[BEGIN, 1], [BEGIN, 1]])
    timestamp_rules(None).apply(logits, history)
    # `<|0.00|>` itself is behind us: 20 of them are left to add up.
    assert np.isfinite(logits[0, 3])
    logits = np.full((1, N_VOCAB), -10.0, np.float32)
    logits[0, 3] = 2.0
    logits[0, BEGIN:] = 2.0 - math.log(20) + 0.01
    timestamp_rules(None).apply(logits, history[:1])
    assert not np.isfinite(logits[0, :BEGIN]).any()


def test_suppressed_everywhere():
    logits = np.zeros((3, 6), np.float32)
    SuppressTokens([4, 1, 1]).apply(logits, np.zeros((3, 7), np.int64))
    assert np.isneginf(logits).tolist() == [[False, True, False, False, True, False]] * 3


def test_suppressed_nowhere():
    logits = np.ones((2, 6), np.float32)
    SuppressTokens([]).apply(logits, np.zeros((2, 0), np.int64))
    SuppressFirst([]).apply(logits, np.zeros((2, 0), np.int64))
    assert (logits == 1).all()


def test_suppressed_first_only():
    first, later = np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)
    SuppressFirst([0, 3]).apply(first, np.empty((2, 0), np.int64))
    SuppressFirst([0, 3]).apply(later, np.zeros((2, 1), np.int64))
    assert np.isneginf(first).tolist() == [[True, False, False, True, False]] * 2
    assert (later == 0).all()


def test_log_probabilities():
    logits = np.random.default_rng(0).normal(0, 30, (5, 50)).astype(np.float32)
    logits[2, 7] = -np.inf
    wide = logits.astype(np.float64)
    want = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    for scratch in (None, np.full(50, np.nan, np.float32)):
        found = logits - log_normalizer(logits, scratch)[:, None]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


class TestReachEnd:
    EOT, BEGIN = 5, 10

    def apply(self, min_end_time, tokens, logits=None):
        rule = ReachEnd(np.array(min_end_time), timestamp_begin=self.BEGIN, eot=self.EOT, step=0.02)
        logits = np.zeros((len(min_end_time), 20), np.float32) if logits is None else logits
        rule.apply(logits, np.array(tokens))
        return np.isfinite(logits[:, self.EOT]).tolist()

    def test_the_text_may_not_end_where_speech_goes_on(self):
        assert self.apply([0.1, 0.1, 0.0], [[11, 14], [11, 15], [11, 11]]) == [False, True, True]

    def test_text_behind_the_last_timestamp_may_end(self):
        assert self.apply([0.1], [[11, 3]]) == [True]

    def test_nothing_sampled_yet(self):
        assert self.apply([0.1], np.zeros((1, 0), int)) == [True]

    def test_an_end_is_better_than_nothing(self):
        logits = np.full((1, 20), -np.inf, np.float32)
        logits[0, self.EOT] = 1
        assert self.apply([0.1], [[11, 14]], logits) == [True]
