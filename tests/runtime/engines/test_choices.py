"""Names of devices."""

import re

import pytest

from whisper_npu.errors import UsageError
from whisper_npu.runtime.engines.choices import parse_device


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("NPU", ("NPU", "NPU")),
        ("gpu.1", ("GPU.1", "GPU.1")),
        ("encoder=NPU,decoder=CPU", ("NPU", "CPU")),
        ("decoder=cpu,encoder=npu", ("NPU", "CPU")),
        ("TPU", ("TPU", "TPU")),  # OpenVINO says that it has none
    ],
)
def test_devices(text, devices):
    assert parse_device(text) == devices


@pytest.mark.parametrize(
    ("text", "two"),
    [
        ("encoder=NPU", "encoder=NPU,decoder=CPU"),
        ("encoder=,decoder=CPU", "encoder=NPU,decoder=CPU"),
        ("encoder=A,other=B", "encoder=NPU,decoder=CPU"),
        ("MULTI:GPU", "encoder=NPU,decoder=CPU"),
        ("GPU,CPU", "encoder=GPU,decoder=CPU"),
        ("HETERO:GPU,CPU", "encoder=GPU,decoder=CPU"),
        ("encoder=A,decoder=B,decoder=C", "encoder=NPU,decoder=CPU"),
        ("", "encoder=NPU,decoder=CPU"),
    ],
)
def test_texts_that_are_no_device(text, two):
    message = (
        f"device is {text!r}; give one device such as NPU, AUTO for the fastest, or two as {two}"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        parse_device(text)


def test_a_tile_of_a_device():
    assert parse_device("gpu.0.1") == ("GPU.0.1", "GPU.0.1")


@pytest.mark.parametrize("device", [None, 0])
def test_what_is_no_text(device):
    with pytest.raises(UsageError, match=f"^device is {device}; give a name such as CPU$"):
        parse_device(device)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("CPUU", "CPU"),
        ("NPU_EMULATE", "NPU_EMULATED"),
        ("AUT", "AUTO"),
        ("encoder=NPUU,decoder=CPU", "NPU"),
    ],
)
def test_mistyped_devices(text, meant):
    with pytest.raises(UsageError, match=rf"^there is no device \w+; did you mean {meant}\?$"):
        parse_device(text)
