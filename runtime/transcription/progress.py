"""How far a recording has come, for those who watch it being transcribed."""

from dataclasses import dataclass

# Shares of the time that reading, encoding and decoding take, about.
_READ, _ENCODED, _DECODED = 0.1, 0.45, 0.45


@dataclass
class Progress:
    """Seconds of a recording up to which it is encoded and decoded.

    The threads that work on it write them, and any other may read them.
    """

    encoded: float = 0.0
    decoded: float = 0.0

    def encoded_to(self, seconds: float) -> None:
        """A window that ends there has been encoded."""
        self.encoded = max(self.encoded, seconds)

    def decoded_to(self, seconds: float) -> None:
        """A window that ends there has been decoded."""
        self.decoded = max(self.decoded, seconds)

    def seconds(self, read: float) -> float:
        """Seconds of audio that the work done so far amounts to, of which `read` are read."""
        encoded, decoded = min(self.encoded, read), min(self.decoded, read)
        return _READ * read + _ENCODED * encoded + _DECODED * decoded
