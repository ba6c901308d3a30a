"""The built site; a folder in which the pages' programs and commands find what they name."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from repository import ROOT

RECORDINGS = (
    "a.mp3",
    "a.wav",
    "call.flac",
    "call.wav",
    "conference.mp4",
    "film.mkv",
    "interview.mp4",
    "meeting.wav",
    "recording.mp3",
    "recordings/one.mp3",
    "recordings/two.wav",
    "talk.flac",
    "talk.mp3",
)


@pytest.fixture(scope="session")
def desk(tiny_en_folder: Path, beckett: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of every name, and tiny.en."""
    folder = tmp_path_factory.mktemp("desk")
    for name in RECORDINGS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(beckett, path)  # the content decides, never the name
    samples, rate = soundfile.read(beckett, dtype="float32")
    soundfile.write(folder / "call.wav", np.stack([samples, samples[::-1]], axis=1), rate)
    (folder / "references.tsv").write_text("talk.mp3\tEver tried. Ever failed.\n", encoding="utf-8")
    shutil.copytree(tiny_en_folder, folder / "models" / "tiny.en")
    return folder


@pytest.fixture
def at_desk(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with all that, for one test to write to."""
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, real_asset: Callable[[str], Path]) -> Path:
    """The folder of the built site."""
    from whisper_npu.scripts.documentation.site import build_site

    real_asset("docs-scripts")
    return build_site(ROOT, tmp_path_factory.mktemp("made") / "docs").parent
