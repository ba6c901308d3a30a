"""Finds the folder of a model name, for `load_model` and every command; lists what is here."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from whisper_npu.errors import CheckpointError, ModelError, UsageError
from whisper_npu.runtime.model_folder.cache_folder import cache_folder
from whisper_npu.spelling import did_you_mean

if TYPE_CHECKING:
    from whisper_npu.runtime.model_folder.layout import Layout

logger = logging.getLogger("whisper_npu")

MODELS = "models"  # folder that `whisper-npu export` writes to
EXPORTERS = ("torch", "transformers", "optimum", "onnx")  # of the extra [export]
# Repositories of the hub with the graphs of these models, for machines without the extra [export].
READY_MADE = {
    name: f"onnx-community/whisper-{name}"
    for name in ("tiny.en", "tiny", "base.en", "base", "small.en", "small", "large-v3-turbo")
} | {"turbo": "onnx-community/whisper-large-v3-turbo"}


def find_model(
    name: str | Path,
    progress: Callable[[str], None] | None = None,
    *,
    variant: str | None = None,
) -> Path:
    """The model folder that `name` means.

    A path is used as it is. A name is searched for in this order: in `models` of the current
    folder, to which `whisper-npu export` writes; in the checkout and its `models`, if the program
    runs from a checkout; among the models that were exported on first use. A known name (`tiny.en`,
    `small`, `turbo`) that is found nowhere is exported now, which needs the extra `[export]`.
    Without that extra, graphs that others exported are fetched for the names in `READY_MADE`, and a
    line says so. A hub id (`owner/name`) is searched for in the hub's cache, then fetched from the
    hub, which needs the extra `[hub]`. If it is a checkpoint without graphs, it is exported.

    Args:
        name: a folder, a model's name, or a hub id.
        progress: called with one line per step of an export or a download; by default the steps
            are logged.
        variant: the graphs to fetch, see `layout.find_layout`.

    Raises:
        ModelError: no model has that name, or the extra is missing.
        UsageError: the model has no such variant.
        WhisperNpuError: the export failed.
    """
    found = _find_here(name)
    if found is not None:
        return found
    from whisper_npu.export import source  # noqa: PLC0415

    exported = _exported_place(name)
    if source.is_hub_id(str(name)):
        return _from_hub(str(name), exported, progress, variant)
    return _export(str(name), exported, progress, variant)


def require_known(name: str | Path) -> None:
    """Refuse a name for which `find_model` has nothing to find, export or fetch.

    Raises:
        ModelError: no model has that name.
    """
    _find_here(name)


def _exported_place(name: str | Path) -> Path:
    return exported_models() / str(name).replace("/", "--")


def _find_here(name: str | Path) -> Path | None:
    """The folder of a name on this machine; None if it can be exported or fetched.

    Raises:
        ModelError: no model has that name.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    # Imported only if no path was given: programs that give a path start without it.
    from whisper_npu.export import partials, source  # noqa: PLC0415

    for place in (path, Path(MODELS) / name, *_below_checkout(name), _exported_place(name)):
        if place.parent.is_dir():
            try:
                partials.tidy(place)  # a killed export may have moved the folder away
            except OSError as error:
                logger.warning("cannot tidy up beside %s: %s", place, error.strerror or error)
        if place.is_dir():
            return place
    if path.exists():
        return path  # its reader says why it is no model folder
    if not source.is_hub_id(str(name)) and str(name) not in source.KNOWN_NAMES:
        here = [each for named in _named_folders() for each in map(str, named)]
        hint = did_you_mean(str(name), (*source.KNOWN_NAMES, *here)) or ";"
        raise ModelError(
            f"model {name} does not exist{hint} `whisper-npu models` lists the models that are "
            "here, `whisper-npu export --help` those that can be made"
        )
    return None


@dataclass(frozen=True)
class LocalModel:
    """A model that is on this machine.

    Attributes:
        name: what `find_model` takes for it.
        path: its folder.
        size: bytes of the graphs and weights of its best variant.
        form: the exporter's form: `ONNX`, `ONNX, merged decoder` or `OpenVINO IR`.
        variants: all variants of its decoder, the best first.
        precision: the manifest's precision of the weights; None if there is no manifest.
        is_verified: whether the manifest says that its best variant was compared with the
            checkpoint.
    """

    name: str
    path: Path
    size: int
    form: str
    variants: tuple[str, ...]
    precision: str | None
    is_verified: bool


def local_models() -> list[LocalModel]:
    """Return the models in all places where `find_model` looks, the hub's cache included."""
    # Imported here, because `--help` needs neither.
    from whisper_npu.runtime.model_folder.config import Manifest  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.folder import MANIFEST  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.json_files import checked, read_object  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.layout import find_layout, weight_files  # noqa: PLC0415
    from whisper_npu.runtime.model_folder.verification import is_verified  # noqa: PLC0415

    found: dict[Path, LocalModel] = {}
    for name, path in _named_folders():
        try:
            layout = find_layout(path)
            manifest = checked(read_object(path / MANIFEST), Manifest, path / MANIFEST)
            content = {
                file.resolve() for graph in layout.graphs for file in (graph, *weight_files(graph))
            }
            size = sum(file.stat().st_size for file in content)
        except (ModelError, OSError):  # no model, or an unfinished one
            continue
        found.setdefault(
            path.resolve(),
            LocalModel(
                name=name,
                path=path,
                size=size,
                form=_form(layout),
                variants=layout.variants[1],
                precision=manifest.precision,
                is_verified=is_verified(manifest.parity, layout.variant),
            ),
        )
    return list(found.values())


