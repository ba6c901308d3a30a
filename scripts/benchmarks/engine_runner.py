"""Runs one speech recogniser in a separate process, for the benchmarks.

It imports only the standard library and the recogniser, so that the Python of a peer's virtual
environment can run this file. The first argument is the job, as JSON. Every line of standard input
is a list of WAV files (16 kHz, mono, 16 bit) to transcribe. Each answer is one line of JSON on
standard output: first when the model is loaded, then after every list. The recogniser's own output
goes to standard error.
"""

import json
import os
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

TranscriptionSession = dict[str, Any]
Transcribe = Callable[[list[str]], Iterable[str]]
"""Takes files, gives the text of each as it comes."""

WINDOW = 30.0  # seconds of a window: longer recordings need timestamps
_RATE = 16_000


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None if the system does not tell.

    Linux's `ru_maxrss` begins with the memory of the parent at the start of this process, so the
    process's own peak is read first.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read(path: str) -> Any:
    """Samples of a WAV file, float32 `(n,)`."""
    import numpy as np  # noqa: PLC0415 - every engine that needs samples brings it

    with wave.open(path) as file:
        raw = file.readframes(file.getnframes())
    return np.frombuffer(raw, np.int16).astype(np.float32) / np.float32(32_768)


def _is_long(samples: Any) -> bool:
    return len(samples) > WINDOW * _RATE


def _each(transcribe: Callable[[str], str]) -> Transcribe:
    """Adapts an engine that takes one file at a time."""
    return lambda paths: (transcribe(path) for path in paths)


def _whisper_npu(job: TranscriptionSession) -> Transcribe:
    from whisper_npu import load_model  # noqa: PLC0415
    from whisper_npu.runtime.options import TranscribeOptions  # noqa: PLC0415

    model = load_model(job["model"], threads=job["threads"], **job.get("load", {}))
    options = TranscribeOptions(**{"language": job["language"], **job.get("options", {})})
    if job.get("one_by_one"):
        return _each(lambda path: model.transcribe(path, options).text)

    def transcribe(paths: list[str]) -> Iterator[str]:
        for stream in model.transcribe_all(paths, options):
            if isinstance(stream, Exception):
                raise stream
            yield stream.text

    return transcribe


def _openvino_genai(job: TranscriptionSession) -> Transcribe:
    openvino_genai = import_module("openvino_genai")
    properties: dict[str, Any] = {"CACHE_DIR": job["cache"]} if job.get("cache") else {}
    if job["threads"]:
        properties["INFERENCE_NUM_THREADS"] = job["threads"]
    pipeline = openvino_genai.WhisperPipeline(job["model"], "CPU", **properties)
    config = pipeline.get_generation_config()
    if config.is_multilingual:
        config.task = "transcribe"
        if job["language"]:
            config.language = f"<|{job['language']}|>"

    def transcribe(path: str) -> str:
        samples = _read(path)
        config.return_timestamps = _is_long(samples)
        return str(pipeline.generate(samples, config))

    return _each(transcribe)


def _faster_whisper(job: TranscriptionSession) -> Transcribe:
    faster_whisper = import_module("faster_whisper")
    model = faster_whisper.WhisperModel(
        job["model"], device="cpu", compute_type=job["compute_type"], cpu_threads=job["threads"]
    )
    options: dict[str, Any] = {"beam_size": 1, "language": job["language"]}
    pipeline = model
    if job["batch_size"] > 1:
        pipeline = faster_whisper.BatchedInferencePipeline(model)
        options["batch_size"] = job["batch_size"]

    def transcribe(path: str) -> str:
        segments, _ = pipeline.transcribe(path, **options)
        return "".join(segment.text for segment in segments)

    return _each(transcribe)


def _whisper_cpp(job: TranscriptionSession) -> Transcribe:
    options: dict[str, Any] = {"print_progress": False, "print_realtime": False}
    if job["threads"]:
        options["n_threads"] = job["threads"]
    if job["language"]:
        options["language"] = job["language"]
    loader = import_module("pywhispercpp.model").Model
    model = loader(job["model"], params_sampling_strategy=0, **options)  # 0 is greedy
    return _each(lambda path: " ".join(part.text for part in model.transcribe(_read(path))))


def _transformers(job: TranscriptionSession) -> Transcribe:
    torch, transformers = import_module("torch"), import_module("transformers")
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    model = transformers.WhisperForConditionalGeneration.from_pretrained(job["model"]).eval()
    processor = transformers.WhisperProcessor.from_pretrained(job["model"])
    options: dict[str, Any] = {"num_beams": 1, "do_sample": False}
    if model.generation_config.is_multilingual:
        options |= {"task": "transcribe", "language": job["language"]}

    def transcribe(path: str) -> str:
        samples = _read(path)
        long = _is_long(samples)
        cut = {"truncation": False, "padding": "longest"} if long else {}
        inputs = processor(
            samples, sampling_rate=_RATE, return_tensors="pt", return_attention_mask=True, **cut
        )
        with torch.inference_mode():
            tokens = model.generate(**inputs, return_timestamps=long, **options)
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0])

    return _each(transcribe)


ENGINES: dict[str, tuple[Callable[[TranscriptionSession], Transcribe], tuple[str, ...]]] = {
    "whisper-npu": (_whisper_npu, ("whisper-npu", "openvino")),
    "openvino-genai": (_openvino_genai, ("openvino-genai", "openvino")),
    "faster-whisper": (_faster_whisper, ("faster-whisper", "ctranslate2")),
    "whisper.cpp": (_whisper_cpp, ("pywhispercpp",)),
    "transformers": (_transformers, ("transformers", "torch")),
}


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout that is not installed
            found[package] = "unknown"
    return found


def _serve(job: TranscriptionSession, lists: IO[str], answers: IO[str]) -> None:
    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    load, packages = ENGINES[job["engine"]]
    start = time.perf_counter()
    transcribe = load(job)
    answer({"load_seconds": time.perf_counter() - start, "versions": _versions(packages)})
    for line in lists:
        texts, seconds = [], []
        start = time.perf_counter()
        for text in transcribe(json.loads(line)):
            texts.append(text.strip())
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        answer({"texts": texts, "seconds": seconds, "peak_bytes": peak_memory()})


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(json.loads(sys.argv[1]), sys.stdin, answers)


if __name__ == "__main__":
    main()
