"""Asks the Hugging Face hub's client for lists and files; each of its errors becomes one line."""

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from whisper_npu.errors import CheckpointError
from whisper_npu.export.assets import megabytes

_HERE = "use a model that `whisper-npu models` lists"
_TIMEOUT = 10.0  # seconds for the list of files; files have the limit of the client
_HTTP_LIBRARIES = ("requests", "httpx", "httpx2")  # of the hub's client 0, 1 and 2


class MissingFileError(CheckpointError):
    """The repository has no such file, or without a network its cached copy has none."""


class UnreachableError(MissingFileError):
    """The hub cannot be reached, and the cache has no such file."""


@dataclass(frozen=True)
class Listing:
    """The files of a repository, as the hub lists them.

    Attributes:
        repository: hub id, `owner/name`.
        sizes: bytes of each file, by its path in the repository; 0 where the hub does not say.
        licence: the licence on the model's card; empty if it names none.
    """

    repository: str
    sizes: dict[str, int]
    licence: str

    def announcement(self, wanted: Iterable[str]) -> str:
        """One line that says what is fetched, its size and its licence."""
        size = sum(self.sizes[name] for name in wanted)
        return (
            f"fetching {self.repository} from the hub: {megabytes(size)}, licence "
            f"{self.licence or 'unknown: see its card'}; what is cached is not fetched again"
        )


def list_files(repository: str, revision: str | None, token: str | None) -> Listing:
    """Ask the hub for the files of a repository.

    Raises:
        CheckpointError: see `hub_errors`.
    """
    with hub_errors(repository, revision, "list of files"):
        found = HfApi().model_info(
            repository, revision=revision, token=token, timeout=_TIMEOUT, files_metadata=True
        )
    sizes = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    marks = (tag.removeprefix("license:") for tag in found.tags or () if tag.startswith("license:"))
    return Listing(repository, sizes, next(marks, ""))


def download_file(
    repository: str, name: str, revision: str | None, token: str | None, *, is_local: bool
) -> Path:
    """Return a file of a repository, fetched unless it is in the cache; a local one only from it.

    Raises:
        CheckpointError: see `hub_errors`.
    """
    with hub_errors(repository, revision, name):
        return Path(
            hf_hub_download(
                repository, name, revision=revision, token=token, local_files_only=is_local
            )
        )


def searching(repository: str) -> str:
    """One line that says what is looked for, and where."""
    if constants.HF_HUB_OFFLINE:
        return f"looking for {repository} in the hub's cache"
    return f"looking for {repository} at {urlsplit(constants.ENDPOINT).hostname}"


def is_down(trouble: CheckpointError | None) -> bool:
    """Whether a hub with this trouble gives no files either: its client tries 23 s for each."""
    cause = None if trouble is None else trouble.__cause__
    if isinstance(cause, HfHubHTTPError) and cause.response is not None:
        return cause.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    is_slow = type(cause).__name__.startswith("ReadTime")
    return isinstance(trouble, UnreachableError) and not is_slow


@contextmanager
def hub_errors(repository: str, revision: str | None, name: str) -> Iterator[None]:
    """Turn the hub client's errors in a block into `CheckpointError` of one line.

    Args:
        repository: hub id.
        revision: branch, tag or commit, if one was asked for.
        name: what is asked for, in the messages.

    Raises:
        MissingFileError: the repository has no such file.
        UnreachableError: there is neither a network nor a cached copy.
        CheckpointError: the repository is missing or gated, the hub fails, or the disk is full.
    """
    at = f" at revision {revision}" if revision else ""
    # Without a network the hub's client logs a page per attempt; the error below says enough.
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its conditions on the hub, then log in with"
            " `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no model {repository}, or it is private: check the name, or log in with"
            " `hf auth login` or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository} has no revision {revision}; leave it out for the newest"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreachable(repository, at, name) from error
    except EntryNotFoundError as error:
        raise MissingFileError(f"{repository}{at} has no {name}") from error
    except HFValidationError as error:
        raise CheckpointError(f"'{repository}' is no valid hub id: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise CheckpointError(
                f"cannot store {name} of {repository}: {error.strerror}; free some space, or set"
                " HF_HOME to a directory that can be written"
            ) from error
        if not isinstance(error, HfHubHTTPError) and _is_of_network(error):
            raise _unreachable(repository, at, name) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the hub failed for {repository}{at}: {reason}; try again later, or {_HERE}"
        ) from error
    except Exception as error:  # the HTTP library's; which one, depends on the client's version
        if not _is_of_network(error):
            raise
        raise _unreachable(repository, at, name) from error
    finally:
        client.setLevel(level)


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES


def _unreachable(repository: str, at: str, name: str) -> UnreachableError:
    if constants.HF_HUB_OFFLINE:
        return UnreachableError(
            f"{repository}{at}: its {name} is not in the local cache, and HF_HUB_OFFLINE forbids"
            f" the network; unset it, or {_HERE}"
        )
    return UnreachableError(
        f"cannot reach the hub for {repository}{at}, and its {name} is not in the local cache;"
        f" connect to the network, or {_HERE}"
    )
