"""The heads of many namespaces at once, for notification servers."""

import asyncio
from collections.abc import Sequence

import psycopg

from metaserver.storage.heads import list_heads
from sharding.router import Router
from wire.errors import NotFound, ShardboxError, TooManyEntries
from wire.ids import NsId
from wire.internal import MAX_HEADS

UNKNOWN = -1


class HeadService:
    """Heads, over any number of shards."""

    def __init__(self, router: Router):
        self._router = router

    async def get_heads(self, ns_ids: Sequence[NsId]) -> list[int]:
        """The heads in the order asked for; -1 where the owner does not answer now, 0 where nothing is.

        Raises:
            TooManyEntries: more than MAX_HEADS.
        """
        if len(ns_ids) > MAX_HEADS:
            raise TooManyEntries(f"at most {MAX_HEADS} namespaces at once")
        heads: dict[NsId, int] = {}
        groups: dict[str, dict[NsId, int]] = {}
        for ns_id in set(ns_ids):
            try:
                placement = self._router.placement(ns_id)
            except NotFound:
                heads[ns_id] = 0
            else:
                groups.setdefault(placement.shard, {})[ns_id] = placement.epoch
        found = await asyncio.gather(*(self._of_shard(shard, group) for shard, group in groups.items()))
        for part in found:
            heads |= part
        return [heads.get(ns_id, UNKNOWN) for ns_id in ns_ids]

    async def _of_shard(self, shard: str, epochs: dict[NsId, int]) -> dict[NsId, int]:
        try:
            async with self._router.pool(shard).connection() as conn:
                found = await list_heads(conn, epochs)
        except (ShardboxError, psycopg.Error):
            return {}
        if len(found) < len(epochs):
            await self._router.refresh()  # something of this has moved; the asker comes again
        return found
