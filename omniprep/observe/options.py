"""The options that say which programs may follow a run: on the command line, and in the file of --config."""

from dataclasses import dataclass
from importlib.util import find_spec

from omniprep.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """What commands that run for long take besides --quiet. No byte of a dataset depends on it."""

    log_json: bool = False
    """Standard error as lines of JSON, an event a line, for log collectors; nothing else is written there."""
    log_file: str = ""
    """Also append the events to this local file as lines of JSON; standard error stays as it is."""
    metrics_port: int | None = None
    """Serve metrics for Prometheus on this port while the command runs (http://HOST:PORT/metrics)."""
    metrics_host: str = "127.0.0.1"
    """Address that --metrics-port listens on; 0.0.0.0 lets other machines read the metrics."""

    def __post_init__(self) -> None:
        """Refuse what could not work, before anything is loaded."""
        if self.metrics_port is None:
            return
        if not 0 < self.metrics_port < 1 << 16:
            raise UsageError(f"--metrics-port {self.metrics_port}: a port is a number from 1 to 65535")
        if find_spec("prometheus_client") is None:
            raise UsageError(
                "--metrics-port needs prometheus_client, which is not installed: pip install 'omniprep[metrics]'"
            )
