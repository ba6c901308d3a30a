"""Files that measurements are written to, checked before the measuring, not after."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from whisper_npu.errors import UsageError


def check_outputs(files: Iterable[Path | None], plot: Path | None = None) -> None:
    """Find out before hours of measuring that a result cannot be written.

    Args:
        files: What is to be written; None where nothing was asked for.
        plot: A picture, likewise.

    Raises:
        UsageError: A folder is missing, is named instead of a file, or the suffix is no picture's.
    """
    for path in filter(None, (*files, plot)):
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file to write")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist; make it first")
    if plot:
        with needing_the_extra("drawing plots"):
            from whisper_npu.scripts.common import plots  # noqa: PLC0415
        plots.check_format(plot)


def write_text(path: Path, content: str) -> None:
    """Write a result.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        # A file name that is not UTF-8 is spelled out, as JSON does it: `\\udcff`.
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def needing_the_extra(purpose: str) -> Iterator[None]:
    """One clear line where a library of the `eval` extra is missing.

    Raises:
        UsageError: It is.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or str(error)).partition(".")[0]
        if library == "whisper_npu":
            raise
        raise UsageError(f"{purpose} needs {library}: pip install 'whisper-npu[eval]'") from None
