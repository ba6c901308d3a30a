"""Converts a model folder's checkpoint to the forms that the peers read."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_npu.errors import UsageError
from whisper_npu.runtime.model_folder.folder import ModelFolder
from whisper_npu.scripts.benchmarks.ggml import write_ggml
from whisper_npu.scripts.benchmarks.peer_environment import PeerEnvironment, Progress

if TYPE_CHECKING:
    from whisper_npu.export.checkpoint import Checkpoint

# Run by the peers' Python: completes the tokenizer files of a folder with only tokenizer.json.
_SAVE_PROCESSOR = """
import sys
from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizerFast
folder = sys.argv[1]
tokenizer = WhisperTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
WhisperProcessor(WhisperFeatureExtractor.from_pretrained(folder), tokenizer).save_pretrained(folder)
"""


class PeerModels:
    """Converted models in the peers' environment, each converted once."""

    def __init__(
        self,
        environment: PeerEnvironment,
        model: ModelFolder,
        source: str | None,
        progress: Progress,
    ) -> None:
        """Find the checkpoint.

        Args:
            environment: The environment of the converters and the results.
            model: The folder exported from the checkpoint.
            source: The checkpoint, as for the export; None for the manifest's.
            progress: Called with one line per step.

        Raises:
            UsageError: The checkpoint of the folder is unknown.
            CheckpointError: The checkpoint no longer exists.
        """
        self._environment = environment
        self._progress = progress
        stated = model.manifest.get("source", {})
        self._argument = source or stated.get("argument")
        if not self._argument:
            raise UsageError(
                f"{model.path} does not say what it was exported from: give --checkpoint"
            )
        self._revision = None if source else stated.get("revision")
        self._expected = stated.get("sha256")
        key = (self._expected or "unverified")[:12]
        self._folder = environment.folder / "models" / f"{model.name}-{key}"
        self._checkpoint: Checkpoint | None = None

    def path(self, form: str) -> Path:
        """The model in one form; it is converted now if it does not exist.

        Args:
            form: `huggingface`, `openvino-fp32`, `openvino-int8`, `ctranslate2` or `ggml`.

        Raises:
            AssetError: A converter failed.
            CheckpointError: The checkpoint cannot be read.
            UsageError: The model folder was exported from another checkpoint.
        """
        target = self._folder / form
        file = target / "ggml-model.bin" if form == "ggml" else target
        if target.is_dir():
            return file
        convert: dict[str, Callable[[Path], None]] = {
            "huggingface": self._write_huggingface,
            "openvino-fp32": lambda out: self._write_openvino(out, "fp32"),
            "openvino-int8": lambda out: self._write_openvino(out, "int8"),
            "ctranslate2": self._write_ctranslate2,
            "ggml": self._write_ggml,
        }
        # This form is converted from another form, whose progress is shown first.
        if form in {"openvino-fp32", "openvino-int8"} or (
            form == "ctranslate2" and not self._is_ctranslate2()
        ):
            self.path("huggingface")
        self._progress(f"converting the checkpoint {self._argument}: {form}")
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=f".{form}-") as work:
            out = Path(work) / form
            out.mkdir()
            convert[form](out)
            out.rename(target)
        return file

    def _load(self) -> "Checkpoint":
        if self._checkpoint is None:
            from whisper_npu.export.checkpoint import load_checkpoint  # noqa: PLC0415 - needs torch
            from whisper_npu.export.source import SourceKind, find_source  # noqa: PLC0415

            is_hub = find_source(self._argument).kind is SourceKind.HUB
            checkpoint = load_checkpoint(
                self._argument, revision=self._revision if is_hub else None, progress=self._progress
            )
            if self._expected and checkpoint.source.sha256 not in {None, self._expected}:
                raise UsageError(
                    f"{self._argument} is not the checkpoint that the model folder was exported "
                    "from: export it again"
                )
            self._checkpoint = checkpoint
        return self._checkpoint

    def _is_ctranslate2(self) -> bool:
        path = self._load().source.path
        return path is not None and (path / "model.bin").is_file()

    def _write_huggingface(self, out: Path) -> None:
        checkpoint = self._load()
        checkpoint.model.save_pretrained(out)
        (out / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
        for name, content in (
            ("generation_config.json", checkpoint.generation_config),
            ("preprocessor_config.json", checkpoint.preprocessor_config),
        ):
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self._environment.run([str(self._environment.python), "-c", _SAVE_PROCESSOR, str(out)])

    def _write_openvino(self, out: Path, weights: str) -> None:
        task = "automatic-speech-recognition-with-past"
        command = [self._environment.program("optimum-cli"), "export", "openvino"]
        command += ["--model", str(self._folder / "huggingface"), "--task", task]
        self._environment.run([*command, "--weight-format", weights, str(out)])

    def _write_ctranslate2(self, out: Path) -> None:
        checkpoint = self._load()
        if not self._is_ctranslate2():
            folder = self._folder / "huggingface"
            command = [self._environment.program("ct2-transformers-converter")]
            command += ["--model", str(folder), "--output_dir", str(out), "--force"]
            command += ["--copy_files", "tokenizer.json", "preprocessor_config.json"]
            self._environment.run([*command, "--quantization", "float16"])
            return
        if checkpoint.source.path is None:
            raise UsageError(f"{self._argument} names no folder")
        for name in ("model.bin", "config.json"):
            shutil.copyfile(checkpoint.source.path / name, out / name)
        (out / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
        names = _token_names(checkpoint.tokenizer_json, checkpoint.dimensions.n_vocab)
        (out / "vocabulary.json").write_text(json.dumps(names), encoding="utf-8")
        content = json.dumps(checkpoint.preprocessor_config)
        (out / "preprocessor_config.json").write_text(content, encoding="utf-8")

    def _write_ggml(self, out: Path) -> None:
        checkpoint = self._load()
        weights = {
            name: tensor.numpy()
            for name, tensor in checkpoint.model.state_dict().items()
            if name != "proj_out.weight"  # tied to the token embedding
        }
        sizes = vars(checkpoint.dimensions)
        write_ggml(weights, sizes, checkpoint.tokenizer_json, out / "ggml-model.bin")


def _token_names(tokenizer_json: bytes, n_vocab: int) -> list[str]:
    """Names of all tokens in order of their ids; tokens without a name get one."""
    content = json.loads(tokenizer_json)
    names = {number: word for word, number in content["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in content["added_tokens"]}
    return [names.get(number, f"<|unnamed-{number}|>") for number in range(n_vocab)]
