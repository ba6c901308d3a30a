"""Data goes one way, and so do imports: read from the source, and seen in a running process."""

import ast
import json
import subprocess
import sys

import pytest
from repository import ROOT

LAYERS = ("runtime", "export", "npu", "scripts", "whisper_npu")
# What each layer may import from the others. `whisper_npu` is the package itself: errors, version,
# the search for models and the API, which joins the layers.
ALLOWED = {
    "runtime": {"errors", "version"},
    "npu": {"errors", "version", "runtime"},
    "export": {"errors", "version", "runtime"},
    "scripts": {"errors", "version", "runtime", "npu", "export", "api", "model_search"},
    # It exports a model that is asked for by name and is nowhere; torch is loaded only then.
    "whisper_npu": {"errors", "version", "runtime", "npu", "export", "api", "model_search"},
}
TRAINING = {"torch", "transformers", "optimum", "safetensors", "huggingface_hub", "nncf"}
# Graphs are cut for the NPU without PyTorch, but not without their file format.
OF_LAYER = {"export": TRAINING | {"onnx"}, "npu": {"onnx"}}
FILES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(source):
    """Every absolute module name that `source` imports, however deep in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(layer, source):
    """What a file of `layer` with this source imports against the rules."""
    wrong = []
    for name in imports(source):
        head, *rest = name.split(".")
        if head in LAYERS and head != "whisper_npu":
            wrong.append(f"{name}: a flat import loads a second copy")
        elif head == "whisper_npu":
            # A name of the package itself: `from whisper_npu import load_model`.
            target = rest[0] if rest else "api"
            if target not in {*LAYERS, "errors", "version", "api", "model_search"}:
                target = "api"
            if target != layer and target not in ALLOWED[layer]:
                wrong.append(f"{name}: {layer} must not know {target}")
        elif head in TRAINING | {"onnx"} and head not in OF_LAYER.get(layer, ()):
            wrong.append(f"{name}: not for {layer}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_of(file):
    # `python -m whisper_npu` is a program, like those in `scripts`.
    layer = "scripts" if file.name == "__main__.py" else file.parts[0]
    assert wrong_imports(layer, (ROOT / file).read_text(encoding="utf-8")) == []


def test_the_files_are_found():
    assert {file.parts[0] for file in FILES} == set(LAYERS)
    assert len(FILES) > 40


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("runtime", "import torch"),
        ("runtime", "def f():\n    from transformers import WhisperConfig"),
        ("runtime", "import onnx"),
        ("runtime", "from whisper_npu.export.assets import fetch"),
        ("runtime", "from whisper_npu.npu import devices"),
        ("runtime", "from whisper_npu import load_model"),
        ("runtime", "from runtime.audio import load_audio"),
        ("npu", "from whisper_npu.export import assets"),
        ("npu", "import optimum.exporters"),
        ("npu", "from whisper_npu.scripts import cli"),
        ("export", "from whisper_npu.loading import load_backend"),
        ("export", "import whisper_npu.scripts.common.cli"),
        ("scripts", "if True:\n    import torch"),
        ("whisper_npu", "from whisper_npu.scripts import cli"),
        ("whisper_npu", "import torch"),
        ("npu", "from whisper_npu.model_search import find_model"),
        ("runtime", "from whisper_npu.model_search import find_model"),
    ],
)
def test_the_rules_catch(layer, source):
    assert len(wrong_imports(layer, source)) == 1


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("runtime", "from whisper_npu.errors import ModelError"),
        ("runtime", "from whisper_npu.runtime.audio.stream import load_audio"),
        ("npu", "import onnx\nfrom whisper_npu.runtime import backend"),
        (
            "export",
            "import torch\nimport onnx\nfrom whisper_npu.runtime.audio.stream import load_audio",
        ),
        ("scripts", "from whisper_npu import load_model\nfrom whisper_npu.export import assets"),
    ],
)
def test_the_rules_allow(layer, source):
    assert wrong_imports(layer, source) == []


def modules_after(code):
    """The top-level modules that a fresh process has loaded after running `code`."""
    code += "\nimport sys, json\nprint(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = TRAINING | {"onnx", "onnxruntime", "pandas", "matplotlib"}


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import whisper_npu; whisper_npu.__version__")
    assert not loaded & (HEAVY | {"openvino", "numpy", "av", "soundfile", "tokenizers"})


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


def test_the_command_line_neither(tiny_folder, tiny_audio):
    loaded = modules_after(
        "from whisper_npu.scripts.transcribe import main\n"
        f"assert main([{str(tiny_audio[0])!r}, '--model', {str(tiny_folder)!r}]) == 0"
    )
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", ["transcribe", "main"])
def test_help_loads_no_engine(command):
    loaded = modules_after(
        f"from whisper_npu.scripts.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not loaded & (HEAVY | {"openvino", "numpy", "av", "soundfile", "tokenizers"})
