"""GET /readyz."""

from typing import Literal

import msgspec

from blockserver.services.metrics import BlockMetrics
from blockserver.storage.backend import Backend
from runtime.metrics import ServerMetrics
from runtime.openapi import endpoint
from runtime.web import BaseHandler, in_flight
from wire.errors import NotReady, UpstreamUnavailable


class Readiness(msgspec.Struct, frozen=True):
    """The store answers; `free_bytes` is None where a store has no bounds."""

    free_bytes: int | None
    status: Literal["ready"] = "ready"


class ReadyHandler(BaseHandler):
    """Ready while the store answers.

    A full one still serves reads, and what ails the metaservers is told by each request's own error.
    """

    route = "readyz"

    def initialize(  # type: ignore[override]
        self, *, metrics: ServerMetrics, backend: Backend, block_metrics: BlockMetrics
    ) -> None:
        """Wired by the route table."""
        super().initialize(metrics=metrics)
        self.backend = backend
        self.block_metrics = block_metrics

    @endpoint(None, Readiness, NotReady, UpstreamUnavailable)
    async def get(self) -> None:
        """Answer ready and how much room there is.

        Raises:
            NotReady, UpstreamUnavailable: stopping, or the store does not answer.
        """
        if in_flight(self.application).is_draining:
            raise NotReady("this server is stopping")
        free_bytes = await self.backend.find_free_bytes()
        if free_bytes is not None:
            self.block_metrics.free_bytes.set(free_bytes)
        self.answer(Readiness(free_bytes))
