import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whisper_npu.errors import AssetError, DeviceError, UsageError
from whisper_npu.runtime.features.log_mel import mel_filters
from whisper_npu.scripts import benchmark_peers, main
from whisper_npu.scripts.benchmarks import peer_contestants
from whisper_npu.scripts.benchmarks.ggml import ggml_name, text_tokens, write_ggml
from whisper_npu.scripts.benchmarks.peer_comparison import OURS, Contestant, compare
from whisper_npu.scripts.benchmarks.peer_contestants import make_ours
from whisper_npu.scripts.benchmarks.peer_environment import PeerEnvironment
from whisper_npu.scripts.benchmarks.peer_models import PeerModels, _token_names
from whisper_npu.scripts.benchmarks.peer_report import set_line, verdicts
from whisper_npu.scripts.benchmarks.peers import PEERS
from whisper_npu.scripts.benchmarks.recordings import find_recordings


def run(*arguments: object) -> int:
    return benchmark_peers.main([str(argument) for argument in arguments])


@pytest.fixture
def manifest(tmp_path, tiny_audio) -> Path:
    path = tmp_path / "references.tsv"
    path.write_text(f"{tiny_audio[0]}\tsome words\n{tiny_audio[1]}\tother words\n")
    return path


def contestant(name: str, folder: Path, **changes: object) -> Contestant:
    """Our own engine under any name: what it takes to compare needs no peer installed."""
    job = {"engine": "whisper-npu", "model": str(folder), "threads": 0, "language": "en"}
    job["options"] = {"temperature": [0.0], "vad": False}
    return Contestant(name, sys.executable, {**job, **changes})


@pytest.mark.slow
def test_contestants_take_turns_and_one_that_fails_is_left_out(
    tiny_folder, manifest, tmp_path
) -> None:
    failures = []
    runs = []
    result = compare(
        [
            contestant(OURS, tiny_folder, one_by_one=True),
            contestant("broken", tmp_path / "nowhere"),
            contestant("twin", tiny_folder),
        ],
        {"short": find_recordings([], [manifest])},
        2,
        "en",
        tmp_path,
        on_run=lambda: runs.append(1),
        on_failure=lambda name, error: failures.append((name, type(error))),
    )
    assert failures == [("broken", DeviceError)]
    assert result.contestants == [OURS, "twin"]
    assert len(runs) == 2 * 3 + 2 * 3  # two contestants: warm-up and two runs, likewise starts
    [short] = result.sets
    assert short.audio_seconds == pytest.approx(15.0)
    assert [len(short.answers[name]) for name in result.contestants] == [2, 2]
    assert short.answers[OURS][0].texts == short.answers["twin"][0].texts
    assert short.ratio(OURS).median == 1.0
    assert short.rtfx("twin").n == 2
    assert [len(result.starts[name]) for name in result.contestants] == [2, 2]
    assert result.start("twin").lowest > 0
    assert [line.partition(" at ")[0].split(" ")[-1] for line in verdicts(result)] == ["twin"]
    assert "2 recordings, 15.0 s, one after another;" in set_line(short)
    together = replace(short, one_by_one=False)
    assert "given all at once, which only whisper-npu makes use of;" in set_line(together)


@pytest.mark.parametrize("flags", [(), ("--one-by-one",)])
def test_how_ours_is_given_the_recordings(tiny_folder, manifest, tmp_path, flags) -> None:
    arguments = benchmark_peers.build_parser().parse_args(
        [str(manifest), "--model", str(tiny_folder), "--environment", str(tmp_path), *flags]
    )
    assert make_ours(arguments).job["one_by_one"] is bool(flags)


def test_if_ours_fails_there_is_nothing_to_compare(tiny_folder, manifest, tmp_path) -> None:
    with pytest.raises(DeviceError, match="whisper-npu ended"):
        compare(
            [contestant(OURS, tmp_path / "nowhere"), contestant("twin", tiny_folder)],
            {"short": find_recordings([], [manifest])},
            1,
            "en",
            tmp_path,
            on_run=lambda: None,
            on_failure=lambda name, error: None,
        )


