"""What a running process has loaded; who may import whom, `make lint` checks."""

import json
import subprocess
import sys

import pytest
from repository import ROOT

from whisper_npu.scripts import main

TRAINING = {"torch", "transformers", "optimum", "safetensors", "huggingface_hub", "nncf"}
HEAVY = TRAINING | {"onnx", "onnxruntime", "pandas", "matplotlib"}
ENGINE = {"openvino", "numpy", "av", "soundfile", "tokenizers"}
# Of the library's users; the fuzzing and others in the checkout are not among them.
COMMANDS = sorted({script for script, _ in main.COMMANDS.values()})


def modules_after(code):
    """The top-level modules that a fresh process has loaded after running `code`."""
    code += "\nimport sys, json\nprint(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import whisper_npu; whisper_npu.__version__")
    assert not loaded & (HEAVY | ENGINE)


@pytest.mark.slow
def test_a_transcription_never_loads_a_training_library(tiny_folder, tiny_audio):
    loaded = modules_after(
        "from whisper_npu import load_model\n"
        f"model = load_model({str(tiny_folder)!r})\n"
        f"result = model.transcribe({str(tiny_audio[0])!r}, language='en', vad=False,\n"
        "                          no_speech_threshold=None, without_timestamps=True).result()\n"
        "assert result.segments"
    )
    assert not loaded & HEAVY
    assert {"openvino", "numpy", "whisper_npu"} <= loaded


@pytest.mark.slow
def test_the_command_line_neither(tiny_folder, tiny_audio):
    loaded = modules_after(
        "from whisper_npu.scripts.transcribe import main\n"
        f"assert main([{str(tiny_audio[0])!r}, '--model', {str(tiny_folder)!r}]) == 0"
    )
    assert not loaded & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize("command", ["main", *COMMANDS])
def test_help_loads_no_engine(command):
    loaded = modules_after(
        f"from whisper_npu.scripts.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not loaded & (HEAVY | ENGINE)
