"""Mistyped names and names in another spelling, for every message and option."""

import re

import pytest

from whisper_npu.errors import UsageError
from whisper_npu.spelling import did_you_mean, nearest, parse_precision, require_choice


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("sr", ("txt", "vtt", "srt"), "srt"),
        ("SRT", ("txt", "srt"), "srt"),
        ("cpuu", ("CPU", "GPU"), "CPU"),
        ("maybe", ("True", "False"), None),
    ],
)
def test_the_nearest_name(name, known, meant):
    assert nearest(name, known) == meant
    assert did_you_mean(name, known) == (f"; did you mean {meant}?" if meant else "")


def test_a_choice_is_one_of_the_known():
    require_choice("mode", "auto", ("auto", "batched"))
    message = "mode is 'batch'; give auto, batched; did you mean batched?"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        require_choice("mode", "batch", ("auto", "batched"))


@pytest.mark.parametrize(
    ("text", "known", "means"),
    [
        ("fp32", ("f32", "bf16"), "f32"),
        ("FP16", ("f32", "f16"), "f16"),
        ("float32", ("f32",), "f32"),
        ("bfloat16", ("bf16",), "bf16"),
        ("f16", ("fp32", "fp16"), "fp16"),
        ("int8", ("auto", "int8"), "int8"),
        ("f8", ("f32",), "f8"),
        ("f16", ("f16", "fp16"), "f16"),  # as it is written
        (None, ("f32",), None),
        (32, ("f32",), 32),
    ],
)
def test_precisions_in_either_spelling(text, known, means):
    assert parse_precision(text, known) == means
