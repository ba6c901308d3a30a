"""Finds the folder of a model name, for `load_model` and every command."""

import logging
from collections.abc import Callable
from pathlib import Path

from whisper_npu.errors import ModelError

logger = logging.getLogger("whisper_npu")

MODELS = "models"  # folder that `whisper-npu export` writes to


def find_model(name: str | Path, progress: Callable[[str], None] | None = None) -> Path:
    """The model folder that `name` means.

    A path is used as it is. A name is searched for in this order: in `models` of the current
    folder, to which `whisper-npu export` writes; in the checkout and its `models`, if the program
    runs from a checkout; among the models that were exported on first use. A known name (`tiny.en`,
    `small`, `turbo`) that is found nowhere is exported now, which needs the extra `[export]`.

    Args:
        name: a folder, or a model's name.
        progress: called with one line per step of an export; by default the steps are logged.

    Raises:
        ModelError: no model has that name, or the extra is missing.
        WhisperNpuError: the export failed.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    # Imported only if no path was given: programs that give a path start without it.
    from whisper_npu.export import assets, partials, source  # noqa: PLC0415

    exported = assets.cache_directory() / MODELS / name
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
    if str(name) not in source.KNOWN_NAMES:
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise ModelError(
            f"model folder {name} does not exist (looked at {looked}); make it with "
            f"`whisper-npu export CHECKPOINT --output {name}`, or name a model: "
            f"{', '.join(source.KNOWN_NAMES)}"
        )
    return _export(str(name), exported, progress)


def _below_checkout(name: str | Path) -> list[Path]:
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "setup.cfg").is_file():
        return []
    return [checkout / name, checkout / MODELS / name]


def _export(name: str, place: Path, progress: Callable[[str], None] | None) -> Path:
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
