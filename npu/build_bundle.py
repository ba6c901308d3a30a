"""Makes the bundle of static graphs for a model folder, in one step, if it is not up to date.

Needs the `onnx` package (extra `npu`), not torch.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.npu import bundle as bundles
from whisper_npu.npu.bundle import Bundle
from whisper_npu.npu.operators import check_operators, require_floating_point
from whisper_npu.runtime.features.log_mel import FRAMES_PER_SECOND
from whisper_npu.runtime.model_folder.digests import sha256_file
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.verification import verify_folder

if TYPE_CHECKING:
    from whisper_npu.npu.graph_surgery import Graph
    from whisper_npu.npu.weight_store import WeightFormat

logger = logging.getLogger("whisper_npu")

Progress = Callable[[str], None]


def ensure_bundle(
    folder: ModelFolder,
    *,
    weights: str = "auto",
    windows: tuple[int, ...] | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """The model's bundle; a missing, damaged or outdated bundle is made now.

    Args:
        folder: the model.
        weights: `lossless`, `f16`, `int8`, or `auto` (see `bundle.weight_format`).
        windows: lengths of further, shorter encoder windows in seconds; None keeps the windows of
            the existing bundle.
        progress: called with a line of text per graph.

    Raises:
        ModelError: the folder differs from its certificate, its graphs do not have the structure
            of a Whisper export or their weights are not finite, or the `onnx` package, which
            makes the bundle, is not installed.
        UsageError: `weights` is no known format, or a window is not shorter than the model's.
    """
    weights = bundles.weight_format(folder, weights)
    if folder.layout.is_openvino:
        raise ModelError(
            f"the NPU's static graphs are made of ONNX, and {folder.layout.encoder} is OpenVINO's "
            f"own format: give --device CPU or GPU, or {folder.layout.way_on}"
        )
    verify_folder(folder)
    path = bundles.bundle_path(folder.path, weights, folder.layout.variant)
    existing = bundles.read_manifest(path)
    if windows is None:
        windows = () if existing is None else tuple(existing["recipe"]["windows"])
    recipe = bundles.recipe(folder, weights, windows)
    if existing is not None and existing["recipe"] == recipe and bundles.is_intact(path, existing):
        return bundles.read_bundle(path)
    try:
        import onnx  # noqa: F401, PLC0415 - only making a bundle needs it
    except ModuleNotFoundError:
        raise ModelError(
            f"{folder.path} has no up-to-date static graphs for the NPU, and making them needs "
            "onnx: pip install 'whisper-npu[npu]', or copy the model folder from where "
            "`whisper-npu compile` was run"
        ) from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{weights}-", dir=path.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write static graphs into {folder.path}: {error.strerror}; copy the model "
            "folder to where it can be written"
        ) from None
    try:
        temporary.chmod(path.parent.stat().st_mode)  # mkdtemp allows access to one user only
        _build(temporary, folder, recipe, progress)
        if bundles.recipe(folder, weights, windows) != recipe:
            raise ModelError(f"{folder.path} was changed while its graphs were read; start again")
        _replace(path, temporary)
    except OSError as error:
        raise ModelError(
            f"cannot write static graphs into {path.parent}: {error.strerror or error}; free some "
            "space there, or copy the model folder to where there is some"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bundles.read_bundle(path)


def _build(
    target: Path, folder: ModelFolder, recipe: bundles.Recipe, progress: Progress | None
) -> None:
    from whisper_npu.npu import static_graphs  # noqa: PLC0415 - needs onnx
    from whisper_npu.npu.graph_surgery import graph_of, read_graph  # noqa: PLC0415
    from whisper_npu.npu.merged_graph import read_merged  # noqa: PLC0415

    layout = folder.layout
    encoder = read_graph(layout.encoder)
    if layout.with_past is None:
        decoder, with_past = (
            graph_of(part, layout.decoder) for part in read_merged(layout.decoder)
        )
    else:
        decoder, with_past = read_graph(layout.decoder), read_graph(layout.with_past)
    for graph in (encoder, decoder, with_past):
        require_floating_point(graph.name, static_graphs.operators(graph), layout.way_on)
    sizes = static_graphs.read_sizes(encoder, with_past, folder.n_text_ctx)
    whole = 2 * sizes.n_audio_ctx
    shorter = tuple(seconds * FRAMES_PER_SECOND for seconds in recipe["windows"])
    if any(not 0 < frames < whole for frames in shorter):
        raise UsageError(
            f"windows must be shorter than the model's {whole // FRAMES_PER_SECOND} s: "
            f"{recipe['windows']}"
        )
    frames = (*shorter, whole)
    audio_mask = bool(shorter)

    def graphs() -> "Iterator[tuple[str, Graph]]":
        for length in frames:
            yield f"{bundles.ENCODER}_{length}", static_graphs.encoder_graph(encoder, sizes, length)
            cross = static_graphs.cross_graph(decoder, sizes, length)
            yield f"{bundles.CROSS}_{length}", cross
        for size in recipe["buckets"]:
            prefill = static_graphs.prefill_graph(with_past, sizes, size, audio_mask=audio_mask)
            yield f"{bundles.PREFILL}_{size}", prefill
        for rows in recipe["step_rows"]:
            step = static_graphs.step_graph(with_past, sizes, rows=rows, audio_mask=audio_mask)
            yield f"{bundles.STEP}_{rows}", step
        if layout.alignment is not None:
            source = read_graph(layout.alignment)
            for length in frames:
                graph = static_graphs.alignment_graph(source, sizes, length)
                yield f"{bundles.ALIGN}_{length}", graph

    content = _write(target, graphs(), recipe["weights"], progress, layout.way_on)
    content |= {"recipe": recipe, "sizes": asdict(sizes), "frames": list(frames)}
    text = json.dumps(content, indent=1) + "\n"
    (target / bundles.MANIFEST).write_text(text, encoding="utf-8")


def _write(
    target: Path,
    graphs: "Iterator[tuple[str, Graph]]",
    weights: "WeightFormat",
    progress: Progress | None,
    way_on: str,
) -> dict[str, object]:
    """Write the graphs and their weights; return their entries for the manifest.

    `way_on` is advice if an NPU cannot run a graph.
    """
    import onnx  # noqa: PLC0415

    from whisper_npu.npu.weight_store import WeightStore  # noqa: PLC0415

    entries: dict[str, dict[str, object]] = {}
    with (target / bundles.DATA_FILE).open("wb") as file:
        store = WeightStore(file, bundles.DATA_FILE, weights)
        for name, graph in graphs:
            if progress is not None:
                progress(f"static graph {name}")
            proto = store.place(graph)
            operators = {node.op_type for node in proto.graph.node}
            check_operators(graph.name, operators, way_on)
            path = target / f"{name}.onnx"
            onnx.save(proto, path)
            shapes = graph.shapes()
            entries[name] = {
                "sha256": sha256_file(path),
                "inputs": {key: shapes[key] for key in graph.inputs},
                "outputs": {key: shapes[key] for key in graph.outputs},
                "operators": sorted(operators),
            }
        data_sha256 = store.sha256
    return {"data_sha256": data_sha256, "graphs": entries}


def _replace(path: Path, temporary: Path) -> None:
    """Replace the old bundle by a finished one; another process may do the same at that moment."""
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        # Two processes made the same bundle: the first one is kept.
        content = bundles.read_manifest(path)
        if content is None or not bundles.is_intact(path, content):
            raise ModelError(f"cannot write {path}: {error.strerror or error}") from None
        logger.debug("another process wrote %s meanwhile", path)
    finally:
        shutil.rmtree(old, ignore_errors=True)