@pytest.mark.slow
def test_everything_is_reported(tiny_folder, manifest, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        peer_contestants,
        "make_contestants",
        lambda arguments, names: (
            [contestant(OURS, tiny_folder), contestant("twin", tiny_folder)],
            False,
        ),
    )
    out = tmp_path / "out.json"
    code = run(
        *(manifest, "--model", tiny_folder, "--repeats", "1", "--json", out),
        *("--markdown", tmp_path / "out.md", "--plot", tmp_path / "out.svg"),
    )
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert " times as fast as twin at " in lines[-1]
    found = json.loads(out.read_text())
    twin = found["sets"][0]["recognisers"]["twin"]
    assert twin["rtfx"]["median"] > 0
    assert twin["ours_is_faster_by"]["runs"] == 1
    assert twin["wer"] == found["sets"][0]["recognisers"][OURS]["wer"] > 0
    assert found["starts"]["twin"]["seconds"]["median"] > 0
    assert "openvino" in found["versions"][OURS]
    assert "| twin |" in (tmp_path / "out.md").read_text()
    assert "<svg" in (tmp_path / "out.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peers", "siri"], "--peers takes some of openvino-genai-int8"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--threads", "-1"], "--threads is -1"),
        (["--plot", "out.doc"], "a plot is written as"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, complaint, capsys, manifest) -> None:
    assert run(manifest, *arguments) == 2
    assert complaint in capsys.readouterr().err


def test_it_is_a_command(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["benchmark-peers", "--help"])
    assert "--environment" in capsys.readouterr().out


def read_ggml(path: Path) -> dict:
    """An independent reader of whisper.cpp's format, after `whisper_model_load`."""
    data = memoryview(path.read_bytes())
    position = 0

    def take(form: str) -> tuple:
        nonlocal position
        values = struct.unpack_from(form, data, position)
        position += struct.calcsize(form)
        return values

    def array(n: int, dtype: str) -> np.ndarray:
        nonlocal position
        values = np.frombuffer(data, dtype, n, position)
        position += values.nbytes
        return values

    assert take("<I") == (0x67676D6C,)
    sizes = take("<11i")
    n_mels, n_bins = take("<2i")
    filters = array(n_mels * n_bins, "<f4").reshape(n_mels, n_bins)
    tokens = []
    for _ in range(take("<i")[0]):
        (length,) = take("<i")
        tokens.append(bytes(take(f"<{length}s")[0]))
    tensors = {}
    while position < len(data):
        n_dims, length, kind = take("<3i")
        shape = take(f"<{n_dims}i")
        name = take(f"<{length}s")[0].decode()
        tensors[name] = array(int(np.prod(shape)), "<f2" if kind else "<f4").reshape(shape[::-1])
    return {"sizes": sizes, "filters": filters, "tokens": tokens, "tensors": tensors}


def test_ggml_holds_the_checkpoint(tiny_checkpoint, tmp_path) -> None:
    from whisper_npu.export.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(str(tiny_checkpoint))
    weights = {
        name: tensor.numpy()
        for name, tensor in checkpoint.model.state_dict().items()
        if name != "proj_out.weight"
    }
    path = tmp_path / "model.bin"
    write_ggml(weights, vars(checkpoint.dimensions), checkpoint.tokenizer_json, path)
    found = read_ggml(path)
    n_vocab = checkpoint.dimensions.n_vocab
    assert found["sizes"] == (n_vocab, 1500, 64, 2, 2, 448, 64, 2, 2, 80, 1)
    np.testing.assert_array_equal(found["filters"], mel_filters(80))
    assert len(found["tensors"]) == len(weights)
    for name, values in weights.items():
        held = found["tensors"][ggml_name(name)]
        np.testing.assert_allclose(held.reshape(values.shape), values, rtol=1e-3, atol=1e-6)
    assert found["tensors"]["encoder.conv1.bias"].shape == (64, 1)
    assert found["tensors"]["encoder.conv1.weight"].dtype == np.float16
    assert found["tensors"]["decoder.positional_embedding"].dtype == np.float32
    assert found["tensors"]["decoder.blocks.1.cross_attn.key.weight"].shape == (64, 64)
    eot = json.loads((tiny_checkpoint / "config.json").read_text())["eos_token_id"]
    assert len(found["tokens"]) == eot  # special tokens begin where the text tokens end
    assert sorted(token for token in found["tokens"] if len(token) == 1) == [
        bytes([byte]) for byte in range(256)
    ]
    assert b" t" in found["tokens"]


