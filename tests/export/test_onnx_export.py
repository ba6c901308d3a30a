import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from whisper_npu.errors import CheckpointError, ExportError, ParityError
from whisper_npu.export import onnx_export
from whisper_npu.export.checkpoint import Checkpoint
from whisper_npu.export.manifest import MANIFEST, read_manifest, verify_files
from whisper_npu.export.onnx_export import export_model, write_companions

GRAPHS = ("encoder_model", "decoder_model", "decoder_with_past_model")


@pytest.fixture
def quick(monkeypatch):
    """Replaces the slow parts: graphs become small files, so that only the folder work is run."""

    def write_graphs(checkpoint: Checkpoint, folder: Path, _progress) -> None:
        for name in GRAPHS:
            (folder / f"{name}.onnx").write_bytes(checkpoint.dimensions.n_vocab.to_bytes(4, "big"))

    monkeypatch.setattr(onnx_export, "write_graphs", write_graphs)
    monkeypatch.setattr(onnx_export, "verify_parity", lambda *_: {"status": "verified"})


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_holds_the_trio_and_its_companions(tiny_folder: Path) -> None:
    assert {path.name for path in tiny_folder.iterdir()} == {
        *(f"{name}.onnx" for name in GRAPHS),
        "decoder_alignment_model.onnx",
        "model.onnx_data",
        "vad_model.onnx",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        MANIFEST,
    }
    assert [path.name for path in tiny_folder.parent.iterdir()] == [tiny_folder.name]


def test_logits_axis_is_the_sequence(tiny_folder: Path) -> None:
    import onnx

    for name in GRAPHS[1:]:
        graph = onnx.load(tiny_folder / f"{name}.onnx", load_external_data=False).graph
        logits = next(value for value in graph.output if value.name == "logits")
        ids = next(value for value in graph.input if value.name == "input_ids")
        axis = [v.type.tensor_type.shape.dim[1].dim_param for v in (logits, ids)]
        assert axis[0] == axis[1] != ""


def test_plain_onnxruntime_loads_the_folder(tiny_folder: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    for name in GRAPHS:
        session = ort.InferenceSession(
            tiny_folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
        )
        if name == "encoder_model":
            hidden = session.run(None, {"input_features": np.zeros((1, 80, 3000), np.float32)})[0]
            assert hidden.shape == (1, 1500, 64)


@pytest.mark.filterwarnings("ignore")  # of other projects
def test_third_party_loads_the_folder_and_computes_the_same(tiny_folder, tiny_checkpoint) -> None:
    pytest.importorskip("onnxruntime")
    import torch
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import WhisperForConditionalGeneration

    ours = ORTModelForSpeechSeq2Seq.from_pretrained(tiny_folder, use_merged=False)
    original = WhisperForConditionalGeneration.from_pretrained(tiny_checkpoint)
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[321, 322, 328, 332]])
    with torch.inference_mode():
        expected = original(features, decoder_input_ids=ids).logits
        got = ours(input_features=features, decoder_input_ids=ids).logits
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_real_tiny_en_transcribes_through_a_third_party(tiny_en_folder: Path, beckett) -> None:
    pytest.importorskip("onnxruntime")
    import soundfile
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(tiny_en_folder)
    model = ORTModelForSpeechSeq2Seq.from_pretrained(tiny_en_folder, use_merged=False)
    samples, rate = soundfile.read(beckett)
    features = processor(samples, sampling_rate=rate, return_tensors="pt").input_features
    (text,) = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    assert text.strip().startswith("Ever tried, ever failed. No matter, try again.")


def test_real_tiny_en_is_near_the_size_of_its_parameters(tiny_en_folder: Path) -> None:
    parameters = 37_760_640  # openai/whisper tiny.en, the encoder's fixed positions included
    size = sum(path.stat().st_size for path in tiny_en_folder.iterdir())
    assert size <= 1.4 * 4 * parameters


def test_up_to_date_folder_is_left_alone(tiny_checkpoint, tmp_path, quick) -> None:
    out = tmp_path / "out"
    export_model(str(tiny_checkpoint), out)
    before = _state(out)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    lines: list[str] = []
    assert export_model(str(tiny_checkpoint), out, progress=lines.append) == out
    assert "up to date" in lines[-1]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    export_model(str(tiny_checkpoint), out, force=True)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} != stamps
    assert _state(out).keys() == before.keys()


def test_own_recordings_are_used_though_up_to_date(
    tiny_checkpoint, tmp_path, quick, monkeypatch
) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    used: list[list[Path]] = []
    monkeypatch.setattr(
        onnx_export, "verify_parity", lambda _f, _c, audio, _p: used.append(audio) or {}
    )
    export_model(str(tiny_checkpoint), out, parity_audio=[Path("a.wav")])
    assert used == [[Path("a.wav")]]


def test_unverified_export_says_so_and_is_verified_later(tiny_checkpoint, tmp_path, quick) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out", verify=False)
    assert (read_manifest(out) or {})["parity"] == {"status": "not verified"}
    export_model(str(tiny_checkpoint), out)
    assert (read_manifest(out) or {})["parity"] == {"status": "verified"}


