"""/.well-known/shardbox and /readyz: what this cluster and this process are."""

from typing import Any

from runtime.web import BaseHandler
from sharding.router import Router
from wire.api import Discovery
from wire.errors import NotReady


class DiscoveryHandler(BaseHandler):
    """GET /.well-known/shardbox"""

    route = "discovery"

    def initialize(self, *, router: Router, urls: dict[str, list[str]], **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._router = router
        self._urls = urls

    def get(self) -> None:
        """Where the servers of each kind are."""
        self.answer(Discovery(cluster_id=self._router.map.cluster_id, **self._urls))


class ReadyHandler(BaseHandler):
    """GET /readyz: ready once a map is loaded.

    One dead shard does not take a metaserver out of rotation: it serves all the others.
    """

    route = "readyz"

    def initialize(self, *, router: Router, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._router = router

    def get(self) -> None:
        """The map's version, and which shards are out.

        Raises:
            NotReady: no map yet.
        """
        if not self._router.is_ready:
            raise NotReady()
        self.finish({"map_version": self._router.map.version, "shards_out": self._router.shards_out()})
