import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from whisper_npu.errors import AssetError, ParityError
from whisper_npu.export import alignment, hub, onnx_export
from whisper_npu.export.conversion import Conversion
from whisper_npu.scripts import export_onnx, fetch_assets

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[tuple]:
    """Records calls of the export instead of running it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "look_for", lambda *_arguments: None)
    recorded: list[tuple] = []
    monkeypatch.setattr(
        onnx_export, "export_model", lambda *args, **kwargs: recorded.append((args, kwargs))
    )
    return recorded


def test_default_is_tiny_en(calls, capsys) -> None:
    assert export_onnx.main([]) == 0
    ((args, options),) = calls
    assert args == ("tiny.en", Path("models/tiny.en"))
    assert options["verify"] is True
    assert options["force"] is False
    assert capsys.readouterr().err.startswith(
        "no model was named, so the default is exported: tiny.en, to models/tiny.en; to choose"
    )


def test_what_is_exported_is_told_before_torch_is_loaded(calls, capsys) -> None:
    assert export_onnx.main(["base"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "exporting base to models/base",
        "loading PyTorch, which takes some seconds",
    ]


def test_quiet_prints_nothing(calls, capsys) -> None:
    assert export_onnx.main(["--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("spelling", ["f16", "fp16", "float16"])
def test_a_precision_in_either_spelling(calls, spelling) -> None:
    assert export_onnx.main(["base", "--precision", spelling]) == 0
    ((args, options),) = calls
    assert args[1] == Path("models/base-fp16")
    assert options["conversion"].precision == "fp16"


@pytest.mark.parametrize("arguments", [["base"], ["--model", "base"], ["base", "--model", "base"]])
def test_model_by_position_or_option(calls, arguments) -> None:
    assert export_onnx.main(arguments) == 0
    assert calls[0][0] == ("base", Path("models/base"))


def test_hub_id_gives_the_folder_its_last_part(calls) -> None:
    export_onnx.main(["openai/whisper-small", "--revision", "main"])
    assert calls[0][0] == ("openai/whisper-small", Path("models/whisper-small"))
    assert calls[0][1]["revision"] == "main"


def test_options_arrive(calls) -> None:
    export_onnx.main(["-o", "x", "--force", "--parity-audio", "a.wav", "b.wav"])
    (args, options) = calls[0]
    assert args[1] == Path("x")
    assert options["force"] is True
    assert options["parity_audio"] == [Path("a.wav"), Path("b.wav")]


def test_precision_and_what_belongs_to_it(calls) -> None:
    arguments = ["base", "--precision", "int8", "--calibration-audio", "a.wav", "b.wav"]
    assert export_onnx.main([*arguments, "--wer-references", "said.tsv"]) == 0
    (args, options) = calls[0]
    assert args[1] == Path("models/base-int8")
    assert options["conversion"] == Conversion(
        "int8", (Path("a.wav"), Path("b.wav")), Path("said.tsv"), 0.3
    )


def test_calibration_of_fp16_is_a_usage_error(calls, capsys) -> None:
    assert export_onnx.main(["--precision", "fp16", "--calibration-audio", "a.wav"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert calls == []


def test_no_verify(calls) -> None:
    export_onnx.main(["--no-verify"])
    assert calls[0][1]["verify"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--model", "b"],
        ["--no-verify", "--parity-audio", "a.wav"],
        ["--colour"],
        ["a", "b"],
        ["base", "--add-alignment", "x"],
        ["--force", "--add-alignment", "x"],
        ["--precision", "int8", "--add-alignment", "x"],
        ["--precision", "int4"],
        ["--calibration-audio", "a.wav"],
        ["--max-wer-increase", "0"],
        ["--precision", "int8", "--no-verify", "--wer-references", "a.tsv"],
    ],
)
def test_contradictions_are_usage_errors(calls, arguments) -> None:
    with pytest.raises(SystemExit) as caught:
        export_onnx.main(arguments)
    assert caught.value.code == 2
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["./nothing"], 3, "no file or folder ./nothing"),
        (["tiny.en", "--revision", "x"], 2, "--revision"),
    ],
)
def test_errors_are_one_line(capsys, arguments, code: int, words: str) -> None:
    assert export_onnx.main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_parity_failure_has_its_exit_code(monkeypatch, capsys) -> None:
    def fail(*_args, **_kwargs) -> None:
        raise ParityError("token 3 is 4, PyTorch chooses 5")

    monkeypatch.setattr(onnx_export, "export_model", fail)
    assert export_onnx.main([]) == 3
    assert capsys.readouterr().err.endswith("error: token 3 is 4, PyTorch chooses 5\n")


def test_add_alignment(calls, monkeypatch, capsys) -> None:
    monkeypatch.setattr(alignment, "add_alignment_graph", lambda folder: folder / "graph.onnx")
    assert export_onnx.main(["--add-alignment", "x"]) == 0
    assert calls == []
    assert capsys.readouterr().err == f"wrote {Path('x/graph.onnx')}\n"


def test_add_alignment_to_nothing_is_one_line(capsys) -> None:
    assert export_onnx.main(["--add-alignment", "nothing"]) == 3
    assert capsys.readouterr().err.startswith("error: model folder nothing does not exist")


@pytest.mark.parametrize("script", ["export_onnx.py", "fetch_assets.py"])
def test_help_teaches_and_loads_no_torch(script: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, str(SCRIPTS / script)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "Exit code" in result.stdout


REFUSED_EARLY = """
import sys
from whisper_npu.scripts.export_onnx import main
code = main(sys.argv[1:])
loaded = {name.split(".")[0] for name in sys.modules}
print(code, sorted(loaded & {"torch", "transformers", "onnx"}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["nothing", "export", "other", "gpt2", "weights", "foreign", "file"]
)
def test_what_is_wrong_is_said_before_torch_is_imported(
    kind: str, tiny_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    words = {
        "nothing": "there is no file or folder",
        "export": "is a model folder already",
        "other": "holds an export of",
        "gpt2": "is no Whisper speech recogniser",
        "weights": "has a config.json but no weights",
        "foreign": "holds something else",
        "file": "it is a file",
    }
    if kind == "export":
        source = tiny_folder
    elif kind != "nothing":
        shutil.copytree(tiny_checkpoint, source)
    if kind == "gpt2":
        (source / "config.json").write_text('{"model_type": "gpt2"}')
    elif kind == "weights":
        (source / "model.safetensors").unlink()
    elif kind == "other":
        out = tiny_folder
    elif kind == "foreign":
        out.mkdir()
        (out / "thesis.txt").touch()
    elif kind == "file":
        out.touch()
    command = [sys.executable, "-c", REFUSED_EARLY, str(source), "--output", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "3 []\n"
    assert result.stderr.count("\n") == 1
    assert words[kind] in result.stderr


def test_a_name_gives_the_folder_its_name(calls) -> None:
    assert export_onnx.main(["turbo"]) == 0
    assert calls[0][0] == ("turbo", Path("models/turbo"))


def test_fetch_prints_one_path_per_asset(monkeypatch, capsys) -> None:
    monkeypatch.setattr(fetch_assets, "fetch", lambda name, _progress: Path("cache") / name)
    assert fetch_assets.main([]) == 0
    told = capsys.readouterr()
    assert told.err.startswith("no asset was named, so the default ones are fetched: tiny.en, ")
    assert told.out.split() == [
        str(Path("cache") / n) for n in ("tiny.en", "silero-vad", "beckett")
    ]


def test_fetch_failure_is_one_line(monkeypatch, capsys) -> None:
    def fail(_name: str, _progress) -> Path:
        raise AssetError("no network")

    monkeypatch.setattr(fetch_assets, "fetch", fail)
    assert fetch_assets.main(["base"]) == 3
    assert capsys.readouterr().err == "error: no network\n"