def test_damaged_export_is_replaced(tiny_checkpoint, tmp_path, quick) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    (out / "tokenizer.json").write_text("{}")
    export_model(str(tiny_checkpoint), out)
    verify_files(out)


@pytest.mark.parametrize("failure", [ParityError("they differ"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_failed_export_leaves_what_was_there(
    tiny_checkpoint, tmp_path, quick, monkeypatch, failure, existing
) -> None:
    out = tmp_path / "out"
    if existing:
        export_model(str(tiny_checkpoint), out)
    before = _state(out) if existing else None

    def fail(*_args) -> None:
        raise failure

    monkeypatch.setattr(onnx_export, "verify_parity", fail)
    with pytest.raises(type(failure)):
        export_model(str(tiny_checkpoint), out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if existing else [])
    assert (_state(out) if existing else None) == before


def test_failed_move_puts_the_old_model_back(tiny_checkpoint, tmp_path, quick, monkeypatch) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    before = _state(out)
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name == "model":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(ExportError, match="No space left"):
        export_model(str(tiny_checkpoint), out, force=True)
    assert _state(out) == before


KILLED = """
import os, signal, sys, time
from whisper_npu.export import onnx_export
def write_graphs(checkpoint, folder, _progress):
    (folder / "encoder_model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
onnx_export.write_graphs = write_graphs
onnx_export.export_model(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_killed_export_leaves_nothing_that_looks_whole(tiny_checkpoint, tmp_path, quick) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(out)]
    result = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert result.returncode == -9
    assert not out.exists()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.name.startswith(".out.partial-")
    assert not list(left.rglob(MANIFEST))
    export_model(str(tiny_checkpoint), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_leftovers_go_where_there_is_nothing_to_export(tiny_checkpoint, tmp_path, quick) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    (tmp_path / ".out.partial-abc" / "model").mkdir(parents=True)
    export_model(str(tiny_checkpoint), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_models_export_is_not_replaced(tiny_checkpoint, tmp_path, quick) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    before = _state(out)
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    with pytest.raises(ExportError, match=r"holds an export of .*, not of .*other; .*--force"):
        export_model(str(other), out)
    assert _state(out) == before
    export_model(str(other), out, force=True)
    assert (read_manifest(out) or {})["source"]["argument"] == str(other)


def test_the_same_model_by_another_path(tiny_checkpoint, tmp_path, quick, monkeypatch) -> None:
    out = export_model(str(tiny_checkpoint), tmp_path / "out")
    monkeypatch.chdir(tiny_checkpoint.parent)
    assert export_model(f"./{tiny_checkpoint.name}", out) == out


def test_exporting_an_export(tiny_folder, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is a model folder already"):
        export_model(str(tiny_folder), tmp_path / "out")


def test_foreign_folder_is_not_overwritten(tiny_checkpoint, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match="holds something else"):
        export_model(str(tiny_checkpoint), tmp_path, force=True)
    assert _state(tmp_path) == {"thesis.txt": b"years of work"}


def test_checkpoint_is_not_overwritten_by_its_own_export(tiny_checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="holds something else"):
        export_model(str(tiny_checkpoint), tiny_checkpoint)


def test_file_is_not_overwritten(tiny_checkpoint, tmp_path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ExportError, match="is a file"):
        export_model(str(tiny_checkpoint), tmp_path / "out")


def test_empty_folder_is_filled(tiny_checkpoint, tmp_path, quick) -> None:
    (tmp_path / "out").mkdir()
    export_model(str(tiny_checkpoint), tmp_path / "out")
    verify_files(tmp_path / "out")


def test_unwritable_place_is_one_line(tiny_checkpoint, tmp_path, quick) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot write") as caught:
        export_model(str(tiny_checkpoint), tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


def test_full_disk_is_one_line(tiny_checkpoint, tmp_path, quick, monkeypatch) -> None:
    def fail(*_args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx_export, "write_companions", fail)
    with pytest.raises(ExportError, match="No space left on device"):
        export_model(str(tiny_checkpoint), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_source_writes_nothing(tmp_path) -> None:
    with pytest.raises(CheckpointError):
        export_model("./nothing", tmp_path / "sub" / "out")
    assert list(tmp_path.iterdir()) == []


def test_configuration_names_no_path_of_this_machine(tiny_folder, tiny_checkpoint) -> None:
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        assert str(tiny_checkpoint) not in (tiny_folder / name).read_text()


def test_generation_settings_leave_the_configuration(tiny_checkpoint, tmp_path) -> None:
    """Checkpoints from before transformers 4.26 have them there; transformers refuses them now."""
    import json

    from whisper_npu.export.checkpoint import load_checkpoint

    old = Path(shutil.copytree(tiny_checkpoint, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    config |= {"max_length": 448, "suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}
    (old / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    write_companions(load_checkpoint(str(old)), out)
    written = json.loads((out / "config.json").read_text())
    assert not any(written.get(name) for name in ("max_length", "suppress_tokens"))
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == [1, 2]


def test_companions_are_those_of_the_checkpoint(tiny_checkpoint, tmp_path) -> None:
    import json

    from whisper_npu.export.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(str(tiny_checkpoint))
    write_companions(checkpoint, tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == checkpoint.generation_config
    assert (tmp_path / "tokenizer.json").read_bytes() == checkpoint.tokenizer_json