def test_text_tokens_are_bytes_in_order_of_their_ids() -> None:
    content = {
        "added_tokens": [{"id": 3, "content": "<|endoftext|>"}],
        "model": {"vocab": {"Ġa": 2, "Ċ": 0, "é": 1, "<|endoftext|>": 3}},
    }
    # A space and a newline are moved behind 255; é is the byte 0xE9.
    assert text_tokens(json.dumps(content).encode()) == [b"\n", b"\xe9", b" a"]


def test_token_names_cover_the_vocabulary() -> None:
    content = {
        "added_tokens": [{"id": 2, "content": "<|endoftext|>"}],
        "model": {"vocab": {"a": 0, "b": 1}},
    }
    names = _token_names(json.dumps(content).encode(), 4)
    assert names == ["a", "b", "<|endoftext|>", "<|unnamed-3|>"]


class FakeEnvironment:
    """Notes what it is asked to run, and makes what converters make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = Path("python")
        self.ran: list[list[str]] = []

    def program(self, name: str) -> str:
        return name

    def run(self, command, *, offline=True) -> None:
        self.ran.append(list(command))


def test_models_are_converted_once_from_the_exported_checkpoint(tiny_folder, tmp_path) -> None:
    from whisper_npu.runtime.model_folder.folder import read_model_folder

    environment = FakeEnvironment(tmp_path)
    folder = read_model_folder(tiny_folder)
    models = PeerModels(environment, folder, None, lambda line: None)
    path = models.path("openvino-int8")
    assert path.is_dir()
    assert environment.ran[-1][:2] == ["optimum-cli", "export"]
    assert "int8" in environment.ran[-1]
    huggingface = Path(environment.ran[-1][environment.ran[-1].index("--model") + 1])
    assert (huggingface / "model.safetensors").is_file()
    assert (huggingface / "tokenizer.json").is_file()
    n_ran = len(environment.ran)
    assert models.path("openvino-int8") == path
    assert models.path("huggingface") == huggingface
    assert len(environment.ran) == n_ran
    assert models.path("ctranslate2").is_dir()
    assert environment.ran[-1][0] == "ct2-transformers-converter"
    assert models.path("ggml").is_file()


def test_another_checkpoint_is_refused(tiny_folder, tiny_checkpoint, tmp_path) -> None:
    from dataclasses import replace

    from whisper_npu.runtime.model_folder.folder import read_model_folder

    folder = read_model_folder(tiny_folder)
    source = {**folder.manifest["source"], "sha256": "0" * 64}
    other = replace(folder, manifest={**folder.manifest, "source": source})
    environment = FakeEnvironment(tmp_path)
    with pytest.raises(UsageError, match="is not the checkpoint"):
        PeerModels(environment, other, None, lambda line: None).path("huggingface")
    unknown = replace(folder, manifest={})
    with pytest.raises(UsageError, match="give --checkpoint"):
        PeerModels(environment, unknown, None, lambda line: None)
    PeerModels(environment, unknown, str(tiny_checkpoint), lambda line: None).path("huggingface")


def test_a_program_that_fails_tells_its_last_words(tmp_path) -> None:
    environment = PeerEnvironment.__new__(PeerEnvironment)
    program = "import sys; sys.exit('first line\\nthe reason')"
    with pytest.raises(AssetError, match="failed with code 1: first line / the reason"):
        environment.run([sys.executable, "-c", program])


def test_every_peer_has_an_engine() -> None:
    from whisper_npu.scripts.benchmarks.engine_runner import ENGINES

    assert {peer.engine for peer in PEERS.values()} <= set(ENGINES)
