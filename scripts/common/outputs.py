"""Files for the results of measurements, checked before the measurement."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from whisper_npu.errors import UsageError


def check_outputs(
    files: Iterable[Path | None], plot: Path | None = None, *, plot_folder: Path | None = None
) -> None:
    """Check before hours of measuring that the results can be written.

    Args:
        files: Files to be written; None for a file that was not requested.
        plot: Picture to be written, or None.
        plot_folder: Folder for several pictures, or None.

    Raises:
        UsageError: A folder is missing or is given instead of a file, or the suffix is no
            picture's.
    """
    for path in filter(None, (*files, plot)):
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file to write")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist; make it first")
    if plot_folder and not plot_folder.is_dir():
        raise UsageError(f"{plot_folder}: no such folder; make it first")
    if plot or plot_folder:
        with needing_the_extra("drawing plots"):
            from whisper_npu.scripts.common import plots  # noqa: PLC0415
        if plot:
            plots.check_format(plot)


def write_text(path: Path, content: str) -> None:
    """Write a result.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        # Characters of a file name that are not UTF-8 are escaped as in JSON: `\\udcff`.
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def needing_the_extra(purpose: str, extra: str = "eval") -> Iterator[None]:
    """Report a missing library of an extra in one line.

    Args:
        purpose: What needs the library.
        extra: The extra that has it.

    Raises:
        UsageError: A library is missing.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or str(error)).partition(".")[0]
        if library == "whisper_npu":
            raise
        raise UsageError(f"{purpose} needs {library}: pip install 'whisper-npu[{extra}]'") from None
