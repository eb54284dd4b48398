"""What the notifserver counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_ASK_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class NotifMetrics:
    """One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.polls = Gauge("shardbox_polls_waiting", "Long-polls held.", registry=registry)
        self.namespaces = Gauge(
            "shardbox_poll_namespaces", "Namespaces that a poll waits for.", registry=registry
        )
        self.unknown_heads = Gauge(
            "shardbox_poll_namespaces_unknown",
            "Namespaces that a poll waits for and whose head no metaserver has told yet.",
            registry=registry,
        )
        self.answers = Counter(
            "shardbox_polls_answered_total",
            "Polls that ended, by how: at_once, woken, timed_out, left, drained, refused.",
            ["outcome"],
            registry=registry,
        )
        self.hints = Counter(
            "shardbox_hints_received_total", "Hints taken from metaservers.", registry=registry
        )
        self.heads = Counter(
            "shardbox_heads_asked_total",
            "Answers of metaservers to questions for heads: known, unknown.",
            ["outcome"],
            registry=registry,
        )
        self.ask_seconds = Histogram(
            "shardbox_heads_ask_duration_seconds",
            "Time of one question to a metaserver for a batch of heads.",
            buckets=_ASK_BUCKETS_S,
            registry=registry,
        )
