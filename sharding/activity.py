"""What is busy: counted in memory for each namespace, and brought to the shards every few seconds.

A shard keeps sums that fade (`local.activity`): what was counted t seconds ago weighs exp(-t / FADE_S), so
that a sum, divided by FADE_S, is a rate per second over about the last two minutes. Such sums add up: those
of several processes in one row, and those of several shards for whoever reads them all. After a cutover what
the source knows fades as what the target counts grows.

Nothing here is exact or safe, and nothing may depend on it: a process that dies takes its last seconds along,
a shard that does not answer does without them, and the table is empty after a crash.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import LiteralString

import psycopg

from runtime.logs import get_log
from runtime.tasks import end
from sharding import directory
from sharding.pool import Connection
from sharding.router import Router
from wire.errors import ShardboxError
from wire.ids import NsId, Slot, slot_of, system_ns

_log = get_log(__name__)

FADE_S = 120
"""Long enough for a steady picture of ten flushes, short enough to show what has just become busy."""
FORGET_S = 10 * FADE_S
"""What is this old weighs nothing, and its rows are deleted."""
FLUSH_INTERVAL_S = 10.0
MAX_NAMESPACES = 4_096
"""Counted one by one between two flushes; beyond them a namespace counts for its slot alone."""
MAX_TOLD = 256
"""The busiest namespaces of each kind that a flush tells of; all others are in the totals of their slots."""


@dataclass(slots=True)
class Counts:
    """What was done for a namespace or a slot."""

    writes: int = 0
    """Transactions that were committed."""
    reads: int = 0
    """Reads that were answered."""
    content_bytes: int = 0
    """Sizes of the files whose new contents were committed: what clients brought, not what was written."""

    def add(self, other: "Counts") -> None:
        """Count this, too."""
        self.writes += other.writes
        self.reads += other.reads
        self.content_bytes += other.content_bytes


class ActivityCounter:
    """The counts of this process since the last flush."""

    def __init__(self) -> None:
        self._counts: dict[NsId, Counts] = {}

    def of(self, ns_id: NsId) -> Counts:
        """The counts to raise for a namespace: its own, or its slot's where too many are counted already."""
        counts = self._counts.get(ns_id)
        return self._begin(ns_id) if counts is None else counts

    def take(self) -> dict[NsId, Counts]:
        """All of them; counting begins anew."""
        taken, self._counts = self._counts, {}
        return taken

    def _begin(self, ns_id: NsId) -> Counts:
        key = ns_id if len(self._counts) < MAX_NAMESPACES else system_ns(slot_of(ns_id))
        return self._counts.setdefault(key, Counts())


def sum_up(counts: Mapping[NsId, Counts], alone: Collection[NsId]) -> dict[NsId, Counts]:
    """The counts by ownership key: each slot's total, by its system namespace, and the busiest namespaces.

    Args:
        counts: by namespace.
        alone: namespaces that are placed by themselves: those are all told of, and in no slot's total.
    """
    totals: dict[NsId, Counts] = {}
    for ns_id, counted in counts.items():
        totals.setdefault(ns_id if ns_id in alone else system_ns(slot_of(ns_id)), Counts()).add(counted)
    # The rows of a system namespace move with their slot only: they are no namespace of their own.
    single = [(ns_id, counted) for ns_id, counted in counts.items() if ns_id not in totals]
    for kind in (_writes_of, _reads_of, _bytes_of):
        totals.update(item for item in nlargest(MAX_TOLD, single, key=kind) if kind(item))
    return totals


def _writes_of(item: tuple[NsId, Counts]) -> int:
    return item[1].writes


def _reads_of(item: tuple[NsId, Counts]) -> int:
    return item[1].reads


def _bytes_of(item: tuple[NsId, Counts]) -> int:
    return item[1].content_bytes


