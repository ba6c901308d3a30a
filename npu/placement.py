"""Decides which device runs the encoder and which the decoder, and says why.

An explicit device is an order: the model runs there or not at all. `AUTO` measures each candidate
of the machine once, with the model itself. It remembers the fastest until the machine, a driver,
OpenVINO or the model changes, or until the device fails.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from whisper_npu.errors import DeviceError, WhisperNpuError
from whisper_npu.npu.devices import CPU, NPU, npu_devices
from whisper_npu.runtime.engines.compile_cache import cache_directory
from whisper_npu.runtime.engines.protocol import Backend

logger = logging.getLogger("whisper_npu")

ENCODER_PART = "encoder"
DECODER_PART = "decoder"
PARTS = (ENCODER_PART, DECODER_PART)

AUTO = "AUTO"
GPU = "GPU"
PROBE_TOKENS = 24  # roughly the tokens of a window of speech
_MEMORY = "placements.json"


@dataclass(frozen=True)
class Placement:
    """The devices of the encoder and the decoder.

    Attributes:
        encoder: device of the encoder.
        decoder: device of the decoder.
        reason: the reason in words; empty for an explicit choice.
    """

    encoder: str
    decoder: str
    reason: str = ""

    @property
    def name(self) -> str:
        """The placement in the notation of the command line."""
        if self.encoder == self.decoder:
            return self.encoder
        return f"encoder={self.encoder},decoder={self.decoder}"


def candidates(core: ov.Core) -> list[Placement]:
    """The placements that `AUTO` measures on this machine, the most promising first."""
    found = []
    if npu_devices(core):
        found += [Placement(NPU, NPU), Placement(NPU, CPU)]
    if any(name.split(".")[0] == GPU for name in core.available_devices):
        found.append(Placement(GPU, GPU))
    return [*found, Placement(CPU, CPU)]


def machine(core: ov.Core) -> list[str]:
    """The facts that a remembered decision depends on: OpenVINO, the devices, their drivers."""
    facts = [ov.get_version()]
    for device in core.available_devices:
        with suppress(RuntimeError):  # a device without this property
            supported = core.get_property(device, "SUPPORTED_PROPERTIES")
            names = [name for name in supported if name.endswith("DRIVER_VERSION")]
            for name in ("FULL_DEVICE_NAME", *sorted(names)):
                facts.append(f"{device} {name} {core.get_property(device, name)}")
    return facts


def choose(
    options: Sequence[Placement],
    load: Callable[[Placement], Backend],
    facts: Iterable[str],
    memory: Path | None = None,
) -> tuple[Placement, Backend]:
    """The fastest placement and the model loaded on it.

    Args:
        options: the placements to choose from.
        load: loads the model on a placement.
        facts: facts that the decision depends on; if they change, it is made again.
        memory: the file of remembered decisions; None for the user's.

    Raises:
        DeviceError: no placement works.
        WhisperNpuError: the model or the options are wrong.
    """
    if len(options) == 1:
        only = Placement(options[0].encoder, options[0].decoder, "the only device OpenVINO finds")
        logger.info("AUTO runs on %s: %s", only.name, only.reason)
        return only, load(only)
    file = memory or cache_directory().parent / _MEMORY
    names = [option.name for option in options]
    key = hashlib.sha256(json.dumps([names, *facts]).encode()).hexdigest()
    remembered = _remembered(file).get(key)
    refused: dict[str, WhisperNpuError] = {}
    if remembered is not None and remembered.name in names:
        try:
            backend = load(remembered)
            probe(backend, repeats=1)
        except WhisperNpuError as error:
            _forget(file, key)
            refused[remembered.name] = error
            logger.warning("AUTO: %s, which was fastest, is out: %s", remembered.name, error)
        else:
            logger.info("AUTO runs on %s: %s", remembered.name, remembered.reason)
            return remembered, backend

    measured: list[tuple[float, Placement, Backend]] = []
    for option in options:
        if option.name in refused:
            continue
        try:
            backend = load(option)
            measured.append((probe(backend), option, backend))
        except WhisperNpuError as error:
            logger.warning("AUTO: %s is out: %s", option.name, error)
            refused[option.name] = error
    if not measured:
        errors = list(refused.values())
        if not any(isinstance(error, DeviceError) for error in errors):
            raise errors[0]  # not a fault of the devices
        reasons = "; ".join(f"{name}: {error}" for name, error in refused.items())
        raise DeviceError(f"no device runs this model: {reasons}")
    _, best, backend = min(measured, key=lambda item: item[0])
    times = ", ".join(f"{option.name} {seconds:.2f} s" for seconds, option, _ in measured)
    chosen = Placement(best.encoder, best.decoder, f"fastest for a window of speech ({times})")
    if remembered is None:  # else the next start measures the failed device again
        _remember(file, key, chosen)
    logger.info("AUTO runs on %s: %s", chosen.name, chosen.reason)
    return chosen, backend


def probe(backend: Backend, repeats: int = 2) -> float:
    """Seconds for one window: encoder and `PROBE_TOKENS` steps; the shortest of `repeats` runs."""
    features = np.zeros((1, backend.n_mels, 2 * backend.n_audio_ctx), np.float32)
    token = np.zeros((1, 1), np.int64)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        session = backend.start(backend.encode(features))
        try:
            for _ in range(PROBE_TOKENS):
                session.step(token)
        finally:
            session.close()
        times.append(time.perf_counter() - start)
    return min(times)


def _remembered(file: Path) -> dict[str, Placement]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: Placement(**value) for key, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(file: Path, key: str, placement: Placement) -> None:
    _write(file, {**_remembered(file), key: placement})


def _forget(file: Path, key: str) -> None:
    _write(file, {known: each for known, each in _remembered(file).items() if known != key})


def _write(file: Path, placements: dict[str, Placement]) -> None:
    content = {key: asdict(placement) for key, placement in placements.items()}
    unfinished = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        logger.debug("the placement cannot be remembered: %s", error)