def _form(layout: "Layout") -> str:
    if layout.is_openvino:
        return "OpenVINO IR"
    return "ONNX" if layout.with_past is not None else "ONNX, merged decoder"


def _named_folders() -> Iterator[tuple[str, Path]]:
    for place in (Path(MODELS), *_below_checkout("")[1:], exported_models()):
        if place.is_dir():
            for path in sorted(place.iterdir()):
                if path.is_dir() and not path.name.startswith("."):
                    yield path.name.replace("--", "/"), path
    try:
        from whisper_npu.export import hub  # noqa: PLC0415 - needs huggingface_hub
    except ImportError:
        return
    yield from hub.cached_models()


def exported_models() -> Path:
    """The folder of models that were exported on first use."""
    return cache_folder() / MODELS


def _from_hub(
    name: str, exported: Path, progress: Callable[[str], None] | None, variant: str | None
) -> Path:
    """Return a model of the hub from its cache, from the network, or exported from a checkpoint."""
    return _fetch(name, name, progress or logger.info, variant) or _export(
        name, exported, progress, variant
    )


def _fetch(
    name: str, repository: str, tell: Callable[[str], None], variant: str | None
) -> Path | None:
    """Return a repository's graphs from the hub's cache or the network; None if it has none.

    Raises:
        CheckpointError: the hub cannot be reached, and its cache has no usable graphs.
        ModelError: `huggingface_hub` is not installed; `name` is for this message.
    """
    hub = require_hub(name)
    found: Path | None = hub.cached_model(repository, variant)
    if found is None:
        try:
            found = hub.download_model(repository, variant=variant, progress=tell)
        except hub.UnreachableError:
            found = hub.usable_snapshot(repository, variant)
            if found is None:
                raise
            logger.warning(
                "the hub cannot be reached: using %s, which may lack files or better variants",
                found,
            )
    return found


def require_hub(name: str) -> ModuleType:
    """Return the module `export.hub`.

    Args:
        name: of the wanted model, for the message.

    Raises:
        ModelError: `huggingface_hub` is not installed.
    """
    try:
        from whisper_npu.export import hub  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ModelError(
            f"there is no folder {name}, and fetching it from the hub needs {error.name}: pip "
            "install 'whisper-npu[hub]'"
        ) from None
    return hub


def _below_checkout(name: str | Path) -> list[Path]:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "setup.cfg").is_file():
        return []
    return [checkout / name, checkout / MODELS / name]


def _export(
    name: str, place: Path, progress: Callable[[str], None] | None, variant: str | None
) -> Path:
    """Export a checkpoint to `place`, or take ready-made graphs where nothing can be exported.

    Raises:
        ModelError: the extra is missing, and there are no ready-made graphs.
        UsageError: a variant is wanted that no export has.
        WhisperNpuError: the export failed.
    """
    from whisper_npu.export import source  # noqa: PLC0415 - --help needs none
    from whisper_npu.runtime.model_folder.layout import PLAIN  # noqa: PLC0415

    tell = progress or logger.warning
    missing = [package for package in EXPORTERS if PathFinder.find_spec(package) is None]
    if missing:
        return _ready_made(name, missing[0], tell, variant)
    if variant not in (None, PLAIN):
        raise UsageError(
            f"{name} is a checkpoint, whose export has no variant {variant}: leave it out"
        )
    source.look_for(source.find_source(name), tell)
    tell(
        f"{name} is used for the first time: {source.describe_download(name)}; then it is "
        f"exported once and compared with PyTorch, which takes a minute or more, to {place}"
    )
    # Imported here, because it loads torch.
    from whisper_npu.export.onnx_export import export_model  # noqa: PLC0415

    return export_model(name, place, progress=progress or logger.info)


def _ready_made(name: str, missing: str, tell: Callable[[str], None], variant: str | None) -> Path:
    """Return graphs that others have exported, from the hub or its cache.

    Raises:
        ModelError: there are none, or they cannot be fetched.
    """
    export = f"exporting {name} needs {missing}: pip install 'whisper-npu[export]'"
    repository = READY_MADE.get(name)
    if repository is None:
        raise ModelError(f"{export}, or give a model folder that was exported elsewhere")
    tell(
        f"{name}: without the extra [export] it cannot be exported and compared with PyTorch; "
        f"taking the graphs of {repository}"
    )
    try:
        found = _fetch(name, repository, tell, variant)
    except CheckpointError as error:
        raise ModelError(
            f"{error}; or export {name} here: pip install 'whisper-npu[export]'"
        ) from error
    if found is None:
        raise ModelError(f"{repository} on the hub has no graphs any more; {export}")
    return found
