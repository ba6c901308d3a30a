"""Finds the checkpoint that an argument names, without importing torch or using a network."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.machinery import PathFinder
from pathlib import Path

from whisper_npu.errors import CheckpointError, UsageError
from whisper_npu.export.asset_table import ASSETS
from whisper_npu.export.assets import is_cached, megabytes
from whisper_npu.export.checkpoint_files import HF_INDEXES, HF_WEIGHTS, check_huggingface_folder
from whisper_npu.runtime.model_folder.digests import remembered_sha256
from whisper_npu.spelling import did_you_mean

MODEL_ASSETS = tuple(name for name, asset in ASSETS.items() if asset.kind == "model")
# Names of openai/whisper and faster-whisper for models on the hub.
HUB_NAMES = {
    "tiny": "openai/whisper-tiny",
    "base.en": "openai/whisper-base.en",
    "small": "openai/whisper-small",
    "small.en": "openai/whisper-small.en",
    "medium": "openai/whisper-medium",
    "medium.en": "openai/whisper-medium.en",
    "large-v1": "openai/whisper-large",
    "large-v2": "openai/whisper-large-v2",
    "large-v3": "openai/whisper-large-v3",
    "large": "openai/whisper-large-v3",
    "large-v3-turbo": "openai/whisper-large-v3-turbo",
    "turbo": "openai/whisper-large-v3-turbo",
    "distil-small.en": "distil-whisper/distil-small.en",
    "distil-medium.en": "distil-whisper/distil-medium.en",
    "distil-large-v2": "distil-whisper/distil-large-v2",
    "distil-large-v3": "distil-whisper/distil-large-v3",
    "distil-large-v3.5": "distil-whisper/distil-large-v3.5",
}
KNOWN_NAMES = (*MODEL_ASSETS, *HUB_NAMES)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONTENT_SUFFIXES = (".json", ".txt", ".safetensors", ".bin", ".pt")


class SourceKind(StrEnum):
    """The supported forms of a checkpoint."""

    ASSET = "asset"
    HUB = "hub"
    HF_FOLDER = "huggingface"
    CTRANSLATE2 = "ctranslate2"
    OPENAI = "openai"


@dataclass(frozen=True)
class Source:
    """The source of a checkpoint.

    `path` is the folder or file (None for an asset or hub id that is not fetched yet), `revision`
    the hub's commit or the asset's version, `sha256` the digest of the files that decide the
    export, and `short` the user's name for a hub id.
    """

    argument: str
    kind: SourceKind
    path: Path | None = None
    revision: str | None = None
    sha256: str | None = None
    short: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """The source as the manifest stores it."""
        return {
            "argument": self.argument,
            "kind": self.kind.value,
            "revision": self.revision,
            "sha256": self.sha256,
        }

    @property
    def name(self) -> str:
        """A short name for the model folder: `tiny.en`, `whisper-large-v3-turbo`, `my-model`."""
        if self.short is not None:
            return self.short
        if self.path is not None and self.kind is not SourceKind.HUB:
            path = self.path.resolve()
            return path.stem if path.is_file() else path.name
        return self.argument.split("/")[-1]


def find_source(argument: str, revision: str | None = None) -> Source:
    """Find the checkpoint that `argument` names.

    The order is: the name of an asset (write `./base` for a folder of that name); a path that
    exists, or a text that looks like a path; a key of `HUB_NAMES`; a hub id of the form
    `owner/name`. So a mistyped path is never sent to a hub.

    Args:
        argument: Asset name, path of a folder or `.pt` file, `small`, `turbo` and so on, or hub
            id.
        revision: Branch, tag or commit of a hub id.

    Raises:
        CheckpointError: The argument names nothing, or a folder or file of an unknown form.
        UsageError: A revision was given for a source that has none.
    """
    source = _find(argument)
    if revision is not None and source.kind is not SourceKind.HUB:
        raise UsageError(
            f"--revision {revision} names a version on a model hub, but '{argument}' is"
            f" a {source.kind.value} source"
        )
    return replace(source, revision=revision) if revision is not None else source


def is_hub_id(argument: str) -> bool:
    """Whether a text that names no file can be a hub id: not a path such as `models/tiny.en`."""
    owner = argument.partition("/")[0]
    is_path = _looks_local(argument) or owner == "models" or Path(owner).is_dir()
    return HUB_ID.fullmatch(argument) is not None and not is_path


def describe_download(name: str) -> str:
    """Say what the first use of a model's name fetches: the checkpoint, its size, its licence.

    Args:
        name: a key of `KNOWN_NAMES`, or a hub id.
    """
    asset = ASSETS.get(name)
    if asset is None:
        return f"its checkpoint {HUB_NAMES.get(name, name)} is fetched from the hub"
    facts = f"{asset.description}; licence {asset.licence}"
    if is_cached(name):
        return f"its checkpoint is here ({facts})"
    return f"its checkpoint of {megabytes(asset.size)} is fetched ({facts})"


def look_for(source: Source, progress: Callable[[str], None] | None = None) -> None:
    """Find a hub's checkpoint on the hub or in its cache, before torch is imported.

    Args:
        source: the checkpoint; nothing is done for one that is no hub's.
        progress: called with one line that says what is looked for, and where.

    Raises:
        CheckpointError: it is nowhere, or the hub cannot be reached.
    """
    if source.kind is SourceKind.HUB and PathFinder.find_spec("huggingface_hub") is not None:
        from whisper_npu.export import hub  # noqa: PLC0415 - an extra

        hub.look_for(source.argument, source.revision, progress)


def check_source(source: Source) -> None:
    """Check the small files of a checkpoint.

    Raises:
        CheckpointError: The checkpoint is no Whisper, or files are missing.
    """
    if source.kind is SourceKind.HF_FOLDER and source.path is not None:
        check_huggingface_folder(source.path, source.argument)


def with_digest(source: Source) -> Source:
    """Add the sha256 of a local source's content; other kinds have a sha256 or a commit already."""
    if source.sha256 is not None or source.path is None or source.kind is SourceKind.HUB:
        return source
    if source.path.is_file():
        files = [source.path]
    else:
        files = sorted(
            file
            for file in source.path.iterdir()
            if file.suffix in CONTENT_SUFFIXES and file.is_file()
        )
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(f"{file.name} {remembered_sha256(file)}\n".encode())
    except OSError as error:
        raise CheckpointError(f"cannot read {source.path}: {error}") from error
    return replace(source, sha256=digest.hexdigest())


