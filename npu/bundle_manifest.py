"""The schema of a bundle's manifest."""

from dataclasses import dataclass

from whisper_npu.runtime.model_folder.json_files import Index, Size

_Shapes = dict[str, tuple[Index, ...]]


@dataclass(frozen=True)
class BundleRecipe:
    """The settings of a bundle."""

    weights: str
    buckets: tuple[Size, ...]
    step_rows: tuple[Size, ...]


@dataclass(frozen=True)
class GraphRecord:
    """One graph of a bundle."""

    sha256: str
    inputs: _Shapes
    outputs: _Shapes


@dataclass(frozen=True)
class BundleManifest:
    """`npu_manifest.json`."""

    recipe: BundleRecipe
    frames: tuple[Size, ...]
    sizes: dict[str, Index]
    data_sha256: str
    graphs: dict[str, GraphRecord]
