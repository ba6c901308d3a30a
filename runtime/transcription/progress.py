"""Progress of the transcription of a recording."""

from dataclasses import dataclass

# Approximate shares of the time for reading, encoding and decoding.
_READ, _ENCODED, _DECODED = 0.1, 0.45, 0.45


@dataclass
class Progress:
    """Seconds of a recording up to which it is encoded and decoded.

    The threads that decode the recording write them; any thread may read them.
    """

    encoded: float = 0.0
    decoded: float = 0.0

    def encoded_to(self, seconds: float) -> None:
        """Note that a window that ends at `seconds` has been encoded."""
        self.encoded = max(self.encoded, seconds)

    def decoded_to(self, seconds: float) -> None:
        """Note that a window that ends at `seconds` has been decoded."""
        self.decoded = max(self.decoded, seconds)

    def seconds(self, read: float) -> float:
        """Seconds of audio that the work so far amounts to, after `read` seconds were read."""
        encoded, decoded = min(self.encoded, read), min(self.decoded, read)
        return _READ * read + _ENCODED * encoded + _DECODED * decoded
