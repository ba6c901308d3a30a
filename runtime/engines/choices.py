"""The choices of `load_model`: library, cache and precision. Imports no engine."""

from typing import Literal, get_args

BackendName = Literal["openvino", "onnxruntime"]
BACKENDS: tuple[str, ...] = get_args(BackendName)

CacheKind = Literal["stateful", "concat", "static", "off"]
CACHE_KINDS: tuple[str, ...] = get_args(CacheKind)
KVCache = Literal["auto"] | CacheKind
KV_CACHES = ("auto", *CACHE_KINDS)

Precision = Literal["auto", "f32", "bf16", "f16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
