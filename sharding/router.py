"""From a namespace to the shard that owns it: the map in force, kept fresh, and a pool per shard."""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

import psycopg

from runtime.logs import get_log
from runtime.tasks import end
from sharding.directory import ClusterNotCreated, load_map
from sharding.pool import ShardPool, session_conninfo
from sharding.shardmap import Placement, ShardMap, ownership_keys, read_map_file, write_map_file
from wire.errors import NotFound, NotReady, ShardUnavailable
from wire.ids import NsId

_log = get_log(__name__)

POLL_INTERVAL_S = 5.0
"""How often a changed map is looked for unasked. Nothing depends on it: the fence refuses a stale map."""
DIRECTORY_TIMEOUT_S = 1.0
"""For one look into the directory, whose load is a handful of rows."""
MIN_REFRESH_GAP_S = 0.02
"""Requests that meet one fence refresh once, not each for itself."""


class Router:
    """The placements that this process believes in.

    Invariant: a wrong belief costs a retry, never a wrong answer: whoever acts on a placement proves
    ownership on the shard itself.
    """

    def __init__(self, directory_dsn: str, map_file: Path | None, application: str):
        self._directory_conninfo = session_conninfo(directory_dsn, application)
        self._map_file = map_file
        self._application = application
        self._map: ShardMap | None = None
        # What `fenced` and `gone` rows told about their successors, for when the directory is out of reach.
        self._learned: dict[NsId, Placement] = {}
        self._pools: dict[str, ShardPool] = {}
        self._refreshing: asyncio.Task[bool] | None = None
        self._refreshed_at = 0.0
        self._polling: asyncio.Task[None] | None = None
        self._apply_lock = asyncio.Lock()

    async def open(self) -> None:
        """Load the map from the directory, else the one kept on disk; go on trying if neither is there."""
        await self.refresh()
        if self._map is None and self._map_file is not None:
            kept = read_map_file(self._map_file)
            if kept is not None:
                _log.warning("map_from_file", version=kept.version)
                await self._apply(kept)
        self._polling = asyncio.create_task(self._poll_forever(), name="map poll")

    async def close(self) -> None:
        """Stop polling and close all connections."""
        await end(self._polling, self._refreshing)
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    @property
    def is_ready(self) -> bool:
        """Whether a map is loaded."""
        return self._map is not None

    @property
    def map(self) -> ShardMap:
        """The map in force.

        Raises:
            NotReady: none has been loaded yet.
        """
        if self._map is None:
            raise NotReady("no shard map is loaded yet")
        return self._map

    def shards_out(self) -> list[str]:
        """The shards that do not answer."""
        return sorted(name for name, pool in self._pools.items() if pool.is_out)

    def placement(self, ns_id: NsId) -> Placement:
        """Where a namespace is believed to live.

        Raises:
            NotFound: its slot is not in use.
            NotReady: no map is loaded.
        """
        placement = self.map.placement(ns_id)
        if placement is None:
            raise NotFound("there is no such namespace")
        return self._amend(ns_id, placement) if self._learned else placement

    def _amend(self, ns_id: NsId, placement: Placement) -> Placement:
        """The map's placement, or a newer one that was learned.

        What was learned of its slot says nothing about a namespace that is placed by itself, however high the
        slot's epoch. Where the map does not place it so, the higher epoch tells whether it left its slot or
        came home.
        """
        own, slot = ownership_keys(ns_id)
        keys = [own] if ns_id in self.map.overrides else [slot, own]
        learned = (self._learned[key] for key in keys if key in self._learned)
        return max([placement, *learned], key=_epoch_of)

    def pool(self, shard: str) -> ShardPool:
        """The connections to a shard.

        Raises:
            ShardUnavailable: a shard that the map does not know.
        """
        pool = self._pools.get(shard)
        if pool is None:
            raise ShardUnavailable("the shard of this namespace is not known yet")
        return pool

    def pools(self) -> list[ShardPool]:
        """The connections to every shard, by name."""
        return [self._pools[name] for name in sorted(self._pools)]

    def group_by_shard(self, ns_ids: Iterable[NsId]) -> dict[str, list[NsId]]:
        """Namespaces by the shard that they are believed to live on."""
        groups: dict[str, list[NsId]] = {}
        for ns_id in dict.fromkeys(ns_ids):
            groups.setdefault(self.placement(ns_id).shard, []).append(ns_id)
        return groups

    def learn(self, key: NsId, successor: Placement, ns_id: NsId | None = None) -> bool:
        """Believe what an ownership row names as its successor, if it is news; whether it is believed now.

        Forgotten once the map has caught up. Of a shard that the map does not know yet nothing is learned.

        Args:
            key: of the row.
            successor: what it names.
            ns_id: whom the shard told it for, if not for `key`. Where the map places it by itself, and there
                it goes by its slot's row, it has come home.
        """
        asked = key if ns_id is None else ns_id
        for follower in (key, asked):
            if successor.shard in self._pools and self.placement(follower).epoch < successor.epoch:
                self._learned[follower] = successor
        return self.placement(asked) == successor

    def forget(self, key: NsId) -> None:
        """Believe the map again, and what the shard that it names tells."""
        for learned in ownership_keys(key):
            self._learned.pop(learned, None)

    async def refresh(self) -> bool:
        """Look into the directory now, together with whoever else asks; whether it answered."""
        return await asyncio.shield(self.refresh_soon())

    def refresh_soon(self) -> asyncio.Task[bool]:
        """The same without waiting for it."""
        if self._refreshing is None or self._refreshing.done():
            wait_s = self._refreshed_at + MIN_REFRESH_GAP_S - asyncio.get_running_loop().time()
            self._refreshing = asyncio.create_task(self._refresh_once(max(0.0, wait_s)), name="map refresh")
        return self._refreshing

    async def _refresh_once(self, wait_s: float) -> bool:
        await asyncio.sleep(wait_s)
        try:
            async with asyncio.timeout(DIRECTORY_TIMEOUT_S):
                # A connection each time: the directory is asked seldom, and is to notice no idle processes.
                conn = await psycopg.AsyncConnection.connect(self._directory_conninfo, autocommit=True)
                async with conn:
                    found = await load_map(conn)
        except (psycopg.Error, OSError, TimeoutError, ClusterNotCreated) as error:
            _log.warning("directory_unreachable", error=f"{type(error).__name__}: {error}")
            return False
        finally:
            self._refreshed_at = asyncio.get_running_loop().time()
        await self._apply(found)
        return True

    async def _apply(self, found: ShardMap) -> None:
        async with self._apply_lock:
            if self._map == found or (self._map is not None and found.version < self._map.version):
                return
            for name, info in found.shards.items():
                old = self._pools.get(name)
                if old is None or old.dsn != info.dsn:
                    pool = ShardPool(name, info.dsn, self._application)
                    await pool.open()
                    self._pools[name] = pool
                    if old is not None:
                        await old.close()
            self._map = found
            for key, learned in list(self._learned.items()):
                known = found.placement(key)
                if known is not None and known.epoch >= learned.epoch:
                    del self._learned[key]
            for name in set(self._pools) - set(found.shards):
                await self._pools.pop(name).close()
            if self._map_file is not None:
                write_map_file(self._map_file, found)
            _log.info("map", version=found.version, shards=len(found.shards))

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL_S if self._map is not None else 0.2)
            with contextlib.suppress(NotReady):
                await self.refresh()


def _epoch_of(placement: Placement) -> int:
    return placement.epoch
