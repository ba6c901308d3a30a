"""What the routes of a server share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from whisper_npu.server.admission import Admission
from whisper_npu.server.config import ServerConfig
from whisper_npu.server.metrics import Metrics
from whisper_npu.server.models import ModelRegistry


@dataclass
class Service:
    """A server's parts; a route finds them by `service_of`.

    Attributes:
        config: the configuration.
        models: the models.
        admission: decides which requests go on.
        metrics: counts.
        threads: one thread for each request that is decoded.
    """

    config: ServerConfig
    models: ModelRegistry = field(init=False)
    admission: Admission = field(init=False)
    metrics: Metrics = field(init=False)
    threads: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        """Make the parts; no model is loaded yet."""
        self.models = ModelRegistry(self.config.models)
        self.admission = Admission(self.config.limits)
        self.metrics = Metrics(self.admission, self.models)
        self.threads = ThreadPoolExecutor(
            self.config.limits.active, thread_name_prefix="transcription"
        )

    def close(self) -> None:
        """Free the models and threads, after the last request."""
        self.threads.shutdown()
        self.models.close()


def service_of(connection: HTTPConnection) -> Service:
    """The service behind a request or a WebSocket."""
    service: Service = connection.app.state.service
    return service
