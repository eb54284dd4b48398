"""/.well-known/shardbox and /readyz: what this cluster and this process are."""

from typing import Any

import msgspec

from runtime.openapi import endpoint
from runtime.web import BaseHandler, in_flight
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

    @endpoint(None, Discovery)
    def get(self) -> None:
        """Where the servers of each kind are."""
        self.answer(Discovery(cluster_id=self._router.map.cluster_id, **self._urls))


class Readiness(msgspec.Struct, frozen=True):
    """The version of the shard map, and the shards that do not answer."""

    map_version: int
    shards_out: list[str]


class ReadyHandler(BaseHandler):
    """GET /readyz: ready once a map is loaded.

    One dead shard does not take a metaserver out of rotation: it serves all the others.
    """

    route = "readyz"

    def initialize(self, *, router: Router, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._router = router

    @endpoint(None, Readiness, NotReady)
    def get(self) -> None:
        """The map's version, and which shards are out.

        Raises:
            NotReady: no map yet, or stopping.
        """
        if not self._router.is_ready:
            raise NotReady()
        if in_flight(self.application).is_draining:
            raise NotReady("this server is stopping")
        self.answer(Readiness(self._router.map.version, self._router.shards_out()))
