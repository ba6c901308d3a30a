"""The recognisers ours is compared with, each in one of its settings."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A recogniser in one of its settings.

    Attributes:
        name: What reports and `--peers` call it.
        engine: As `engine_runner.py` calls it.
        form: The model it reads; see `PeerModels.path`.
        settings: What else its job has.
    """

    name: str
    engine: str
    form: str
    settings: dict[str, Any]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("openvino-genai-int8", "openvino-genai", "openvino-int8", {}),
        Peer("openvino-genai-fp32", "openvino-genai", "openvino-fp32", {}),
        Peer(
            "faster-whisper-batched",
            "faster-whisper",
            "ctranslate2",
            {"compute_type": "int8", "batch_size": 16},
        ),
        Peer(
            "faster-whisper",
            "faster-whisper",
            "ctranslate2",
            {"compute_type": "float32", "batch_size": 1},
        ),
        Peer("whisper.cpp", "whisper.cpp", "ggml", {}),
        Peer("transformers", "transformers", "huggingface", {}),
    )
}
