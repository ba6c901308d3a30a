"""Rewrites ONNX graphs of other exporters, which ONNX Runtime's OpenVINO provider refuses.

The provider runs no `If`, so a merged decoder is split. It runs no `IsNaN`, a guard in PyTorch's
attention that these graphs never need, so it is removed.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from whisper_npu.errors import ModelError
from whisper_npu.npu.graph_surgery import Graph
from whisper_npu.npu.merged_graph import split_merged
from whisper_npu.npu.static_graphs import without_nan_guards
from whisper_npu.runtime.model_folder.external_data import external_files
from whisper_npu.runtime.model_folder.layout import GRAPHS, Layout


@contextmanager
def rewritten(layout: Layout) -> Iterator[tuple[Path, ...]]:
    """Yield rewritten files of encoder, decoder and decoder with past; removed afterwards.

    Args:
        layout: the files of the model, in ONNX.

    Raises:
        ModelError: a file cannot be read, is no merged decoder, or keeps weights outside its
            folder; or there is no room for the files.
    """
    decoders = [_load(path) for path in layout.graphs[1:]]
    if layout.with_past is None:
        decoders = list(split_merged(decoders[0], layout.decoder))
    with ExitStack() as stack:
        try:
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="whisper-npu-", ignore_cleanup_errors=True)
                )
            )
            files = tuple(folder / name for name in GRAPHS)
            for file, graph in zip(files, (_load(layout.encoder), *decoders), strict=True):
                plain = without_nan_guards(Graph(file.name, graph, {})).proto
                onnx.save(plain, file, save_as_external_data=True, location=f"{file.name}_data")
        except OSError as error:
            raise ModelError(
                f"{layout.decoder} cannot be rewritten in {tempfile.gettempdir()}: "
                f"{error.strerror or error}; free some space, or let TMPDIR name another folder"
            ) from None
        yield files


def _load(path: Path) -> onnx.ModelProto:
    external_files(path)  # refuses files outside the folder
    try:
        return onnx.load(path)
    except (OSError, ValueError, DecodeError) as error:
        raise ModelError(f"cannot read {path}: {error}; export the model again") from None
