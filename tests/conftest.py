"""Fixtures shared by all tests. Models are exported once per session, or once per machine.

Heavy imports stay inside the fixtures that need them: most tests never load torch.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny_whisper
from filelock import FileLock

if TYPE_CHECKING:
    from whisper_npu.runtime.audio.source import Samples
    from whisper_npu.runtime.transcription.model import WhisperModel

ROOT = Path(__file__).resolve().parent.parent
SHARED_AUDIO = ROOT.parent / "shared" / "audio"


# What a fixture says of the tests that use it, so that no test can forget its marker.
MARKS = {
    "shared_audio": ("shared_audio", "slow"),
    "tiny_en_folder": ("real_weights", "slow"),
    "base_folder": ("real_weights", "slow"),
    "beckett": ("real_weights", "slow"),
    "real_asset": ("real_weights", "slow"),
    "measured": ("slow",),  # a whole benchmark
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, directly or through others."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            for mark in MARKS.get(fixture, ()):
                item.add_marker(mark)


def once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """A folder that the first process of a test run makes, and the others find. Only read it.

    Args:
        tmp_path_factory: of pytest.
        name: of the folder.
        make: fills the folder, which does not exist yet.
    """
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = run / "once" / name
    with FileLock(run / f"{name}.lock"):
        if not (run / f"{name}.made").exists():
            make(folder)
            (run / f"{name}.made").touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing from, and nothing into, the user's cache but assets, subprocesses included.

    Tests of the cache of compiled graphs take a folder and a limit of their own.
    """
    from whisper_npu.runtime.model_folder.cache_folder import CACHE_VARIABLE, cache_folder

    assets = cache_folder() / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    own = tmp_path_factory.mktemp("cache")
    (own / "assets").symlink_to(assets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(own))
        patch.setenv("WHISPER_NPU_CACHE_LIMIT", "0")
        yield


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Commands and the server set up logging for their process; the next test has its own."""
    logger = logging.getLogger("whisper_npu")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a tiny random multilingual Whisper (d_model 64, 2 + 2 layers)."""
    return once(tmp_path_factory, "tiny-checkpoint", tiny_whisper.save_checkpoint)


@pytest.fixture(scope="session")
def tiny_audio(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three synthetic recordings of 4, 11 and 30 s: the tiny Whisper hears different things."""
    import soundfile

    folder = tmp_path_factory.mktemp("tiny-audio")
    paths = []
    for seed, seconds in enumerate((4, 11, 30)):
        path = folder / f"synthetic-{seconds}s.wav"
        soundfile.write(path, tiny_whisper.synthetic_speech(seed, seconds), 16000, "FLOAT")
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_checkpoint: Path, tiny_audio: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny Whisper's model folder, exported and verified by the real export stage."""
    from whisper_npu.export.onnx_export import export_model

    def export(folder: Path) -> None:
        export_model(str(tiny_checkpoint), folder, parity_audio=tiny_audio)

    made = once(tmp_path_factory, "tiny", export)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("export") / "tiny"))


@pytest.fixture(autouse=True)
def _tiny_folder_is_only_read(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that writes into the folder it shares with others is named, not one after it."""
    if "tiny_folder" not in request.fixturenames:
        yield
        return
    folder: Path = request.getfixturevalue("tiny_folder")
    before = sorted(folder.iterdir())
    yield
    assert sorted(folder.iterdir()) == before, "write into a copy (`copy_folder`)"


@pytest.fixture(scope="session")
def tiny_en_folder() -> Path:
    """The model folder of real tiny.en: `models/tiny.en`, exported if it is not up to date."""
    return _exported("tiny.en")


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The model folder of real base, which knows 99 languages: `models/base`, likewise."""
    return _exported("base")


def _exported(name: str) -> Path:
    from whisper_npu.errors import AssetError
    from whisper_npu.export.manifest import is_up_to_date
    from whisper_npu.export.source import find_source

    folder = ROOT / "models" / name
    folder.parent.mkdir(exist_ok=True)
    # Another process of this run may export it. The export has a lock of its own, `.NAME.lock`.
    with FileLock(folder.with_name(f".{name}.tests.lock")):
        if is_up_to_date(folder, find_source(name), verified=True):
            return folder
        from whisper_npu.export.onnx_export import export_model

        try:
            return export_model(name, folder)
        except AssetError as error:
            pytest.skip(f"no {name} weights (make setup fetches tiny.en's): {error}")


@pytest.fixture(scope="session")
def real_asset() -> Callable[[str], Path]:
    """A function that returns a built-in asset's path, or skips the test if it cannot be had."""
    from whisper_npu.errors import AssetError
    from whisper_npu.export.assets import fetch

    def get(name: str) -> Path:
        try:
            return fetch(name)
        except AssetError as error:
            pytest.skip(f"the asset {name} is not here (make setup fetches it): {error}")

    return get


@pytest.fixture(scope="session")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Whisper under either contract."""
    from model_surgery import copy_folder, make_delta

    delta = copy_folder(tiny_folder, tmp_path_factory.mktemp("delta") / "tiny")
    return {"accumulated": tiny_folder, "delta": make_delta(delta)}


@pytest.fixture(scope="session")
def beckett(real_asset: Callable[[str], Path]) -> Path:
    """Ten seconds of real speech: "Ever tried. Ever failed. No matter. Try again. ..."."""
    return real_asset("beckett")


@pytest.fixture(scope="session")
def sample_parts(beckett: Path) -> list["Samples"]:
    """Real speech for parity wherever `make setup` has run: `beckett` and cuts of it, 16 kHz.

    Each is float32 `(n,)`, begins and ends elsewhere, and gives a text of its own.
    """
    from whisper_npu.runtime.audio.stream import load_audio

    samples = load_audio(beckett)
    cuts = ((0.0, 10.0), (0.0, 4.6), (4.6, 10.0), (0.0, 2.5), (2.0, 7.0))  # seconds
    return [samples[round(16_000 * start) : round(16_000 * end)] for start, end in cuts]


@pytest.fixture(scope="session")
def shared_audio() -> Path:
    """The folder of real recordings beside the repository."""
    if not SHARED_AUDIO.is_dir():
        pytest.skip("the recordings at ../shared/audio are not on this machine")
    return SHARED_AUDIO


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., "WhisperModel"]:
    """A function from a script to a model that says what is in it; see `fake_backend`."""
    from fake_backend import scripted_model

    return partial(scripted_model, tmp_path)


@pytest.fixture
def words(make: Callable[..., "WhisperModel"]) -> Callable[[str], list[int]]:
    """The tokens of a text."""
    from fake_backend import Say

    encode: Callable[[str], list[int]] = make(Say(())).tokenizer.encode
    return encode
