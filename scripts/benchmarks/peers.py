"""Lists the other recognisers, each with its settings."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """A recogniser with its settings.

    Attributes:
        name: Its name in reports and in `--peers`.
        engine: Its name in `engine_runner.py`.
        form: The form of its model; see `PeerModels.path`.
        settings: The other entries of its job.
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
