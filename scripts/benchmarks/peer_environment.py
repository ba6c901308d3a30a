"""Makes a separate virtual environment with the other recognisers."""

import os
import subprocess
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from whisper_npu.errors import AssetError

Progress = Callable[[str], None]

REQUIREMENTS = (
    "openvino-genai>=2026.4",
    "optimum-intel>=2.2",
    "nncf>=3",
    "transformers>=4.57,<4.58",
    "torch==2.13.0",
    "faster-whisper>=1.2",
    "pywhispercpp>=1.5",
)
# Nothing is fetched from a hub: every model is converted from the given checkpoint.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

_WORKS = "import optimum.intel, transformers.models.whisper.modeling_whisper"
_PIP_RETRIES = "2"
_TOLD = 3  # last lines of a failed program that an error repeats


class PeerEnvironment:
    """The environment in `folder`, which is made if it does not exist."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Make or complete the environment.

        Raises:
            AssetError: The environment cannot be made, or a package cannot be installed.
        """
        self.folder = folder
        self._programs = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self._programs / ("python.exe" if os.name == "nt" else "python")
        if not self.python.exists():
            progress(f"making a virtual environment in {folder}")
            try:
                venv.create(folder, with_pip=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise AssetError(f"{folder}: cannot hold an environment: {error}") from None
        progress("installing the other recognisers, where they are missing")
        self._pip("install", "--retries", _PIP_RETRIES, *REQUIREMENTS)
        if not self._works():
            # A dependency of nncf, built for another torch; it keeps transformers from loading.
            self._pip("uninstall", "--yes", "torchvision")

    def _pip(self, command: str, *arguments: str) -> None:
        pip = [str(self.python), "-m", "pip", command, "--quiet", "--disable-pip-version-check"]
        self.run([*pip, "--no-input", *arguments], offline=False)

    def _works(self) -> bool:
        command = [str(self.python), "-c", _WORKS]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def program(self, name: str) -> str:
        """The path of a command that a package installed."""
        return str(self._programs / (f"{name}.exe" if os.name == "nt" else name))

    def run(self, command: Sequence[str], *, offline: bool = True) -> None:
        """Run a program to its end.

        Args:
            command: The program and its arguments.
            offline: Keep the program from using a hub.

        Raises:
            AssetError: The program failed; the message has its last output.
        """
        result = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(OFFLINE if offline else {})},
            check=False,
        )
        if result.returncode:
            said = [line.strip() for line in result.stderr.splitlines() if line.strip()]
            name = Path(command[0]).name
            reason = " / ".join(said[-_TOLD:]) or "it said nothing"
            raise AssetError(f"{name} failed with code {result.returncode}: {reason}")
