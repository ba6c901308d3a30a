"""Downloads checkpoints and model folders from the Hugging Face hub, or finds them in its cache."""

import errno
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from whisper_npu.errors import CheckpointError, ModelError
from whisper_npu.export.assets import megabytes
from whisper_npu.export.checkpoint_files import (
    HF_INDEXES,
    HF_WEIGHTS,
    check_architecture,
    read_index,
)
from whisper_npu.runtime.model_folder.folder import VAD_MODEL
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, Layout, find_layout

COMPANIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "normalizer.json",
)

# Of requests or of httpx, by the version of huggingface_hub; httpx's are no OSError.
_CLIENT_ERRORS: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base is not Exception
)
_DEEPEST = 2  # parts of a path: graphs lie in the repository's root or in a folder of it


def download(
    repository: str,
    revision: str | None,
    token: str | None,
    progress: Callable[[str], None] | None,
) -> tuple[Path, str]:
    """Make a repository's checkpoint available locally.

    The configuration comes first, so that a wrong architecture costs no download of weights.

    Returns:
        The snapshot's folder and its commit.

    Raises:
        CheckpointError: The repository is missing, gated or no Whisper, or there is neither a
            network nor a cached copy.
    """

    def get(name: str) -> Path:
        return _download_file(repository, name, revision, token)

    if progress:
        progress(f"looking for {repository} on the hub")
    config = get("config.json")
    check_architecture(config, repository)
    if progress:
        progress(_announcement(repository, revision, token))
    for name in COMPANIONS:
        _optional(get, name)
    for name, index in zip(HF_WEIGHTS, HF_INDEXES, strict=True):
        index_path = _optional(get, index)
        if index_path is not None:
            for shard in read_index(index_path):
                get(shard)
            break
        if _optional(get, name) is not None:
            break
    else:
        get(HF_WEIGHTS[0])  # tells a missing file from a missing network
    return config.parent, config.parent.name


def cached_model(repository: str, variant: str | None = None) -> Path | None:
    """Return the snapshot of a repository in the hub's cache that has graphs; None if none has.

    Args:
        repository: hub id, `owner/name`.
        variant: see `find_layout`.
    """
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    snapshots = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    main = folder / "refs" / "main"
    current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    for path in sorted(snapshots, key=lambda path: (path.name != current, -path.stat().st_mtime)):
        if has_graphs(path, variant):
            return path
    return None


def cached_models() -> Iterator[tuple[str, Path]]:
    """Yield hub id and snapshot of the repositories in the hub's cache that have graphs."""
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = cached_model(repository)
        if snapshot is not None:
            yield repository, snapshot


def has_graphs(folder: Path, variant: str | None = None) -> bool:
    """Whether a folder holds a model's graphs and tokenizer; their content is not read."""
    try:
        find_layout(folder, variant)
    except ModelError:
        return False
    return True


