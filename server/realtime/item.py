"""An utterance of a session, from its first audio to its last word."""

import uuid
from typing import Any

from whisper_npu import Committed, LiveTranscriber
from whisper_npu.server.errors import ApiError
from whisper_npu.server.models import ServedModel


class Item:
    """An utterance.

    Attributes:
        live: its transcription.
        served: the model.
        id: its name in events.
        n_samples: its audio so far.
        text: its text so far, as it was sent.
        languages: codes of the languages in it.
        flaws: what looks wrong with the text.
        error: why it has no further text.
    """

    def __init__(self, live: LiveTranscriber, served: ServedModel) -> None:
        self.live = live
        self.served = served
        self.id = f"item_{uuid.uuid4().hex[:24]}"
        self.n_samples = 0
        self.text = ""
        self.languages: list[str] = []
        self.flaws: list[str] = []
        self.error: ApiError | None = None

    def add(self, words: Committed) -> str:
        """Add words that are final; returns the text to send."""
        delta = words.text if self.text else words.text.lstrip()
        self.text += delta
        if words.language not in self.languages:
            self.languages.append(words.language)
        if words.flaw is not None:
            self.flaws.append(words.flaw)
        return delta

    def as_message(self) -> dict[str, Any]:
        """The item as a message of a conversation."""
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