class ActivityReporter:
    """Brings a process's counts to the shards, beside its requests."""

    def __init__(self, counter: ActivityCounter, router: Router):
        self._counter = counter
        self._router = router
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="activity")

    async def stop(self) -> None:
        """End; what was counted last is lost."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            try:
                await self.flush()
            except Exception:
                _log.exception("activity_lost")

    async def flush(self) -> None:
        """Add what was counted to what the shards know; what a shard does not take is lost."""
        taken = self._counter.take()
        if not taken:
            return
        # So many take 10 ms: in a thread, so that requests come between.
        totals = await asyncio.to_thread(sum_up, taken, self._router.map.overrides.keys())
        groups = self._router.group_by_shard(totals)
        await asyncio.gather(
            *(self._tell(shard, {key: totals[key] for key in keys}) for shard, keys in groups.items())
        )

    async def _tell(self, shard: str, totals: Mapping[NsId, Counts]) -> None:
        try:
            async with self._router.pool(shard).connection() as conn:
                await add_activity(conn, totals)
        except (ShardboxError, psycopg.Error) as error:
            _log.info("activity_lost", shard=shard, error=f"{type(error).__name__}: {error}")


# Rows are taken in the order of their keys, and forgotten only where nobody is at them, so that processes
# wait for one another and never in a ring. The least value is not 0: PostgreSQL refuses what underflows.
_FORGET: LiteralString = (
    "DELETE FROM local.activity WHERE key IN (SELECT key FROM local.activity"
    " WHERE at < now() - make_interval(secs => %s) FOR UPDATE SKIP LOCKED)"
)
_ADD: LiteralString = """
INSERT INTO local.activity AS a (key, at, writes, reads, content_bytes)
SELECT key, now(), writes, reads, content_bytes
  FROM unnest(%s::bigint[], %s::float8[], %s::float8[], %s::float8[]) c(key, writes, reads, content_bytes)
 ORDER BY key
ON CONFLICT (key) DO UPDATE SET (at, writes, reads, content_bytes) = (
SELECT greatest(a.at, excluded.at), greatest(a.writes, 1e-9) * weight + excluded.writes,
       greatest(a.reads, 1e-9) * weight + excluded.reads,
       greatest(a.content_bytes, 1e-9) * weight + excluded.content_bytes
  FROM (SELECT least(greatest(extract(epoch FROM excluded.at - a.at)::float8, 0), %s) AS age) aged,
       LATERAL (SELECT exp(-age / %s) AS weight) weighed)
"""
_READ: LiteralString = """
SELECT key, writes * weight, reads * weight, content_bytes * weight
  FROM (SELECT key, writes, reads, content_bytes,
               least(greatest(extract(epoch FROM now() - at)::float8, 0), %s) AS age
          FROM local.activity) aged,
       LATERAL (SELECT exp(-age / %s) / %s AS weight) weighed
 WHERE age < %s
"""


async def add_activity(conn: Connection, totals: Mapping[NsId, Counts]) -> None:
    """Add counts to what a shard knows, and forget what is old."""
    counted = list(totals.values())
    columns: Sequence[list[int]] = (
        list(totals),
        [counts.writes for counts in counted],
        [counts.reads for counts in counted],
        [counts.content_bytes for counts in counted],
    )
    await conn.execute(_FORGET, [FORGET_S])
    await conn.execute(_ADD, [*columns, FORGET_S, FADE_S])


@dataclass(frozen=True, slots=True)
class Rates:
    """What is done per second, over about the last two minutes; the kinds are those of `Counts`."""

    writes_per_s: float = 0.0
    reads_per_s: float = 0.0
    bytes_per_s: float = 0.0

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(
            self.writes_per_s + other.writes_per_s,
            self.reads_per_s + other.reads_per_s,
            self.bytes_per_s + other.bytes_per_s,
        )


@dataclass(frozen=True, slots=True)
class Activity:
    """What one shard knows of; the whole is the sum over all shards."""

    slots: dict[Slot, Rates]
    """All that lives with its slot."""
    namespaces: dict[NsId, Rates]
    """The busiest ones, a little less than what is done there; and all that are placed by themselves."""


def read_activity(conn: directory.Connection) -> Activity:
    """What is done on a shard."""
    activity = Activity({}, {})
    for key, *rates in conn.execute(_READ, [FORGET_S, FADE_S, FADE_S, FORGET_S]):
        if key == system_ns(slot_of(key)):
            activity.slots[slot_of(key)] = Rates(*rates)
        else:
            activity.namespaces[NsId(key)] = Rates(*rates)
    return activity
