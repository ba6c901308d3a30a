"""Finds the folder of a model name, for `load_model` and every command; lists what is here."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.runtime.model_folder.cache_folder import cache_folder

if TYPE_CHECKING:
    from whisper_npu.runtime.model_folder.layout import Layout

logger = logging.getLogger("whisper_npu")

MODELS = "models"  # folder that `whisper-npu export` writes to


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
    `small`, `turbo`) that is found nowhere is exported now, which needs the extra `[export]`. A hub
    id (`owner/name`) is searched for in the hub's cache, then fetched from the hub, which needs
    the extra `[hub]`. If it is a checkpoint without graphs, it is exported.

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
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    # Imported only if no path was given: programs that give a path start without it.
    from whisper_npu.export import partials, source  # noqa: PLC0415

    exported = exported_models() / str(name).replace("/", "--")
    places = [path, Path(MODELS) / name, *_below_checkout(name), exported]
    for place in places:
        if place.parent.is_dir():
            try:
                partials.tidy(place)  # a killed export may have moved the folder away
            except OSError as error:
                logger.warning("cannot tidy up beside %s: %s", place, error.strerror or error)
        if place.is_dir():
            return place
    if path.exists():
        return path  # its reader says why it is no model folder
    if source.is_hub_id(str(name)):
        return _from_hub(str(name), exported, progress, variant)
    if str(name) not in source.KNOWN_NAMES:
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise ModelError(
            f"model folder {name} does not exist (looked at {looked}); make it with "
            f"`whisper-npu export CHECKPOINT --output {name}`, or name a model (owner/name on a "
            f"hub, or {', '.join(source.KNOWN_NAMES)})"
        )
    return _export(str(name), exported, progress, variant)


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
    hub = require_hub(name)
    found: Path | None = hub.cached_model(name, variant)
    if found is None:
        try:
            found = hub.download_model(name, variant=variant, progress=progress or logger.info)
        except hub.UnreachableError:
            found = hub.usable_snapshot(name, variant)
            if found is None:
                raise
            logger.warning(
                "the hub cannot be reached: using %s, which may lack files or better variants",
                found,
            )
    return found or _export(name, exported, progress, variant)


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
    """Export a checkpoint.

    Raises:
        ModelError: the extra is missing.
        UsageError: a variant is wanted that no export has.
        WhisperNpuError: the export failed.
    """
    from whisper_npu.runtime.model_folder.layout import PLAIN  # noqa: PLC0415 - --help needs none

    if variant not in (None, PLAIN):
        raise UsageError(
            f"{name} is a checkpoint, whose export has no variant {variant}: leave it out"
        )
    first = f"{name} is used for the first time: exporting it once to {place}"
    if progress is None:
        logger.warning(first)
    else:
        progress(first)
    try:
        from whisper_npu.export.onnx_export import export_model  # noqa: PLC0415 - needs torch
    except ImportError as error:
        raise ModelError(
            f"exporting {name} needs {error.name}: pip install 'whisper-npu[export]', or give a "
            "model folder that was exported elsewhere"
        ) from None
    return export_model(name, place, progress=progress or logger.info)
