"""Downloads checkpoints and model folders from the Hugging Face hub, or finds them in its cache."""

import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from whisper_npu.errors import CheckpointError, ModelError, UsageError
from whisper_npu.export.checkpoint_files import (
    HF_INDEXES,
    HF_WEIGHTS,
    check_architecture,
    read_index,
)
from whisper_npu.export.hub_client import (
    Listing,
    MissingFileError,
    UnreachableError,
    download_file,
    hub_errors,
    is_down,
    list_files,
    searching,
)
from whisper_npu.export.hub_records import remember, whole_snapshot
from whisper_npu.runtime.model_folder.external_data import external_names
from whisper_npu.runtime.model_folder.folder import CONFIG, MANIFEST, VAD_MODEL
from whisper_npu.runtime.model_folder.layout import ALIGNMENT, Layout, find_layout, weight_files

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

logger = logging.getLogger("whisper_npu")

# The files that matter lie in the repository's root or in a folder of it.
_NAME = re.compile(r"(?:(?!\.+/)[\w.-]+/)?[\w.-]+")


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
    trouble: CheckpointError | None = None
    try:
        announcement = _announcement(list_files(repository, revision, token))
    except CheckpointError as error:
        trouble = error

    def get(name: str) -> Path:
        return download_file(repository, name, revision, token, is_local=is_down(trouble))

    config = _configuration(repository, revision, token, trouble)
    check_architecture(config, repository)
    if trouble is not None:
        is_away = isinstance(trouble, UnreachableError)
        why = "the hub cannot be reached" if is_away else str(trouble)
        (progress or logger.warning)(f"taking the files of {repository} from the cache: {why}")
    elif progress:
        progress(announcement)
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


def look_for(repository: str, revision: str | None, progress: Callable[[str], None] | None) -> None:
    """Find a repository on the hub or in its cache, before anything that takes long.

    Args:
        repository: hub id, `owner/name`.
        revision: branch, tag or commit; None for the main branch.
        progress: called with one line that says what is looked for, and where.

    Raises:
        CheckpointError: see `download`.
    """
    if progress:
        progress(searching(repository))
    try:
        list_files(repository, revision, None)
    except CheckpointError as error:
        _configuration(repository, revision, None, error)


def _configuration(
    repository: str, revision: str | None, token: str | None, trouble: CheckpointError | None
) -> Path:
    """Return the `config.json` of a repository; of its cache, if there was trouble with the hub.

    Raises:
        CheckpointError: neither has it; of the two troubles the one that says more.
    """
    try:
        return download_file(repository, "config.json", revision, token, is_local=is_down(trouble))
    except UnreachableError as error:
        if trouble is None or isinstance(trouble, UnreachableError):
            raise
        raise trouble from error


def cached_model(repository: str, variant: str | None = None) -> Path | None:
    """Return the snapshot in the hub's cache to which `download_model` fetched a whole variant.

    Args:
        repository: hub id, `owner/name`.
        variant: as it was asked for, see `find_layout`.

    Returns:
        the snapshot's folder; None if the hub must be asked.
    """
    return whole_snapshot(repository, variant, _snapshots(repository))


def usable_snapshot(repository: str, variant: str | None = None) -> Path | None:
    """Return a snapshot in the hub's cache that has graphs with their weights, whoever fetched it.

    The repository may have better variants, and companions that the snapshot lacks.

    Args:
        repository: hub id, `owner/name`.
        variant: see `find_layout`.

    Returns:
        the snapshot's folder, that of the main branch first, else the newest; None if none has.
    """
    snapshots = [path for path in _snapshots(repository).glob("*") if path.is_dir()]
    main = _snapshots(repository).parent / "refs" / "main"
    current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    for path in sorted(snapshots, key=lambda path: (path.name != current, -path.stat().st_mtime)):
        if _has_model(path, variant):
            return path
    return None


def cached_models() -> Iterator[tuple[str, Path]]:
    """Yield hub id and snapshot of the repositories in the hub's cache that have graphs."""
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = usable_snapshot(repository)
        if snapshot is not None:
            yield repository, snapshot


