"""The wheel as a stranger gets it: its files, and its command in an environment of its own.

`WHISPER_NPU_WHEEL` names a wheel that is built already (`make release-check` sets it). pip takes
the dependencies from its cache or the package index.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile
from repository import ROOT

from whisper_npu.export.asset_table import ASSETS
from whisper_npu.scripts.completion import SHELLS
from whisper_npu.scripts.main import COMMANDS
from whisper_npu.version import __version__

pytestmark = pytest.mark.slow

FOLDERS = ("corpus", "export", "npu", "runtime", "scripts", "server", "whisper_npu")
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg")
PAGE = ROOT / "server" / "page"
GIVEN = "WHISPER_NPU_WHEEL"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools would take old files of `build/` along."""
    if os.environ.get(GIVEN):
        return Path(os.environ[GIVEN])
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel and its core dependencies only."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    commands = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip(str(commands / "python"), "install", str(wheel))
    return commands


def pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, cwd=Path(sys.prefix), env=outside())


def outside() -> dict[str, str]:
    """The environment variables without Python's: PYTHONPATH would lead back to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture
def run(environment, tmp_path):
    """Run the installed command in a folder far from the checkout."""

    def runs(*arguments, program=("whisper-npu",), **variables):
        environ = {**outside(), "WHISPER_NPU_CACHE": str(tmp_path / "cache"), **variables}
        command = [str(environment / program[0]), *program[1:], *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ
        )

    return runs


def test_nothing_lies_outside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"whisper_npu-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"whisper_npu", info}
    assert {f"{info}/licenses/LICENSE", f"{info}/METADATA", "whisper_npu/py.typed"} <= set(names)
    assert not [name for name in names if "/tests/" in name or name.endswith((".onnx", ".wav"))]


def test_every_module_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for name in FOLDERS
        for path in ROOT.glob(f"{name}/**/*.py")
    }
    expected = {
        name if name.startswith("whisper_npu/") else f"whisper_npu/{name}" for name in modules
    }
    assert expected == {name for name in names if name.endswith(".py")}


def test_the_page_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    page = {path.name for path in PAGE.iterdir() if path.is_file()}
    assert "index.html" in page
    assert page == {Path(name).name for name in names if Path(name).parent.name == "page"}


def test_the_library_of_the_page_has_its_licence(wheel):
    if not os.environ.get(GIVEN) and not (PAGE / "wavesurfer" / "LICENSE").exists():
        pytest.skip("`make setup` could not fetch wavesurfer here")
    content = zipfile.ZipFile(wheel)
    for file in ASSETS["wavesurfer"].files:
        packed = content.read(f"whisper_npu/server/page/wavesurfer/{file.name}")
        assert hashlib.sha256(packed).hexdigest() == file.sha256


def test_it_transcribes(run, tiny_folder, tiny_audio, tmp_path):
    done = run(
        "transcribe", str(tiny_audio[0]), "--model", str(tiny_folder), "--language", "en",
        "--vad", "False", "--no-speech-threshold", "None", "--without-timestamps", "-f", "txt,srt",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    name = tiny_audio[0].stem
    text = (tmp_path / f"{name}.txt").read_text(encoding="utf-8").strip()
    assert text
    assert text in (tmp_path / f"{name}.srt").read_text(encoding="utf-8")


def test_python_has_the_public_names(run):
    program = ("python", "-W", "error", "-c")
    code = "import whisper_npu as w; print(all(hasattr(w, name) for name in w.__all__), w.__file__)"
    done = run(code, program=program)
    assert done.stdout.startswith("True "), done.stderr
    assert str(ROOT) not in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
@pytest.mark.parametrize("program", [("whisper-npu",), ("python", "-m", "whisper_npu")])
def test_it_says_its_version(run, program, arguments):
    done = run(*arguments, program=program)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_every_command_has_help(run):
    assert "usage: whisper-npu COMMAND" in run("--help").stdout
    for command in COMMANDS:
        done = run(command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout.startswith(f"usage: whisper-npu {command} ")


@pytest.mark.parametrize("shell", SHELLS)
def test_it_completes_in_shells(run, shell):
    done = run("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "word-timestamps" in done.stdout


@pytest.mark.parametrize("model", ["nobody/nothing", "tiny.en", "medium"])
def test_a_model_that_cannot_be_fetched_is_one_line(run, tmp_path, model):
    """Without the extra [export], and with no network: the newest client of the hub is here."""
    soundfile.write(tmp_path / "talk.wav", [0.0] * 16000, 16000)
    nowhere = "http://127.0.0.1:9"  # the discard port, where nothing listens
    done = run(
        "transcribe", "talk.wav", "--model", model,
        HF_HOME=str(tmp_path / "hub"), HF_ENDPOINT=nowhere, HTTPS_PROXY=nowhere, HTTP_PROXY=nowhere,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == done.stderr.splitlines()[-1:]
    assert "Traceback" not in done.stderr
    assert "whisper-npu[export]" in errors[0] or "network" in errors[0]