def download_model(
    repository: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    variant: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path | None:
    """Make one variant of a repository's graphs available locally, with what it needs to run.

    Args:
        repository: hub id, `owner/name`.
        revision: branch, tag or commit; None for the main branch.
        token: access token for a gated repository.
        variant: the graphs to fetch, see `find_layout`; None fetches the most exact ones.
        progress: called with one line before the download.

    Returns:
        the snapshot's folder; None if the repository has no graphs, only a checkpoint.

    Raises:
        CheckpointError: the repository is missing or gated, or there is neither a network nor a
            cached copy.
        UsageError: the repository has no such variant.
    """
    listing = _list_files(repository, revision, token)
    wanted = _files_of_variant(list(listing.sizes), variant)
    if wanted is None:
        return None
    if progress:
        progress(listing.announcement(wanted))
    with _hub_errors(repository, revision, "graphs"):
        folder = snapshot_download(
            repository, revision=revision, token=token, allow_patterns=sorted(wanted)
        )
    return Path(folder)


@dataclass(frozen=True)
class _Listing:
    """The files of a repository, as the hub lists them.

    Attributes:
        repository: hub id, `owner/name`.
        sizes: bytes of each file, by its path in the repository; 0 where the hub does not say.
        licence: the licence on the model's card; empty if it names none.
    """

    repository: str
    sizes: dict[str, int]
    licence: str

    def announcement(self, wanted: Iterable[str]) -> str:
        """One line that says what is fetched, its size and its licence."""
        size = sum(self.sizes[name] for name in wanted)
        return (
            f"fetching {self.repository} from the hub: {megabytes(size)}, licence "
            f"{self.licence or 'unknown: see its card'}; what is cached is not fetched again"
        )


def _list_files(repository: str, revision: str | None, token: str | None) -> _Listing:
    """Ask the hub for the files of a repository.

    Raises:
        CheckpointError: see `download_model`.
    """
    with _hub_errors(repository, revision, "list of files"):
        found = HfApi().model_info(repository, revision=revision, token=token, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    marks = (tag.removeprefix("license:") for tag in found.tags or () if tag.startswith("license:"))
    return _Listing(repository, sizes, next(marks, ""))


def _announcement(repository: str, revision: str | None, token: str | None) -> str:
    """One line that says what `download` fetches; without a network, the cache must hold all."""
    try:
        listing = _list_files(repository, revision, token)
    except CheckpointError:
        return f"taking the files of {repository} from the cache"
    for name, index in zip(HF_WEIGHTS, HF_INDEXES, strict=True):
        stem, _, suffix = name.rpartition(".")
        parts = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.{suffix}")
        weights = {file for file in listing.sizes if parts.fullmatch(file)}
        if index in listing.sizes:
            weights.discard(name)
        if weights:
            return listing.announcement(weights | (listing.sizes.keys() & set(COMPANIONS)))
    return listing.announcement(())


def _files_of_variant(names: list[str], variant: str | None) -> set[str] | None:
    """Return the files to fetch; None if there are no graphs."""
    with tempfile.TemporaryDirectory() as place:
        stand_in = Path(place)
        for name in names:  # the layout is found by the names alone
            if len(PurePosixPath(name).parts) <= _DEEPEST and ".." not in PurePosixPath(name).parts:
                (stand_in / name).parent.mkdir(parents=True, exist_ok=True)
                (stand_in / name).touch()
        try:
            layout = find_layout(stand_in, variant)
        except ModelError:
            return None
        graphs = {path.relative_to(stand_in).as_posix() for path in _graph_files(layout)}
    companions = {name for name in names if name in (*COMPANIONS, "config.json", VAD_MODEL)}
    manifest = {name for name in names if name == "export_manifest.json"}
    return graphs | companions | manifest | {name for name in names if _is_data(name, graphs)}


def _graph_files(layout: Layout) -> Iterator[Path]:
    yield from layout.graphs
    if layout.alignment is not None:
        yield layout.alignment
    elif (layout.decoder.parent / ALIGNMENT).is_file():
        yield layout.decoder.parent / ALIGNMENT


def _is_data(name: str, graphs: set[str]) -> bool:
    """Whether a file holds weights of one of the graphs, by its name."""
    for graph in graphs:
        stem, _, form = graph.rpartition(".")
        if form == "xml" and name == f"{stem}.bin":
            return True
        if form == "onnx" and re.fullmatch(rf"{re.escape(graph)}[._]data(_\d+)?", name):
            return True
    return name == "model.onnx_data"  # the one data file of our own exports


def _optional(get: Callable[[str], Path], name: str) -> Path | None:
    try:
        return get(name)
    except _MissingFileError:
        return None


class _MissingFileError(CheckpointError):
    """The repository has no such file, or without a network its cached copy has none."""


def _download_file(repository: str, name: str, revision: str | None, token: str | None) -> Path:
    with _hub_errors(repository, revision, name):
        return Path(hf_hub_download(repository, name, revision=revision, token=token))


@contextmanager
def _hub_errors(repository: str, revision: str | None, name: str) -> Iterator[None]:
    """Turn the hub client's errors in a block into `CheckpointError` of one line.

    Args:
        repository: hub id.
        revision: branch, tag or commit, if one was asked for.
        name: what is asked for, in the messages.
    """
    at = f" at revision {revision}" if revision else ""
    # Without a network the hub's client logs a page per attempt; the error below says enough.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its conditions on the hub, then log in with"
            " `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no model {repository}, or it is private: check the name, or log in with"
            " `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} has no revision {revision}; leave it out for the newest"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _MissingFileError(
            f"cannot reach the hub for {repository}{at} and its {name} is not in the local cache:"
            " connect to the network, or give a local folder or a built-in model"
        ) from error
    except EntryNotFoundError as error:
        raise _MissingFileError(f"{repository}{at} has no {name}") from error
    except HFValidationError as error:
        raise CheckpointError(f"'{repository}' is no valid hub id: {error}") from error
    except _CLIENT_ERRORS as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise CheckpointError(
                f"cannot store {name} of {repository}: {error.strerror}; free some space, or set"
                " HF_HOME to a directory that can be written"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the hub failed for {repository}{at}: {reason}; connect to the network and try again,"
            " or give a model folder"
        ) from error
    finally:
        logger.setLevel(level)
