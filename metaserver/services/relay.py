"""The outbox relay: one metaserver per shard, by a lease, tells what the hints after commit did not.

It reads without locks, publishes, then deletes under the slots' locks what all notification servers took. A
hint may so come twice, never not at all. The same holder has the shard's chores done, a piece at each sweep.
"""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Protocol

import psycopg

from metaserver.services.hints import Publisher
from metaserver.storage import outbox as rows
from runtime.logs import get_log
from runtime.tasks import end
from sharding.tx import Transactions, Tx, TxKind
from wire import faults
from wire.errors import ShardboxError
from wire.ids import Jid, NsId
from wire.internal import MAX_HINTS

_log = get_log(__name__)

SWEEP_INTERVAL_S = 0.5
"""What was missed is sent within a second."""
LEASE_S = 2.0
"""A dead holder is succeeded within this time; a live one renews four times in it."""

faults.declare("metaserver.relay.read", "metaserver.relay.published", "metaserver.relay.deleted")


class Chore(Protocol):
    """Something that one process per shard does now and then."""

    async def step(self, shard: str) -> bool:
        """Do a bounded piece of it, or nothing if it is not time; whether more is to be done at once."""
        ...


class Relay:
    """Sweeps the outboxes of all shards that it gets the lease of, and does their chores."""

    def __init__(self, transactions: Transactions, publisher: Publisher, chores: Sequence[Chore] = ()):
        self._tx = transactions
        self._publisher = publisher
        self._chores = chores
        self._holder = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._sweeping: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin sweeping."""
        self._task = asyncio.create_task(self._run(), name="relay")

    async def stop(self) -> None:
        """End."""
        await end(self._task, *self._sweeping.values())

    async def _run(self) -> None:
        """A sweep of each shard at a time, each on its own: a shard that hangs delays no other's."""
        while True:
            if self._tx.router.is_ready:
                for shard in self._tx.router.map.shards:
                    if shard not in self._sweeping or self._sweeping[shard].done():
                        self._sweeping[shard] = asyncio.create_task(self._sweep_guarded(shard))
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _sweep_guarded(self, shard: str) -> None:
        try:
            await self.sweep(shard)
        except (ShardboxError, psycopg.Error) as error:
            _log.info("sweep_failed", shard=shard, error=f"{type(error).__name__}: {error}")
        except Exception:
            # The relay must outlive a surprise: without it, wake-ups would be lost.
            _log.exception("sweep_failed", shard=shard)

    async def sweep(self, shard: str) -> int:
        """Tell and forget what waits on one shard, if the lease is ours; how many namespaces that were."""
        pool = self._tx.router.pool(shard)
        async with pool.connection() as conn:
            if not await rows.take_lease(conn, "relay", self._holder, LEASE_S):
                return 0
        told, after = 0, NsId(-1)
        while True:
            async with pool.connection() as conn:
                pending = await rows.list_pending(conn, after, MAX_HINTS)
            if not pending:
                break
            faults.fault_point("metaserver.relay.read")
            if await self._publisher.publish(pending):
                faults.fault_point("metaserver.relay.published")
                await self._forget(pending)
                faults.fault_point("metaserver.relay.deleted")
            # What one server did not take stays, and does not keep the next page from the others.
            told, after = told + len(pending), pending[-1][0]
        for chore in self._chores:
            await chore.step(shard)
        return told

    async def _forget(self, taken: Sequence[tuple[NsId, Jid]]) -> None:
        async def delete(tx: Tx) -> None:
            await rows.delete_taken(tx.conn, taken)

        await self._tx.run_tx([ns_id for ns_id, _ in taken], "forget_outbox", delete, kind=TxKind.FENCE_ONLY)
