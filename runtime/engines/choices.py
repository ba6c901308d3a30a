"""The choices of `load_model`: library, cache, precision and device. Imports no engine."""

import re
from typing import Literal, get_args

from whisper_npu.errors import UsageError
from whisper_npu.spelling import did_you_mean

BackendName = Literal["openvino", "onnxruntime"]
BACKENDS: tuple[str, ...] = get_args(BackendName)

CacheKind = Literal["stateful", "concat", "static", "off"]
CACHE_KINDS: tuple[str, ...] = get_args(CacheKind)
KVCache = Literal["auto"] | CacheKind
KV_CACHES = ("auto", *CACHE_KINDS)

Precision = Literal["auto", "f32", "bf16", "f16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

DEVICES = ("CPU", "GPU", "NPU", "NPU_EMULATED", "AUTO")
_PARTS = ("ENCODER", "DECODER")
_DEVICE = re.compile(r"\w+(\.\w+)*")
_LIKENESS = 0.7  # of devices: TPU is no mistyped CPU


def parse_device(text: str) -> tuple[str, str]:
    """Return the devices of the encoder and the decoder: of `NPU`, or `encoder=NPU,decoder=CPU`.

    Whether this machine has them is not checked.

    Raises:
        UsageError: the text has neither form, or a name is mistyped.
    """
    if not isinstance(text, str):
        raise UsageError(f"device is {text!r}; give a name such as CPU")
    parts = [part.partition("=")[::2] for part in text.upper().split(",")]
    if "=" not in text:
        parts = [(part, text.upper()) for part in _PARTS]
    names = dict(parts)
    is_whole = sorted(part for part, _ in parts) == sorted(_PARTS)
    if not is_whole or not all(map(_DEVICE.fullmatch, names.values())):
        two = re.fullmatch(r"(?:HETERO:)?(\w+),(\w+)", text.upper())
        encoder, decoder = two.groups() if two else ("NPU", "CPU")
        raise UsageError(
            f"device is {text!r}; give one device such as NPU, AUTO for the fastest, or two as "
            f"encoder={encoder},decoder={decoder}"
        )
    for name in names.values():
        plugin = name.partition(".")[0]
        hint = "" if plugin in DEVICES else did_you_mean(plugin, DEVICES, _LIKENESS)
        if hint:
            raise UsageError(f"there is no device {name}{hint}")
    return names["ENCODER"], names["DECODER"]
