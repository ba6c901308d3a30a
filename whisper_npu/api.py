"""Loads a model: joins a model folder, a device and a kind of cache."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral

from whisper_npu.errors import UsageError
from whisper_npu.loading import load_backend
from whisper_npu.model_search import find_model
from whisper_npu.runtime.engines.choices import BackendName, KVCache, Precision
from whisper_npu.runtime.engines.memory import release_memory
from whisper_npu.runtime.features.vad import VoiceActivity
from whisper_npu.runtime.model_folder.folder import read_model_folder
from whisper_npu.runtime.text.multilingual import is_multilingual
from whisper_npu.runtime.text.tokenizer import Tokenizer
from whisper_npu.runtime.transcription.model import WhisperModel


def model_digest(path: str | os.PathLike[str], variant: str | None = None) -> str:
    """A digest of the files of a model that a text depends on; no engine is loaded.

    Args:
        path: see `load_model`.
        variant: see `load_model`.

    Raises:
        ModelError: the folder cannot be used, or no model has that name.
        UsageError: the folder has no such variant.
    """
    place = find_model(os.fspath(path), variant=variant)
    return read_model_folder(place, variant).digest()


def model_languages(path: str | os.PathLike[str], variant: str | None = None) -> tuple[str, ...]:
    """The codes of the languages that a model transcribes, in order; no engine is loaded.

    Args:
        path: see `load_model`.
        variant: see `load_model`.

    Raises:
        ModelError: the folder cannot be used, or no model has that name.
        UsageError: the folder has no such variant.
    """
    folder = read_model_folder(find_model(_name(path), variant=variant), variant)
    special = Tokenizer(folder.tokenizer).special
    known = tuple(sorted(special.languages))
    is_english = not is_multilingual(
        special.eot, len(known), folder.generation_config.is_multilingual
    )
    return ("en",) if is_english else known


def _name(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str) or not name:
        raise UsageError(f"the model is {path!r}; give a name such as tiny.en, or a folder")
    return name


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str = "CPU",
    backend: BackendName = "openvino",
    kv_cache: KVCache = "auto",
    precision: Precision = "auto",
    threads: int = 0,
    variant: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> WhisperModel:
    """Load an exported model. Use it in a `with` block, or call its `close`, to free its memory.

    Args:
        path: the model folder, a model's name such as `tiny.en`, or a hub id `owner/name`. A name
            is searched for as by the commands (see `model_search.find_model`), and fetched or
            exported if it is not found.
        device: `CPU`, `GPU`, `NPU`, `AUTO` (the fastest by measurement), `encoder=NPU,decoder=CPU`,
            or `NPU_EMULATED` (the NPU's graphs on the CPU); upper or lower case. The device is
            never replaced by another.
        backend: library that runs the graphs: `openvino` or `onnxruntime`.
        kv_cache: where the decoder's past states are kept: `stateful` (by the device), `concat` or
            `static` (by the host), `off` (recomputed at each step); `auto` takes the fastest.
        precision: number format of the computation: `f32` reproduces PyTorch token by token; `bf16`
            and `f16` are faster if the device has them; `int8` rounds matrices to 8 bits while they
            are loaded, and computes the rest in bf16 or f32. `auto` is int8 for the stateful cache
            on a processor that multiplies in 8 bits, f16 on an NPU, f32 elsewhere; results name it.
        threads: processor threads for inference; 0 for one per core.
        variant: the graphs to take from a folder with several: `plain`, a suffix such as `fp16` or
            `q4`, `openvino`, or `encoder=fp16,decoder=q4`. None takes the most exact ones.
        progress: called with one line per step of a first load, which exports or compiles; by
            default the steps are logged.

    Raises:
        UsageError: an argument is not one of the above, or the device cannot follow it.
        ModelError: the folder cannot be used, or no model has that name.
        DeviceError: the device is missing or refuses the model.
    """
    if not isinstance(threads, Integral) or threads < 0:
        raise UsageError(f"threads is {threads!r}; give 0 for one per core, or more")
    place = find_model(_name(path), progress, variant=variant)
    folder = read_model_folder(place, variant)
    # Compiling the graphs takes longest; the model's other parts are loaded at the same time.
    with ThreadPoolExecutor(max_workers=1) as beside:
        tokenizer = beside.submit(Tokenizer, folder.tokenizer)
        detector = beside.submit(VoiceActivity, folder.path)
        loaded = load_backend(
            folder,
            device,
            backend=backend,
            kv_cache=kv_cache,
            precision=precision,
            threads=threads,
            progress=progress,
        )
        model = WhisperModel(folder, loaded, tokenizer.result(), detector.result())
    release_memory()
    return model
