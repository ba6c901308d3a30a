"""The configuration of a server, and the sizes and names in it."""

import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from whisper_npu import UsageError

Precision = Literal["auto", "f32", "bf16", "f16", "int8"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
_KEY = re.compile(r"[!-~]+")  # visible ASCII
_ON_DISK = Path("/var/tmp")  # a folder for large temporary files; `/tmp` is often in memory


def default_spool() -> Path:
    """The folder for temporary files that the user chose, else one on a disk."""
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    usable = _ON_DISK.is_dir() and os.access(_ON_DISK, os.W_OK)
    return _ON_DISK if usable and not chosen else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve.

    Attributes:
        name: its name in requests.
        path: its folder, or the name of a model; see `load_model`.
    """

    name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one caller, and all callers together, may ask for.

    Attributes:
        upload_bytes: most bytes of a request's body.
        uploads: requests whose bodies are read at the same time.
        active: requests that are decoded at the same time.
        queue: requests that may wait or upload beside these.
        sessions: live sessions at the same time.
        idle_seconds: longest time of a live session without an event of its client.
        audio_seconds: longest recording.
        work_seconds: longest time that a request is decoded, without the time it waits.
        stall_seconds: longest time in which a caller neither sends nor reads a byte.
        least_rate: bytes per second below which an upload is given up, after `stall_seconds`.
    """

    upload_bytes: int = 1 << 30
    uploads: int = 16
    active: int = 16
    queue: int = 64
    sessions: int = 32
    idle_seconds: float = 600.0
    audio_seconds: float = 12 * 3600.0
    work_seconds: float = 3600.0
    stall_seconds: float = 20.0
    least_rate: float = 2048.0

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            UsageError: a limit is too low.
        """
        least_values = {"upload_bytes": 1, "uploads": 1, "active": 1, "queue": 0, "sessions": 1}
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; give {least} or more")
        for name in ("audio_seconds", "work_seconds", "stall_seconds", "idle_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give seconds above 0")


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server's models, key, limits and places.

    Attributes:
        models: the models; `whisper-1` means the first unless a model has that name.
        device: see `load_model`.
        precision: see `load_model`.
        threads: see `load_model`.
        variant: see `load_model`.
        api_key: the key that requests under `/v1` must bring; None: no key.
        limits: see `Limits`.
        spool: folder of uploads; their files have no names, so that none is ever left behind.
    """

    models: tuple[ModelSpec, ...]
    device: str = "CPU"
    precision: Precision = "auto"
    threads: int = 0
    variant: str | None = None
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    spool: Path = field(default_factory=default_spool)

    def __post_init__(self) -> None:
        """Refuse a configuration that cannot work.

        Raises:
            UsageError: there is no model, a name is taken twice, or no request could bring the key.
        """
        if not self.models:
            raise UsageError("no model to serve; give --model")
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two models are named {name}; write --model NAME=FOLDER")
        if self.api_key is not None:
            require_key(self.api_key, "api_key")
        if not self.spool.is_dir():
            raise UsageError(f"{self.spool}: the folder for uploads does not exist; make it")


def require_key(key: str, name: str) -> None:
    """Refuse a key that no request can bring.

    Args:
        key: the key.
        name: of the variable or option that has it.

    Raises:
        UsageError: it is empty, or a header cannot bring it unchanged.
    """
    if not key:
        raise UsageError(f"{name} is empty; give it a key, or leave it out to ask for none")
    if _KEY.fullmatch(key) is None:
        raise UsageError(
            f"{name} has spaces, line ends or characters other than ASCII, which no request can "
            "bring; give another key"
        )


def parse_models(given: Iterable[str]) -> tuple[ModelSpec, ...]:
    """Read models as on the command line: `tiny.en`, `models/base`, `NAME=FOLDER`.

    Raises:
        UsageError: a name has characters that do not belong into a model's name.
    """
    return tuple(map(_model, given))


def _model(given: str) -> ModelSpec:
    name, equals, path = given.partition("=")
    if not equals:
        name, path = Path(given).expanduser().absolute().name, given
    if not path or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"--model {given}: a model's name has letters, digits and . _ : -; "
            "write --model NAME=FOLDER"
        )
    return ModelSpec(name, path)


def parse_size(text: str) -> int:
    """Read a number of bytes: `1073741824`, `512M`, `2 GB`; K, M, G and T are powers of 1024.

    Raises:
        UsageError: the text is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size; write bytes, or 512M, or 2G")
    number, unit = match.groups()
    factor: int = 1024 ** _POWERS[unit.upper()]
    return round(float(number) * factor)
