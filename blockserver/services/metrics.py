"""What the blockserver counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STORE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class BlockMetrics:
    """One per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.uploaded = Counter(
            "shardbox_blocks_uploaded_total",
            "Blocks taken in, by what became of them: stored, claimed (another namespace's object), ready "
            "(the namespace had it), mismatch, failed.",
            ["outcome"],
            registry=registry,
        )
        self.uploaded_bytes = Counter(
            "shardbox_block_uploaded_bytes_total", "Bytes of blocks written to the store.", registry=registry
        )
        self.downloaded = Counter(
            "shardbox_blocks_downloaded_total",
            "Blocks asked for, by what became of them: sent, redirected, not_found, corrupt, unavailable, "
            "over_limit.",
            ["outcome"],
            registry=registry,
        )
        self.downloaded_bytes = Counter(
            "shardbox_block_downloaded_bytes_total",
            "Bytes of blocks read from the store and found right.",
            registry=registry,
        )
        self.damaged = Counter(
            "shardbox_block_objects_damaged_total",
            "Objects behind rows that were found missing or corrupt, by reads and by uploads.",
            ["kind"],
            registry=registry,
        )
        self.mended = Counter(
            "shardbox_block_objects_mended_total",
            "Objects that were missing or corrupt, written again by an upload of the same block.",
            registry=registry,
        )
        self.store_seconds = Histogram(
            "shardbox_block_store_duration_seconds",
            "Time of one operation of the block store, queueing for its threads included.",
            ["operation"],
            buckets=_STORE_BUCKETS_S,
            registry=registry,
        )
        for kind in ("missing", "corrupt"):
            self.damaged.labels(kind)  # an alert needs the 0 before the 1
        self.held_bytes = Gauge(
            "shardbox_block_held_bytes",
            "Memory set aside for blocks under way.",
            ["direction"],
            registry=registry,
        )
        self.free_bytes = Gauge(
            "shardbox_block_store_free_bytes",
            "Room left in the store, without its reserve, when it was last looked at.",
            registry=registry,
        )
