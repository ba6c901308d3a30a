"""Downloads checkpoints from the Hugging Face hub, or finds them in its local cache."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from whisper_npu.errors import CheckpointError
from whisper_npu.export.checkpoint_files import (
    HF_INDEXES,
    HF_WEIGHTS,
    check_architecture,
    read_index,
)

COMPANIONS = (
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "normalizer.json",
)


def download(
    repository: str,
    revision: str | None,
    token: str | None,
    progress: Callable[[str], None] | None,
) -> tuple[Path, str]:
    """Make a repository's checkpoint available locally.

    The configuration comes first, so that a wrong architecture costs no download of weights.

    Returns:
        The snapshot's folder and its commit.

    Raises:
        CheckpointError: The repository is missing, gated or no Whisper, or there is neither a
            network nor a cached copy.
    """

    def get(name: str) -> Path:
        return _download_file(repository, name, revision, token)

    if progress:
        progress(f"looking for {repository} on the hub")
    config = get("config.json")
    check_architecture(config, repository)
    if progress:
        progress(f"fetching the files of {repository} that are not cached")
    for name in COMPANIONS:
        _optional(get, name)
    for name, index in zip(HF_WEIGHTS, HF_INDEXES, strict=True):
        index_path = _optional(get, index)
        if index_path is not None:
            for shard in read_index(index_path):
                get(shard)
            break
        if _optional(get, name) is not None:
            break
    else:
        get(HF_WEIGHTS[0])  # tells a missing file from a missing network
    return config.parent, config.parent.name


def _optional(get: Callable[[str], Path], name: str) -> Path | None:
    try:
        return get(name)
    except _MissingFileError:
        return None


class _MissingFileError(CheckpointError):
    """The repository has no such file, or without a network its cached copy has none."""


def _download_file(repository: str, name: str, revision: str | None, token: str | None) -> Path:
    at = f" at revision {revision}" if revision else ""
    # Without a network the hub's client logs a page per attempt; the error below says enough.
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(repository, name, revision=revision, token=token))
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
        raise CheckpointError(f"{repository} has no revision {revision}") from error
    except LocalEntryNotFoundError as error:
        raise _MissingFileError(
            f"cannot reach the hub for {repository}{at} and its {name} is not in the local cache:"
            " connect to the network, or give a local folder or a built-in model"
        ) from error
    except EntryNotFoundError as error:
        raise _MissingFileError(f"{repository}{at} has no {name}") from error
    except HFValidationError as error:
        raise CheckpointError(f"'{repository}' is no valid hub id: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise CheckpointError(
                f"cannot store {name} of {repository}: {error.strerror}; free some space, or set"
                " HF_HOME to a directory that can be written"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the hub failed for {repository}{at}: {reason}") from error
    finally:
        logger.setLevel(level)
