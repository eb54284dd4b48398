"""What Prometheus is told of shards: read from the router when it scrapes, so nothing is counted twice."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sharding.router import Router


class ShardCollector(Collector):
    """The map's version, and this process's view of each shard."""

    def __init__(self, router: Router):
        self._router = router

    def collect(self) -> Iterator[Metric]:
        """One family each; shards are few, so they may be a label."""
        version = GaugeMetricFamily("shardbox_map_version", "Version of the shard map in force; 0: none yet.")
        version.add_metric([], self._router.map.version if self._router.is_ready else 0)
        yield version
        is_up = GaugeMetricFamily(
            "shardbox_shard_up", "1: the shard answers; 0: it is out.", labels=["shard"]
        )
        connections = GaugeMetricFamily(
            "shardbox_shard_connections", "Connections to the shard: busy, idle.", labels=["shard", "state"]
        )
        waiting = GaugeMetricFamily(
            "shardbox_shard_waiting", "Requests that wait for a connection to the shard.", labels=["shard"]
        )
        for pool in self._router.pools():
            load = pool.load()
            is_up.add_metric([pool.shard], 0 if pool.is_out else 1)
            connections.add_metric([pool.shard, "busy"], load.busy)
            connections.add_metric([pool.shard, "idle"], load.idle)
            waiting.add_metric([pool.shard], load.waiting)
        yield from (is_up, connections, waiting)