def _find(argument: str) -> Source:
    if argument in MODEL_ASSETS:
        asset = ASSETS[argument]
        return Source(argument, SourceKind.ASSET, revision=asset.version, sha256=asset.fingerprint)
    path = Path(argument).expanduser()
    if path.is_dir():
        return Source(argument, _folder_kind(path), path)
    if path.is_file():
        if path.suffix != ".pt":
            raise CheckpointError(
                f"{argument} is a file, but no .pt checkpoint of openai/whisper; for the other"
                " forms give the folder that holds the weights"
            )
        return Source(argument, SourceKind.OPENAI, path)
    if _looks_local(argument):
        raise CheckpointError(f"there is no file or folder {argument}")
    if argument in HUB_NAMES:
        return Source(HUB_NAMES[argument], SourceKind.HUB, short=argument)
    if HUB_ID.fullmatch(argument):
        return Source(argument, SourceKind.HUB)
    hint = did_you_mean(argument, KNOWN_NAMES) or ";"
    raise CheckpointError(
        f"'{argument}' is no known model, no file or folder, and no hub id{hint} "
        "`whisper-npu export --help` says what can be given"
    )


def _folder_kind(folder: Path) -> SourceKind:
    if (folder / "model.bin").is_file():
        return SourceKind.CTRANSLATE2
    has_weights = any((folder / name).is_file() for name in (*HF_WEIGHTS, *HF_INDEXES))
    if (folder / "encoder_model.onnx").is_file() and not has_weights:
        raise CheckpointError(
            f"{folder} is a model folder already: give it to `whisper-npu transcribe --model`; to"
            " export again, name the checkpoint it came from"
        )
    if (folder / "config.json").is_file():
        return SourceKind.HF_FOLDER
    raise CheckpointError(
        f"{folder} is no checkpoint: it has neither config.json (Hugging Face) nor model.bin"
        " (CTranslate2)"
    )


def _looks_local(argument: str) -> bool:
    return (
        argument.startswith((".", "~", "/"))
        or "\\" in argument
        or argument.count("/") > 1
        or argument.endswith(("/", ".pt", ".bin", ".safetensors"))
    )