def _snapshots(repository: str) -> Path:
    folder = f"models--{repository.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder / "snapshots"


def _has_model(folder: Path, variant: str | None) -> bool:
    """Whether a folder holds a model's graphs, their weights and its tokenizer."""
    try:
        for graph in find_layout(folder, variant).graphs:
            weight_files(graph)
    except (ModelError, UsageError):
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
        progress: called with one line before the search, and one before the download.

    Returns:
        the snapshot's folder; None if the repository has no graphs, only a checkpoint.

    Raises:
        CheckpointError: the repository is missing or gated, or there is neither a network nor a
            cached copy.
        UsageError: the repository has no such variant.
    """
    if progress:
        progress(searching(repository))
    listing = list_files(repository, revision, token)
    names = list(listing.sizes)
    layout = _layout_of(names, variant, repository)
    if layout is None:
        return None
    wanted = _files_of(names, layout)
    if progress:
        progress(listing.announcement(wanted))

    def fetch() -> Path:
        with hub_errors(repository, revision, "graphs"):
            return Path(
                snapshot_download(
                    repository, revision=revision, token=token, allow_patterns=sorted(wanted)
                )
            )

    folder = fetch()
    named = _named_data(folder, layout) & set(names)
    if not named <= wanted:  # data files whose names follow no custom
        wanted |= named
        folder = fetch()
    missing = sorted(name for name in wanted if not (folder / name).is_file())
    if missing:
        raise CheckpointError(
            f"{repository} changed while it was fetched: {missing[0]} is missing; fetch it again"
        )
    if revision is None:
        remember(repository, variant, folder, sorted(wanted))
    return folder


def _announcement(listing: Listing) -> str:
    """One line that says what `download` fetches."""
    for name, index in zip(HF_WEIGHTS, HF_INDEXES, strict=True):
        stem, _, suffix = name.rpartition(".")
        parts = re.compile(rf"{re.escape(stem)}(-\d+-of-\d+)?\.{suffix}")
        weights = {file for file in listing.sizes if parts.fullmatch(file)}
        if index in listing.sizes:
            weights.discard(name)
        if weights:
            return listing.announcement(weights | (listing.sizes.keys() & set(COMPANIONS)))
    return listing.announcement(())


def _layout_of(names: Iterable[str], variant: str | None, repository: str) -> Layout | None:
    """Return the layout of a repository, with relative paths; None if there are no graphs.

    Raises:
        UsageError: the repository has no such variant.
    """
    with tempfile.TemporaryDirectory() as place:
        stand_in = Path(place)
        for name in filter(_NAME.fullmatch, names):  # the layout is found by the names alone
            (stand_in / name).parent.mkdir(exist_ok=True)
            (stand_in / name).touch()
        try:
            layout = find_layout(stand_in, variant)
        except ModelError:
            return None
        except UsageError as error:
            raise UsageError(str(error).replace(place, repository)) from None
    alignment = layout.decoder.with_name(ALIGNMENT).relative_to(stand_in)
    return replace(
        layout,
        encoder=layout.encoder.relative_to(stand_in),
        decoder=layout.decoder.relative_to(stand_in),
        with_past=layout.with_past and layout.with_past.relative_to(stand_in),
        alignment=alignment if alignment.as_posix() in names else None,
    )


def _files_of(names: Iterable[str], layout: Layout) -> set[str]:
    """Return the files to fetch."""
    graphs = {path.as_posix() for path in (*layout.graphs, layout.alignment) if path is not None}
    others = (*COMPANIONS, CONFIG, MANIFEST, VAD_MODEL)
    return {name for name in names if name in graphs or name in others or _is_data(name, graphs)}


def _named_data(folder: Path, layout: Layout) -> set[str]:
    """Return the data files that the fetched graphs name, relative to the folder.

    Raises:
        ModelError: a graph is damaged.
    """
    found = set()
    for graph in (*layout.graphs, *([layout.alignment] if layout.alignment else [])):
        if graph.suffix == ".onnx":
            found |= {(graph.parent / name).as_posix() for name in external_names(folder / graph)}
    return found


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
    except MissingFileError:
        return None
