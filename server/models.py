"""The models of a server: loaded in the background, looked up by name, checked by decoding."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from whisper_npu import ModelError, WhisperModel, WhisperNpuError, load_model
from whisper_npu.server.config import ModelSpec, ServerConfig
from whisper_npu.server.errors import ApiError, unavailable

logger = logging.getLogger("whisper_npu.server")

FIRST_MODEL = "whisper-1"  # OpenAI's name, which every client knows: the first model
State = Literal["loading", "ready", "failed"]
_SAMPLE_RATE = 16_000  # Hz


@dataclass(eq=False)
class ServedModel:
    """A model of the server.

    Attributes:
        spec: its name and folder.
        created: when the server began to load it, in seconds since 1970.
        state: `loading`; `ready`; `failed`: its device failed, or it cannot be loaded.
        error: why it failed.
    """

    spec: ModelSpec
    created: int = field(default_factory=lambda: int(time.time()))
    state: State = "loading"
    error: str | None = None
    _model: WhisperModel | None = None

    @property
    def name(self) -> str:
        """Its name in requests."""
        return self.spec.name

    @property
    def loaded(self) -> WhisperModel | None:
        """The model, once it was loaded, even if its device has failed since."""
        return self._model

    def ready(self) -> WhisperModel:
        """The model.

        Raises:
            ApiError: it is being loaded, or its device failed.
        """
        if self.state == "loading":
            raise unavailable(f"the model {self.name} is being loaded", "model_loading")
        if self.state == "failed" or self._model is None:
            raise unavailable(f"the model {self.name} failed: {self.error}", "model_failed", 30)
        return self._model

    def load(self, config: ServerConfig) -> None:
        """Load it; takes seconds, or minutes if it has to be exported first.

        Raises:
            WhisperNpuError: it cannot be loaded.
        """
        try:
            self._model = load_model(
                self.spec.path,
                device=config.device,
                precision=config.precision,
                threads=config.threads,
                variant=config.variant,
            )
        except WhisperNpuError as error:
            self.fail(error)
            raise
        self.check()

    def check(self) -> float:
        """Decode a second of audio, and note whether that works; returns its time in seconds.

        Raises:
            ModelError: the model was not loaded.
            WhisperNpuError: it cannot decode; `error` says why.
        """
        if self._model is None:
            raise ModelError(self.error or f"the model {self.name} is being loaded")
        started = time.perf_counter()
        try:
            # Without the detector, which would skip a tone; one attempt, and a few tokens.
            self._model.transcribe(
                _tone(), language="en", vad=False, temperature=0.0, sample_len=8
            ).result()
        except WhisperNpuError as error:
            self.fail(error)
            raise
        self.state, self.error = "ready", None
        return time.perf_counter() - started

    def fail(self, error: Exception) -> None:
        """Note that the model cannot be used until a check succeeds."""
        logger.error("model %s failed: %s", self.name, error)
        self.state, self.error = "failed", str(error)

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.close()


def _tone() -> npt.NDArray[np.float32]:
    """One second of a tone."""
    times = np.arange(_SAMPLE_RATE, dtype=np.float32) / _SAMPLE_RATE
    return np.asarray(0.1 * np.sin(2 * np.pi * 440 * times), np.float32)


def _load(model: ServedModel, config: ServerConfig) -> None:
    """Load a model; an error of a library is one of the model, so that no load lasts for ever.

    Raises:
        WhisperNpuError: it cannot be loaded.
    """
    try:
        model.load(config)
    except WhisperNpuError:
        raise
    except Exception as error:
        logger.exception("model %s cannot be loaded", model.name)
        failure = ModelError(f"model {model.name} cannot be loaded: {error!r}; the log has more")
        model.fail(failure)
        raise failure from error


class ModelRegistry:
    """The models by name.

    Attributes:
        settled: set once every model is loaded, or one cannot be.
    """

    def __init__(self, specs: Iterable[ModelSpec]) -> None:
        self._models = [ServedModel(spec) for spec in specs]
        self._is_closed = False
        self.settled = threading.Event()
        self._by_name = {model.name: model for model in self._models}
        self._by_name.setdefault(FIRST_MODEL, self._models[0])

    @property
    def all(self) -> tuple[ServedModel, ...]:
        """Every model once, in order."""
        return tuple(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use."""
        return tuple(self._by_name)

    def get(self, name: str) -> ServedModel:
        """The model that a request names.

        Raises:
            ApiError: there is no such model.
        """
        model = self._by_name.get(name)
        if model is None:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r}; there are {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return model

    def require_any(self) -> None:
        """Refuse a request early while no model can be used.

        Raises:
            ApiError: all models are being loaded, or failed.
        """
        if not any(model.state == "ready" for model in self._models):
            self._models[0].ready()

    def load_in_background(
        self, config: ServerConfig, on_error: Callable[[WhisperNpuError], None]
    ) -> None:
        """Load the models one after the other, in a thread; `on_error` gets the first error."""

        def load() -> None:
            try:
                for model in self._models:
                    _load(model, config)
                    if self._is_closed:
                        model.close()
                        return
                    logger.info("model %s is ready", model.name)
            except WhisperNpuError as error:
                on_error(error)
            finally:
                self.settled.set()

        threading.Thread(target=load, name="load-models", daemon=True).start()

    def close(self) -> None:
        """Free all models, also the one that is being loaded."""
        self._is_closed = True
        for model in self._models:
            model.close()
