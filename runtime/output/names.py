"""Names output files by the recording alone, never by its neighbours."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from whisper_npu.errors import UsageError

_STANDARD_INPUT = "-"
# Test content to find out whether a folder has room: less than a short transcript.
_PROBE = bytes(4096)


def output_name(
    recording: str | Path, folder: str | Path | None = None, *, keep_suffix: bool = False
) -> str:
    """Return the name of a recording's outputs below the output folder, without a format's suffix.

    `talk.mp3` gives `talk`, as in openai/whisper. A recording from a given folder keeps its path
    below that folder: `week/monday/talk.mp3` in `week` gives `monday/talk`. Standard input gives
    `stdin`.

    Args:
        recording: its path, or `-`.
        folder: the given folder that holds the recording; None if the recording itself was given.
        keep_suffix: `talk.mp3` gives `talk.mp3`.
    """
    if str(recording) == _STANDARD_INPUT:
        return "stdin"
    path = Path(recording)
    below = Path() if folder is None else path.relative_to(folder).parent
    name = path.name if keep_suffix else path.stem
    return name if below == Path() else f"{below.as_posix()}/{name}"


def output_path(output_dir: str | Path, name: str, output_format: str) -> Path:
    """Return the path of one format's file; `name` comes from `output_name`."""
    # Not `with_name`: the stem of a recording called `..wav` is `.`, which is no name.
    return Path(output_dir) / f"{name}.{output_format}"


def check_names(
    recordings: Sequence[tuple[str | Path, str]],
    output_dir: str | Path,
    formats: Iterable[str],
) -> None:
    """Refuse two recordings with the same output file; upper and lower case are the same.

    Args:
        recordings: each recording with its `output_name`.
        output_dir: folder of the outputs.
        formats: of the outputs.

    Raises:
        UsageError: two outputs would be one file, or an output would overwrite another recording.
    """
    paths = {_absolute(recording): recording for recording, _ in recordings}
    taken: dict[str, str | Path] = {}
    for recording, name in recordings:
        for each in formats:
            target = output_path(output_dir, name, each)
            other = taken.setdefault(str(target).casefold(), recording)
            if other is not recording:
                raise UsageError(
                    f"{other} and {recording} would both be written to {target}; give "
                    "--keep-suffix for names like talk.mp3.srt, the folder that holds both, "
                    "or another --output-dir for each"
                )
            other = paths.get(_absolute(target), recording)
            if other is not recording:
                raise UsageError(
                    f"the text of {recording} would be written over the recording {other}; "
                    "choose another --output-dir"
                )


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - also drops ".."


def make_output_dir(output_dir: str | Path) -> None:
    """Make the folder of the outputs if it is missing.

    Raises:
        UsageError: the folder cannot be made.
    """
    with _usable(output_dir, "made"):
        Path(output_dir).mkdir(parents=True, exist_ok=True)


def check_output_dir(output_dir: str | Path) -> None:
    """Make the folder of the outputs, and check before any work that files can be written.

    Raises:
        UsageError: files cannot be written, or the folder is called `-`, as if it were a stream.
    """
    if output_dir == "-":
        raise UsageError(
            "-o names a folder, not standard output: leave it out to print the text, or write "
            "./- for a folder of that name"
        )
    make_output_dir(output_dir)
    with _usable(output_dir, "written to"), tempfile.TemporaryFile(dir=output_dir) as file:
        file.write(_PROBE)


@contextmanager
def _usable(output_dir: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{output_dir}: cannot be {what}: {error.strerror or error};"
            " choose another --output-dir"
        ) from None
