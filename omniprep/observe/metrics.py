"""A run as metrics for Prometheus, served over HTTP while it lasts (--metrics-port)."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omniprep import __version__
from omniprep.errors import UsageError
from omniprep.observe.command import this_command
from omniprep.observe.totals import StageTotals, Totals

COUNTERS = {
    "rows": "Rows read while planning, or kept in finished shards, by stage; rejected rows are among those planned.",
    "tokens": "Tokens of kept rows, by stage.",
    "bytes": "Bytes of finished plans or shards, by stage.",
}
"""Metrics omniprep_NAME_total, by the name of a field of `StageTotals`."""


class RunMetrics(Totals, Collector):
    """Counts, and gives the counts of the moment to each scrape."""

    def collect(self) -> Iterator[Metric]:
        """The metrics of docs/observability.md."""
        with self.lock:
            stages = [(stage, stage.facts()) for stage in self.stages.values()]
            codes = {name: dict(counts) for name, counts in self.codes.items()}
        info = GaugeMetricFamily("omniprep_info", "The command that runs; always 1.", labels=("command", "version"))
        info.add_metric((this_command.name, __version__), 1)
        yield info
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"omniprep_{name}", text, labels=("stage",))
            for _, facts in stages:
                counter.add_metric((facts["stage"],), facts[name])
            yield counter
        rejects = CounterMetricFamily(
            "omniprep_rejected_rows", "Rejected rows, by stage and code.", labels=("stage", "code")
        )
        for stage, counts in codes.items():
            for code, count in counts.items():
                rejects.add_metric((stage, code), count)
        yield rejects
        yield from _stage_gauges([stage for stage, _ in stages])


def _stage_gauges(stages: list[StageTotals]) -> Iterator[Metric]:
    done = CounterMetricFamily("omniprep_stage_done", "Units done, by stage.", labels=("stage", "unit"))
    total = GaugeMetricFamily("omniprep_stage_units", "Units of a stage in all, where known.", labels=("stage", "unit"))
    waiting = GaugeMetricFamily(
        "omniprep_stage_queue", "Units that are not done: running or waiting.", labels=("stage", "unit")
    )
    running = GaugeMetricFamily("omniprep_stage_running", "Whether a stage is under way.", labels=("stage",))
    seconds = GaugeMetricFamily("omniprep_stage_seconds", "Seconds that a stage took so far.", labels=("stage",))
    left = GaugeMetricFamily("omniprep_stage_eta_seconds", "Seconds that a stage needs, about.", labels=("stage",))
    for stage in stages:
        facts, labels = stage.facts(), (stage.name, stage.unit)
        done.add_metric(labels, stage.done)
        if stage.total is not None:
            total.add_metric(labels, stage.total)
            waiting.add_metric(labels, max(stage.total - stage.done, 0))
        running.add_metric((stage.name,), float(stage.running))
        seconds.add_metric((stage.name,), facts["seconds"])
        if facts["eta_seconds"] is not None:
            left.add_metric((stage.name,), facts["eta_seconds"])
    yield from (done, total, waiting, running, seconds, left)


@contextmanager
def serve_metrics(host: str, port: int) -> Iterator[RunMetrics]:
    """Serve the metrics of a run at http://HOST:PORT/metrics inside the block.

    Raises:
        UsageError: The port is taken, or there is no such address here.
    """
    registry, metrics = CollectorRegistry(), RunMetrics()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"--metrics-port {port}: cannot listen on {host}:{port} ({reason}); choose another port or --metrics-host"
        ) from error
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
