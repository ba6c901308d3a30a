"""Cutting windows at timestamps, against the reference's procedure and by hand."""

import numpy as np
import pytest

from whisper_npu.runtime.text.segments import TokenSegment, split_at_timestamps

BEGIN = 1000
FULL = 3000


def at(seconds):
    return BEGIN + round(seconds / 0.02)


def split(*tokens, n_frames=FULL, **options):
    return split_at_timestamps(tuple(tokens), BEGIN, n_frames, **options)


def test_finished_segments_and_unfinished_text():
    segments, advance = split(at(0), 1, 2, at(2.4), at(2.4), 3, at(5), at(5.5), 4, 5)
    assert segments == [
        TokenSegment(0.0, 2.4, (at(0), 1, 2, at(2.4))),
        TokenSegment(pytest.approx(2.4), 5.0, (at(2.4), 3, at(5))),
    ]
    assert advance == 500  # the unfinished text is heard again from where the last one ended


def test_a_single_timestamp_at_the_end_closes_the_window():
    segments, advance = split(at(0.5), 1, at(2), at(2), 2, at(4.32))
    assert [(part.start, part.end) for part in segments] == [(0.5, 2.0), (2.0, 4.32)]
    assert advance == FULL


def test_one_segment_without_pairs():
    assert split(at(0), 1, 2, at(3.5)) == (
        [TokenSegment(0.0, 3.5, (at(0), 1, 2, at(3.5)))],
        FULL,
    )


def test_no_timestamps_at_all():
    assert split(1, 2, 3, n_frames=1234) == ([TokenSegment(0.0, 12.34, (1, 2, 3))], 1234)


def test_only_the_first_timestamp():
    assert split(at(0), 1, 2, n_frames=700) == ([TokenSegment(0.0, 7.0, (at(0), 1, 2))], 700)


def test_nothing():
    assert split() == ([TokenSegment(0.0, 30.0, ())], FULL)


def test_the_window_always_advances_and_never_beyond_its_end():
    assert split(at(0), 1, at(0), at(0), 2, n_frames=100)[1] == 1
    assert split(at(0), 1, at(9), at(9), 2, n_frames=100)[1] == 100


def test_open_end_is_kept_where_nobody_hears_it_again():
    segments, advance = split(at(0), 1, at(2), at(2), 3, 4, n_frames=900, keep_open_end=True)
    assert segments[1] == TokenSegment(2.0, 9.0, (at(2), 3, 4))
    assert advance == 900
    segments, advance = split(at(0), 1, at(2), at(2), n_frames=900, keep_open_end=True)
    assert len(segments) == 1  # a lone timestamp is no text


def reference(tokens, n_frames):
    """openai/whisper's transcribe.py, restated: slices `(start, end, tokens)`, frames to go on."""
    stamps = [token >= BEGIN for token in tokens]
    single_ending = stamps[-2:] == [False, True]
    consecutive = [i + 1 for i in range(len(tokens) - 1) if stamps[i] and stamps[i + 1]]
    found = []
    if consecutive:
        slices = list(consecutive)
        if single_ending:
            slices.append(len(tokens))
        last = 0
        for current in slices:
            part = tokens[last:current]
            found.append(((part[0] - BEGIN) * 0.02, (part[-1] - BEGIN) * 0.02, part))
            last = current
        if single_ending:
            return found, n_frames
        return found, (tokens[last - 1] - BEGIN) * 2
    end = n_frames * 0.01
    seen = [token for token in tokens if token >= BEGIN]
    if seen and seen[-1] != BEGIN:
        end = (seen[-1] - BEGIN) * 0.02
    return [(0.0, end, tokens)], n_frames


@pytest.mark.parametrize("seed", range(50))
def test_equals_the_reference_on_random_windows(seed):
    random = np.random.default_rng(seed)
    tokens, time = [BEGIN + int(random.integers(0, 50))], 0
    time = tokens[0]
    for _ in range(random.integers(0, 8)):
        tokens += random.integers(0, 900, random.integers(1, 4)).tolist()
        time += int(random.integers(1, 100))
        tokens.append(time)
        if random.random() < 0.7:
            time += int(random.integers(0, 20))
            tokens.append(time)
    if random.random() < 0.5:
        tokens += random.integers(0, 900, 3).tolist()
    segments, advance = split_at_timestamps(tuple(tokens), BEGIN, FULL)
    want, want_advance = reference(tokens, FULL)
    assert advance == min(max(want_advance, 1), FULL)
    assert [list(part.tokens) for part in segments] == [part for _, _, part in want]
    assert [part.start for part in segments] == pytest.approx([start for start, _, _ in want])
    assert [part.end for part in segments] == pytest.approx([end for _, end, _ in want])
