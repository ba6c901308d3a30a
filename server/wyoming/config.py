"""The configuration of a Wyoming server."""

from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from whisper_npu import UsageError

DEFAULT_URI = "tcp://127.0.0.1:10300"


@dataclass(frozen=True, kw_only=True)
class WyomingConfig:
    """A Wyoming server's configuration.

    Attributes:
        uri: where it listens: `tcp://HOST:PORT`, `unix://PATH`, or `stdio://` for one client.
        name: the model's name.
        language: the language unless a request names one; None: it is detected.
        is_live: decode while audio arrives. The text comes in parts, and sooner after the end; it
            takes more work, and has a few more errors.
        connections: most connections.
        audio_seconds: longest utterance.
        idle_seconds: longest time without an event of the client.
    """

    uri: str = DEFAULT_URI
    name: str = "whisper"
    language: str | None = None
    is_live: bool = False
    connections: int = 32
    audio_seconds: float = 600.0
    idle_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Refuse a URI that cannot be used, and limits that let nothing through.

        Raises:
            UsageError: the URI or a limit cannot be used.
        """
        for name in ("connections", "audio_seconds", "idle_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give more than 0")
        parts = self.parts
        try:
            has_port = parts.port is not None
        except ValueError:
            raise UsageError(f"--uri {self.uri}: a port is a number from 0 to 65535") from None
        usable = {
            "tcp": parts.hostname is not None and has_port,
            "unix": bool(parts.path),
            "stdio": True,
        }
        if not usable.get(parts.scheme):
            raise UsageError(f"--uri {self.uri}: give tcp://HOST:PORT, unix://PATH or stdio://")

    @property
    def parts(self) -> SplitResult:
        """The parts of the URI."""
        return urlsplit(self.uri)
