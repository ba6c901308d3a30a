"""What `/metrics` tells, in Prometheus' format."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from whisper_npu.server.admission import Admission
from whisper_npu.server.models import ModelRegistry

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The counters of one server.

    Attributes:
        registry: all metrics, for `prometheus_client.generate_latest`.
    """

    def __init__(self, admission: Admission, models: ModelRegistry) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "whisper_npu_requests",
            "Requests answered",
            ("path", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "whisper_npu_request_seconds",
            "Time from a request's first byte to the end of its answer",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._audio_seconds = Counter(
            "whisper_npu_audio_seconds",
            "Seconds of audio transcribed",
            ("model",),
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "whisper_npu_stage_seconds",
            "Time of a transcription by stage: upload, wait, and the stages of decoding",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Now(admission, models))

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            path: the route, not the address: every route is a series of its own.
            status: the HTTP status; 499 if its caller left.
            seconds: its time.
        """
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def transcribed(self, model: str, audio_seconds: float, stages: dict[str, float]) -> None:
        """Count a transcription."""
        self._audio_seconds.labels(model).inc(audio_seconds)
        for stage, seconds in stages.items():
            self._stage_seconds.labels(stage).observe(seconds)


class _Now:
    """Metrics that are read when they are asked for."""

    def __init__(self, admission: Admission, models: ModelRegistry) -> None:
        self._admission = admission
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        admission = self._admission
        for name, about, value in (
            ("inside", "Requests that upload, wait or are decoded", admission.n_inside),
            ("uploading", "Requests whose recording is being uploaded", admission.n_uploading),
            ("waiting", "Requests that wait for a place", admission.n_waiting),
            ("active", "Requests that are being decoded", admission.n_active),
        ):
            yield GaugeMetricFamily(f"whisper_npu_requests_{name}", about, value=value)
        labels = ("model", "device", "precision")
        ready = GaugeMetricFamily(
            "whisper_npu_model_ready", "1 if the model can be used, else 0", labels=labels
        )
        batches = CounterMetricFamily(
            "whisper_npu_batches", "Batches of windows decoded", labels=labels[:1]
        )
        windows = CounterMetricFamily(
            "whisper_npu_windows",
            "Windows decoded; by batches: how full a batch is",
            labels=labels[:1],
        )
        for served in self._models.all:
            model = served.loaded
            engine = ("", "") if model is None else (model.backend.device, model.backend.precision)
            ready.add_metric((served.name, *engine), float(served.state == "ready"))
            if model is not None:
                counts = model.decoded
                batches.add_metric((served.name,), counts.batches)
                windows.add_metric((served.name,), counts.windows)
        yield from (ready, batches, windows)
