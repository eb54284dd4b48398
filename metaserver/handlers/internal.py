"""/internal/…: for the cluster's own servers, with a service credential."""

from typing import Any

from metaserver.services.blocks import BlockService
from metaserver.services.heads import HeadService
from runtime.web import InternalHandler
from wire.internal import (
    AskHeads,
    BeginResult,
    BeginUpload,
    FinishResult,
    FinishUpload,
    Heads,
    LocateBlocks,
    LocateResult,
)


class BlockRowsHandler(InternalHandler):
    """The base of the addresses about blocks."""

    def initialize(self, *, blocks: BlockService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._blocks = blocks


class BeginHandler(BlockRowsHandler):
    """POST /internal/blocks/begin"""

    route = "internal/blocks/begin"

    async def post(self) -> None:
        """Steps 1 and 2a of an upload."""
        request = self.packed_as(BeginUpload)
        begun = await self._blocks.begin(request)
        self.answer_packed(BeginResult(begun, self.owner_of(request.caller)))


class FinishHandler(BlockRowsHandler):
    """POST /internal/blocks/finish"""

    route = "internal/blocks/finish"

    async def post(self) -> None:
        """Steps 2b and 3 of an upload."""
        self.answer_packed(FinishResult(await self._blocks.finish(self.packed_as(FinishUpload))))


class LocateHandler(BlockRowsHandler):
    """POST /internal/blocks/locate"""

    route = "internal/blocks/locate"

    async def post(self) -> None:
        """Where a namespace's ready blocks are."""
        request = self.packed_as(LocateBlocks)
        places = await self._blocks.locate(request)
        self.answer_packed(LocateResult(places, self.owner_of(request.caller)))


class HeadsHandler(InternalHandler):
    """POST /internal/heads"""

    route = "internal/heads"

    def initialize(self, *, heads: HeadService, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._heads = heads

    async def post(self) -> None:
        """Heads of many namespaces."""
        self.answer_packed(Heads(await self._heads.get_heads(self.packed_as(AskHeads).ns_ids)))
