"""Prometheus metrics that every server has. Labels are bounded: route names, statuses, codes."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30)


class ServerMetrics:
    """One registry per process, passed to whoever counts."""

    def __init__(self) -> None:
        # A second series for each, which Prometheus' text format has no use for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "shardbox_http_requests_total",
            "Requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self.refusals = Counter(
            "shardbox_http_refusals_total",
            "Requests refused for their size or number, or for want of room, by the error's code.",
            ["code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "shardbox_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def expose(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
