"""Reads the bundle of static graphs inside a model folder: `<model>/npu/<weights>/`.

This needs no onnx. The weights are read once, to compare them with the manifest. `build_bundle`
makes bundles.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_npu.errors import ModelError, UsageError
from whisper_npu.npu.bundle_manifest import BundleManifest
from whisper_npu.runtime.engines.protocol import N_LOGITS
from whisper_npu.runtime.model_folder.digests import remembered_sha256
from whisper_npu.runtime.model_folder.external_data import external_files
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.runtime.model_folder.json_files import checked
from whisper_npu.runtime.model_folder.layout import PLAIN

FOLDER = "npu"
MANIFEST = "npu_manifest.json"
DATA_FILE = "weights.bin"
FORMAT = 2
REVISION = 3  # raise it when the same source would make other graphs
_SHORT_BUCKETS = (4, 32, 128)
# Each graph of a large decoder is compiled with a copy of its weights: fewer graphs.
_SHORT_BUCKETS_OF_LARGE = (4,)
_LARGE = 200_000_000  # parameters

ENCODER = "encoder"
CROSS = "cross"
PREFILL = "prefill"
STEP = "step"
STEP_ROWS = (1, 4)  # four rows take only twice as long as one, because weights are read once
ALIGN = "align"

WEIGHT_FORMATS = ("auto", "lossless", "f16", "int8")

Shapes = dict[str, tuple[int, ...]]
Recipe = dict[str, Any]


@dataclass(frozen=True)
class StaticGraph:
    """One graph of a bundle.

    Attributes:
        name: `encoder_3000`, `cross_3000`, `prefill_4`, `step_1`.
        path: the file.
        sha256: digest of the file; together with the data file's it identifies the graph.
        inputs: shapes of the inputs.
        outputs: shapes of the outputs.
    """

    name: str
    path: Path
    sha256: str
    inputs: Shapes
    outputs: Shapes


@dataclass(frozen=True)
class Bundle:
    """The static graphs of a model, and their settings.

    Attributes:
        path: the folder.
        weights: `lossless`, `f16` or `int8`.
        frames: window lengths of the encoder graphs, shortest first; the last is the whole window.
        buckets: token numbers of the prefill graphs, smallest first.
        step_rows: row numbers of the step graphs, smallest first.
        data_sha256: digest of the data file.
        sizes: the model's, by the names of `static_graphs.Sizes`: `n_mels`, `n_text_ctx`, ...
        graphs: the graphs by name.
    """

    path: Path
    weights: str
    frames: tuple[int, ...]
    buckets: tuple[int, ...]
    step_rows: tuple[int, ...]
    data_sha256: str
    sizes: dict[str, int]
    graphs: dict[str, StaticGraph]

    def identity(self, name: str) -> str:
        """A digest of the structure and the weights of graph `name`."""
        return f"{self.graphs[name].sha256}-{self.data_sha256}"


def bundle_path(folder: Path, weights: str, variant: str = PLAIN) -> Path:
    """The path of the bundle of a model folder's variant.

    Args:
        folder: the model folder.
        weights: format of the bundle's weights.
        variant: see `Layout`; each has a bundle of its own.
    """
    return folder / FOLDER / (weights if variant == PLAIN else f"{weights}-{variant}")


def weight_format(folder: ModelFolder, weights: str) -> str:
    """Return the number format that `auto` means: 8 bits for models above 200 million parameters.

    Raises:
        UsageError: `weights` is no known format.
    """
    if weights not in WEIGHT_FORMATS:
        raise UsageError(f"weights is {weights!r}; give {', '.join(WEIGHT_FORMATS)}")
    if weights != "auto":
        return weights
    return "int8" if folder.n_parameters > _LARGE else "lossless"


def buckets(n_text_ctx: int, n_parameters: int) -> tuple[int, ...]:
    """Token numbers of the prefill graphs, smallest first.

    There is one for the start sequence alone, for a short and a long prompt, and for the longest
    prompt that openai/whisper makes of the text before: half the context less one,
    `<|startofprev|>` and the start sequence. Large models have only the first and the last.
    """
    longest = n_text_ctx // 2 + N_LOGITS
    short = _SHORT_BUCKETS_OF_LARGE if n_parameters > _LARGE else _SHORT_BUCKETS
    return (*(size for size in short if size < longest), longest)


def recipe(folder: ModelFolder, weights: str, windows: tuple[int, ...]) -> Recipe:
    """Everything that decides the content of a bundle."""
    return {
        "format": FORMAT,
        "revision": REVISION,
        "sources": folder.graph_digests(alignment=True),
        "n_text_ctx": folder.n_text_ctx,
        "weights": weights,
        "windows": sorted(windows),
        "buckets": list(buckets(folder.n_text_ctx, folder.n_parameters)),
        "step_rows": list(STEP_ROWS),
    }


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The content of a bundle's manifest, or None if there is none; files are not checked."""
    try:
        content = json.loads((path / MANIFEST).read_bytes())
        windows = content["recipe"]["windows"]
        is_known = all(isinstance(seconds, int) for seconds in windows)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if is_known else None


def is_intact(path: Path, content: dict[str, Any]) -> bool:
    """Whether the files of a bundle have the sha256 of its manifest."""
    try:
        stated = {f"{name}.onnx": graph["sha256"] for name, graph in content["graphs"].items()}
        stated[DATA_FILE] = content["data_sha256"]
        return all(
            Path(name).name == name and remembered_sha256(path / name) == digest
            for name, digest in stated.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_bundle(path: Path) -> Bundle:
    """Read the manifest of a bundle, and compare its files with it.

    Raises:
        ModelError: the bundle is missing, incomplete, changed, or of another format.
    """
    content = read_manifest(path)
    remedy = f"make it again with `whisper-npu compile {path.parent.parent}`"
    if content is not None:
        checked(content, BundleManifest, path / MANIFEST, advice=remedy)
    if content is None or not is_intact(path, content):
        raise ModelError(f"{path} holds no whole bundle of static graphs; {remedy}")
    made_for = content["recipe"]
    graphs = {
        name: StaticGraph(
            name=name,
            path=path / f"{name}.onnx",
            sha256=entry["sha256"],
            inputs={key: tuple(shape) for key, shape in entry["inputs"].items()},
            outputs={key: tuple(shape) for key, shape in entry["outputs"].items()},
        )
        for name, entry in content["graphs"].items()
    }
    for graph in graphs.values():
        external_files(graph.path)  # refuses files outside the bundle
    return Bundle(
        path=path,
        weights=made_for["weights"],
        frames=tuple(content["frames"]),
        buckets=tuple(made_for["buckets"]),
        step_rows=tuple(made_for["step_rows"]),
        data_sha256=content["data_sha256"],
        sizes=dict(content["sizes"]),
        graphs=graphs,
    )
